//! The demo: an order book writes for ten seconds while its sequencer is killed twice and the book
//! once, each time with commits on the way; then the database is rebuilt from the log and compared.
//!
//! Run it with `cargo xtask demo`.

mod compare;
mod live;
mod process;

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    compare::Sides,
    live::Live,
    process::{Book, Sequencer},
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How long the book writes.
const WRITING: Duration = Duration::from_secs(10);
/// When what is killed, from the start.
const KILLS: [(Duration, Victim); 3] = [
    (Duration::from_millis(2000), Victim::Sequencer),
    (Duration::from_millis(4500), Victim::Book),
    (Duration::from_millis(7000), Victim::Sequencer),
];
/// How long a killed sequencer stays away.
const AWAY: Duration = Duration::from_millis(700);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Sequencer,
    Book,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let began = Instant::now();
    let dir = tempfile::tempdir()?;
    let sides = Sides { database: dir.path().join("book.db"), log: dir.path().join("log") };

    println!("An order book, and a sequencer in a process of its own.\n");
    let mut sequencer = Sequencer::start(&sides.log, None)?;
    let mut book = Book::start(&sides.database, &sequencer.url, 1)?;
    let mut live = Live::new();

    for (number, (when, victim)) in KILLS.into_iter().enumerate() {
        live.show_until(&book, began + when);
        book.wait_for_unacknowledged()?;
        let unstored = match victim {
            Victim::Sequencer => {
                sequencer.kill()?;
                let unstored = sides.unstored()?;
                live.say(&format!(
                    "✗ sequencer killed (SIGKILL), {unstored} transactions were not stored yet"
                ));
                live.show_until(&book, Instant::now() + AWAY);
                sequencer = Sequencer::start(&sides.log, Some(&sequencer.url))?;
                live.say("✓ sequencer back");
                unstored
            }
            Victim::Book => {
                book.kill()?;
                let unstored = sides.unstored()?;
                live.say(&format!(
                    "✗ order book killed (SIGKILL), {unstored} transactions were not stored yet"
                ));
                book = Book::start(&sides.database, &sequencer.url, number as u64 + 2)?;
                live.say("✓ order book back");
                unstored
            }
        };
        if unstored == 0 {
            return Err("a kill hit no transaction on the way: it proves nothing".into());
        }
    }
    live.show_until(&book, began + WRITING);
    live.say("order book told to stop: it pushes what is left");
    let last = book.stop()?;
    live.end();
    if last.unacknowledged > 0 {
        return Err(format!("{} commits are not acknowledged", last.unacknowledged).into());
    }

    let replica = dir.path().join("replica.db");
    restore(&sides.log, &replica)?;
    let tables = compare::tables(&sides.database, &replica)?;
    println!("\n{:<12} {:>10} {:>10}", "table", "source", "replica");
    for table in &tables {
        println!("{:<12} {:>10} {:>10}", table.name, table.source_rows, table.replica_rows);
    }
    let differences = compare::differences(&sides.database, &replica)?;
    for difference in &differences {
        println!("differs: {difference}");
    }
    sequencer.stop()?;
    if !differences.is_empty() {
        return Err("the replica is not equal to the source".into());
    }
    println!(
        "\nEvery row of every table is equal: {} transactions, sequencer killed twice and order book \
         once, {:.1} s.",
        compare::version(&sides.database)?,
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

/// By the command that an operator would use.
fn restore(log: &Path, replica: &Path) -> Result<()> {
    println!("\n$ synddb restore --data LOG replica.db");
    let status = Command::new(program("synddb")?)
        .args(["restore".as_ref(), "--data".as_ref(), log, replica])
        .stdin(Stdio::null())
        .status()?;
    if status.success() { Ok(()) } else { Err(format!("synddb restore: {status}").into()) }
}

/// A program that was built together with this one.
fn program(name: &str) -> Result<PathBuf> {
    let path =
        std::env::current_exe()?.with_file_name(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    if path.exists() {
        Ok(path)
    } else {
        Err(format!("{} is not built: run `cargo xtask demo`", path.display()).into())
    }
}

/// Sleeps for a moment, in loops that look at something else's progress.
fn pause() {
    thread::sleep(Duration::from_millis(1));
}
