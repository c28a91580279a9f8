//! Boundaries lie exactly between two commits.

use std::sync::atomic::AtomicU64;
use std::sync::mpsc;

use super::*;
use crate::snapshot::{SnapshotError, remove_leftovers};

const SCHEMA: &str = "
    CREATE TABLE counter(id INTEGER PRIMARY KEY, n);
    CREATE TABLE bulk(id INTEGER PRIMARY KEY, v);
    INSERT INTO counter VALUES (1, 0), (2, 0);";

/// A commit whose rows must be seen together or not at all.
fn step(conn: &Connection, number: u64) {
    conn.execute_batch(&format!(
        "BEGIN; UPDATE counter SET n = {number} WHERE id = 1;
         INSERT OR REPLACE INTO bulk VALUES ({}, zeroblob({}));
         UPDATE counter SET n = {number} WHERE id = 2; COMMIT",
        number % 500,
        number * 37 % 3000,
    ))
    .unwrap();
}

/// Goes through the events: every image must be what the changesets before it lead to, and lead
/// to the end by those after it.
fn check(app: &App, start: Replica, context: &str) -> usize {
    let mut replicas = vec![start];
    let mut images = 0;
    for event in app.log.take() {
        match event {
            Event::Committed(commit) => replicas.iter().for_each(|r| r.apply(&commit)),
            Event::Lost(reason) => panic!("{context}: lost: {reason}"),
            Event::Boundary(boundary) => {
                let mut image = app.image(boundary);
                let replica = Replica::of_image(&mut image);
                let check: String =
                    replica.0.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
                assert_eq!(check, "ok");
                replica.assert_equals(&replicas[0].0, &format!("{context}: image {images}"));
                images += 1;
                replicas.truncate(3);
                replicas.push(replica);
            }
        }
    }
    for replica in &replicas {
        replica.assert_equals(&app.conn, &format!("{context}: at the end"));
    }
    images
}

#[test]
fn in_wal_mode_a_boundary_taken_in_the_commit_is_exact() {
    for seed in seeds(5) {
        let mut random = Random(seed);
        let mut app = App::with(Mode::Wal, SCHEMA);
        let start = Replica::of(&app.conn);
        for number in 1..400 {
            if random.below(40) == 0 {
                app.log.want_snapshot();
            }
            step(&app.conn, number);
            if random.below(50) == 0 {
                app.log.want_snapshot();
                app.flush();
            }
        }
        let images = check(&app, start, &format!("seed {seed}"));
        assert!(images > 3, "seed {seed}: {images} images");
    }
}

#[test]
fn a_background_copy_is_exact_while_commits_go_on() {
    let mut app = App::with(Mode::Wal, SCHEMA);
    for number in 0..3000 {
        let sql = "INSERT INTO bulk VALUES (?, zeroblob(1500))";
        app.conn.execute(sql, [10_000 + number]).unwrap();
    }
    app.log.take();
    let start = Replica::of(&app.conn);
    app.log.want_snapshot();
    step(&app.conn, 1);
    let mut events = app.log.take();
    let Some(Event::Boundary(boundary)) = events.pop() else { panic!("no boundary") };
    let Some(Event::Committed(commit)) = events.pop() else { panic!("no commit") };
    start.apply(&commit);

    let done = Arc::new(AtomicBool::new(false));
    let path = image_path(app.dir.path(), "snap-");
    let copying = std::thread::spawn({
        let done = Arc::clone(&done);
        move || {
            let control = CopyControl::default();
            let image = boundary.copy_to(&path, &control).unwrap();
            let (copied, total) = control.progress();
            assert!(copied == total && total > 1000);
            done.store(true, Ordering::Relaxed);
            image
        }
    });
    let mut number = 2;
    while !done.load(Ordering::Relaxed) {
        step(&app.conn, number);
        number += 1;
    }
    let mut image = copying.join().unwrap();
    let replica = Replica::of_image(&mut image);
    replica.assert_equals(&start.0, "at the boundary");
    let later = app.commits();
    assert_eq!(later.len() as u64, number - 2);
    later.iter().for_each(|commit| replica.apply(commit));
    replica.assert_equals(&app.conn, "at the end");
    app.flush();
}

