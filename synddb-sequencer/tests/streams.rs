//! Peers of every kind on the sequencer's stream sockets: well behaved, silent, slow, hostile.
#![allow(clippy::unwrap_used)] // a test may panic where it stands

#[path = "support/payload.rs"]
mod payload;

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use payload::carrying;
use synddb_core::{
    Chain, Epoch, Nonce, OpenId, SeqNo, StreamId,
    wire::{
        EntriesWriter, Entry, EntryKind, EntryMeta, Header, Message, Unpacker, header,
        message::{Bye, Farewell, Head, Hello, OpenEpoch, Refusal, ResyncReason, TooLarge},
        serial,
    },
};
use synddb_sequencer::{
    Address, Config, ListenAddress, Server, StartError, StreamLimits,
    store::{LogStore, SqliteStore},
};

/// Long enough for a busy machine; only a failure waits so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where a test waits for a limit.
const SHORT: Duration = Duration::from_millis(200);

struct World {
    dir: tempfile::TempDir,
    server: Option<Server>,
}

impl World {
    fn new(limits: StreamLimits) -> Self {
        Self::configured(|config| config.streams = limits)
    }

    fn configured(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listen = unix(&dir.path().join("socket"));
        let mut config = Config::new(listen, dir.path().join("log"));
        change(&mut config);
        let server = Server::start(config).unwrap();
        Self { dir, server: Some(server) }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn connect(&self) -> Peer {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Peer(stream)
    }

    /// Stops it; the head of the stream in its log.
    fn stop(mut self) -> Head {
        self.server.take().unwrap().shutdown();
        let store = SqliteStore::open_read_only(&self.dir.path().join("log")).unwrap();
        store.receiver(stream()).unwrap().head()
    }
}

fn unix(path: &Path) -> ListenAddress {
    Address::Unix { path: path.to_owned() }.into()
}

/// One end of a connection, frame by frame.
struct Peer(UnixStream);

impl Peer {
    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// The next frame; `None` at the end.
    fn next(&mut self) -> Option<Vec<u8>> {
        let mut frame = vec![0; header::LEN];
        match self.0.read(&mut frame).unwrap() {
            0 => return None,
            read => self.0.read_exact(&mut frame[read..]).unwrap(),
        }
        let len = Header::read(&frame, 1 << 20).unwrap().frame_len();
        frame.resize(len, 0);
        self.0.read_exact(&mut frame[header::LEN..]).unwrap();
        Some(frame)
    }

    fn head(&mut self, tag: u32) -> Head {
        let frame = self.next().expect("an answer");
        match Message::decode(&frame, frame.len()).unwrap() {
            (found, Message::Ack(ack)) if found == tag => ack.head,
            (found, Message::HelloAck(ack)) if found == tag => ack.head,
            other => panic!("{other:?}"),
        }
    }

    fn refusal(&mut self) -> (u32, Refusal) {
        let frame = self.next().expect("an answer");
        match Message::decode(&frame, frame.len()).unwrap() {
            (tag, Message::Nack(nack)) => (tag, nack.refusal),
            other => panic!("{other:?}"),
        }
    }

    /// The last word, and the end after it.
    fn farewell(&mut self) -> Farewell {
        let frame = self.next().expect("a last word");
        let (_, Message::Bye(Bye { farewell })) = Message::decode(&frame, frame.len()).unwrap()
        else {
            panic!("{frame:?}");
        };
        assert_eq!(self.next(), None, "nothing follows");
        farewell
    }

    fn greet(&mut self, instance: u8) -> Head {
        self.send(&hello(1, instance));
        self.head(1)
    }

    fn begin(&mut self) -> Head {
        let head = self.greet(1);
        self.send(&open(2, &head));
        self.head(2)
    }
}

fn stream() -> StreamId {
    StreamId::from_name("orders")
}

fn frame(tag: u32, message: &Message<'_>) -> Vec<u8> {
    let mut buffer = vec![0; 1 << 16];
    let len = message.encode(tag, &mut buffer).unwrap();
    buffer.truncate(len);
    buffer
}

fn hello(tag: u32, instance: u8) -> Vec<u8> {
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        features: 0,
        stream: stream(),
        name: "orders",
        instance: Nonce([instance; 16]),
        nonce: Nonce([instance; 16]),
        ticket: 0,
        epoch: Epoch(0),
        next_seq: SeqNo(1),
        chain: Chain::default(),
        max_frame: 1 << 14,
        token: b"",
    };
    frame(tag, &Message::Hello(hello))
}

