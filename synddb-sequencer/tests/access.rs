//! Access control on frames, whatever they came over.
#![allow(clippy::unwrap_used)] // a test may panic where it stands

use std::{path::Path, sync::Arc};

use rusqlite::Connection as Database;
use sha2::{Digest, Sha256};
use synddb_core::{
    Chain, Epoch, Nonce, OpenId, SeqNo, StreamId,
    wire::{
        Message,
        message::{Head, Hello, OpenEpoch, Refusal, ResyncReason},
    },
};
use synddb_sequencer::{
    Config, Server, StartError,
    access::{Access, Credentials, Principal, Rules, Subject},
    ingest::{Connection, DEFAULT_LIMITS, Ingest, Reply},
    store::{LogStore, SqliteStore, StoreError},
};

const KEY: [u8; 32] = [7; 32];

/// Whose token is the same as its name.
fn principal(name: &str, create: &[&str]) -> Principal {
    Principal {
        name: name.into(),
        tokens_sha256: vec![Sha256::digest(name).into()],
        create: create.iter().map(|pattern| (*pattern).to_owned().into()).collect(),
        ..Default::default()
    }
}

fn ingest(dir: &Path) -> (Arc<SqliteStore>, Ingest) {
    let store = Arc::new(SqliteStore::open(dir).unwrap());
    let vm = Principal { keys: vec![KEY], ..principal("vm", &["vm-*"]) };
    let rules = Rules::new([principal("a", &["orders"]), principal("b", &["*"]), vm]).unwrap();
    (Arc::clone(&store), Ingest::new(store, DEFAULT_LIMITS).with_access(Access::new(rules)))
}

struct Greeting<'a> {
    stream: StreamId,
    name: &'a str,
    token: &'a str,
    ticket: u64,
    instance: u8,
}

impl<'a> Greeting<'a> {
    fn new(name: &'a str, token: &'a str) -> Self {
        Self { stream: StreamId::from_name(name), name, token, ticket: 0, instance: 1 }
    }

    fn say(&self, connection: &mut Connection) -> Result<u64, String> {
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            features: 0,
            stream: self.stream,
            name: self.name,
            instance: Nonce([self.instance; 16]),
            nonce: Nonce([self.instance; 16]),
            ticket: self.ticket,
            epoch: Epoch(0),
            next_seq: SeqNo(1),
            chain: Chain::default(),
            max_frame: 1 << 20,
            token: self.token.as_bytes(),
        };
        match connection.handle(&frame(&Message::Hello(hello))) {
            Reply::Silence => Ok(0),
            Reply::Frame(reply) => match Message::decode(&reply, 1 << 16).unwrap().1 {
                Message::HelloAck(ack) => Ok(ack.ticket),
                Message::Nack(nack) => {
                    assert_eq!(nack.refusal, Refusal::Unauthorized);
                    Err(nack.text.to_owned())
                }
                other => panic!("{other:?}"),
            },
            Reply::Close(_) => panic!("closed"),
        }
    }
}

fn frame(message: &Message<'_>) -> Vec<u8> {
    let mut buffer = vec![0; 1 << 16];
    let len = message.encode(7, &mut buffer).unwrap();
    buffer.truncate(len);
    buffer
}

fn open_epoch(connection: &mut Connection) -> Result<Head, Refusal> {
    let head = Head::default();
    let open = frame(&Message::OpenEpoch(OpenEpoch {
        previous: head.epoch,
        previous_next_seq: head.next_seq,
        previous_chain: head.chain,
        floor: Epoch(0),
        open_id: OpenId([1; 16]),
        reason: ResyncReason::FirstAttach,
    }));
    let Reply::Frame(reply) = connection.handle(&open) else { panic!("no answer") };
    match Message::decode(&reply, 1 << 16).unwrap().1 {
        Message::Ack(ack) => Ok(ack.head),
        Message::Nack(nack) => Err(nack.refusal),
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_could_never_be_let_in_is_not_challenged() {
    let dir = tempfile::tempdir().unwrap();
    let rules = || "[[principal]]\nname = 'vm'\nchallenge = true".parse::<Rules>().unwrap();
    let mut config = Config::new("127.0.0.1:0".parse().unwrap(), dir.path().join("log"));
    config.access = Some(Access::new(rules()));
    let refused = Server::start(config.clone()).unwrap_err();
    assert_eq!(refused, StartError::ChallengedInVain("vm".into()));
    assert!(refused.to_string().contains("leave out `challenge`"), "{refused}");
    let check = |_: &[u8]| Err::<Subject, _>("nobody's".to_owned());
    config.access = Some(Access::new(rules()).with_token_check(check));
    Server::start(config).unwrap();
}

#[test]
fn a_refused_hello_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ingest) = ingest(dir.path());
    let mut stranger = Connection::new(ingest);
    for (name, token) in [("orders", ""), ("orders", "x"), ("other", "a"), ("orders", "vm")] {
        assert!(Greeting::new(name, token).say(&mut stranger).is_err(), "{name} {token}");
        assert_eq!(open_epoch(&mut stranger), Err(Refusal::NoHello));
    }
    assert!(store.streams().unwrap().is_empty());
}

