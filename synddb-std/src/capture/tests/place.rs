//! The places that name commits: each that of exactly the commits told so far, never of one more.

use super::super::{Position, Present};
use super::*;

const SCHEMA: &str = "CREATE TABLE item(id INTEGER PRIMARY KEY, v)";

#[derive(Debug, PartialEq, Eq)]
enum Told {
    Committed(Option<Position>),
    Named(Position),
    Lost,
}

/// Notes what it is told. In between another connection may write, as another process might: from
/// inside the commit, when its locks are gone.
#[derive(Default)]
struct Places {
    told: Mutex<Vec<Told>>,
    other: Mutex<Option<Connection>>,
}

impl CommitSink for Places {
    fn committed(&self, commit: Commit) {
        self.told.lock().unwrap().push(Told::Committed(commit.position));
        if let Some(other) = self.other.lock().unwrap().take() {
            other.execute_batch("INSERT INTO item(v) VALUES ('another')").unwrap();
        }
    }
    fn lost(&self, _: Lost) {
        self.told.lock().unwrap().push(Told::Lost);
    }
    fn wants_snapshot(&self) -> bool {
        false
    }
    fn boundary(&self, _: Boundary) {}
    fn named(&self, position: Position) {
        self.told.lock().unwrap().push(Told::Named(position));
    }
}

/// The place as a restart would find it.
fn present(app: &App) -> Option<Position> {
    // SAFETY: an open connection, used on this thread only.
    unsafe { Present::look(app.conn.handle()) }.unwrap().position()
}

fn follow(engine: Engine, mode: Mode) -> (App, Arc<Places>, Capture) {
    let app = App::by(engine, mode);
    app.run(SCHEMA);
    let places = Arc::<Places>::default();
    let options = CaptureOptions {
        keep_before_commit: false,
        snapshot_dir: app.dir.path().to_owned(),
        snapshot_prefix: "snap-".into(),
        max_changeset_bytes: 1 << 20,
        engine,
    };
    // SAFETY: dropped before the connection, used on one thread.
    let capture =
        unsafe { Capture::attach(app.conn.handle(), Arc::clone(&places) as _, options) }.unwrap();
    (app, places, capture)
}

const CASES: [(Engine, Mode); 4] = [
    (Engine::Session, Mode::Wal),
    (Engine::Session, Mode::Delete),
    (Engine::Preupdate, Mode::Wal),
    (Engine::Preupdate, Mode::Delete),
];

#[test]
fn a_commit_is_told_with_the_place_that_a_restart_finds() {
    for (engine, mode) in CASES {
        let (app, places, mut capture) = follow(engine, mode);
        for id in 0..5 {
            app.run(&format!("INSERT INTO item VALUES ({id}, 1)"));
            capture.flush(FlushMode::Complete).unwrap();
            let here = present(&app).expect("a place");
            let told = std::mem::take(&mut *places.told.lock().unwrap());
            let committed = Told::Committed(Some(here));
            assert!(told.contains(&committed), "{engine:?}, {mode:?}: {told:?}, {here:?}");
            let stored = Position::from_bytes(&here.to_bytes());
            assert_eq!(stored, Some(here));
        }
        // Changes that are none move the place all the same, and nobody has anything to tell.
        app.run("BEGIN; INSERT INTO item VALUES (9, 9); ROLLBACK; UPDATE item SET v = v WHERE 0");
        capture.flush(FlushMode::Complete).unwrap();
        assert_eq!(*places.told.lock().unwrap(), [], "{engine:?}, {mode:?}");
    }
}

#[test]
fn a_place_never_holds_a_commit_of_others() {
    for (engine, mode) in CASES {
        let (app, places, mut capture) = follow(engine, mode);
        app.run("INSERT INTO item VALUES (1, 1)");
        capture.flush(FlushMode::Complete).unwrap();
        places.told.lock().unwrap().clear();
        *places.other.lock().unwrap() = Some(Connection::open(app.path()).unwrap());
        app.run("INSERT INTO item VALUES (2, 2)");
        if places.told.lock().unwrap().is_empty() {
            // Told by the flush, which reads while others cannot write.
            assert_eq!((engine, mode), (Engine::Session, Mode::Delete));
            continue;
        }
        let here = present(&app).expect("a place");
        for _ in 0..2 {
            capture.flush(FlushMode::Complete).unwrap();
        }
        let told = std::mem::take(&mut *places.told.lock().unwrap());
        let lost = told.iter().position(|told| *told == Told::Lost).expect("a loss");
        for told in &told[..lost] {
            let named = [&Told::Named(here), &Told::Committed(Some(here))];
            assert!(!named.contains(&told), "{engine:?}, {mode:?}: {told:?}");
        }
    }
}

#[test]
fn what_cannot_be_seen_to_be_whole_has_no_place() {
    let (app, places, mut capture) = follow(Engine::Preupdate, Mode::Wal);
    app.run("BEGIN; INSERT INTO item VALUES (1, 1)");
    // A session of the app's takes our place in the middle of a transaction.
    let mut session = rusqlite::session::Session::new(&app.conn).unwrap();
    session.attach::<&str>(None).unwrap();
    app.run("INSERT INTO item VALUES (2, 2); COMMIT");
    drop(session);
    let here = present(&app).expect("a place");
    capture.flush(FlushMode::Complete).unwrap();
    let told = std::mem::take(&mut *places.told.lock().unwrap());
    let lost = told.iter().position(|told| *told == Told::Lost).expect("a loss");
    assert!(!told[..lost].contains(&Told::Committed(Some(here))), "{told:?}");
    assert!(!told[..lost].contains(&Told::Named(here)), "{told:?}");

    // In these modes the counter in the header says nothing.
    for pragma in ["locking_mode = exclusive", "journal_mode = memory", "journal_mode = off"] {
        let app = App::by(Engine::Preupdate, Mode::Delete);
        app.run(&format!("PRAGMA {pragma}; {SCHEMA}"));
        assert_eq!(present(&app), None, "{pragma}");
    }
}