fn open(tag: u32, head: &Head) -> Vec<u8> {
    let open = OpenEpoch {
        previous: head.epoch,
        previous_next_seq: head.next_seq,
        previous_chain: head.chain,
        floor: Epoch(0),
        open_id: OpenId([head.epoch.0 as u8 + 1; 16]),
        reason: ResyncReason::FirstAttach,
    };
    frame(tag, &Message::OpenEpoch(open))
}

/// A frame of one entry of `len` bytes, and where the stream stands after it.
fn entry(tag: u32, head: &mut Head, len: usize) -> Vec<u8> {
    let meta = EntryMeta {
        seq: head.next_seq,
        kind: EntryKind::Changeset,
        first_commit: 1,
        last_commit: 1,
        time_ms: 0,
        schema_version: 0,
        content_hash: None,
    };
    let mut buffer = vec![0; len + 1024];
    let mut writer =
        EntriesWriter::new(&mut buffer, head.epoch, head.next_seq, head.chain).unwrap();
    let meta = meta.encode(&mut [0; 256]).unwrap().to_vec();
    writer.push(Entry { meta: &meta, payload: &carrying(&vec![b' '; len]) }).unwrap();
    let written = writer.finish(tag).unwrap();
    head.next_seq = written.last_seq.next();
    head.chain = written.chain;
    buffer.truncate(written.frame_len);
    buffer
}

#[test]
fn many_frames_at_once_are_answered_in_order() {
    let world = World::new(StreamLimits::default());
    let mut peer = world.connect();
    let mut head = peer.begin();
    let mut frames = Vec::new();
    for tag in 10..30 {
        frames.extend(entry(tag, &mut head, 100_000));
    }
    frames.extend(frame(30, &Message::Ping));
    let mut writer = Peer(peer.0.try_clone().unwrap());
    let writing = std::thread::spawn(move || writer.send(&frames));
    let mut last = SeqNo(1);
    for tag in 10..30 {
        let found = peer.head(tag);
        assert_eq!(found.next_seq, last.next(), "answered before the next is handled");
        last = found.next_seq;
    }
    assert_eq!(peer.head(30), head);
    writing.join().unwrap();
    assert_eq!(world.stop(), head);
}

#[test]
fn who_stops_answers_what_was_taken_in_and_says_bye() {
    let mut world = World::new(StreamLimits::default());
    let mut peer = world.connect();
    let mut head = peer.begin();
    let mut idle = world.connect();
    peer.send(&entry(3, &mut head, 2_000_000));
    assert_eq!(peer.head(3), head);
    // One more, of which only a part comes.
    let before = head;
    let rest = entry(4, &mut head, 1000);
    peer.send(&rest[..500]);
    let server = world.server.take().unwrap();
    let stopping = std::thread::spawn(move || server.shutdown());
    assert_eq!(peer.farewell(), Farewell::Shutdown);
    assert_eq!(idle.farewell(), Farewell::Shutdown);
    stopping.join().unwrap();
    assert!(!world.socket().exists(), "its file goes with it");
    let store = SqliteStore::open_read_only(&world.dir.path().join("log")).unwrap();
    assert_eq!(store.receiver(stream()).unwrap().head(), before, "a part is nothing");
}

#[test]
fn who_says_bye_is_done() {
    let world = World::new(StreamLimits::default());
    let mut peer = world.connect();
    peer.begin();
    peer.send(&frame(0, &Message::Bye(Bye { farewell: Farewell::Done })));
    assert_eq!(peer.next(), None);
}

#[test]
fn who_says_nothing_is_sent_away() {
    let world = World::new(StreamLimits { first_frame: SHORT, ..Default::default() });
    assert_eq!(world.connect().farewell(), Farewell::Idle);
    let world = World::new(StreamLimits { idle: SHORT, ..Default::default() });
    let mut peer = world.connect();
    peer.begin();
    let since = Instant::now();
    assert_eq!(peer.farewell(), Farewell::Idle);
    assert!(since.elapsed() >= SHORT / 2, "not at once");
}

