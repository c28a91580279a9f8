//! What stands between an application and its sequencer on a bad day: told clearly, ridden out, and
//! nothing lost.
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

use std::time::{Duration, Instant};

use rusqlite::Connection;
use synddb_client::{Config, Error, NotStored, OnDivergence, SyndDB};
use synddb_core::{Epoch, Rng, SeqNo, wire::EntryKind};
use synddb_sequencer::store::LogStore;
use synddb_tests::{
    proxy::{Mode, Proxy},
    world::{World, push},
};

/// An application behind a proxy, attached and in step.
fn attached(world: &World, proxy: &Proxy) -> SyndDB<Connection> {
    let config = Config {
        sequencer_url: proxy.url(),
        response_timeout: Duration::from_millis(500),
        ..world.config()
    };
    let synddb = SyndDB::open_with_config(world.path("app.db"), config).unwrap();
    synddb.connection().execute_batch("CREATE TABLE item(id INTEGER PRIMARY KEY, v)").unwrap();
    push(&synddb, "before");
    synddb
}

fn write(synddb: &SyndDB<Connection>, rows: usize) {
    for _ in 0..rows {
        synddb.connection().execute("INSERT INTO item(v) VALUES (randomblob(100))", []).unwrap();
    }
}

/// Pushes until the link has noticed the bad day.
fn refused(synddb: &SyndDB<Connection>) -> NotStored {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match synddb.push_timeout(Duration::from_secs(10)) {
            Err(Error::NotStored(left)) => return left,
            Err(error) => panic!("{error}"),
            Ok(_) => assert!(Instant::now() < deadline, "pushed: {synddb:?}"),
        }
        write(synddb, 1);
    }
}

#[test]
fn each_is_told_and_ridden_out() {
    let html = "<html><body>Bad Gateway</body></html>";
    let frames = "Content-Type: application/vnd.synddb.frames\r\n";
    let days = [
        (Mode::HangUp, ""),
        (Mode::BlackHole, "time"),
        (Mode::answer("200 OK", "Content-Type: text/html\r\n", html), "not a synddb sequencer"),
        (Mode::answer("404 Not Found", "", "nothing here"), "does not speak synddb"),
        (Mode::answer("302 Found", "Location: http://localhost/\r\n", ""), "redirect"),
        (Mode::answer("401 Unauthorized", "", ""), "access refused"),
        (Mode::answer("429 Too Many Requests", "Retry-After: 1\r\n", ""), "retry after 1 s"),
        (Mode::answer("500 Internal Server Error", "", "oops"), "oops"),
        (Mode::answer("503 Service Unavailable", "", ""), "busy"),
        (Mode::answer("200 OK", frames, "these are no frames at all"), "not synddb frames"),
        (Mode::Answer(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()), ""),
        (Mode::Answer(vec![0xff; 100_000]), ""),
        (Mode::Truncate(150), ""),
    ];
    let world = World::new();
    let proxy = Proxy::start(world.address());
    let synddb = attached(&world, &proxy);
    for (mode, told) in days {
        let context = format!("{mode:?}").chars().take(80).collect::<String>();
        proxy.set(mode);
        write(&synddb, 5);
        let left = refused(&synddb);
        assert!(left.commits >= 5, "{context}: {left}");
        assert!(left.to_string().contains(told), "{context}: {left}");
        proxy.set(Mode::Pass);
        world.check(&synddb, &context);
    }
    assert_eq!(synddb.stats().resyncs.len(), 1, "no snapshot was needed: {synddb:?}");
}

/// The commits of the log's newest epoch, in its order.
fn logged_commits(world: &World, epoch: Epoch) -> Vec<u64> {
    let store = world.store();
    let stream = store.streams().unwrap()[0].receiver.stream();
    let mut commits = Vec::new();
    let mut next = SeqNo::FIRST;
    loop {
        let entries = store.entries(stream, epoch, next, 1 << 20).unwrap();
        let Some(last) = entries.last() else { return commits };
        next = last.seq.next();
        for meta in entries.iter().map(|entry| entry.decoded_meta().unwrap()) {
            if meta.kind == EntryKind::Changeset {
                commits.extend(meta.first_commit..=meta.last_commit);
            }
        }
    }
}

