//! What each `durability` promises of a process that dies: at known moments, in real processes; with
//! others that write in between, with older copies of the database, and with power cuts.
//!
//! The application dies by `abort`, which runs nothing and flushes nothing: as by kill -9, but at a
//! moment that the test chooses. SQLite calls the commit hook behind everything that comes before a
//! commit, so what dies in it has prepared a commit that never happens.
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

use std::{
    env,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rusqlite::Connection;
use synddb_client::{Config, Durability, Engine, ResyncReason, SyndDB};
use synddb_core::Rng;
use synddb_sequencer::store::LogStore;
use synddb_tests::world::{World, push};

/// In the child: where the files are, the sequencer, the use, and what to do.
const DIR: &str = "SYNDDB_DURABILITY_DIR";
const ADDRESS: &str = "SYNDDB_DURABILITY_ADDRESS";
const USE: &str = "SYNDDB_DURABILITY_USE";
const LIFE: &str = "SYNDDB_DURABILITY_LIFE";

/// How an application keeps its database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Use {
    engine: Engine,
    durability: Durability,
    journal_mode: &'static str,
}

const fn with(engine: Engine, durability: Durability, journal_mode: &'static str) -> Use {
    Use { engine, durability, journal_mode }
}

const WAL: Use = with(Engine::Preupdate, Durability::BeforeCommit, "WAL");
const DELETE: Use = with(Engine::Preupdate, Durability::BeforeCommit, "DELETE");
const TRUNCATE: Use = with(Engine::Preupdate, Durability::BeforeCommit, "TRUNCATE");
const PERSIST: Use = with(Engine::Preupdate, Durability::BeforeCommit, "PERSIST");
const PREPARED: [Use; 2] = [WAL, DELETE];
const BACKGROUND: [Use; 4] = [
    with(Engine::Session, Durability::Background, "WAL"),
    with(Engine::Session, Durability::Background, "DELETE"),
    with(Engine::Preupdate, Durability::Background, "WAL"),
    with(Engine::Preupdate, Durability::Background, "DELETE"),
];

/// Those that most tests go through.
fn uses() -> impl Iterator<Item = Use> {
    PREPARED.into_iter().chain(BACKGROUND)
}

impl Use {
    fn config(self, address: &str) -> Config {
        Config {
            engine: self.engine,
            durability: self.durability,
            sequencer_url: format!("http://{address}"),
            push_interval: Duration::from_millis(20),
            max_retries: 1,
            ..Default::default()
        }
    }

    fn open(self, dir: &Path) -> Connection {
        let connection = Connection::open(dir.join("app.db")).unwrap();
        connection.pragma_update(None, "journal_mode", self.journal_mode).unwrap();
        connection
    }
}

const SCHEMA: &str = "
    CREATE TABLE item(id INTEGER PRIMARY KEY AUTOINCREMENT, v);
    CREATE TABLE named(name TEXT PRIMARY KEY, v) WITHOUT ROWID;
    CREATE TABLE plain(a, b REAL);
    CREATE VIRTUAL TABLE note USING fts5(body);
    INSERT INTO named VALUES ('count', 0);
";

/// A commit that inserts, updates and deletes.
const COMMIT: &str = "
    BEGIN;
    INSERT INTO item(v) VALUES (randomblob(20));
    UPDATE named SET v = v + 1;
    INSERT INTO plain VALUES ('x', 1);
    DELETE FROM item WHERE id % 5 = 4;
    COMMIT";

