//! Commits over stream sockets, through the public interface, on good days and on bad ones.
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rusqlite::Connection;
use synddb_client::{Config, Error, LinkState, NotStored, SyndDB};
use synddb_core::{
    Rng,
    wire::{
        Header, Kind, Message, header,
        message::{Bye, Farewell},
    },
};
use synddb_sequencer::{Address, Config as SequencerConfig};
use synddb_tests::{
    relay::{Mode, Relay},
    world::{World, push},
};
use synddb_transport_vsock::{DialError, Dialer, Listener, Timeouts};

const PORT: u32 = 8433;

/// A sequencer that listens for HTTP, on a Unix socket, and for what a VM sends.
fn world() -> World {
    World::configured(|dir, config: &mut SequencerConfig| {
        config.insecure = true;
        config.listen.push(Address::Unix { path: dir.join("socket") }.into());
        config.listen.push(Address::VsockUnix { path: dir.join("vm"), port: PORT }.into());
    })
}

fn relay(world: &World) -> Relay {
    Relay::start(&world.path("relay"), &world.path("socket"))
}

/// An application, attached and in step.
fn attached(world: &World, url: String) -> SyndDB<Connection> {
    let config = Config {
        sequencer_url: url,
        response_timeout: Duration::from_millis(1000),
        ..world.config()
    };
    let synddb = open(world, "app.db", config);
    push(&synddb, "before");
    synddb
}

