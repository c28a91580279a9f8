//! What capture costs the app's thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use super::*;

/// Counts this thread's allocations; SQLite's are its own.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: the system's allocator, with a counter that allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Takes commits and lets them go at once.
struct Forget;

impl CommitSink for Forget {
    fn committed(&self, _: Commit) {}
    fn lost(&self, reason: Lost) {
        panic!("{reason}");
    }
    fn wants_snapshot(&self) -> bool {
        false
    }
    fn boundary(&self, _: Boundary) {}
}

fn attach_to(conn: &Connection, engine: CaptureEngine, sink: Arc<dyn CommitSink>) -> Capture {
    let options = CaptureOptions {
        keep_before_commit: false,
        snapshot_dir: PathBuf::new(),
        snapshot_prefix: String::new(),
        max_changeset_bytes: 64 << 20,
        engine,
    };
    // SAFETY: dropped before the connection, used on one thread.
    unsafe { Capture::attach(conn.handle(), sink, options) }.unwrap()
}

#[test]
fn once_warm_a_commit_allocates_nothing() {
    for mode in [Mode::Wal, Mode::Delete, Mode::Memory] {
        let app = App::new(mode);
        app.run("CREATE TABLE item(id INTEGER PRIMARY KEY, v)");
        let capture = attach_to(&app.conn, CaptureEngine::Preupdate, Arc::new(Forget));
        let commit = |id: i64| {
            app.conn
                .prepare_cached("INSERT INTO item VALUES (?, 'a value of some length')")
                .unwrap()
                .execute([id])
                .unwrap();
            let update = "UPDATE item SET v = 'another' WHERE id = ?";
            app.conn.prepare_cached(update).unwrap().execute([id]).unwrap();
        };
        (0..50).for_each(commit);
        let before = ALLOCATIONS.get();
        (50..100).for_each(commit);
        let with = ALLOCATIONS.get() - before;
        drop(capture);
        let before = ALLOCATIONS.get();
        (100..150).for_each(commit);
        // What rusqlite allocates for the statements is not ours.
        assert_eq!(with, ALLOCATIONS.get() - before, "{mode:?}");
    }
}

fn thread_cpu() -> std::time::Duration {
    #[repr(C)]
    struct Time {
        seconds: i64,
        nanoseconds: i64,
    }
    unsafe extern "C" {
        fn clock_gettime(clock: std::ffi::c_int, time: *mut Time) -> std::ffi::c_int;
    }
    const THREAD_CPU: std::ffi::c_int = 3;
    let mut time = Time { seconds: 0, nanoseconds: 0 };
    // SAFETY: a system call on a value of this frame.
    assert_eq!(unsafe { clock_gettime(THREAD_CPU, &mut time) }, 0);
    std::time::Duration::new(time.seconds as u64, time.nanoseconds as u32)
}

#[derive(Debug, Clone, Copy)]
enum Work {
    SingleRows,
    HundredRows,
    Updates,
}

fn cpu_of(work: Work, engine: Option<CaptureEngine>) -> f64 {
    let app = App::new(Mode::Wal);
    app.run(
        "PRAGMA synchronous = normal;
         CREATE TABLE trades(id INTEGER PRIMARY KEY, account INTEGER, amount INTEGER, note TEXT);
         WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 100000)
         INSERT INTO trades SELECT i, i % 97, i, 'note for the trade ' || i FROM c",
    );
    app.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    // What a queue costs is the queue's.
    let capture = engine.map(|engine| attach_to(&app.conn, engine, Arc::new(Forget)));
    let mut random = Random(7);
    let insert =
        "INSERT INTO trades VALUES (?1, ?1 % 97, ?1 * 3, 'note for the trade, forty bytes')";
    let mut insert = app.conn.prepare(insert).unwrap();
    let mut update =
        app.conn.prepare("UPDATE trades SET amount = amount + 1 WHERE id = ?").unwrap();
    let mut begin = app.conn.prepare("BEGIN").unwrap();
    let mut commit = app.conn.prepare("COMMIT").unwrap();
    let start = thread_cpu();
    match work {
        Work::SingleRows => (0..30_000).for_each(|id| {
            insert.execute([1_000_000 + id]).unwrap();
        }),

        Work::HundredRows => (0..1_000).for_each(|transaction| {
            begin.execute([]).unwrap();
            for row in 0..100 {
                insert.execute([1_000_000 + transaction * 100 + row]).unwrap();
            }
            commit.execute([]).unwrap();
        }),
        Work::Updates => (0..30_000).for_each(|_| {
            update.execute([random.below(100_000) as i64 + 1]).unwrap();
        }),
    }
    let used = (thread_cpu() - start).as_secs_f64();
    drop((insert, update, begin, commit));
    drop(capture);
    used
}

/// `cargo test --release -p synddb-std --lib cost -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, for a quiet machine and a release build"]
fn cpu_of_the_apps_thread_against_plain_sqlite() {
    let variants = [None, Some(CaptureEngine::Session), Some(CaptureEngine::Preupdate)];
    for work in [Work::SingleRows, Work::HundredRows, Work::Updates] {
        let mut times = [const { Vec::new() }; 3];
        for _ in 0..7 {
            for (times, engine) in times.iter_mut().zip(variants) {
                times.push(cpu_of(work, engine));
            }
        }
        let [plain, session, preupdate] = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[3]
        });
        eprintln!(
            "{work:?}: plain {plain:.3} s, session {:.2} times, preupdate {:.2} times",
            session / plain,
            preupdate / plain
        );
    }
}