/// Lives a life of steps, and dies in the last one.
#[test]
#[ignore = "the application that dies"]
fn application() {
    let (dir, address) = (env::var(DIR).unwrap(), env::var(ADDRESS).unwrap());
    let dir = Path::new(&dir);
    let number: usize = env::var(USE).unwrap().parse().unwrap();
    let how = uses().chain([TRUNCATE, PERSIST]).nth(number).unwrap();
    let mut connection = how.open(dir);
    let dies = Arc::new(AtomicBool::new(false));
    let armed = Arc::clone(&dies);
    let hook = move || {
        if armed.load(Ordering::Relaxed) {
            std::process::abort();
        }
        false
    };
    connection.commit_hook(Some(hook)).unwrap();
    let synddb = SyndDB::own(connection, how.config(&address)).unwrap();
    let run = |sql| synddb.connection().execute_batch(sql).unwrap();
    for step in env::var(LIFE).unwrap().split(", ") {
        match step {
            "schema" => run(SCHEMA),
            "push" => drop(push(&synddb, "the application")),
            "fail to push" => drop(synddb.push().unwrap_err()),
            "resync" => {
                synddb.resync();
                assert_eq!(synddb.stats().behind, Some(ResyncReason::Requested));
                let outbox = Connection::open(dir.join("app.db-synddb")).unwrap();
                let knows = "SELECT place IS NULL FROM outbox";
                let deadline = Instant::now() + Duration::from_secs(20);
                while !outbox.query_row(knows, [], |row| row.get::<_, bool>(0)).unwrap() {
                    assert!(Instant::now() < deadline, "the loss is not noted");
                    std::thread::yield_now();
                }
            }
            "wait" => {
                let deadline = Instant::now() + Duration::from_secs(20);
                while synddb.stats().unacknowledged_commits > 0 {
                    assert!(Instant::now() < deadline, "{:?}", synddb.stats());
                    std::thread::yield_now();
                }
            }
            "commit" => run(COMMIT),
            "commits" => (0..8).for_each(|_| run(COMMIT)),
            "checkpoint" => {
                let checkpoint = "PRAGMA wal_checkpoint(PASSIVE)";
                synddb.connection().query_row(checkpoint, [], |_| Ok(())).unwrap();
            }
            "full text" => run("BEGIN; INSERT INTO item(v) VALUES ('with a note');
                                INSERT INTO note VALUES ('one two three'); COMMIT"),
            "application id" => run("BEGIN; INSERT INTO item(v) VALUES (1);
                                     PRAGMA application_id = 7; COMMIT"),
            "nothing" => run("BEGIN; INSERT INTO item(id, v) VALUES (9999, 1);
                              DELETE FROM item WHERE id = 9999; COMMIT"),
            "busy" | "busy and rolled back" => {
                let reader = Connection::open(dir.join("app.db")).unwrap();
                reader.execute_batch("BEGIN; SELECT count(*) FROM item").unwrap();
                run("BEGIN; INSERT INTO item(v) VALUES ('first'); UPDATE named SET v = v + 1");
                synddb.connection().execute_batch("COMMIT").unwrap_err();
                reader.execute_batch("COMMIT").unwrap();
                if step == "busy" {
                    run("INSERT INTO item(v) VALUES ('second'); COMMIT");
                } else {
                    // What follows looks like it, and is more.
                    run("ROLLBACK; BEGIN; INSERT INTO item(v) VALUES ('first');
                         UPDATE named SET v = v + 1; INSERT INTO note VALUES ('more'); COMMIT");
                }
            }
            "in commit" => {
                dies.store(true, Ordering::Relaxed);
                run(COMMIT);
            }
            "in full text" => {
                dies.store(true, Ordering::Relaxed);
                run("BEGIN; INSERT INTO item(v) VALUES (1); INSERT INTO note VALUES ('x'); COMMIT");
            }
            "die" => std::process::abort(),
            other => panic!("no such step: {other}"),
        }
    }
    panic!("it did not die");
}

fn live(world: &World, how: Use, life: &str) {
    let number = uses().chain([TRUNCATE, PERSIST]).position(|one| one == how).unwrap();
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "application", "--ignored", "--nocapture"])
        .env(DIR, world.path(""))
        .env(ADDRESS, world.address().to_string())
        .env(USE, number.to_string())
        .env(LIFE, life)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // By the signal, without a panic.
    assert!(output.status.code().is_none(), "{how:?}, {life}: {:?} {said}", output.status);
}

/// The application's next start.
fn start(world: &World, how: Use) -> SyndDB<Connection> {
    let config = how.config(&world.address().to_string());
    SyndDB::own(how.open(&world.path("")), config).unwrap()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    GoesOn,
    Resync,
    Either,
}

/// Starts the application again, and finds all that is in the database restored.
fn check(world: &World, how: Use, expect: Expect, context: &str) {
    let context = format!("{how:?}, {context}");
    let synddb = start(world, how);
    let behind = synddb.stats().behind;
    match expect {
        Expect::GoesOn => assert_eq!(behind, None, "{context}"),
        Expect::Resync => assert_eq!(behind, Some(ResyncReason::UncleanRestart), "{context}"),
        Expect::Either => {}
    }
    world.check(&synddb, &context);
    for _ in 0..3 {
        synddb.connection().execute_batch(COMMIT).unwrap();
    }
    world.check(&synddb, &format!("{context}, and on"));
    let resyncs: Vec<_> = synddb.stats().resyncs.into_iter().map(|(reason, _)| reason).collect();
    assert_eq!(resyncs, Vec::from_iter(behind), "{context}");
    let stream = synddb.handle().stream();
    let epochs = world.store().epochs(stream).unwrap();
    let opened: Vec<_> = epochs.iter().map(|epoch| epoch.reason).collect();
    match expect {
        Expect::GoesOn => assert_eq!(opened.len(), 1, "{context}: {opened:?}"),
        Expect::Resync => assert_eq!(opened.len(), 2, "{context}: {opened:?}"),
        Expect::Either => {}
    }
}

/// A world whose application has begun its stream and stopped cleanly.
fn begun(how: Use) -> World {
    let world = World::new();
    let connection = how.open(&world.path(""));
    connection.execute_batch(SCHEMA).unwrap();
    let synddb = SyndDB::own(connection, how.config(&world.address().to_string())).unwrap();
    synddb.connection().execute_batch(COMMIT).unwrap();
    push(&synddb, "begun");
    assert!(synddb.shutdown().unwrap().clean);
    world
}

#[test]
fn a_kill_while_nothing_waits_needs_no_snapshot() {
    for how in uses() {
        for life in ["commits, push, die", "commits, push, commits, push, die"] {
            let world = begun(how);
            live(&world, how, life);
            check(&world, how, Expect::GoesOn, life);
        }
    }
}

#[test]
fn a_kill_before_the_first_commit_needs_no_snapshot() {
    for how in uses() {
        let world = begun(how);
        live(&world, how, "die");
        live(&world, how, "push, die");
        check(&world, how, Expect::GoesOn, "no commit");
    }
}

#[test]
fn a_kill_behind_the_first_snapshot_needs_no_other() {
    for how in uses() {
        let world = World::new();
        how.open(&world.path("")).execute_batch(SCHEMA).unwrap();
        // Outside WAL mode it takes a push to have one.
        live(&world, how, if how.journal_mode == "WAL" { "wait, die" } else { "push, die" });
        check(&world, how, Expect::GoesOn, "the first snapshot");
    }
}

#[test]
fn a_kill_around_a_commit_needs_no_snapshot_where_it_was_kept_before() {
    let lives = [
        "commits, in commit",
        "commits, commit, die",
        "in commit",
        "commit, die",
        "commits, push, in commit",
        "commits, push, commit, die",
        "commits, push, nothing, die",
        "nothing, in commit",
        "commits, push, checkpoint, in commit",
        "commits, push, checkpoint, commit, die",
        "commits, checkpoint, commits, die",
    ];
    for how in [WAL, DELETE, TRUNCATE, PERSIST] {
        let few = if PREPARED.contains(&how) { lives.len() } else { 4 };
        for life in &lives[..few] {
            let world = begun(how);
            live(&world, how, life);
            check(&world, how, Expect::GoesOn, life);
        }
    }
}

#[test]
fn a_kill_around_a_commit_loses_nothing_where_it_was_not_kept_before() {
    for how in BACKGROUND {
        for life in ["commits, in commit", "commits, die", "commits, push, in commit"] {
            let world = begun(how);
            live(&world, how, life);
            check(&world, how, Expect::Either, life);
        }
    }
}

#[test]
fn one_kill_after_another_needs_no_snapshot() {
    for how in [WAL, DELETE] {
        let world = begun(how);
        for life in ["commits, in commit", "commit, die", "in commit", "commits, die", "die"] {
            live(&world, how, life);
        }
        check(&world, how, Expect::GoesOn, "five kills");
    }
}

#[test]
fn a_commit_that_was_busy_at_first_is_kept_as_it_was_at_last() {
    for life in ["commits, push, busy, die", "commits, busy, in commit", "busy, die"] {
        let world = begun(DELETE);
        live(&world, DELETE, life);
        check(&world, DELETE, Expect::GoesOn, life);
    }
    for life in ["commits, push, busy and rolled back, die", "busy and rolled back, die"] {
        let world = begun(DELETE);
        live(&world, DELETE, life);
        // Full text is written when the commit is kept already.
        check(&world, DELETE, Expect::Either, life);
    }
}

#[test]
fn what_cannot_be_kept_before_the_commit_is_lost_by_no_kill() {
    for how in [WAL, DELETE] {
        for life in [
            "commits, push, full text, die",
            "commits, full text, commits, die",
            "commits, in full text",
            "full text, in commit",
            "full text, commit, die",
        ] {
            let world = begun(how);
            live(&world, how, life);
            check(&world, how, Expect::Either, life);
        }
    }
}

#[test]
fn what_capture_learns_too_late_is_noticed() {
    for how in uses() {
        let world = begun(how);
        live(&world, how, "commits, push, application id, die");
        check(&world, how, Expect::Resync, "application id");
    }
}

/// A commit of others that changes what no commit of the application touches.
const FOREIGN: &str = "INSERT INTO plain(rowid, a) VALUES (100000, 'foreign')";

#[test]
fn one_commit_of_others_after_a_kill_is_noticed() {
    for how in uses() {
        for life in ["commits, push, die", "commits, in commit", "in commit", "commit, die"] {
            for stays in [false, true] {
                let world = begun(how);
                live(&world, how, life);
                let other = Connection::open(world.path("app.db")).unwrap();
                other.execute_batch(FOREIGN).unwrap();
                // One that goes empties the log, one that stays leaves its commit in it.
                let stays = stays.then_some(other);
                let context = format!("{life}, {stays:?}");
                check(&world, how, Expect::Resync, &context);
            }
        }
    }
}

#[test]
fn one_commit_of_others_in_a_log_of_its_own_is_noticed() {
    for life in ["commit, die", "commits, push, checkpoint, commit, die", "commits, in commit"] {
        let world = begun(WAL);
        live(&world, WAL, life);
        // The first one empties the log on its way out: what the second one leaves looks as if the
        // application's last commit were all there is.
        drop(Connection::open(world.path("app.db")).map(|first| first.execute_batch("ANALYZE")));
        let second = Connection::open(world.path("app.db")).unwrap();
        second.execute_batch(FOREIGN).unwrap();
        check(&world, WAL, Expect::Resync, life);
        drop(second);
    }
}

#[test]
fn an_older_copy_of_the_database_is_noticed() {
    for how in uses() {
        let world = begun(how);
        live(&world, how, "commits, push, die");
        copy(&world, "app.db", "older.db");
        live(&world, how, "commits, push, die");
        copy(&world, "older.db", "app.db");
        check(&world, how, Expect::Resync, "older");
    }
}

#[test]
fn an_older_copy_with_as_many_commits_is_noticed() {
    for how in uses() {
        let world = begun(how);
        live(&world, how, "commits, push, die");
        copy(&world, "app.db", "older.db");
        live(&world, how, "commits, push, die");
        copy(&world, "older.db", "app.db");
        let other = Connection::open(world.path("app.db")).unwrap();
        for _ in 0..8 {
            other.execute_batch(COMMIT).unwrap();
        }
        // One that goes would empty the log.
        let other = Some(other).filter(|_| how.journal_mode == "WAL");
        check(&world, how, Expect::Resync, "older, written to");
        drop(other);
    }
}

/// With its logs; nobody has it open.
fn copy(world: &World, from: &str, to: &str) {
    for suffix in ["", "-wal", "-journal", "-shm"] {
        let (from, to) =
            (world.path(&format!("{from}{suffix}")), world.path(&format!("{to}{suffix}")));
        let _ = std::fs::remove_file(&to);
        if suffix != "-shm" && from.exists() {
            std::fs::copy(from, to).unwrap();
        }
    }
}

/// Takes the last commits out of a log, as a power cut does that comes before they are on disk.
fn cut_log(path: &Path, commits: usize) {
    let log = std::fs::read(path).unwrap();
    let page_size = u32::from_be_bytes(log[8..12].try_into().unwrap()) as usize;
    let ends: Vec<usize> = log[32..]
        .chunks_exact(24 + page_size)
        .enumerate()
        // Frames of an older log may follow.
        .take_while(|(_, frame)| frame[8..16] == log[16..24])
        .filter(|(_, frame)| frame[4..8] != [0; 4])
        .map(|(number, _)| 32 + (number + 1) * (24 + page_size))
        .collect();
    let end = ends[ends.len() - 1 - commits];
    // Pages that were to come later may be there, and be torn.
    let mut log = log[..end + (24 + page_size) / 2].to_vec();
    log[end + 30..].fill(0xA5);
    std::fs::write(path, log).unwrap();
    let shm = path.to_str().unwrap().replace("-wal", "-shm");
    let _ = std::fs::remove_file(shm);
}

#[test]
fn a_power_cut_that_takes_commits_which_were_not_sent_needs_no_snapshot() {
    let mut unsent = 0;
    for commits in 1..=4 {
        let world = begun(WAL);
        live(&world, WAL, "commits, push, commits, die");
        let outbox = Connection::open(world.path("app.db-synddb")).unwrap();
        let number = |sql| outbox.query_row(sql, [], |row| row.get::<_, u32>(0)).unwrap() as usize;
        let prepared = number(
            "SELECT count(*) FROM prepared, outbox WHERE prepared.number > outbox.last_commit",
        );
        drop(outbox);
        cut_log(&world.path("app.db-wal"), commits);
        let expect = if commits <= prepared { Expect::GoesOn } else { Expect::Resync };
        unsent += usize::from(expect == Expect::GoesOn);
        check(&world, WAL, expect, &format!("{commits} of {prepared} commits"));
    }
    assert!(unsent > 0, "the writer was too fast for this test");
}

#[test]
fn a_power_cut_that_takes_commits_which_were_sent_is_noticed() {
    for how in [WAL, BACKGROUND[0], BACKGROUND[2]] {
        for commits in [1, 2, 5] {
            let world = begun(how);
            live(&world, how, "commits, push, die");
            cut_log(&world.path("app.db-wal"), commits);
            check(&world, how, Expect::Resync, &format!("{commits} commits"));
        }
    }
}

/// `SYNDDB_SEED` replays; `SYNDDB_DEATHS` says how many deaths.
#[test]
fn any_history_of_deaths_is_survived() {
    let deaths = env::var("SYNDDB_DEATHS").map_or(12, |deaths| deaths.parse().unwrap());
    let seed = env::var("SYNDDB_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("SYNDDB_SEED={seed}");
    for (number, how) in uses().enumerate() {
        let mut rng = Rng::new(seed + 1000 * number as u64);
        let world = begun(how);
        for death in 0..deaths {
            let steps = ["commits", "commit", "push", "checkpoint", "nothing", "full text"];
            let mut pick = |from: &[&'static str]| from[rng.up_to(from.len() as u64 - 1) as usize];
            let mut life: Vec<_> = (0..4).map(|_| pick(&steps)).collect();
            life.push(pick(&["in commit", "commit, die", "die", "push, die", "in full text"]));
            let meanwhile = pick(&["nothing", "nothing", "a commit", "a commit that stays"]);
            let life = life.join(", ");
            let context = format!("{how:?}, seed {seed}, death {death}: {life}; {meanwhile}");
            live(&world, how, &life);
            let other = (meanwhile != "nothing").then(|| {
                let other = Connection::open(world.path("app.db")).unwrap();
                other.execute_batch("INSERT INTO plain VALUES ('foreign', random())").unwrap();
                other
            });
            let other = other.filter(|_| meanwhile == "a commit that stays");
            let synddb = start(&world, how);
            let behind = synddb.stats().behind;
            let kept = how.durability == Durability::BeforeCommit && !life.contains("full text");
            if meanwhile != "nothing" {
                assert_eq!(behind, Some(ResyncReason::UncleanRestart), "{context}");
            } else if kept || (life.ends_with("push, die") && !life.contains("nothing")) {
                // The place after a commit of no effect is noted a little later than it is pushed.
                assert_eq!(behind, None, "{context}");
            }
            world.check(&synddb, &context);
            drop((synddb, other));
        }
    }
}

#[test]
fn a_setting_that_changes_between_two_starts_needs_no_snapshot() {
    for (before, after) in [(WAL, BACKGROUND[0]), (BACKGROUND[2], WAL), (WAL, BACKGROUND[2])] {
        let world = begun(before);
        let life = if before == WAL { "commits, in commit" } else { "commits, push, die" };
        live(&world, before, life);
        check(&world, after, Expect::GoesOn, "another setting");
    }
}

#[test]
fn a_loss_before_a_kill_is_mended_by_a_snapshot() {
    for how in uses() {
        let mut world = begun(how);
        // With nobody to send a snapshot to, the stream stays behind.
        world.stop();
        live(&world, how, "commits, fail to push, resync, die");
        world.start();
        check(&world, how, Expect::Resync, "behind");
    }
}

#[test]
fn an_outbox_that_cannot_be_written_holds_up_no_commit() {
    let world = begun(WAL);
    let synddb = start(&world, WAL);
    push(&synddb, "first");
    assert_eq!(synddb.stats().unprepared_commits, 0);
    let other = Connection::open(world.path("app.db-synddb")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    for _ in 0..3 {
        synddb.connection().execute_batch(COMMIT).unwrap();
    }
    let stats = synddb.stats();
    assert!(stats.unprepared_commits >= 1 && stats.trouble.is_some(), "{stats:?}");
    other.execute_batch("ROLLBACK").unwrap();
    synddb.connection().execute_batch(COMMIT).unwrap();
    world.check(&synddb, "writable again");
    let stats = synddb.stats();
    assert!(stats.resyncs.is_empty() && stats.trouble.is_none(), "{stats:?}");
}

#[test]
fn commits_are_kept_before_they_happen_in_every_mode_that_allows_it() {
    for how in [WAL, DELETE, TRUNCATE, PERSIST] {
        let world = begun(how);
        let synddb = start(&world, how);
        for _ in 0..20 {
            synddb.connection().execute_batch(COMMIT).unwrap();
        }
        world.check(&synddb, "kept");
        assert_eq!(synddb.stats().unprepared_commits, 0, "{how:?}");
        synddb.connection().execute_batch("INSERT INTO note VALUES ('full text')").unwrap();
        world.check(&synddb, "not kept");
    }
    let world = begun(DELETE);
    let connection = DELETE.open(&world.path(""));
    connection.pragma_update(None, "locking_mode", "exclusive").unwrap();
    let config = DELETE.config(&world.address().to_string());
    let synddb = SyndDB::own(connection, config).unwrap();
    synddb.connection().execute_batch(COMMIT).unwrap();
    assert_eq!(synddb.stats().unprepared_commits, 1);
    world.check(&synddb, "exclusive");
}

#[test]
fn an_outbox_in_memory_begins_each_start_with_a_snapshot() {
    for (engine, journal_mode) in [(Engine::Session, "WAL"), (Engine::Preupdate, "DELETE")] {
        let how = Use { engine, durability: Durability::Memory, journal_mode };
        let world = World::new();
        let config =
            Config { stream: Some("named".into()), ..how.config(&world.address().to_string()) };
        let connection = how.open(&world.path(""));
        connection.execute_batch(SCHEMA).unwrap();
        for _ in 0..2 {
            let synddb = SyndDB::own(how.open(&world.path("")), config.clone()).unwrap();
            synddb.connection().execute_batch(COMMIT).unwrap();
            world.check(&synddb, "in memory");
            let resyncs = synddb.stats().resyncs;
            assert_eq!(resyncs, [(ResyncReason::MemoryOutbox, 1)]);
            assert!(!world.path("app.db-synddb").exists());
            assert!(!synddb.shutdown().unwrap().clean);
        }
        let unnamed = Config { stream: None, ..config };
        SyndDB::own(how.open(&world.path("")), unnamed).unwrap_err();
    }
}