#[test]
fn an_image_is_a_plain_database_with_the_sources_schema_version() {
    for (mode, page_size) in
        [(Mode::Wal, 512), (Mode::Wal, 65536), (Mode::Delete, 8192), (Mode::Memory, 1024)]
    {
        let mut app = App::new(mode);
        // A file's size is set before its first page is written.
        app.run(&format!("PRAGMA journal_mode = delete; PRAGMA page_size = {page_size}; VACUUM"));
        if mode == Mode::Wal {
            app.run("PRAGMA journal_mode = wal");
        }
        app.run(SCHEMA);
        for number in 0..20 {
            app.run(&format!("CREATE TABLE t{number}(x)"));
        }
        app.run("PRAGMA user_version = 12");
        app.attach();
        app.log.want_snapshot();
        app.flush();
        let Some(Event::Boundary(boundary)) = app.log.take().pop() else { panic!("no boundary") };
        let (version, mut image) = (boundary.schema_version(), app.image(boundary));
        let mut bytes = vec![0; image.len() as usize + 10];
        assert_eq!(image.read_at(0, &mut bytes).unwrap() as u64, image.len());
        bytes.truncate(image.len() as usize);
        let mut part = [0; 7];
        assert_eq!(image.read_at(image.len() - 3, &mut part).unwrap(), 3);
        assert_eq!(part[..3], bytes[bytes.len() - 3..]);
        assert_eq!(image.read_at(u64::MAX, &mut part).map_or(0, |read| read), 0);
        let hash: [u8; 32] = <sha2::Sha256 as sha2::Digest>::digest(&bytes).into();
        assert_eq!(hash, image.sha256());

        let path = app.dir.path().join("restored.db");
        std::fs::write(&path, &bytes).unwrap();
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let restored = Connection::open_with_flags(&path, flags).unwrap();
        let pragma = |name: &str| -> String {
            let sql = format!("SELECT CAST({name} AS TEXT) FROM pragma_{name}");
            restored.query_row(&sql, [], |row| row.get(0)).unwrap()
        };
        assert_eq!(pragma("journal_mode"), "delete");
        assert_eq!(pragma("page_size"), page_size.to_string());
        assert_eq!(pragma("user_version"), "12");
        assert_eq!(pragma("integrity_check"), "ok");
        assert_eq!(pragma("schema_version"), version.to_string());
        let source: u32 =
            app.conn.query_row("PRAGMA schema_version", [], |row| row.get(0)).unwrap();
        assert_eq!(version, source);
        assert_eq!(dump(&restored), dump(&app.conn));
        assert_eq!(image.path().is_some(), mode != Mode::Memory);
    }
}

#[test]
fn an_empty_database_has_an_image_too() {
    for mode in [Mode::Wal, Mode::Delete, Mode::Memory] {
        let mut app = App::new(mode);
        app.attach();
        app.log.want_snapshot();
        app.flush();
        let Some(Event::Boundary(boundary)) = app.log.take().pop() else { panic!("no boundary") };
        let mut image = app.image(boundary);
        assert!(image.len() >= 512);
        assert_eq!(dump(&Replica::of_image(&mut image).0), Vec::<String>::new());
    }
}

#[test]
fn outside_wal_mode_a_copy_in_steps_carries_what_is_written_meanwhile() {
    for mode in [Mode::Delete, Mode::Memory] {
        for seed in seeds(3) {
            let mut random = Random(seed);
            let mut app = App::with(mode, SCHEMA);
            app.run(
                "WITH RECURSIVE c(i) AS (SELECT 10000 UNION ALL SELECT i + 1 FROM c WHERE i < 22000)
                 INSERT INTO bulk SELECT i, zeroblob(2500) FROM c",
            );
            app.flush();
            app.log.take();
            let start = Replica::of(&app.conn);
            app.log.want_snapshot();
            let mut steps = 0;
            while app.log.wants.load(Ordering::Relaxed) {
                step(&app.conn, random.below(1000) + 1);
                if random.below(3) == 0 {
                    app.run("BEGIN; UPDATE bulk SET v = 1 WHERE id % 97 = 3; ROLLBACK");
                }
                app.capture.as_mut().unwrap().flush(FlushMode::Step).unwrap();
                steps += 1;
            }
            assert!((3..500).contains(&steps), "{mode:?}: {steps} steps");
            step(&app.conn, 2000);
            app.flush();
            assert_eq!(check(&app, start, &format!("{mode:?}, seed {seed}")), 1);
        }
    }
}

