//! The outbox's file: what a damaged disk, or somebody else, left there.

use std::{fs, sync::LazyLock, time::Duration};

use rusqlite::Connection;
use synddb_std::{Config, SyndDB};
use tempfile::TempDir;

/// In memory where that is possible: each attach syncs.
static DIR: LazyLock<TempDir> = LazyLock::new(|| {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("a temporary folder")
});

/// A fresh outbox with some bytes changed as `data` says: place, value, and so on.
static FRESH: LazyLock<Vec<u8>> = LazyLock::new(|| {
    open(None);
    fs::read(DIR.path().join("app.db-synddb")).expect("an outbox")
});

/// Attaching is refused, or the application goes on; it never dies of it.
pub(crate) fn attach(data: &[u8]) {
    let mut file = FRESH.clone();
    for change in data.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % file.len();
        file[at] = change[2];
    }
    open(Some(&file));
}

fn open(outbox: Option<&[u8]>) {
    for entry in fs::read_dir(DIR.path()).expect("the folder").flatten() {
        let _ = fs::remove_file(entry.path());
    }
    if let Some(outbox) = outbox {
        fs::write(DIR.path().join("app.db-synddb"), outbox).expect("room");
    }
    let connection = Connection::open(DIR.path().join("app.db")).expect("a database");
    connection.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t(x)").expect("a table");
    let config = Config {
        // Nobody is there.
        sequencer_url: "http://127.0.0.1:1".into(),
        shutdown_timeout: Duration::ZERO,
        ..Default::default()
    };
    if let Ok(synddb) = SyndDB::own(connection, config) {
        let commit = synddb.connection().execute("INSERT INTO t VALUES (1)", []);
        assert_eq!(commit, Ok(1), "the application's commits do not fail");
    }
}
