//! Real processes, killed with -9 at random moments: the application and the sequencer, in turn and
//! together. After every kill what can be restored is a state that the application had; at the end it
//! is the application's database.
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

use std::{
    collections::BTreeMap,
    env,
    io::{self, BufRead, BufReader, Read},
    net::SocketAddr,
    ops::ControlFlow,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use rusqlite::Connection;
use synddb_client::{Config, Durability, Engine, Error, SyndDB};
use synddb_core::Rng;
use synddb_sequencer::{
    Config as SequencerConfig, Server,
    replica::{Restore, differences},
    store::{LogStore, SqliteStore},
};
use synddb_tests::{
    proxy::{Mode, Proxy},
    world::{open_read_only, push},
};

/// In the children: where the files are, the sequencer's address, and the engine.
const DIR: &str = "SYNDDB_CRASH_DIR";
const ADDRESS: &str = "SYNDDB_CRASH_ADDRESS";
const ENGINE: &str = "SYNDDB_CRASH_ENGINE";
/// There, where the application is to begin with a snapshot.
const RESYNC: &str = "SYNDDB_CRASH_RESYNC";

/// How the application keeps its database, by the name of an engine or a way to use it.
fn settings(name: &str) -> (Engine, Durability, &'static str) {
    match name {
        "preupdate" => (Engine::Preupdate, Durability::Background, "WAL"),
        "before commit" => (Engine::Preupdate, Durability::BeforeCommit, "WAL"),
        "before commit, delete" => (Engine::Preupdate, Durability::BeforeCommit, "DELETE"),
        "preupdate, delete" => (Engine::Preupdate, Durability::Background, "DELETE"),
        "memory" => (Engine::Preupdate, Durability::Memory, "WAL"),
        _ => (Engine::Session, Durability::Background, "WAL"),
    }
}

/// A child that is killed when it is dropped, or before.
struct Victim(Child, Option<BufReader<ChildStdout>>);

impl Victim {
    /// Runs one of the children below, and waits for its first words: `ready` and what follows.
    fn start(name: &str, dir: &Path, address: &str, engine: &str) -> (Self, String) {
        Self::armed(name, dir, address, engine, &[])
    }

    /// With more in its environment.
    fn armed(
        name: &str,
        dir: &Path,
        address: &str,
        engine: &str,
        more: &[(&str, String)],
    ) -> (Self, String) {
        // A shell limits the length of the files that it may write, in pieces of 512 bytes.
        let mut command = match more.iter().find(|(name, _)| *name == "SYNDDB_CRASH_ROOM") {
            None => Command::new(env::current_exe().unwrap()),
            Some((_, room)) => {
                let mut shell = Command::new("sh");
                let script = format!("trap '' XFSZ; ulimit -f {room}; exec \"$0\" \"$@\"");
                shell.args(["-c", &script]).arg(env::current_exe().unwrap());
                shell
            }
        };
        let mut child = command
            .args(["--exact", name, "--ignored", "--nocapture"])
            .env(DIR, dir)
            .env(ADDRESS, address)
            .env(ENGINE, engine)
            .envs(more.iter().map(|(name, value)| (*name, value)))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let said = output
            .by_ref()
            .lines()
            .map_while(Result::ok)
            // The test harness begins the line.
            .find_map(|line| line.split_once("ready ").map(|(_, said)| said.to_owned()));
        let victim = Self(child, Some(output));
        // One that is to die early may not get as far.
        let said = match said {
            Some(said) => said,
            None if !more.is_empty() => String::new(),
            None => panic!("{name} ended before it was ready"),
        };
        (victim, said)
    }

    /// Waits until it dies by itself; false where it has not for so long.
    fn dies_within(&mut self, time: Duration) -> bool {
        let Some(output) = self.1.take() else { return true };
        let (died, death) = mpsc::channel();
        std::thread::spawn(move || {
            // Its output ends with it.
            let mut output = output;
            let _ = io::copy(&mut output, &mut io::sink());
            let _ = died.send(());
        });
        death.recv_timeout(time).is_ok()
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
    if env::var_os(RESYNC).is_some() {
        synddb.resync();
    }
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
        stream: (durability == Durability::Memory).then(|| "crash".into()),
        response_timeout: Duration::from_millis(500),
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

/// A place in the code where a victim dies.
struct Point {
    name: &'static str,
    victim: &'static str,
    /// How often it is passed before, at most.
    after: u64,
    /// Only a snapshot leads there.
    by_snapshot: bool,
    /// Only `BeforeCommit` leads there.
    before_commit: bool,
}

const fn point(victim: &'static str, name: &'static str, after: u64) -> Point {
    Point { name, victim, after, by_snapshot: false, before_commit: false }
}

const fn of_snapshot(victim: &'static str, name: &'static str, after: u64) -> Point {
    Point { by_snapshot: true, ..point(victim, name, after) }
}

const fn before_commit(name: &'static str) -> Point {
    Point { before_commit: true, ..point("application", name, 50) }
}

/// Each `kill_point!` of the product.
const POINTS: [Point; 16] = [
    before_commit("before-commit"),
    before_commit("kept-before-commit"),
    point("application", "after-commit", 50),
    point("application", "outbox-append", 10),
    point("application", "outbox-appended", 10),
    point("application", "before-send", 10),
    point("application", "before-ack", 10),
    point("application", "outbox-trim", 5),
    of_snapshot("application", "snapshot-copy", 0),
    of_snapshot("application", "epoch-opened", 0),
    of_snapshot("application", "snapshot-upload", 0),
    point("sequencer", "received", 10),
    point("sequencer", "store", 10),
    point("sequencer", "stored", 10),
    of_snapshot("sequencer", "snapshot-chunk", 0),
    of_snapshot("sequencer", "snapshot-sealed", 0),
];

/// What happened how often.
type Histogram = BTreeMap<String, u64>;

/// Kills at each point in turn and at random moments, behind a proxy that behaves badly in between.
fn survives_points(engine: &str, kills: usize, seed: u64, histogram: &mut Histogram) {
    let durability = settings(engine).1;
    let points: Vec<_> = POINTS
        .iter()
        .filter(|point| !point.before_commit || durability == Durability::BeforeCommit)
        .collect();
    // Others for each.
    let mut rng = Rng::new(seed.wrapping_add(u64::from(engine.len() as u32) << 32));
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (mut server, address) = Victim::start("sequencer", dir, "127.0.0.1:0", engine);
    let proxy = Proxy::start(address.parse().unwrap());
    let through = proxy.url().trim_start_matches("http://").to_owned();
    let first = attach(dir, &through, engine);
    push(&first, "at first");
    first.connection().execute_batch("UPDATE counter SET commits = commits + 1").unwrap();
    drop(first);
    let mut stored = 0;
    for kill in 0..kills {
        // Each point once and a moment of chance, then what comes, and half of it at such moments.
        let point = match kill <= points.len() {
            true => points.get(kill),
            false => points.get(rng.up_to(2 * points.len() as u64 - 1) as usize),
        };
        let name = point.map_or("a random moment", |point| point.name);
        let context = format!("{engine}, seed {seed}, kill {kill} at {name}");
        let victim = match point {
            Some(point) => point.victim,
            None => ["application", "sequencer"][rng.up_to(1) as usize],
        };
        let mut more = Vec::new();
        if let Some(point) = point {
            more.push(("SYNDDB_KILL_POINT", point.name.to_owned()));
            more.push(("SYNDDB_KILL_AFTER", rng.up_to(point.after).to_string()));
        }
        let (armed, plain) = match victim {
            "sequencer" => (&more[..], &[][..]),
            _ => (&[][..], &more[..]),
        };
        server.kill();
        server = Victim::armed("sequencer", dir, &address, engine, armed).0;
        let mut of_app = plain.to_vec();
        if point.is_some_and(|point| point.by_snapshot) {
            of_app.push((RESYNC, String::new()));
        }
        let mode = bad_mode(&mut rng);
        let day = format!("{mode:?}").split('(').next().unwrap_or_default().to_owned();
        *histogram.entry(format!("proxy: {day}")).or_default() += 1;
        proxy.set(mode);
        let mut app = Victim::armed("application", dir, &through, engine, &of_app).0;
        let dying = if victim == "sequencer" { &mut server } else { &mut app };
        let early = dying.dies_within(Duration::from_millis(rng.up_to(200)));
        proxy.set(Mode::Pass);
        // What a random moment is for is over by now.
        let hit = point.is_some() && (early || dying.dies_within(Duration::from_secs(20)));
        dying.kill();
        assert!(hit || point.is_none(), "{context}: not reached");
        *histogram.entry(format!("kill: {name}")).or_default() += 1;
        app.kill();
        let here = commits(&left_behind(dir), &context);
        let there = restore(dir).map_or(0, |replica| commits(&replica, &context));
        assert!(there <= here, "{context}: {there} commits of {here} were stored");
        assert!(there >= stored, "{context}: {stored} commits were stored, {there} are");
        stored = there;
    }
    server.kill();
    let _server = Victim::start("sequencer", dir, &address, engine);
    let synddb = attach(dir, &through, engine);
    push(&synddb, "at the end");
    let replica = restore(dir).unwrap();
    let found = differences(synddb.connection(), &replica).unwrap();
    assert!(found.is_empty(), "{engine}, seed {seed}: {found:#?}");
    drop(synddb);
    let left = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> =
        left.filter(|name| name.to_string_lossy().contains("-synddb-snapshot-")).collect();
    assert!(left.is_empty(), "{engine}, seed {seed}: {left:?} was not removed");
}

fn bad_mode(rng: &mut Rng) -> Mode {
    match rng.up_to(8) {
        0 => Mode::HangUp,
        1 => Mode::BlackHole,
        2 => Mode::LoseAnswers,
        3 => Mode::Truncate(rng.up_to(400) as usize + 1),
        4 => Mode::FlipRequests(rng.next_u64()),
        5 => Mode::FlipAnswers(rng.next_u64()),
        6 => Mode::Trickle,
        _ => Mode::Pass,
    }
}

/// Every engine, durability and journal: `SYNDDB_KILLS` kills over all of them, at least one at each
/// point of each.
#[test]
fn every_kill_point_is_survived() {
    let kills: usize = env::var("SYNDDB_KILLS").map_or(0, |kills| kills.parse().unwrap());
    let seed = env::var("SYNDDB_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("SYNDDB_SEED={seed}");
    let ways = [
        "session",
        "preupdate",
        "preupdate, delete",
        "before commit",
        "before commit, delete",
        "memory",
    ];
    let mut histogram = Histogram::new();
    for engine in ways {
        let each = kills.div_ceil(ways.len()).max(POINTS.len() + 1);
        survives_points(engine, each, seed, &mut histogram);
    }
    for (what, count) in &histogram {
        println!("{count:>6} × {what}");
    }
    for point in POINTS {
        let reached = histogram.get(&format!("kill: {}", point.name));
        assert!(reached.is_some(), "{} was never reached", point.name);
        let told = include_str!("../FAULTS.md").contains(&format!("\n| {} | ", point.name));
        assert!(told, "FAULTS.md does not tell of {}", point.name);
    }
}

#[test]
fn a_second_process_is_refused_while_the_first_lives() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (_server, address) = Victim::start("sequencer", dir, "127.0.0.1:0", "session");
    let (mut app, _) = Victim::start("application", dir, &address, "session");
    let connection = Connection::open(dir.join("app.db")).unwrap();
    connection.busy_timeout(Duration::from_secs(5)).unwrap();
    let config = Config { sequencer_url: format!("http://{address}"), ..Default::default() };
    let refused = SyndDB::own(connection, config).unwrap_err();
    let in_use = matches!(refused, Error::Outbox(synddb_client::OutboxError::InUse { .. }));
    assert!(in_use, "{refused}");
    app.kill();
    // What a kill leaves behind keeps nobody out.
    let synddb = attach(dir, &address, "session");
    push(&synddb, "the first one is gone");
}

/// The disk of the sequencer: a limit on the length of its files is what a test can have without being
/// root.
#[test]
fn a_sequencer_with_a_full_disk_refuses_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (mut server, address) = Victim::start("sequencer", dir, "127.0.0.1:0", "session");
    let synddb = attach(dir, &address, "session");
    push(&synddb, "with room");
    server.kill();
    let used = std::fs::metadata(dir.join("log/log.db-wal")).unwrap().len();
    let room = [("SYNDDB_CRASH_ROOM", (used / 512 + 100).to_string())];
    let (mut server, _) = Victim::armed("sequencer", dir, &address, "session", &room);
    let refused = (0..).find_map(|_| {
        let connection = synddb.connection();
        connection.execute("INSERT INTO item(v) VALUES (randomblob(5000))", []).unwrap();
        connection.execute("UPDATE counter SET items = items + 1", []).unwrap();
        match synddb.push_timeout(Duration::from_secs(10)) {
            Err(Error::NotStored(left)) => Some(left),
            Err(error) => panic!("{error}"),
            Ok(_) => None,
        }
    });
    let left = refused.unwrap();
    assert!(left.to_string().contains("cannot store"), "{left}");
    server.kill();
    let _server = Victim::start("sequencer", dir, &address, "session");
    push(&synddb, "with room again");
    let found = differences(synddb.connection(), &restore(dir).unwrap()).unwrap();
    assert!(found.is_empty(), "{found:#?}");
    assert_eq!(synddb.stats().resyncs.len(), 1, "no snapshot was needed: {synddb:?}");
}

/// A write that a power cut tore is not there, and what was acknowledged before it is.
#[test]
fn what_a_power_cut_tore_at_the_sequencer_is_sent_again() {
    let seed = env::var("SYNDDB_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("SYNDDB_SEED={seed}");
    let mut rng = Rng::new(seed);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (mut server, address) = Victim::start("sequencer", dir, "127.0.0.1:0", "session");
    let synddb = attach(dir, &address, "session");
    for round in 0..20 {
        let context = format!("seed {seed}, round {round}");
        push(&synddb, &context);
        let acknowledged = std::fs::metadata(dir.join("log/log.db-wal")).unwrap().len();
        for _ in 0..=rng.up_to(5) {
            let connection = synddb.connection();
            connection.execute("INSERT INTO item(v) VALUES (randomblob(3000))", []).unwrap();
        }
        push(&synddb, &context);
        server.kill();
        // Behind what was acknowledged first: the application still holds nothing of the rest, so as
        // much of it may be missing as a restored backup may lack.
        let log = std::fs::OpenOptions::new().write(true).open(dir.join("log/log.db-wal")).unwrap();
        let len = log.metadata().unwrap().len();
        let torn = acknowledged.min(len) + rng.up_to(len.saturating_sub(acknowledged));
        log.set_len(torn).unwrap();
        let mut garbage = vec![0; rng.up_to(5000) as usize];
        garbage.fill_with(|| rng.next_u64() as u8);
        std::os::unix::fs::FileExt::write_all_at(&log, &garbage, torn).unwrap();
        let _ = std::fs::remove_file(dir.join("log/log.db-shm"));
        server = Victim::start("sequencer", dir, &address, "session").0;
        push(&synddb, &context);
        synddb.connection().execute("INSERT INTO item(v) VALUES (1)", []).unwrap();
        push(&synddb, &context);
        let found = differences(synddb.connection(), &restore(dir).unwrap()).unwrap();
        assert!(found.is_empty(), "{context}: {found:#?}");
    }
}
