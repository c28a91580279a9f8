//! A long outage: what grows, and how long it takes to send what queued.

use std::time::{Duration, Instant};

use synddb_client::{Config, SyndDB};

use crate::{
    Result, Scale,
    measure::resident_mib,
    server::Remote,
    table::{Row, Table},
    throughput::{database, rows_in_the_log, write},
};

pub(crate) fn run(scale: Scale) -> Result<Table> {
    let commits = scale.pick(200_000, 5_000);
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("log");
    let sequencer = Remote::sequencer(&log, None)?;
    let (sequencer_url, address) = (sequencer.url.clone(), sequencer.address().to_owned());
    let config = Config { sequencer_url, ..Default::default() };
    let limit = config.max_memory_bytes as f64 / f64::from(1 << 20);
    let synddb = SyndDB::open_with_config(dir.path().join("app.db"), config)?;
    database(synddb.connection())?;
    synddb.push()?;
    drop(sequencer);

    let before = resident_mib()?;
    let mut peak = before;
    let parts = 100;
    for part in 0..parts {
        write(synddb.connection(), commits / parts, part as u64)?;
        peak = peak.max(resident_mib()?);
    }
    // Everything is in the outbox when a push has given up.
    let gave_up = synddb.push().is_err();
    let length = |name: &str| std::fs::metadata(dir.path().join(name)).map_or(0, |file| file.len());
    let outbox = (length("app.db-synddb") + length("app.db-synddb-wal")) as f64;
    let queued = synddb.stats().queued_entries;

    let _sequencer = Remote::sequencer(&log, Some(&address))?;
    let start = Instant::now();
    let receipt = loop {
        match synddb.push_timeout(Duration::from_secs(600)) {
            Ok(receipt) => break receipt,
            // The first attempts may have met the closed door.
            Err(error) if start.elapsed() > Duration::from_secs(600) => return Err(error.into()),
            Err(_) => {}
        }
    };
    let drained = start.elapsed().as_secs_f64();
    let stored = rows_in_the_log(&log, &receipt, dir.path())?;
    if stored != commits as i64 || !gave_up {
        return Err(format!("{stored} of {commits} commits are in the log").into());
    }
    Ok(Table {
        setting: format!("{commits} single-row commits while the sequencer is away"),
        floor: "the limit of memory for commits on their way, max_memory_bytes",
        rows: vec![
            Row::new("memory grew at most by", "MiB", peak - before, limit),
            Row::alone("entries queued in the outbox", "entries", queued as f64),
            Row::alone("outbox and its log on disk", "MiB", outbox / f64::from(1 << 20)),
            Row::alone("drained once it was back", "commits/s", commits as f64 / drained),
        ],
    })
}