/// Slowloris: a byte now and then keeps no connection.
#[test]
fn who_trickles_a_frame_is_sent_away() {
    let limits = StreamLimits { frame: SHORT, ..Default::default() };
    // Inside of the header, and inside of the body.
    for whole in [3, header::LEN + 5] {
        let world = World::new(limits);
        let mut peer = world.connect();
        let mut head = peer.begin();
        let before = head;
        let sent = entry(3, &mut head, 1000);
        peer.send(&sent[..whole]);
        let mut trickle = peer.0.try_clone().unwrap();
        let trickling = std::thread::spawn(move || {
            for byte in &sent[whole..] {
                std::thread::sleep(SHORT / 20);
                if trickle.write_all(&[*byte]).is_err() {
                    return true;
                }
            }
            false
        });
        assert_eq!(peer.farewell(), Farewell::Late);
        assert!(trickling.join().unwrap(), "the whole frame was waited for");
        assert_eq!(world.stop(), before);
    }
}

#[test]
fn who_takes_no_answers_is_given_up() {
    let world = World::configured(|config| {
        config.max_connections = 1;
        config.streams = StreamLimits { write: SHORT, ..Default::default() };
    });
    let mut deaf = world.connect();
    deaf.begin();
    deaf.0.set_write_timeout(Some(PATIENCE)).unwrap();
    let ping = frame(5, &Message::Ping);
    let since = Instant::now();
    // Until the answers fill the socket and it is closed.
    while deaf.0.write_all(&ping).is_ok() {
        assert!(since.elapsed() < PATIENCE, "it goes on answering nobody");
    }
    // Its place is free again.
    loop {
        let mut peer = world.connect();
        peer.send(&hello(1, 2));
        let answer = peer.next().expect("an answer");
        if matches!(Message::decode(&answer, answer.len()), Ok((1, Message::HelloAck(_)))) {
            return;
        }
        assert!(since.elapsed() < PATIENCE);
    }
}

#[test]
fn one_too_many_is_told_so() {
    let world = World::configured(|config| config.max_connections = 2);
    let (mut first, mut second) = (world.connect(), world.connect());
    first.greet(1);
    second.greet(2);
    assert_eq!(world.connect().farewell(), Farewell::Busy);
    first.send(&frame(0, &Message::Bye(Bye { farewell: Farewell::Done })));
    assert_eq!(first.next(), None);
    drop(first);
    let since = Instant::now();
    loop {
        let mut third = world.connect();
        third.send(&hello(1, 3));
        let answer = third.next().expect("an answer");
        match Message::decode(&answer, answer.len()).unwrap() {
            (1, Message::HelloAck(_)) => break,
            (_, Message::Bye(_)) => assert!(since.elapsed() < PATIENCE),
            other => panic!("{other:?}"),
        }
    }
    second.send(&frame(9, &Message::Bye(Bye { farewell: Farewell::Done })));
}

#[test]
fn who_speaks_something_else_is_closed() {
    let world = World::new(StreamLimits::default());
    for bytes in [&b"GET /status HTTP/1.1\r\n\r\n"[..], b"S\n", b"\x16\x03\x01\x02\x00"] {
        let mut peer = world.connect();
        peer.send(bytes);
        assert_eq!(peer.next(), None, "{bytes:?}");
    }
    // Damaged on the way.
    let mut peer = world.connect();
    let mut damaged = hello(1, 1);
    *damaged.last_mut().unwrap() ^= 1;
    peer.send(&damaged);
    assert_eq!(peer.next(), None);
}

#[test]
fn another_version_is_told_ours() {
    let world = World::new(StreamLimits::default());
    let mut peer = world.connect();
    let mut newer = hello(1, 1);
    newer[4] = 9;
    peer.send(&newer);
    assert_eq!(peer.refusal(), (0, Refusal::Unsupported { version_min: 1, version_max: 1 }));
    assert_eq!(peer.next(), None);
}

#[test]
fn a_frame_over_the_limit_is_refused_by_its_header() {
    let world = World::configured(|config| config.limits.max_frame = 64 << 10);
    let mut peer = world.connect();
    let mut head = peer.begin();
    let before = head;
    let large = entry(3, &mut head, 100_000);
    peer.send(&large[..header::LEN]);
    let refusal = Refusal::TooLarge { what: TooLarge::Frame, limit: 64 << 10 };
    assert_eq!(peer.refusal(), (3, refusal));
    assert_eq!(peer.next(), None);
    assert_eq!(world.stop(), before);
}