/// The table is there before: its creation is no reason for another snapshot.
fn open(world: &World, name: &str, config: Config) -> SyndDB<Connection> {
    let connection = world.open(name);
    connection.execute_batch("CREATE TABLE item(id INTEGER PRIMARY KEY, v)").unwrap();
    SyndDB::own(connection, config).unwrap()
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
fn commits_arrive_over_every_socket() {
    let world = world();
    let vmm = Relay::start(&world.path("vmm"), &world.path("socket"));
    vmm.set(Mode::Vmm(PORT));
    let in_dir = |form: &str, name: &str| form.replace("PATH", world.path(name).to_str().unwrap());
    for (number, url) in [
        world.url(),
        in_dir("unix:PATH", "socket"),
        in_dir("unix://PATH", "socket"),
        // From the host into a VM.
        in_dir(&format!("vsock+unix:PATH:{PORT}"), "vmm"),
        // What the VMM connects to for a VM that dials the host.
        in_dir(&format!("unix:PATH_{PORT}"), "vm"),
    ]
    .into_iter()
    .enumerate()
    {
        let config = Config { sequencer_url: url.clone(), ..world.config() };
        let synddb = open(&world, &format!("{number}.db"), config);
        write(&synddb, 20);
        world.check(&synddb, &url);
        write(&synddb, 20);
        world.check(&synddb, &url);
        assert_eq!(synddb.stats().resyncs.len(), 1, "{url}");
        assert_eq!(synddb.shutdown().unwrap().left, None, "{url}");
    }
}

#[test]
fn a_sequencer_that_restarts_is_resumed() {
    let mut world = world();
    let synddb = attached(&world, format!("unix:{}", world.path("socket").display()));
    for round in 0..5 {
        write(&synddb, 5);
        world.stop();
        write(&synddb, 5);
        if round % 2 == 0 {
            let left = refused(&synddb);
            assert!(left.to_string().contains("there is no such socket"), "{left}");
        }
        world.start();
        world.check(&synddb, "restarted");
    }
    let stats = synddb.stats();
    assert_eq!(stats.resyncs.len(), 1, "no snapshot was needed: {stats:?}");
    assert!(stats.connections > 5, "{stats:?}");
}

/// A restart while nobody wrote is not told to who pushes after it.
#[test]
fn a_restart_in_quiet_times_is_not_noticed() {
    let mut world = world();
    let synddb = attached(&world, format!("unix:{}", world.path("socket").display()));
    for _ in 0..10 {
        world.stop();
        world.start();
        write(&synddb, 1);
        let since = Instant::now();
        synddb.push().unwrap_or_else(|error| panic!("{error}"));
        assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
        assert_eq!(synddb.stats().link, LinkState::Up);
    }
}

#[test]
fn several_frames_are_on_their_way_at_once() {
    let world = world();
    let connection = world.open("app.db");
    connection.execute_batch("CREATE TABLE item(id INTEGER PRIMARY KEY, v)").unwrap();
    connection.execute("INSERT INTO item(v) VALUES (randomblob(2000000))", []).unwrap();
    let relay = relay(&world);
    relay.set(Mode::HoldUntil(4));
    let config = Config { sequencer_url: relay.url(), max_batch_size: 64 << 10, ..world.config() };
    let synddb = SyndDB::own(connection, config).unwrap();
    world.check(&synddb, "held");
    let most = relay.most_on_their_way();
    assert!(most >= 4, "{most} on their way");
    assert_eq!(synddb.stats().connections, 1, "without a time-out: {synddb:?}");
}

#[test]
fn each_bad_day_is_told_and_ridden_out() {
    let bye = |farewell| frame(&Message::Bye(Bye { farewell }));
    let mut newer = bye(Farewell::Done);
    newer[4] = 9;
    let mut endless = bye(Farewell::Done);
    endless[12..16].copy_from_slice(&16_000u32.to_le_bytes());
    endless.resize(16_000, 0);
    let days = [
        (Mode::Silent, "time"),
        (Mode::Deaf, "time"),
        (Mode::Trickle(endless), "time"),
        (Mode::Say(Vec::new()), "ended the connection"),
        (Mode::Say(bye(Farewell::Busy)), "as many connections as it allows"),
        (Mode::Say(bye(Farewell::Late)), "slower than"),
        (Mode::Say(bye(Farewell::Shutdown)), "being stopped"),
        (Mode::Say(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()), "not a synddb frame"),
        (Mode::Say(newer), "protocol version 9"),
        (Mode::Say(vec![0; 100_000]), "not a synddb frame"),
        (Mode::CutRequests(10), "connection"),
        (Mode::CutRequests(200), "connection"),
        (Mode::CutAnswers(10), "connection"),
        (Mode::CutAnswers(150), "connection"),
    ];
    let world = world();
    let relay = relay(&world);
    let synddb = attached(&world, relay.url());
    for (mode, told) in days {
        let context = format!("{mode:?}").chars().take(80).collect::<String>();
        relay.set(mode);
        write(&synddb, 5);
        let left = refused(&synddb);
        assert!(left.commits >= 5, "{context}: {left}");
        assert!(left.to_string().contains(told), "{context}: {left}");
        relay.set(Mode::Pass);
        world.check(&synddb, &context);
    }
    assert_eq!(synddb.stats().resyncs.len(), 1, "no snapshot was needed: {synddb:?}");
}

#[test]
fn a_listener_that_dies_in_mid_frame_loses_nothing() {
    let seed = match std::env::var("SYNDDB_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => 1,
    };
    println!("SYNDDB_SEED={seed}");
    let mut rng = Rng::new(seed);
    let world = world();
    let relay = relay(&world);
    let synddb = attached(&world, relay.url());
    for _ in 0..60 {
        relay.set(match rng.up_to(3) {
            0 => Mode::Pass,
            1 => Mode::CutAnswers(rng.up_to(1000) as usize),
            _ => Mode::CutRequests(rng.up_to(3000) as usize),
        });
        write(&synddb, rng.up_to(20) as usize);
        // How it ends does not matter here.
        let _ = synddb.push_timeout(Duration::from_millis(rng.up_to(200)));
    }
    relay.set(Mode::Pass);
    world.check(&synddb, "at the end");
    assert_eq!(synddb.stats().resyncs.len(), 1, "no snapshot was needed: {synddb:?}");
}

/// A sequencer that sends silent peers away keeps one that only has nothing to say.
#[test]
fn a_quiet_application_keeps_its_connection() {
    let idle = Duration::from_millis(1000);
    let world = World::configured(move |dir, config| {
        config.listen.push(Address::Unix { path: dir.join("socket") }.into());
        config.streams.idle = idle;
    });
    let relay = relay(&world);
    let config = Config { sequencer_url: relay.url(), keep_alive: idle / 10, ..world.config() };
    let synddb = open(&world, "app.db", config);
    push(&synddb, "before");
    let deadline = Instant::now() + Duration::from_secs(60);
    let pings = || relay.kinds().iter().filter(|kind| **kind == Kind::Ping as u8).count();
    while pings() < 15 {
        assert!(Instant::now() < deadline, "{} pings", pings());
        thread::sleep(idle / 20);
    }
    write(&synddb, 5);
    world.check(&synddb, "after it was quiet");
    assert_eq!(synddb.stats().connections, 1);
}

#[test]
fn who_shuts_down_says_bye() {
    let world = world();
    let relay = relay(&world);
    let synddb = attached(&world, relay.url());
    write(&synddb, 5);
    assert_eq!(synddb.shutdown().unwrap().left, None);
    let deadline = Instant::now() + Duration::from_secs(30);
    while relay.kinds().last() != Some(&(Kind::Bye as u8)) {
        assert!(Instant::now() < deadline, "{:?}", relay.kinds());
        thread::yield_now();
    }
}

#[test]
fn a_peer_of_another_version_is_told_apart() {
    let world = world();
    // Refuses every Hello as a sequencer of version 9 would one of version 1.
    let path = world.path("newer");
    let listener = UnixListener::bind(&path).unwrap();
    let refusal =
        synddb_core::wire::message::Refusal::Unsupported { version_min: 8, version_max: 9 };
    let nack = synddb_core::wire::message::Nack { refusal, text: "" };
    let nack = frame(&Message::Nack(nack));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut hello = vec![0; header::LEN];
            stream.read_exact(&mut hello).unwrap();
            let len = Header::read(&hello, 1 << 16).unwrap().frame_len();
            hello.resize(len, 0);
            stream.read_exact(&mut hello[header::LEN..]).unwrap();
            stream.write_all(&nack).unwrap();
        }
    });
    let config = Config { sequencer_url: format!("unix:{}", path.display()), ..world.config() };
    let synddb = SyndDB::open_with_config(world.path("app.db"), config).unwrap();
    let left = refused(&synddb);
    assert!(left.to_string().contains("versions 8 to 9"), "{left}");
}