#[test]
fn a_name_that_is_just_claimed_gives_no_right() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ingest) = ingest(dir.path());
    let shown = Credentials { key: Some(KEY), ..Default::default() };
    let mut vm = Connection::with_credentials(ingest.clone(), shown);
    let claimed = Greeting { stream: StreamId::from_name("orders"), ..Greeting::new("vm-1", "") };
    assert!(claimed.say(&mut vm).unwrap_err().contains("vm may not create"));
    let claimed =
        Greeting { stream: StreamId::from_bytes([9; 16]), ..Greeting::new("orders", "a") };
    assert!(claimed.say(&mut Connection::new(ingest)).is_err());
    assert!(store.streams().unwrap().is_empty());
    Greeting::new("vm-1", "").say(&mut vm).unwrap();
    assert_eq!(store.streams().unwrap()[0].owner, "vm");
}

#[test]
fn a_bad_token_is_refused_whatever_key_comes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (_, ingest) = ingest(dir.path());
    let shown = Credentials { key: Some(KEY), token: b"vm".to_vec() };
    let mut vm = Connection::with_credentials(ingest, shown);
    assert!(Greeting::new("vm-1", "x").say(&mut vm).unwrap_err().contains("not known here"));
    Greeting::new("vm-1", "").say(&mut vm).expect("the header's token counts without a Hello's");
    assert!(Greeting::new("vm-1", "b").say(&mut vm).unwrap_err().contains("another principal"));
}

#[test]
fn a_ticket_is_no_credential_and_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ingest) = ingest(dir.path());
    let mut owner = Connection::new(ingest.clone());
    let ticket = Greeting::new("orders", "a").say(&mut owner).unwrap();
    let opened = open_epoch(&mut owner).unwrap();
    for token in ["", "x", "b"] {
        let mut thief = Connection::new(ingest.clone());
        let resumed = Greeting { ticket, ..Greeting::new("orders", token) };
        assert!(resumed.say(&mut thief).is_err(), "{token}");
        assert_eq!(open_epoch(&mut thief), Err(Refusal::NoHello));
        let anew = Greeting { instance: 2, ..Greeting::new("orders", token) };
        assert!(anew.say(&mut thief).is_err(), "{token}");
    }
    let ping = owner.handle(&frame(&Message::Ping));
    assert!(
        matches!(ping, Reply::Frame(reply) if matches!(Message::decode(&reply, 1 << 16), Ok((_, Message::Ack(ack))) if ack.head == opened)),
        "the stream is still its owner's"
    );
    let mut resumed = Connection::new(ingest);
    Greeting { ticket, ..Greeting::new("orders", "a") }.say(&mut resumed).unwrap();
    assert_eq!(store.owner(StreamId::from_name("orders")).unwrap().as_deref(), Some("a"));
}

#[test]
fn a_stream_without_an_owner_is_nobodys() {
    let dir = tempfile::tempdir().unwrap();
    let (_, with_access) = ingest(dir.path());
    let store = Arc::clone(with_access.store());
    let mut open = Connection::new(Ingest::new(store, DEFAULT_LIMITS));
    Greeting::new("orders", "").say(&mut open).unwrap();
    // Created when nobody's access was checked.
    let mut later = Connection::new(with_access);
    assert!(Greeting::new("orders", "a").say(&mut later).unwrap_err().contains("may not append"));
}

#[test]
fn a_log_of_the_format_before_owners_is_taken_on() {
    let dir = tempfile::tempdir().unwrap();
    let (store, with_access) = ingest(dir.path());
    Greeting::new("orders", "a").say(&mut Connection::new(with_access)).unwrap();
    drop(store);
    let db = Database::open(dir.path().join("log.db")).unwrap();
    db.execute_batch(
        "ALTER TABLE streams DROP COLUMN owner;
         ALTER TABLE epochs DROP COLUMN pruned; ALTER TABLE epochs DROP COLUMN pruned_chain;
         PRAGMA user_version = 1",
    )
    .unwrap();
    drop(db);
    let read_only = SqliteStore::open_read_only(dir.path()).unwrap_err();
    assert_eq!(read_only, StoreError::OlderFormat { found: 1 });
    let store = SqliteStore::open(dir.path()).unwrap();
    let streams = store.streams().unwrap();
    assert_eq!((streams[0].name.as_str(), streams[0].owner.as_str()), ("orders", ""));
    SqliteStore::open_read_only(dir.path()).unwrap();
    drop(store);
    SqliteStore::open(dir.path()).unwrap();
}
