//! The application inside the virtual machines of `cargo xtask vm`, and what checks its work outside.
//!
//! ```text
//! vm-app app DATABASE URL           commits until a line `stop` comes, then pushes the rest
//! vm-app durable-app DATABASE URL   the same; what it commits is in the outbox before
//! vm-app dial URL                   tries to store one commit, and prints why that fails
//! vm-app compare DATABASE LOG       restores from a sequencer's log, and finds no difference
//! ```

use std::{
    env,
    error::Error,
    io,
    ops::ControlFlow,
    path::Path,
    process::ExitCode,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rusqlite::Connection;
use synddb_client::{Config, Durability, Engine, Error as SyndDBError, SyndDB};
use synddb_core::Rng;
use synddb_sequencer::{
    replica::{Restore, differences},
    store::{LogStore, SqliteStore},
};
use synddb_tests::world::open_read_only;

/// Between two commits: the machines are slow, and there is to be time to kill them.
const PACE: Duration = Duration::from_millis(10);
/// Commits between two lines about them.
const REPORT: i64 = 20;
/// How long a sequencer may be away at the end.
const LAST_PUSH: Duration = Duration::from_secs(90);
/// A snapshot of this many rows of 1 KiB is what the stream begins with.
const FIRST_ROWS: i64 = 300;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let result = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["app", database, url] => config(url).and_then(|config| run(database.as_ref(), config)),
        ["durable-app", database, url] => config(url).and_then(|config| {
            let durability = Durability::BeforeCommit;
            let engine = Engine::Preupdate;
            run(database.as_ref(), Config { engine, durability, ..config })
        }),
        ["dial", url] => dial(url),
        ["compare", database, log] => compare(database.as_ref(), log.as_ref()),
        _ => {
            eprintln!(
                "usage: vm-app (app | durable-app) DATABASE URL | dial URL | compare DATABASE LOG"
            );
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("vm-app: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What environment variables say, about TLS for example, and patience for slow machines.
fn config(url: &str) -> Result<Config> {
    Ok(Config {
        sequencer_url: url.into(),
        push_interval: Duration::from_millis(50),
        // A machine that was killed does not say so: how soon its silence is noticed.
        response_timeout: Duration::from_secs(5),
        max_retries: 1,
        ..Config::from_env()?
    })
}

fn run(database: &Path, config: Config) -> Result<()> {
    let connection = Connection::open(database)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // What is told here as committed is on the disk.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS item(id INTEGER PRIMARY KEY, v);
         CREATE TABLE IF NOT EXISTS counter(id INTEGER PRIMARY KEY, commits, items);",
    )?;
    connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
         INSERT INTO item(v) SELECT randomblob(1024) FROM n
         WHERE NOT EXISTS (SELECT 1 FROM counter)",
        [FIRST_ROWS],
    )?;
    connection.execute("INSERT OR IGNORE INTO counter VALUES (1, 0, ?1)", [FIRST_ROWS])?;
    let seed = commits(&connection)?;
    println!("starts with {seed} commits");

    let synddb = SyndDB::own(connection, config)?;
    let before = synddb.stats().last_commit;
    let lines = lines();
    let mut rng = Rng::new(seed.unsigned_abs());
    let mut told = false;
    loop {
        commit(synddb.connection(), &mut rng)?;
        let done = commits(synddb.connection())?;
        let stats = synddb.stats();
        if !told && stats.receipt.is_some_and(|receipt| receipt.commit > before) {
            told = true;
            println!("the first commits are stored");
        }
        if done % REPORT == 0 {
            println!("committed {done}, waiting {}", stats.unacknowledged_commits);
        }
        match lines.recv_timeout(PACE) {
            Ok(line) if line == "stop" => break,
            Ok(_) | Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    push(&synddb)?;
    let stats = synddb.stats();
    println!(
        "stored {} commits: {} connections, snapshots because of {:?}",
        commits(synddb.connection())?,
        stats.connections,
        stats.resyncs
    );
    match synddb.shutdown()?.left {
        None => Ok(()),
        Some(left) => Err(left.to_string().into()),
    }
}

/// Rows of all sizes, changed and deleted ones among them, and numbers to check them by.
fn commit(connection: &Connection, rng: &mut Rng) -> Result<()> {
    let mut up_to = |limit: u64| rng.up_to(limit).cast_signed();
    // Some are larger than a packet of vsock, a few larger than what a device passes on at once.
    let largest = match up_to(50) {
        0 => 100_000,
        1..=10 => 10_000,
        _ => 300,
    };
    let tx = connection.unchecked_transaction()?;
    for _ in 0..=up_to(2) {
        tx.execute("INSERT INTO item(v) VALUES (randomblob(?1))", [up_to(largest)])?;
    }
    tx.execute("UPDATE item SET v = ?1 WHERE id % 97 = ?2", [up_to(1000), up_to(96)])?;
    tx.execute("DELETE FROM item WHERE id % 7 = ?1 AND id < ?1 * 50", [up_to(6)])?;
    tx.execute(
        "UPDATE counter SET commits = commits + 1, items = (SELECT count(*) FROM item)",
        [],
    )?;
    Ok(tx.commit()?)
}

fn commits(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT commits FROM counter", [], |row| row.get(0))
}

/// Pushes until the sequencer is there.
fn push(synddb: &SyndDB<Connection>) -> Result<()> {
    let deadline = Instant::now() + LAST_PUSH;
    loop {
        match synddb.push() {
            Ok(_) => return Ok(()),
            Err(SyndDBError::NotStored(_)) if Instant::now() < deadline => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Lines of standard input.
fn lines() -> mpsc::Receiver<String> {
    let (tell, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in io::stdin().lines().map_while(io::Result::ok) {
            if tell.send(line.trim().to_owned()).is_err() {
                return;
            }
        }
    });
    lines
}

fn dial(url: &str) -> Result<()> {
    let connection = Connection::open_in_memory()?;
    let config =
        Config { stream: Some("dial".into()), shutdown_timeout: Duration::ZERO, ..config(url)? };
    let synddb = SyndDB::own(connection, config)?;
    synddb.connection().execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY)")?;
    match synddb.push_timeout(Duration::from_secs(20)) {
        Ok(_) => println!("stored"),
        Err(error) => println!("not stored: {error}"),
    }
    Ok(())
}

fn compare(database: &Path, log: &Path) -> Result<()> {
    let store = SqliteStore::open_read_only(log)?;
    let streams = store.streams()?;
    let [stream] = &streams[..] else {
        return Err(format!("{} streams in the log, not one", streams.len()).into());
    };
    let dir = tempfile::tempdir()?;
    let restored = dir.path().join("restored.db");
    let report = Restore::new(&store, stream.receiver.stream())
        .run(&restored, |_| ControlFlow::Continue(()))?;
    let (source, replica) = (open_read_only(database), open_read_only(&restored));
    let found = differences(&source, &replica)?;
    if !found.is_empty() {
        return Err(format!("the replica differs: {found:?}").into());
    }
    let items = |sql| source.query_row(sql, [], |row| row.get::<_, i64>(0));
    let (noted, counted) =
        (items("SELECT items FROM counter")?, items("SELECT count(*) FROM item")?);
    if noted != counted || counted == 0 {
        return Err(format!("{counted} rows, where the application noted {noted}").into());
    }
    println!("equal: {} commits, {counted} rows, epoch {}", commits(&source)?, report.epoch);
    Ok(())
}