fn packed(frame: &[u8]) -> Vec<u8> {
    let blocks = serial::pack(frame).flat_map(|(len, block)| [&[len], block].concat());
    blocks.chain([serial::END]).collect()
}

/// The next frame of a line; `None` at its end.
fn next_packed(peer: &mut Peer, unpacker: &mut Unpacker<Vec<u8>>) -> Option<Vec<u8>> {
    let mut byte = [0];
    while peer.0.read(&mut byte).unwrap() > 0 {
        if let (_, Some(frame)) = unpacker.feed(&byte) {
            return Some(frame.to_vec());
        }
    }
    None
}

#[test]
fn on_a_line_what_a_reset_cut_short_is_skipped_and_nothing_is_stored_twice() {
    let world = World::new(StreamLimits::default());
    let mut peer = world.connect();
    let mut unpacker = Unpacker::new(vec![0; 1024]);
    let mut head_after = |peer: &mut Peer, tag: u32| loop {
        let frame = next_packed(peer, &mut unpacker).expect("an answer");
        match Message::decode(&frame, frame.len()).unwrap() {
            (found, Message::Ack(ack)) if found == tag => return ack.head,
            (found, Message::HelloAck(ack)) if found == tag => return ack.head,
            // An answer to what came before the reset.
            _ => {}
        }
    };
    let greet = |instance| [vec![serial::END], packed(&hello(1, instance))].concat();
    peer.send(&greet(1));
    let head = head_after(&mut peer, 1);
    peer.send(&packed(&open(2, &head)));
    let mut head = head_after(&mut peer, 2);

    // Resets at every kind of place in a frame, and noise: each sender after it is welcomed on the
    // same connection.
    let before = head;
    let whole = packed(&entry(3, &mut head, 600));
    let cuts = [1, 2, 20, 100, 254, 255, 256, 300, whole.len() - 2];
    for (at, cut) in (0..).zip(cuts) {
        peer.send(&whole[..cut]);
        peer.send(&greet(2 + at));
        assert_eq!(head_after(&mut peer, 1), before, "cut at {cut}");
        // The first frame after the Hello takes the stream.
        peer.send(&packed(&frame(4, &Message::Ping)));
        assert_eq!(head_after(&mut peer, 4), before, "cut at {cut}");
    }
    let mut damaged = whole.clone();
    damaged[300] ^= 1;
    peer.send(&damaged);
    peer.send(&[vec![7; 100_000], vec![serial::END, serial::END]].concat());
    peer.send(&whole);
    assert_eq!(head_after(&mut peer, 3), head);
    drop(peer);
    assert_eq!(world.stop(), head);
}

#[test]
fn a_line_is_told_in_its_own_way_that_the_sequencer_stops() {
    let mut world = World::new(StreamLimits::default());
    let mut peer = world.connect();
    let mut unpacker = Unpacker::new(vec![0; 1024]);
    peer.send(&[vec![serial::END], packed(&hello(1, 1))].concat());
    next_packed(&mut peer, &mut unpacker).expect("an answer");
    let server = world.server.take().unwrap();
    let stop = std::thread::spawn(move || server.shutdown());
    let bye = next_packed(&mut peer, &mut unpacker).expect("a last word");
    let bye = Message::decode(&bye, bye.len()).unwrap().1;
    assert_eq!(bye, Message::Bye(Bye { farewell: Farewell::Shutdown }));
    assert_eq!(next_packed(&mut peer, &mut unpacker), None);
    drop(peer);
    stop.join().unwrap();
}

#[test]
fn a_silent_line_is_let_go() {
    let limits = StreamLimits { first_frame: SHORT, ..StreamLimits::default() };
    let world = World::new(limits);
    let mut peer = world.connect();
    peer.send(&[serial::END, 5, 1, 2]);
    let bye = next_packed(&mut peer, &mut Unpacker::new(vec![0; 1024])).expect("a last word");
    let bye = Message::decode(&bye, bye.len()).unwrap().1;
    assert_eq!(bye, Message::Bye(Bye { farewell: Farewell::Idle }));
}

