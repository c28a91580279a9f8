//! Sustained single-row commits with nothing lost, and what they cost the application's thread.

use std::{ops::ControlFlow, path::Path, time::Instant};

use rusqlite::Connection;
use synddb_client::{Config, Engine, SyndDB};
use synddb_sequencer::{replica::Restore, store::SqliteStore};

use crate::{
    Result, Scale,
    measure::{median, thread_cpu},
    server::Remote,
    table::{Row, Table},
};

const ROUNDS: usize = 5;

pub(crate) fn run(scale: Scale) -> Result<Table> {
    let commits = scale.pick(20_000, 1_000);
    let mut figures = [const { Vec::new() }; 3];
    for round in 0..ROUNDS {
        for (variant, figures) in
            [None, Some(Engine::Session), Some(Engine::Preupdate)].into_iter().zip(&mut figures)
        {
            figures.push(round_of(variant, commits, round as u64)?);
        }
    }
    let [plain, session, preupdate] = figures.map(|rounds: Vec<Round>| {
        let of = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
        (of(|round| round.rate), of(|round| round.stored_rate), of(|round| round.cpu_us))
    });
    Ok(Table {
        setting: format!("{commits} single-row commits, WAL, synchronous=NORMAL, {ROUNDS} rounds"),
        floor: "plain SQLite on the same thread, nothing attached",
        rows: vec![
            Row::new("session engine: commits/s", "higher is better", session.0, plain.0),
            Row::new("the same until all is stored elsewhere", "commits/s", session.1, plain.0),
            Row::new("session engine: CPU of the app's thread", "µs/commit", session.2, plain.2),
            Row::new("preupdate engine: commits/s", "higher is better", preupdate.0, plain.0),
            Row::new("the same until all is stored elsewhere", "commits/s", preupdate.1, plain.0),
            Row::new("preupdate engine: CPU of the thread", "µs/commit", preupdate.2, plain.2),
        ],
    })
}

struct Round {
    /// Commits a second on the application's thread.
    rate: f64,
    /// The same with the time until the receipt.
    stored_rate: f64,
    cpu_us: f64,
}

fn round_of(variant: Option<Engine>, commits: usize, seed: u64) -> Result<Round> {
    let dir = tempfile::tempdir()?;
    let connection = Connection::open(dir.path().join("app.db"))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    database(&connection)?;
    let Some(engine) = variant else {
        let (seconds, cpu_us) = write(&connection, commits, seed)?;
        let rate = commits as f64 / seconds;
        return Ok(Round { rate, stored_rate: rate, cpu_us });
    };
    let log = dir.path().join("log");
    let sequencer = Remote::sequencer(&log, None)?;
    let sequencer_url = sequencer.url.clone();
    let config = Config { sequencer_url, engine, ..Default::default() };
    let synddb = SyndDB::own(connection, config)?;
    synddb.push()?;
    let start = Instant::now();
    let (seconds, cpu_us) = write(synddb.connection(), commits, seed)?;
    let receipt = synddb.push()?;
    let all = start.elapsed().as_secs_f64();
    let stored = rows_in_the_log(&log, &receipt, dir.path())?;
    if stored != commits as i64 {
        return Err(format!("{stored} of {commits} commits are in the log").into());
    }
    let commits = commits as f64;
    Ok(Round { rate: commits / seconds, stored_rate: commits / all, cpu_us })
}

/// The table that the benches write to.
pub(crate) fn database(connection: &Connection) -> Result<()> {
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.execute_batch(
        "CREATE TABLE trades(id INTEGER PRIMARY KEY, account INTEGER, amount REAL, note)",
    )?;
    Ok(())
}

/// Seconds, and microseconds of processor time per commit.
pub(crate) fn write(connection: &Connection, commits: usize, seed: u64) -> Result<(f64, f64)> {
    let mut insert = connection
        .prepare("INSERT INTO trades(account, amount, note) VALUES (?1, ?1 * 0.5, ?2)")?;
    let (start, cpu) = (Instant::now(), thread_cpu());
    for number in 0..commits as u64 {
        insert.execute(rusqlite::params![
            (number * 31 + seed) as i64 % 1000,
            "a note of some thirty bytes' length"
        ])?;
    }
    let cpu_us = (thread_cpu() - cpu).as_secs_f64() * 1e6 / commits as f64;
    Ok((start.elapsed().as_secs_f64(), cpu_us))
}

/// Restores, and counts what is there.
pub(crate) fn rows_in_the_log(
    log: &Path,
    receipt: &synddb_client::Receipt,
    dir: &Path,
) -> Result<i64> {
    let store = SqliteStore::open_read_only(log)?;
    let out = dir.join("restored.db");
    Restore::new(&store, receipt.stream)
        .replace(true)
        .check(false)
        .run(&out, |_| ControlFlow::Continue(()))?;
    let rows = Connection::open(out)?.query_row("SELECT count(*) FROM trades", [], |r| r.get(0))?;
    Ok(rows)
}
