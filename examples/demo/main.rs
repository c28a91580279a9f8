//! The demo: an order book writes for ten seconds while its sequencer is killed twice and the book
//! once, each time with commits on the way; then the database is rebuilt from the log and compared.
//!
//! Run it with `cargo xtask demo`.

mod compare;
mod interrupt;
mod live;
mod process;
mod report;

use std::{
    error::Error,
    fmt,
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use crate::{
    compare::{Sides, Table, compare},
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
/// What a shell says of a program that SIGINT ended.
const INTERRUPTED: u8 = 130;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Sequencer,
    Book,
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sequencer => "sequencer",
            Self::Book => "order book",
        })
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        // The signal may have ended a child first, and that is then the error.
        Err(_) if interrupt::came() => {
            eprintln!("\ndemo: interrupted");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            eprintln!("\ndemo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let began = Instant::now();
    interrupt::watch()?;
    let dir = tempfile::tempdir()?;
    let sides = Sides { database: dir.path().join("book.db"), log: dir.path().join("log") };

    println!("An order book, and a sequencer in a process of its own.\n");
    let mut sequencer = Sequencer::start(&sides.log, None)?;
    let mut book = Book::start(&sides.database, &sequencer.url, 1)?;
    let mut live = Live::new();

    for ((when, victim), seed) in KILLS.into_iter().zip(2..) {
        live.show_until(&book, began + when)?;
        let line = book.wait_for_unacknowledged()?;
        // Only what was committed before the kill counts: the killed book commits nothing more,
        // but one whose sequencer was killed goes on.
        let committed = match victim {
            Victim::Sequencer => {
                let committed = sides.version()?;
                sequencer.kill()?;
                committed
            }
            Victim::Book => {
                book.kill()?;
                sides.version()?
            }
        };
        let on_the_way = committed - sides.stored_version()?;
        live.say(&format!(
            "✗ {victim} killed (SIGKILL) after {:.1} s: {on_the_way} transactions on the way, \
             {} unacknowledged by the order book's last line",
            began.elapsed().as_secs_f64(),
            line.unacknowledged,
        ));
        if on_the_way <= 0 {
            return Err("that kill hit no transaction on the way: it proves nothing".into());
        }
        match victim {
            Victim::Sequencer => {
                live.show_until(&book, Instant::now() + AWAY)?;
                sequencer = Sequencer::start(&sides.log, Some(&sequencer.url))?;
            }
            Victim::Book => book = Book::start(&sides.database, &sequencer.url, seed)?,
        }
        live.say(&format!("✓ {victim} back"));
    }
    live.show_until(&book, began + WRITING)?;
    live.say("order book told to stop: it pushes what is left");
    let last = book.stop()?;
    if last.unacknowledged > 0 || last.acknowledged() == 0 {
        return Err(format!("not everything is acknowledged: {last:?}").into());
    }

    let replica = dir.path().join("replica.db");
    println!("\n$ synddb restore --data LOG replica.db");
    let restore = ["restore".as_ref(), "--data".as_ref()];
    process::synddb(&[&restore[..], &[sides.log.as_os_str(), replica.as_os_str()]].concat())?;
    check(&sides.database, &replica)?;
    println!(
        "\nEvery row of every table is equal: {} transactions, sequencer killed twice and order book \
         once, {:.1} s.",
        sides.version()?,
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Prints the tables of both databases; an error where anything differs.
fn check(source: &Path, replica: &Path) -> Result<()> {
    let (tables, differences) = compare(source, replica)?;
    println!("\n{:<16} {:>8} {:>8}  equal", "table", "source", "replica");
    for Table { name, source_rows, replica_rows, equal } in &tables {
        let replica_rows = replica_rows.map_or("none".into(), |rows| rows.to_string());
        let equal = if *equal { "yes" } else { "NO" };
        println!("{name:<16} {source_rows:>8} {replica_rows:>8}  {equal}");
    }
    for difference in &differences {
        println!("differs: {difference}");
    }
    if differences.is_empty() { Ok(()) } else { Err("the replica differs from the source".into()) }
}

/// Sleeps for a moment, in loops that look at something else's progress.
fn pause() -> Result<()> {
    thread::sleep(Duration::from_millis(1));
    interrupt::check()
}