#[test]
fn with_exclusive_locking_the_copy_is_made_by_the_apps_connection() {
    let mut app = App::new(Mode::Delete);
    app.run("PRAGMA locking_mode = exclusive; PRAGMA journal_mode = wal");
    app.run(SCHEMA);
    app.attach();
    let start = Replica::of(&app.conn);
    app.log.want_snapshot();
    step(&app.conn, 1);
    app.flush();
    step(&app.conn, 2);
    assert_eq!(check(&app, start, "exclusive"), 1);
    assert!(!app.dir.path().join("app.db-shm").exists());
}

#[test]
fn odd_paths_and_parameters_reach_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a b?c%41#ü.db");
    let uri = format!("file:{}/a%20b%3Fc%2541%23%C3%BC.db?psow=0", dir.path().display());
    for name in [path.to_str().unwrap(), &uri] {
        let conn = Connection::open(name).unwrap();
        conn.pragma_update(None, "journal_mode", "wal").unwrap();
        conn.execute_batch("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY)").unwrap();
        let log: Arc<Log> = Arc::default();
        let capture = attach(&conn, &log, dir.path()).unwrap();
        log.want_snapshot();
        conn.execute_batch("INSERT INTO t DEFAULT VALUES").unwrap();
        assert!(matches!(log.take()[..], [Event::Committed(_), Event::Boundary(_)]), "{name}");
        drop(capture);
    }
    assert!(path.exists());
}

#[test]
fn a_cancelled_or_impossible_copy_leaves_no_file() {
    let app = App::with(Mode::Wal, SCHEMA);
    let boundary = |number| {
        app.log.want_snapshot();
        step(&app.conn, number);
        let Some(Event::Boundary(boundary)) = app.log.take().pop() else { panic!("no boundary") };
        boundary
    };
    let path = image_path(app.dir.path(), "snap-");
    let control = CopyControl::default();
    control.cancel();
    assert_eq!(boundary(1).copy_to(&path, &control).err(), Some(SnapshotError::Cancelled));
    assert!(!path.exists());
    let nowhere = app.dir.path().join("missing").join("x.db");
    let error = boundary(2).copy_to(&nowhere, &CopyControl::default()).err();
    assert!(matches!(error, Some(SnapshotError::Io { kind: std::io::ErrorKind::NotFound, .. })));
    let image = boundary(3).copy_to(&path, &CopyControl::default()).unwrap();
    assert!(path.exists());
    // An existing file is never written over.
    assert!(boundary(4).copy_to(&path, &CopyControl::default()).is_err());
    assert!(path.exists());
    drop(image);
    assert!(!path.exists());
    // As a killed process leaves it.
    std::mem::forget(boundary(5).copy_to(&path, &CopyControl::default()).unwrap());
    assert!(path.exists());
    std::fs::write(app.dir.path().join("other"), "x").unwrap();
    remove_leftovers(app.dir.path(), "snap-").unwrap();
    assert!(!path.exists() && app.dir.path().join("other").exists() && app.path().exists());
    remove_leftovers(&app.dir.path().join("missing"), "snap-").unwrap();
}

#[test]
fn another_thread_takes_a_boundary_while_the_app_is_idle() {
    let mut app = App::with(Mode::Wal, SCHEMA);
    let start = Replica::of(&app.conn);
    let idle = app.capture.as_ref().unwrap().idle_boundary();
    let take = || {
        let idle = idle.clone();
        std::thread::spawn(move || idle.try_take()).join().unwrap()
    };
    assert_eq!(take(), Ok(false), "nobody wants one");
    app.log.want_snapshot();
    assert_eq!(take(), Ok(true), "before any commit");
    for number in 1..10 {
        step(&app.conn, number);
        app.log.want_snapshot();
        assert_eq!(take(), Ok(true), "after commit {number}");
    }
    app.run("BEGIN; INSERT INTO bulk VALUES (77, 77)");
    app.log.want_snapshot();
    assert_eq!(take(), Ok(true), "an open transaction is not in it");
    app.run("COMMIT");
    app.log.want_snapshot();
    app.capture = None;
    assert_eq!(take(), Ok(false), "after detaching");
    assert_eq!(check(&app, start, "idle"), 11);
}

