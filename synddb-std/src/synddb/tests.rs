//! Faults that only a test can switch on, through the public API against a real sequencer.

use std::ops::ControlFlow;

use rusqlite::Connection;
use synddb_sequencer::{
    Config as SequencerConfig, Server,
    replica::{Restore, differences},
    store::SqliteStore,
};

use super::*;
use crate::{
    Engine,
    capture::{Sabotage, sabotage},
};

#[test]
fn a_row_event_that_capture_lost_is_found_by_the_next_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(SequencerConfig::new(
        "http://127.0.0.1:0".parse().unwrap(),
        dir.path().join("log"),
    ));
    let server = server.unwrap();
    let config = Config {
        sequencer_url: format!("http://{}", server.addr()),
        engine: Engine::Preupdate,
        ..Default::default()
    };
    let synddb = SyndDB::open_with_config(dir.path().join("app.db"), config).unwrap();
    let insert = |ids: std::ops::Range<u32>| {
        for id in ids {
            synddb.connection().execute("INSERT INTO t VALUES (?1, 'x')", [id]).unwrap();
        }
    };
    let restored = || {
        let (store, out) = (
            SqliteStore::open_read_only(&dir.path().join("log")).unwrap(),
            dir.path().join("out.db"),
        );
        Restore::new(&store, synddb.stats().stream)
            .replace(true)
            .run(&out, |_| ControlFlow::Continue(()))
            .unwrap();
        differences(synddb.connection(), &Connection::open(&out).unwrap()).unwrap()
    };
    synddb.connection().execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v)").unwrap();
    insert(0..10);
    synddb.snapshot().unwrap();
    assert_eq!((synddb.stats().divergences, restored()), (0, vec![]));
    insert(10..12);
    let sound = synddb.push().unwrap().head;

    sabotage(Some(Sabotage::LostEvent));
    synddb.connection().execute_batch("BEGIN").unwrap();
    insert(100..120);
    synddb.connection().execute_batch("COMMIT").unwrap();
    sabotage(None);
    // Nobody can tell yet: what was captured is stored.
    let stored = synddb.push().unwrap().head;
    assert!(!restored().is_empty());

    synddb.snapshot().unwrap();
    let stats = synddb.stats();
    assert_eq!(stats.divergences, 1);
    let found = stats.last_divergence.unwrap();
    assert_eq!(found.epoch, stored.epoch);
    assert!(found.seq >= sound.next_seq && found.seq < stored.next_seq, "{found:?}");
    assert!(stats.resyncs.contains(&(ResyncReason::ContentDiffers, 1)), "{stats:?}");
    assert_eq!(restored(), []);
    insert(200..210);
    synddb.snapshot().unwrap();
    assert_eq!((synddb.stats().divergences, restored()), (1, vec![]));
}
