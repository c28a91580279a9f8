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

fn attach_to(conn: &Connection, engine: Engine, sink: Arc<dyn CommitSink>) -> Capture {
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
        let capture = attach_to(&app.conn, Engine::Preupdate, Arc::new(Forget));
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