#[test]
fn what_cannot_be_dialled_says_what_to_do() {
    let world = World::new();
    let path = |name: &str| world.path(name).display().to_string();
    std::fs::write(world.path("file"), "no socket").unwrap();
    drop(UnixListener::bind(world.path("left")).unwrap());
    // A VMM inside whose VM nobody listens, and something that is none.
    let vmm = Relay::start(&world.path("vmm"), &world.path("nobody"));
    vmm.set(Mode::Vmm(PORT));
    let other = Relay::start(&world.path("other"), &world.path("nobody"));
    other.set(Mode::Say(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()));
    for (number, (url, told)) in [
        (format!("unix:{}", path("none")), "is that its path?"),
        (format!("unix:{}", path("file")), "or it is no socket"),
        (format!("unix:{}", path("left")), "what made the socket is gone"),
        (format!("vsock+unix:{}:{}", path("vmm"), PORT + 1), "nobody listens on that port inside"),
        (format!("vsock+unix:{}:{PORT}", path("other")), "not a VMM"),
        ("vsock://any:8433".into(), "name the machine"),
    ]
    .into_iter()
    .enumerate()
    {
        let config = Config { sequencer_url: url.clone(), ..world.config() };
        let file = world.path(&format!("{number}.db"));
        let synddb = SyndDB::open_with_config(file, config).unwrap();
        let left = refused(&synddb);
        assert!(left.to_string().contains(told), "{url}: {left}");
    }
}

/// A VMM that takes the request and never answers holds nobody for long.
#[test]
fn a_vmm_that_hangs_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vmm");
    let _vmm = UnixListener::bind(&path).unwrap();
    let timeouts = Timeouts { connect: Duration::from_millis(200), ..Default::default() };
    let since = Instant::now();
    let refused = Dialer::new(Address::VsockUnix { path, port: PORT }, timeouts).connect();
    assert!(matches!(refused, Err(DialError::NotAVmm { silent: true, .. })), "{refused:?}");
    assert!(since.elapsed() < Duration::from_secs(10));
}

/// A sequencer that is stopped takes no connections: once its queue is full nobody is kept waiting.
#[test]
fn a_full_queue_is_not_waited_for_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let address = Address::Unix { path: dir.path().join("socket") };
    let _listener = Listener::bind(&address).unwrap();
    let timeouts = Timeouts { connect: Duration::from_millis(200), ..Default::default() };
    let dialer = Dialer::new(address, timeouts);
    let mut waiting = Vec::new();
    let refused = loop {
        match dialer.connect() {
            Ok(stream) => waiting.push(stream),
            Err(error) => break error,
        }
        assert!(waiting.len() < 10_000, "the queue has no end");
    };
    assert!(refused.to_string().contains("does the sequencer hang"), "{refused}");
}

/// Over AF_VSOCK itself where this machine can talk to itself by it; where it cannot, its errors.
#[test]
fn vsock_works_or_says_what_is_missing() {
    let local = |port| Address::Vsock { cid: 1, port };
    let (sender, outcome) = mpsc::channel();
    thread::spawn(move || {
        let dial = |port| Dialer::new(local(port), Timeouts::default()).connect();
        // Of the ports that are handed out to anybody, hardly one that somebody has.
        let _ = sender.send(dial(3_000_000_017));
    });
    let nobody = outcome.recv_timeout(Duration::from_secs(30)).expect("vsock has its own time-out");
    let text = nobody.unwrap_err().to_string();
    let advice =
        ["is the sequencer running there", "vsock_loopback", "no vsock", "is that its CID"];
    assert!(advice.iter().any(|advice| text.contains(advice)), "{text}");
    if !text.contains(advice[0]) {
        println!("vsock is not tried here: {text}");
        return;
    }
    let world = World::configured(move |_, config| config.listen.push(local(0).into()));
    let url = world.addresses()[1].to_string();
    let config = Config { sequencer_url: url, ..world.config() };
    let synddb = open(&world, "app.db", config);
    write(&synddb, 20);
    world.check(&synddb, "vsock");
}

fn frame(message: &Message<'_>) -> Vec<u8> {
    let mut buffer = vec![0; 4096];
    let len = message.encode(0, &mut buffer).unwrap();
    buffer.truncate(len);
    buffer
}

/// Whether a Unix socket can be connected to: what the tests above rest on.
#[test]
fn a_listener_gives_its_file_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = Listener::bind(&Address::Unix { path: path.clone() }).unwrap();
    UnixStream::connect(&path).unwrap();
    drop(listener);
    assert!(!path.exists());
}
