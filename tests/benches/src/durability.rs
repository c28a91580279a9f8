//! What it costs the application's thread to have commits kept before they happen.

use std::time::{Duration, Instant};

use rusqlite::Connection;
use synddb_client::{Config, Durability, Engine, SyndDB};

use crate::{
    Result, Scale,
    measure::{median, percentile, thread_cpu},
    server::Remote,
    table::{Row, Table},
    throughput::database,
};

const ROUNDS: usize = 5;

/// What a commit takes.
#[derive(Default)]
struct Costs {
    wall_us: Vec<f64>,
    cpu_us: Vec<f64>,
}

pub(crate) fn run(scale: Scale) -> Result<Table> {
    let each = scale.pick(400, 40);
    let dir = tempfile::tempdir()?;
    let sequencer = Remote::sequencer(&dir.path().join("log"), None)?;
    let mut rows = Vec::new();
    for journal_mode in ["WAL", "DELETE"] {
        let open = |durability| -> Result<SyndDB<Connection>> {
            let name = format!("{durability:?}-{journal_mode}.db");
            let connection = Connection::open(dir.path().join(name))?;
            connection.pragma_update(None, "journal_mode", journal_mode)?;
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            database(&connection)?;
            let config = Config {
                sequencer_url: sequencer.url.clone(),
                engine: Engine::Preupdate,
                durability,
                ..Default::default()
            };
            let synddb = SyndDB::own(connection, config)?;
            synddb.push()?;
            Ok(synddb)
        };
        let (kept, background) = (open(Durability::BeforeCommit)?, open(Durability::Background)?);
        let (mut ours, mut floor) = (Costs::default(), Costs::default());
        for _ in 0..ROUNDS {
            ours.measure(&kept, each)?;
            floor.measure(&background, each)?;
        }
        if kept.stats().unprepared_commits > 0 {
            return Err("commits were not kept before they happened".into());
        }
        for (what, share) in [("p50", 0.5), ("p99", 0.99)] {
            let (ours, floor) =
                (percentile(&mut ours.wall_us, share), percentile(&mut floor.wall_us, share));
            rows.push(Row::new(format!("{journal_mode}, a commit, {what}"), "us", ours, floor));
        }
        let (ours, floor) = (median(ours.cpu_us), median(floor.cpu_us));
        rows.push(Row::new(format!("{journal_mode}, its thread's CPU"), "us", ours, floor));
    }
    Ok(Table {
        setting: format!(
            "{} single-row commits with BeforeCommit, synchronous = NORMAL, a millisecond apart",
            ROUNDS * each
        ),
        floor: "the same commits with Background",
        rows,
    })
}

impl Costs {
    fn measure(&mut self, synddb: &SyndDB<Connection>, commits: usize) -> Result<()> {
        let before = thread_cpu();
        for _ in 0..commits {
            let start = Instant::now();
            insert(synddb.connection())?;
            self.wall_us.push(start.elapsed().as_secs_f64() * 1e6);
            // As an application that does something else too.
            std::thread::sleep(Duration::from_millis(1));
        }
        let cpu = thread_cpu() - before;
        self.cpu_us.push(cpu.as_secs_f64() * 1e6 / commits as f64);
        synddb.push()?;
        Ok(())
    }
}

fn insert(connection: &Connection) -> Result<()> {
    connection
        .prepare_cached("INSERT INTO trades(account, amount, note) VALUES (7, 3.5, 'a note')")?
        .execute([])?;
    Ok(())
}
