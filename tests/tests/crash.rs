//! Real processes, killed with -9 at random moments: the application and the sequencer, in turn and
//! together. After every kill what can be restored is a state that the application had; at the end it
//! is the application's database.
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

use std::{
    env,
    io::{BufRead, BufReader},
    net::SocketAddr,
    ops::ControlFlow,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rusqlite::Connection;
use synddb_client::{Config, Durability, Engine, SyndDB};
use synddb_core::Rng;
use synddb_sequencer::{
    Config as SequencerConfig, Server,
    replica::{Restore, differences},
    store::{LogStore, SqliteStore},
};
use synddb_tests::world::{open_read_only, push};

/// In the children: where the files are, the sequencer's address, and the engine.
const DIR: &str = "SYNDDB_CRASH_DIR";
const ADDRESS: &str = "SYNDDB_CRASH_ADDRESS";
const ENGINE: &str = "SYNDDB_CRASH_ENGINE";

/// How the application keeps its database, by the name of an engine or a way to use it.
fn settings(name: &str) -> (Engine, Durability, &'static str) {
    match name {
        "preupdate" => (Engine::Preupdate, Durability::Background, "WAL"),
        "before commit" => (Engine::Preupdate, Durability::BeforeCommit, "WAL"),
        "before commit, delete" => (Engine::Preupdate, Durability::BeforeCommit, "DELETE"),
        _ => (Engine::Session, Durability::Background, "WAL"),
    }
}

/// A child that is killed when it is dropped, or before.
struct Victim(Child);

impl Victim {
    /// Runs one of the children below, and waits for its first words: `ready` and what follows.
    fn start(name: &str, dir: &Path, address: &str, engine: &str) -> (Self, String) {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", name, "--ignored", "--nocapture"])
            .env(DIR, dir)
            .env(ADDRESS, address)
            .env(ENGINE, engine)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let said = output
            .lines()
            .map_while(Result::ok)
            // The test harness begins the line.
            .find_map(|line| line.split_once("ready ").map(|(_, said)| said.to_owned()))
            .unwrap_or_else(|| panic!("{name} ended before it was ready"));
        (Self(child), said)
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "the application that the test kills"]
fn application() {
    let (dir, address) = (env::var(DIR).unwrap(), env::var(ADDRESS).unwrap());
    let synddb = attach(dir.as_ref(), &address, &env::var(ENGINE).unwrap());
    println!("ready and writing");
    let connection = synddb.connection();
    let mut rng = Rng::new(std::process::id().into());
    loop {
        let tx = connection.unchecked_transaction().unwrap();
        tx.execute("UPDATE counter SET commits = commits + 1", []).unwrap();
        for _ in 0..=rng.up_to(3) {
            tx.execute("INSERT INTO item(v) VALUES (randomblob(?1))", [rng.up_to(500) as i64])
                .unwrap();
        }
        tx.execute("DELETE FROM item WHERE id % 7 = ?1 AND id < ?1 * 100", [rng.up_to(6) as i64])
            .unwrap();
        tx.execute("UPDATE counter SET items = (SELECT count(*) FROM item)", []).unwrap();
        tx.commit().unwrap();
        std::thread::sleep(Duration::from_micros(rng.up_to(1000)));
    }
}

#[test]
#[ignore = "the sequencer that the test kills"]
fn sequencer() {
    let (dir, address) = (env::var(DIR).unwrap(), env::var(ADDRESS).unwrap());
    let address: SocketAddr = address.parse().unwrap();
    let data = Path::new(&dir).join("log");
    let server = Server::start(SequencerConfig::new(address.into(), data)).unwrap();
    println!("ready {}", server.addr());
    loop {
        std::thread::park();
    }
}

fn attach(dir: &Path, address: &str, name: &str) -> SyndDB<Connection> {
    let (engine, durability, journal_mode) = settings(name);
    let connection = Connection::open(dir.join("app.db")).unwrap();
    connection.pragma_update(None, "journal_mode", journal_mode).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE IF NOT EXISTS item(id INTEGER PRIMARY KEY, v);
             CREATE TABLE IF NOT EXISTS counter(id INTEGER PRIMARY KEY, commits, items);
             INSERT OR IGNORE INTO counter VALUES (1, 0, 0);",
        )
        .unwrap();
    let config = Config {
        sequencer_url: format!("http://{address}"),
        push_interval: Duration::from_millis(20),
        max_retries: 1,
        snapshot_interval: 200,
        engine,
        durability,
        ..Default::default()
    };
    SyndDB::own(connection, config).unwrap()
}

/// The database as a killed application left it: a copy, for closing the original would tidy it up.
fn left_behind(dir: &Path) -> Connection {
    let copies = dir.join("copies");
    std::fs::create_dir_all(&copies).unwrap();
    for suffix in ["", "-wal", "-journal"] {
        let name = format!("app.db{suffix}");
        let _ = std::fs::remove_file(copies.join(&name));
        match std::fs::copy(dir.join(&name), copies.join(&name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
    }
    let _ = std::fs::remove_file(copies.join("app.db-shm"));
    Connection::open(copies.join("app.db")).unwrap()
}

/// Commits in a database, whose rows must be those of one moment.
fn commits(database: &Connection, context: &str) -> i64 {
    let read = |sql| database.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    let (noted, counted) = (read("SELECT items FROM counter"), read("SELECT count(*) FROM item"));
    assert_eq!(noted, counted, "{context}: rows of two moments");
    read("SELECT commits FROM counter")
}

/// What can be restored now; `None` before the first snapshot is stored.
fn restore(dir: &Path) -> Option<Connection> {
    let store = SqliteStore::open_read_only(&dir.join("log")).unwrap();
    let stream = store.streams().unwrap().first()?.receiver.stream();
    let restorable = store
        .epochs(stream)
        .unwrap()
        .iter()
        .any(|epoch| !store.snapshot_notes(stream, epoch.epoch).unwrap().is_empty());
    if !restorable {
        return None;
    }
    let out = dir.join("restored.db");
    Restore::new(&store, stream)
        .replace(true)
        .run(&out, |_| ControlFlow::Continue(()))
        .unwrap_or_else(|error| panic!("restore: {error}"));
    Some(open_read_only(&out))
}

/// `SYNDDB_SEED` replays; `SYNDDB_KILLS` says how many kills.
fn survives(engine: &str) {
    let kills = env::var("SYNDDB_KILLS").map_or(25, |kills| kills.parse().unwrap());
    let seed = env::var("SYNDDB_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("SYNDDB_SEED={seed}");
    let mut rng = Rng::new(seed);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (mut server, address) = Victim::start("sequencer", dir, "127.0.0.1:0", engine);
    let first = attach(dir, &address, engine);
    // An epoch without its snapshot is begun anew, however commits are kept.
    push(&first, "at first");
    first.connection().execute_batch("UPDATE counter SET commits = commits + 1").unwrap();
    drop(first);
    let (mut app, _) = Victim::start("application", dir, &address, engine);
    let mut unstored = 0;
    for kill in 0..kills {
        let context = format!("{engine}, seed {seed}, kill {kill}");
        // The moment is what is random here; nothing is waited for.
        std::thread::sleep(Duration::from_millis(rng.up_to(150)));
        let victims = rng.up_to(2);
        if victims != 0 {
            app.kill();
        }
        if victims != 1 {
            server.kill();
        }
        if victims != 0 {
            let here = commits(&left_behind(dir), &context);
            let there = restore(dir).map_or(0, |replica| commits(&replica, &context));
            assert!(there <= here, "{context}: {there} commits of {here} were stored");
            unstored += here - there;
        }
        if victims != 1 {
            server = Victim::start("sequencer", dir, &address, engine).0;
        }
        if victims != 0 {
            app = Victim::start("application", dir, &address, engine).0;
        }
    }
    assert!(unstored > 0, "no kill hit a commit on its way");
    app.kill();
    let synddb = attach(dir, &address, engine);
    push(&synddb, "at the end");
    let replica = restore(dir).unwrap();
    let found = differences(synddb.connection(), &replica).unwrap();
    assert!(found.is_empty(), "{engine}, seed {seed}: {found:#?}");
    if settings(engine).1 == Durability::BeforeCommit {
        let store = SqliteStore::open_read_only(&dir.join("log")).unwrap();
        let stream = store.streams().unwrap()[0].receiver.stream();
        let epochs = store.epochs(stream).unwrap();
        let opened: Vec<_> = epochs.iter().map(|epoch| epoch.reason).collect();
        assert_eq!(opened.len(), 1, "{engine}, seed {seed}: no kill needs a snapshot: {opened:?}");
    }
}

#[test]
fn any_kill_is_survived_with_the_session_engine() {
    survives("session");
}

#[test]
fn any_kill_is_survived_with_the_preupdate_engine() {
    survives("preupdate");
}

#[test]
fn any_kill_is_survived_without_a_snapshot_where_commits_are_kept_before_they_happen() {
    survives("before commit");
}

#[test]
fn any_kill_is_survived_without_a_snapshot_with_a_rollback_journal_too() {
    survives("before commit, delete");
}
