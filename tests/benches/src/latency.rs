//! How long it takes from a commit to its receipt.

use std::time::{Duration, Instant};

use rusqlite::Connection;
use synddb_client::SyndDB;

use crate::{
    Result, Scale,
    measure::percentile,
    server::Remote,
    table::{Row, Table},
    throughput::database,
};

const ROUNDS: usize = 5;

pub(crate) fn run(scale: Scale) -> Result<Table> {
    let each = scale.pick(200, 40);
    let dir = tempfile::tempdir()?;
    let sequencer = Remote::sequencer(&dir.path().join("log"), None)?;
    let floor = Remote::floor(dir.path())?;

    let synddb = SyndDB::open(dir.path().join("ours.db"), &sequencer.url)?;
    database(synddb.connection())?;
    synddb.push()?;
    let plain = Connection::open(dir.path().join("plain.db"))?;
    plain.pragma_update(None, "journal_mode", "WAL")?;
    database(&plain)?;
    let agent = ureq::Agent::new_with_defaults();
    // What a single-row commit takes on the wire, about.
    let body = [7; 150];

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for _ in 0..each {
            let start = Instant::now();
            insert(synddb.connection())?;
            synddb.push()?;
            ours.push(millis(start.elapsed()));
        }
        for _ in 0..each {
            let start = Instant::now();
            insert(&plain)?;
            agent.post(&floor.url).send(&body)?;
            theirs.push(millis(start.elapsed()));
        }
    }
    let row = |what, share, ours: &mut [f64], theirs: &mut [f64]| {
        Row::new(what, "ms", percentile(ours, share), percentile(theirs, share))
    };
    Ok(Table {
        setting: format!("{} single-row commits, each followed by push()", ROUNDS * each),
        floor: "the same commit, then one HTTP POST that is written to a file and synced; ours syncs \
                twice, in the outbox and in the log",
        rows: vec![
            row("commit to receipt, p50", 0.5, &mut ours, &mut theirs),
            row("commit to receipt, p99", 0.99, &mut ours, &mut theirs),
        ],
    })
}

fn insert(connection: &Connection) -> Result<()> {
    connection
        .prepare_cached("INSERT INTO trades(account, amount, note) VALUES (7, 3.5, 'a note')")?
        .execute([])?;
    Ok(())
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
