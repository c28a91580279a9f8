//! Outbox, link, HTTP and sequencer together: what is appended is acknowledged and stored.
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};
use synddb_core::{
    Nonce, OpenId, SnapshotId, StreamId,
    sender::{OnDivergence, SenderConfig},
    wire::{EntryKind, message::ResyncReason},
};
use synddb_sequencer::{Config, Server};
use synddb_std::{
    link::{Base, Image, Link, Shared},
    outbox::{NewEntry, Outbox, Wish},
};

#[test]
fn what_is_appended_is_stored_and_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let server =
        Server::start(Config::new("127.0.0.1:0".parse().unwrap(), dir.path().join("log"))).unwrap();
    let stream = StreamId::from_name("link");
    let outbox =
        Arc::new(Outbox::open(&dir.path().join("app.db-synddb"), Some(stream), stream).unwrap());
    let wish = Wish { open_id: OpenId([5; 16]), reason: ResyncReason::FirstAttach };
    outbox.begin_next(wish, 0, false).unwrap();
    let shared = Arc::new(Shared::new());
    let config = SenderConfig {
        stream,
        instance: Nonce::default(),
        batch: Default::default(),
        backoff: Default::default(),
        response_timeout: Duration::from_secs(10),
        keep_alive: Duration::from_secs(10),
        max_retries: 3,
        on_divergence: OnDivergence::Resync,
    };
    let url = format!("http://{}", server.addr());
    let transport = synddb_transport_ureq::connect(&url).unwrap();
    let link = Link::new(transport, config, "link".into(), outbox.clone(), shared.clone()).unwrap();
    let worker = thread::spawn(move || link.run());

    let image = vec![7u8; 3_000_000];
    shared.base(Base {
        open_id: wish.open_id,
        id: SnapshotId([6; 16]),
        len: image.len() as u64,
        sha256: Sha256::digest(&image).into(),
        image: Image::Memory(image.into()),
    });
    for commit in 1..=50u64 {
        let entry = NewEntry {
            kind: EntryKind::Changeset,
            first_commit: commit,
            last_commit: commit,
            time_ms: 0,
            schema_version: 1,
            payload: Vec::new(),
        };
        shared.queued(outbox.append(&[entry]).unwrap());
    }
    shared.flush();
    let deadline = Instant::now() + Duration::from_secs(30);
    let stored = shared.wait_for(50, deadline, |_, _| false);
    assert!(stored, "{:?} {:?}", shared.receipt(), shared.link());
    shared.stop(Instant::now() + Duration::from_secs(10));
    worker.join().unwrap();
    assert_eq!(outbox.state().unwrap().entries, 0, "all of it is acknowledged");
    server.shutdown();
}