#[test]
fn who_hangs_up_in_mid_frame_leaves_nothing() {
    let world = World::new(StreamLimits::default());
    let mut peer = world.connect();
    let mut head = peer.begin();
    let before = head;
    let sent = entry(3, &mut head, 10_000);
    peer.send(&sent[..9_000]);
    drop(peer);
    // Whole, on the next connection.
    let mut peer = world.connect();
    assert_eq!(peer.greet(1), before);
    peer.send(&sent);
    assert_eq!(peer.head(3), head);
    assert_eq!(world.stop(), head);
}

#[test]
fn a_newer_hello_on_another_connection_takes_the_stream() {
    let world = World::new(StreamLimits::default());
    let mut first = world.connect();
    let mut head = first.begin();
    let mut second = world.connect();
    assert_eq!(second.greet(2), head);
    // A Hello alone claims nothing.
    first.send(&entry(3, &mut head, 10));
    assert_eq!(first.head(3), head);
    second.send(&frame(4, &Message::Ping));
    assert_eq!(second.head(4), head);
    first.send(&entry(5, &mut head.clone(), 10));
    assert_eq!(first.refusal(), (5, Refusal::Superseded));
    second.send(&entry(6, &mut head, 10));
    assert_eq!(second.head(6), head);
    assert_eq!(world.stop(), head);
}

fn start(dir: &Path, log: &str) -> Result<Server, StartError> {
    Server::start(Config::new(unix(&dir.join("socket")), dir.join(log)))
}

#[test]
fn a_socket_that_a_killed_sequencer_left_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    // Closed without a word, its file still there.
    drop(UnixListener::bind(&socket).unwrap());
    assert_eq!(UnixStream::connect(&socket).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let server = start(dir.path(), "log").unwrap();
    UnixStream::connect(&socket).unwrap();

    // One that somebody listens on is not.
    let Err(error) = start(dir.path(), "other") else { panic!("two on one socket") };
    assert!(error.to_string().contains("something listens on it"), "{error}");
    UnixStream::connect(&socket).unwrap();

    // What another put in its place stays.
    fs::remove_file(&socket).unwrap();
    let other = UnixListener::bind(&socket).unwrap();
    server.shutdown();
    assert!(socket.exists());
    drop(other);
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    fs::write(&socket, "precious").unwrap();
    let Err(error) = start(dir.path(), "log") else { panic!("on a file") };
    assert!(error.to_string().contains("it is no socket"), "{error}");
    assert_eq!(fs::read(&socket).unwrap(), b"precious");
    let far = dir.path().join("x".repeat(120));
    let Err(error) = Server::start(Config::new(unix(&far), dir.path().join("log"))) else {
        panic!("a path of over 107 bytes")
    };
    assert!(error.to_string().contains("107 bytes"), "{error}");
}

#[test]
fn who_listens_to_vms_has_to_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let vm: ListenAddress =
        format!("vsock+unix:{}:8433", dir.path().join("vm").display()).parse().unwrap();
    for address in [vm.clone(), "vsock://any:0".parse().unwrap()] {
        let refused = Server::start(Config::new(address.clone(), dir.path().join("log")));
        let Err(StartError::Insecure(named)) = refused else { panic!("{address} is open") };
        assert_eq!(named, address);
    }
    let mut config = Config::new(vm.clone(), dir.path().join("log"));
    config.insecure = true;
    let server = Server::start(config).unwrap();
    assert_eq!(server.addresses(), [vm]);
    let mut peer = Peer(UnixStream::connect(dir.path().join("vm_8433")).unwrap());
    peer.begin();
}

#[test]
fn addresses_are_served_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["one", "two"].map(|name| dir.path().join(name));
    let mut config = Config::new("http://127.0.0.1:0".parse().unwrap(), dir.path().join("log"));
    config.listen.extend(paths.iter().map(|path| unix(path)));
    let server = Server::start(config).unwrap();
    assert_eq!(server.addresses()[0], ListenAddress::Http(server.addr()));
    let mut head = Head::default();
    for (at, path) in paths.iter().enumerate() {
        let mut peer = Peer(UnixStream::connect(path).unwrap());
        let found = peer.greet(1);
        if at == 0 {
            peer.send(&open(2, &found));
            head = peer.head(2);
        } else {
            assert_eq!(found, head, "it is one log");
        }
    }
}
