//! What capture costs the application's thread: processor time, allocations, attaching.

use std::{path::Path, time::Instant};

use rusqlite::{Connection, session::Session};
use synddb_client::{Config, Engine, SyndDB};

use crate::{
    Result, Scale,
    allocations::allocations,
    measure::{median, thread_cpu},
    server::Remote,
    table::{Row, Table},
};

const ROUNDS: usize = 7;
const TABLES: usize = 1000;

#[derive(Debug, Clone, Copy)]
enum Work {
    SingleRows,
    HundredRows,
    Updates,
}

#[derive(Debug, Clone, Copy)]
enum Variant {
    Plain,
    /// The session extension alone: a session for each transaction, its changeset thrown away.
    BareSession,
    Attached(Engine),
}

pub(crate) fn run(scale: Scale) -> Result<Table> {
    use Variant::{Attached, BareSession, Plain};

    let commits = scale.pick(20_000, 2_000);
    let dir = tempfile::tempdir()?;
    let sequencer = Remote::sequencer(&dir.path().join("log"), None)?;
    let variants = [Plain, Attached(Engine::Preupdate), Attached(Engine::Session), BareSession];
    let mut rows = Vec::new();
    for (work, what) in [
        (Work::SingleRows, "single-row commits"),
        (Work::HundredRows, "commits of 100 rows"),
        (Work::Updates, "single-row updates"),
    ] {
        let commits = if matches!(work, Work::HundredRows) { commits / 20 } else { commits };
        let mut figures = [const { Vec::new() }; 4];
        for round in 0..ROUNDS {
            for (variant, figures) in variants.into_iter().zip(&mut figures) {
                let name = format!("{what}-{round}-{variant:?}.db");
                figures.push(used(variant, work, commits, &dir.path().join(name), &sequencer.url)?);
            }
        }
        let [plain, preupdate, session, bare] = figures.map(|rounds: Vec<(f64, f64)>| {
            let (cpu, allocated): (Vec<_>, Vec<_>) = rounds.into_iter().unzip();
            (median(cpu), median(allocated))
        });
        let more = |with: (f64, f64)| with.1 - plain.1;
        rows.push(Row::new(format!("{what}, preupdate engine"), "µs", preupdate.0, plain.0));
        rows.push(Row::new(format!("{what}, session engine"), "µs", session.0, plain.0));
        rows.push(Row::new(format!("{what}, bare session"), "µs", bare.0, plain.0));
        rows.push(Row::alone("  preupdate engine: allocations more", "a commit", more(preupdate)));
    }
    rows.extend(attaching(dir.path(), &sequencer.url)?);
    Ok(Table {
        setting: format!(
            "processor time of the application's thread a commit; {commits} commits, WAL, \
             synchronous=NORMAL, {ROUNDS} rounds"
        ),
        floor: "plain SQLite, nothing attached; for attaching, opening the database and reading its \
                schema",
        rows,
    })
}

/// Microseconds of processor time and allocations, a commit.
fn used(
    variant: Variant,
    work: Work,
    commits: usize,
    path: &Path,
    url: &str,
) -> Result<(f64, f64)> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.execute_batch(
        "CREATE TABLE trades(id INTEGER PRIMARY KEY, account INTEGER, amount INTEGER, note TEXT);
         WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 50000)
         INSERT INTO trades SELECT i, i % 97, i, 'note for the trade ' || i FROM c;
         PRAGMA wal_checkpoint(TRUNCATE)",
    )?;
    let Variant::Attached(engine) = variant else {
        return measured(&connection, work, commits, matches!(variant, Variant::BareSession));
    };
    let config = Config { sequencer_url: url.into(), engine, ..Default::default() };
    let synddb = SyndDB::own(connection, config)?;
    synddb.push()?;
    let used = measured(synddb.connection(), work, commits, false)?;
    synddb.push()?;
    Ok(used)
}

fn measured(
    connection: &Connection,
    work: Work,
    commits: usize,
    sessions: bool,
) -> Result<(f64, f64)> {
    let mut insert = connection.prepare(
        "INSERT INTO trades VALUES (?1, ?1 % 97, ?1 * 3, 'note for the trade, forty bytes or so')",
    )?;
    let mut update = connection.prepare("UPDATE trades SET amount = amount + 1 WHERE id = ?")?;
    let (mut begin, mut end) = (connection.prepare("BEGIN")?, connection.prepare("COMMIT")?);
    let mut changeset = Vec::new();
    let mut id = 1_000_000i64;
    let mut work = || -> Result<()> {
        let mut session = sessions.then(|| Session::new(connection)).transpose()?;
        if let Some(session) = &mut session {
            session.attach(None::<&str>)?;
        }
        id += 1;
        match work {
            Work::SingleRows => changed(insert.execute([id])?)?,
            // Scattered, and each only once in a while.
            Work::Updates => changed(update.execute([id * 7919 % 50_000 + 1])?)?,
            Work::HundredRows => {
                begin.execute([])?;
                for row in 0..100 {
                    insert.execute([id * 100 + row])?;
                }
                end.execute([])?;
            }
        }
        if let Some(session) = &mut session {
            changeset.clear();
            session.changeset_strm(&mut changeset)?;
        }
        Ok(())
    };
    for _ in 0..commits / 10 {
        work()?;
    }
    let (cpu, allocated) = (thread_cpu(), allocations());
    for _ in 0..commits {
        work()?;
    }
    let (cpu, allocated) = (thread_cpu() - cpu, allocations() - allocated);
    Ok((cpu.as_secs_f64() * 1e6 / commits as f64, allocated as f64 / commits as f64))
}

fn changed(rows: usize) -> Result<()> {
    if rows == 1 { Ok(()) } else { Err(format!("{rows} rows changed").into()) }
}

/// Attaching to a database of many tables.
fn attaching(dir: &Path, url: &str) -> Result<Vec<Row>> {
    let path = dir.join("many.db");
    let connection = Connection::open(&path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.execute_batch("BEGIN")?;
    for number in 0..TABLES {
        connection.execute_batch(&format!(
            "CREATE TABLE t{number}(id INTEGER PRIMARY KEY, a TEXT NOT NULL, b REAL, c);
             CREATE INDEX i{number} ON t{number}(a)"
        ))?;
    }
    connection.execute_batch("COMMIT")?;
    connection.close().map_err(|(_, error)| error)?;
    let mut figures = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        let engines = [None, Some(Engine::Preupdate), Some(Engine::Session)];
        for (engine, figures) in engines.into_iter().zip(&mut figures) {
            let start = Instant::now();
            let connection = Connection::open(&path)?;
            connection.prepare("SELECT * FROM t0")?;
            let opened = start.elapsed();
            let Some(engine) = engine else {
                figures.push(opened.as_secs_f64() * 1000.0);
                continue;
            };
            let config = Config { sequencer_url: url.into(), engine, ..Default::default() };
            let start = Instant::now();
            let synddb = SyndDB::own(connection, config)?;
            figures.push(start.elapsed().as_secs_f64() * 1000.0);
            let _ = synddb.shutdown()?;
        }
    }
    let [plain, preupdate, session] = figures.map(median);
    let what = |engine: &str| format!("attaching to {TABLES} tables, {engine} engine");
    Ok(vec![
        Row::new(what("preupdate"), "ms", preupdate, plain),
        Row::new(what("session"), "ms", session, plain),
    ])
}