#[test]
fn lost_answers_store_nothing_twice() {
    let world = World::new();
    let proxy = Proxy::start(world.address());
    let synddb = attached(&world, &proxy);
    let before = push(&synddb, "before").commit;
    for _ in 0..20 {
        proxy.set(Mode::LoseAnswers);
        write(&synddb, 3);
        refused(&synddb);
        proxy.set(Mode::Pass);
        write(&synddb, 2);
        push(&synddb, "after");
    }
    let receipt = push(&synddb, "at the end");
    let expected: Vec<_> = (before + 1..=receipt.commit).collect();
    assert_eq!(logged_commits(&world, receipt.head.epoch), expected);
    world.check(&synddb, "at the end");
}

#[test]
fn a_limit_on_the_way_makes_frames_smaller() {
    let world = World::new();
    let proxy = Proxy::start(world.address());
    let synddb = attached(&world, &proxy);
    proxy.set(Mode::Limit(50_000));
    synddb
        .connection()
        .execute_batch(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
             INSERT INTO item(v) SELECT randomblob(1000) FROM n",
        )
        .unwrap();
    write(&synddb, 500);
    world.check(&synddb, "below the limit");
}

#[test]
fn one_byte_at_a_time_is_slow_and_no_more() {
    let world = World::new();
    let proxy = Proxy::start(world.address());
    let synddb = attached(&world, &proxy);
    proxy.set(Mode::Trickle);
    write(&synddb, 5);
    world.check(&synddb, "trickled");
}

#[test]
fn a_link_that_flaps_and_garbles_loses_nothing() {
    let seed = match std::env::var("SYNDDB_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => 1,
    };
    println!("SYNDDB_SEED={seed}");
    let mut rng = Rng::new(seed);
    let world = World::new();
    let proxy = Proxy::start(world.address());
    let synddb = attached(&world, &proxy);
    for _ in 0..60 {
        proxy.set(match rng.up_to(7) {
            0 => Mode::HangUp,
            1 => Mode::LoseAnswers,
            2 => Mode::Truncate(rng.up_to(400) as usize + 1),
            3 => Mode::FlipRequests(rng.up_to(u64::MAX)),
            4 => Mode::FlipAnswers(rng.up_to(u64::MAX)),
            5 => Mode::answer("503 Service Unavailable", "", ""),
            _ => Mode::Pass,
        });
        write(&synddb, rng.up_to(20) as usize);
        // How it ends does not matter here.
        let _ = synddb.push_timeout(Duration::from_millis(rng.up_to(300)));
    }
    proxy.set(Mode::Pass);
    world.check(&synddb, "at the end");
}

/// A virtual machine that was restored from a snapshot: database, outbox and all are what they were.
#[test]
fn a_machine_that_was_set_back_is_told_and_takes_nothing_back_in_silence() {
    for on_divergence in [OnDivergence::Halt, OnDivergence::Resync] {
        let world = World::new();
        let attach = || {
            let connection = world.open("app.db");
            let table = "CREATE TABLE IF NOT EXISTS item(id INTEGER PRIMARY KEY, v)";
            connection.execute_batch(table).unwrap();
            let config = Config { on_divergence, ..world.config() };
            SyndDB::own(connection, config).unwrap()
        };
        let synddb = attach();
        write(&synddb, 10);
        world.check(&synddb, "before");
        assert!(synddb.shutdown().unwrap().clean);
        let files = || {
            let all = std::fs::read_dir(world.path("")).unwrap().map(|file| file.unwrap().path());
            let is_the_machines = |path: &std::path::PathBuf| {
                path.file_name().unwrap().to_string_lossy().starts_with("app.db")
            };
            all.filter(is_the_machines).collect::<Vec<_>>()
        };
        let snapshot: Vec<_> =
            files().into_iter().map(|path| (std::fs::read(&path).unwrap(), path)).collect();
        let synddb = attach();
        write(&synddb, 10);
        world.check(&synddb, "what is to be forgotten");
        assert!(synddb.shutdown().unwrap().clean);

        files().iter().for_each(|path| std::fs::remove_file(path).unwrap());
        snapshot.iter().for_each(|(bytes, path)| std::fs::write(path, bytes).unwrap());
        let synddb = attach();
        write(&synddb, 5);
        if on_divergence == OnDivergence::Halt {
            let left = refused(&synddb);
            assert!(left.to_string().contains("holds other entries than this database"), "{left}");
            synddb.resync();
        }
        world.check(&synddb, "after");
        let resyncs: Vec<_> =
            synddb.stats().resyncs.into_iter().map(|(reason, _)| reason).collect();
        assert_eq!(resyncs.len(), 1, "one snapshot, and for a reason: {resyncs:?}");
    }
}
