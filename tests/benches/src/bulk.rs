//! Changesets of 100 KB.

use std::{fs::File, io::Write, time::Instant};

use synddb_client::SyndDB;
use synddb_core::Rng;

use crate::{
    Result, Scale,
    measure::median,
    server::Remote,
    table::{Row, Table},
    throughput::{database, rows_in_the_log},
};

const ROUNDS: usize = 3;
const SIZE: usize = 100_000;
/// Bytes between two syncs of the floor: what one frame holds.
const BATCH: usize = 1 << 20;

pub(crate) fn run(scale: Scale) -> Result<Table> {
    let commits = scale.pick(500, 30);
    let mut rows = Vec::new();
    for (what, text) in [("random blobs", false), ("text", true)] {
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            ours.push(ship(commits, text, round as u64)?);
            floor.push(write_twice(commits)?);
        }
        rows.push(Row::new(what, "MB/s", median(ours), median(floor)));
    }
    Ok(Table {
        setting: format!("{commits} commits of {SIZE} bytes, from the first commit to the receipt"),
        floor: "the same bytes written to two files, one after the other, with a sync per MiB",
        rows,
    })
}

fn ship(commits: usize, text: bool, seed: u64) -> Result<f64> {
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("log");
    let sequencer = Remote::sequencer(&log, None)?;
    let synddb = SyndDB::open(dir.path().join("app.db"), &sequencer.url)?;
    database(synddb.connection())?;
    synddb.push()?;
    let contents: Vec<_> = (0..8).map(|number| content(text, seed * 8 + number)).collect();
    let mut insert = synddb.connection().prepare("INSERT INTO trades(note) VALUES (?1)")?;
    let start = Instant::now();
    for number in 0..commits {
        insert.execute([&contents[number % contents.len()]])?;
    }
    let receipt = synddb.push()?;
    let seconds = start.elapsed().as_secs_f64();
    let stored = rows_in_the_log(&log, &receipt, dir.path())?;
    if stored != commits as i64 {
        return Err(format!("{stored} of {commits} commits are in the log").into());
    }
    Ok((commits * SIZE) as f64 / 1e6 / seconds)
}

fn content(text: bool, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    if text {
        let words = ["order", "price", "quantity", "account", "settled", "cancelled", "symbol"];
        let mut bytes = Vec::with_capacity(SIZE + 16);
        while bytes.len() < SIZE {
            bytes.extend_from_slice(words[rng.up_to(6) as usize].as_bytes());
            bytes.extend_from_slice(rng.up_to(9999).to_string().as_bytes());
        }
        bytes.truncate(SIZE);
        bytes
    } else {
        (0..SIZE.div_ceil(8)).flat_map(|_| rng.next_u64().to_le_bytes()).take(SIZE).collect()
    }
}

fn write_twice(commits: usize) -> Result<f64> {
    let dir = tempfile::tempdir()?;
    let block = vec![7; BATCH];
    let blocks = (commits * SIZE).div_ceil(BATCH);
    let start = Instant::now();
    for name in ["one", "two"] {
        let mut file = File::create(dir.path().join(name))?;
        for _ in 0..blocks {
            file.write_all(&block)?;
            file.sync_data()?;
        }
    }
    Ok((blocks * BATCH) as f64 / 1e6 / start.elapsed().as_secs_f64())
}