#[test]
fn a_restarted_log_is_noted_by_the_next_flush() {
    let mut app = App::with(Mode::Wal, SCHEMA);
    step(&app.conn, 1);
    let idle = app.capture.as_ref().unwrap().idle_boundary();
    app.run("PRAGMA wal_checkpoint(TRUNCATE)");
    app.flush();
    assert_eq!(app.commits().len(), 1);
    app.run("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA wal_checkpoint(RESTART)");
    app.log.want_snapshot();
    assert_eq!(idle.try_take(), Ok(false), "the log is in a state nobody has noted");
    app.flush();
    app.log.want_snapshot();
    assert_eq!(idle.try_take(), Ok(true));
    assert!(matches!(app.log.take()[..], [Event::Boundary(_), Event::Boundary(_)]));
}

#[test]
fn an_idle_boundary_waits_for_what_was_not_handed_over() {
    let mut app = App::with(Mode::Wal, SCHEMA);
    let idle = app.capture.as_ref().unwrap().idle_boundary();
    app.log.want_snapshot();
    // Commits without the hook being told.
    app.conn.execute("INSERT OR FAIL INTO bulk VALUES (1, 1), (1, 1)", []).unwrap_err();
    assert_eq!(idle.try_take(), Ok(false));
    app.flush();
    assert!(matches!(app.log.take()[..], [Event::Committed(_), Event::Boundary(_)]));

    let other = Connection::open(app.path()).unwrap();
    other.execute_batch("INSERT INTO bulk VALUES (2, 2)").unwrap();
    app.log.want_snapshot();
    assert_eq!(idle.try_take(), Ok(false));
    app.flush();
    assert!(matches!(app.log.take()[..], [Event::Lost(Lost::ForeignWrite), Event::Boundary(_)]));
    app.log.want_snapshot();
    assert_eq!(idle.try_take(), Ok(true));
    app.log.take();

    for mode in [Mode::Delete, Mode::Memory] {
        let app = App::with(mode, SCHEMA);
        app.log.want_snapshot();
        assert_eq!(app.capture.as_ref().unwrap().idle_boundary().try_take(), Ok(false));
    }
}

#[test]
fn idle_boundaries_are_exact_beside_commits() {
    for seed in seeds(4) {
        let mut random = Random(seed);
        let mut app = App::with(Mode::Wal, SCHEMA);
        app.run("PRAGMA wal_autocheckpoint = 40");
        app.flush();
        let start = Replica::of(&app.conn);
        let idle = app.capture.as_ref().unwrap().idle_boundary();
        let (attempts, taken) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (stop, stopped) = mpsc::channel::<()>();
        let taker = std::thread::spawn({
            let (attempts, taken, log) =
                (Arc::clone(&attempts), Arc::clone(&taken), Arc::clone(&app.log));
            move || {
                while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                    log.want_snapshot();
                    let took = idle.try_take().unwrap();
                    taken.fetch_add(u64::from(took), Ordering::Relaxed);
                    attempts.fetch_add(1, Ordering::Relaxed);
                }
                log.wants.store(false, Ordering::Relaxed);
            }
        });
        let mut number = 0;
        while taken.load(Ordering::Relaxed) < 25 || attempts.load(Ordering::Relaxed) < 60 {
            for _ in 0..=random.below(3) {
                number += 1;
                step(&app.conn, number);
            }
            // Now and then the app is idle for an attempt, wholly or in part.
            let seen = attempts.load(Ordering::Relaxed);
            let pause = random.below(3);
            while attempts.load(Ordering::Relaxed) < seen + pause {
                std::hint::spin_loop();
            }
        }
        stop.send(()).unwrap();
        taker.join().unwrap();
        app.flush();
        // Boundaries in commits count as well: both kinds are among the events.
        let images = check(&app, start, &format!("seed {seed}"));
        assert!(images >= 25, "seed {seed}: {images}");
    }
}
