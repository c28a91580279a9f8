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

    let attach = |name: &str, url: &str| -> Result<_> {
        let synddb = SyndDB::open(dir.path().join(name), url)?;
        database(synddb.connection())?;
        synddb.push()?;
        Ok(synddb)
    };
    let http = attach("http.db", &sequencer.url)?;
    let unix = attach("unix.db", &sequencer.socket_url)?;
    let plain = Connection::open(dir.path().join("plain.db"))?;
    plain.pragma_update(None, "journal_mode", "WAL")?;
    database(&plain)?;
    let agent = ureq::Agent::new_with_defaults();
    // What a single-row commit takes on the wire, about.
    let body = [7; 150];

    let (mut over_http, mut over_unix, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (synddb, times) in [(&http, &mut over_http), (&unix, &mut over_unix)] {
            for _ in 0..each {
                let start = Instant::now();
                insert(synddb.connection())?;
                synddb.push()?;
                times.push(millis(start.elapsed()));
            }
        }
        for _ in 0..each {
            let start = Instant::now();
            insert(&plain)?;
            agent.post(&floor.url).send(&body)?;
            theirs.push(millis(start.elapsed()));
        }
    }
    let mut row = |what, share, ours: &mut [f64]| {
        Row::new(what, "ms", percentile(ours, share), percentile(&mut theirs, share))
    };
    Ok(Table {
        setting: format!("{} single-row commits, each followed by push()", ROUNDS * each),
        floor: "the same commit, then one HTTP POST that is written to a file and synced; ours syncs \
                twice, in the outbox and in the log",
        rows: vec![
            row("commit to receipt over HTTP, p50", 0.5, &mut over_http),
            row("commit to receipt over HTTP, p99", 0.99, &mut over_http),
            row("commit to receipt over a Unix socket, p50", 0.5, &mut over_unix),
            row("commit to receipt over a Unix socket, p99", 0.99, &mut over_unix),
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
