//! Commits over TLS, through the public interface, on good days and on bad ones.
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rusqlite::Connection;
use synddb_client::{
    Config, Error, NotStored, SyndDB,
    tls::{Attestation, ClientTls, Pem, Pin, Roots},
};
use synddb_sequencer::{
    Address, Config as SequencerConfig, ListenAddress, Server, StartError,
    store::LogStore,
    synddb_tls::{Clients, ServerTls},
};
use synddb_tests::{
    certs::{Authority, Pair, in_files},
    log,
    world::{World, push},
};

/// A sequencer with TLS for HTTP and on a Unix socket, and in the clear for both. Its certificate is
/// in `server.crt` and `server.key`.
fn world(first: &Pair, change: impl Fn(&mut ServerTls) + 'static) -> World {
    log::keep();
    let (certificate, key) = (first.identity().certificates, first.identity().key);
    World::configured(move |dir: &Path, config: &mut SequencerConfig| {
        if !dir.join("server.crt").exists() {
            let (Pem::Text(certificate), Pem::Text(key)) = (&certificate, &key) else {
                unreachable!("they are texts")
            };
            std::fs::write(dir.join("server.crt"), certificate).unwrap();
            std::fs::write(dir.join("server.key"), key).unwrap();
        }
        let ListenAddress::Http(address) = config.listen[0] else { unreachable!() };
        config.listen = vec![
            ListenAddress::Https(address),
            ListenAddress::StreamTls(Address::Unix { path: dir.join("tls") }),
            ListenAddress::Http(([127, 0, 0, 1], 0).into()),
            ListenAddress::Stream(Address::Unix { path: dir.join("plain") }),
        ];
        let mut tls = ServerTls::new(in_files(dir, "server"));
        change(&mut tls);
        config.tls = Some(tls);
        config.reload_interval = Duration::ZERO;
    })
}

/// The sequencer's addresses with TLS.
fn urls(world: &World) -> [String; 2] {
    [world.addresses()[0].to_string(), world.addresses()[1].to_string()]
}

fn open(world: &World, name: &str, url: &str, tls: ClientTls) -> SyndDB<Connection> {
    let connection = world.open(name);
    connection.execute_batch("CREATE TABLE item(id INTEGER PRIMARY KEY, v)").unwrap();
    let config = Config {
        sequencer_url: url.to_owned(),
        response_timeout: Duration::from_secs(5),
        // Some of them have nobody to wait for at the end.
        shutdown_timeout: Duration::ZERO,
        tls: Some(tls),
        ..world.config()
    };
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

#[track_caller]
fn told(left: &NotStored, why: &str) {
    assert!(left.to_string().contains(why), "no {why:?} in: {left}");
}

#[test]
fn commits_arrive_over_every_transport() {
    let authority = Authority::new();
    let server = authority.issue("127.0.0.1");
    let known = Pair::self_signed();
    let known_pin = known.pin();
    let world = world(&server, move |tls| {
        tls.clients = Clients::Known { roots: None, pins: vec![known_pin] };
    });
    let identity = Some(known.identity());
    let by_roots = ClientTls {
        roots: Some(Roots::Pem(Pem::Text(authority.pem()))),
        identity: identity.clone(),
        server_name: Some("127.0.0.1".into()),
        ..Default::default()
    };
    let by_pin = ClientTls { identity, ..ClientTls::pinned([server.pin()]) };
    for (number, url) in urls(&world).iter().enumerate() {
        for (how, tls) in [("roots", &by_roots), ("pin", &by_pin)] {
            let name = format!("{how}{number}.db");
            let synddb = open(&world, &name, url, tls.clone());
            write(&synddb, 20);
            // Larger than what TLS, HTTP and the sockets hold at once.
            synddb
                .connection()
                .execute("INSERT INTO item(v) VALUES (randomblob(3000000))", [])
                .unwrap();
            world.check(&synddb, &name);
            write(&synddb, 20);
            world.check(&synddb, &name);
            assert_eq!(synddb.stats().resyncs.len(), 1, "{name}");
            assert_eq!(synddb.shutdown().unwrap().left, None, "{name}");
        }
    }
}

#[test]
fn a_server_of_another_party_is_refused_and_ridden_out() {
    let authority = Authority::new();
    let good = authority.issue("sequencer");
    let world_of = |good: &Pair| world(good, |_| {});
    let mut world = world_of(&good);
    let tls = ClientTls {
        roots: Some(Roots::Pem(Pem::Text(authority.pem()))),
        server_name: Some("sequencer".into()),
        ..Default::default()
    };
    let [https, stream] = urls(&world);
    let senders =
        [open(&world, "https.db", &https, tls.clone()), open(&world, "stream.db", &stream, tls)];
    for synddb in &senders {
        push(synddb, "before");
    }
    let days = [
        (authority.issue_expired("sequencer"), "its certificate expired", "has expired"),
        (authority.issue("elsewhere"), "not for sequencer", "does not accept"),
        (Authority::new().issue("sequencer"), "no root that is trusted here", "trusts nobody"),
    ];
    for (pair, client_says, server_says) in days {
        world.stop();
        pair.write(&world.path(""), "server");
        world.start();
        for synddb in &senders {
            write(synddb, 5);
            let left = refused(synddb);
            assert!(left.commits >= 5, "{left}");
            told(&left, client_says);
        }
        for url in urls(&world) {
            log::wait_for(&["a connection was refused", &url, server_says]);
        }
        good.write(&world.path(""), "server");
        world.stop();
        world.start();
        for synddb in &senders {
            world.check(synddb, client_says);
        }
    }
    for synddb in &senders {
        assert_eq!(synddb.stats().resyncs.len(), 1, "no snapshot was needed: {synddb:?}");
    }
}

#[test]
fn another_key_than_the_pinned_one_is_refused_and_ridden_out() {
    let good = Pair::self_signed();
    let mut world = world(&good, |_| {});
    let [https, stream] = urls(&world);
    let tls = || ClientTls::pinned([good.pin()]);
    let senders =
        [open(&world, "https.db", &https, tls()), open(&world, "stream.db", &stream, tls())];
    for synddb in &senders {
        push(synddb, "before");
    }
    let other = Pair::self_signed();
    world.stop();
    other.write(&world.path(""), "server");
    world.start();
    for synddb in &senders {
        write(synddb, 5);
        told(&refused(synddb), &format!("its key is {}, which is not pinned", other.pin()));
    }
    good.write(&world.path(""), "server");
    world.stop();
    world.start();
    for synddb in &senders {
        world.check(synddb, "after");
        assert_eq!(synddb.stats().resyncs.len(), 1, "{synddb:?}");
    }
}

#[test]
fn a_client_that_is_not_known_is_not_let_in() {
    let authority = Authority::new();
    let server = Pair::self_signed();
    let roots = authority.pem();
    let world = world(&server, move |tls| {
        let roots = Some(Pem::Text(roots.clone()));
        tls.clients = Clients::Known { roots, pins: Vec::new() };
    });
    let stranger = Authority::new().issue("client");
    let late = authority.issue_expired("client");
    let known = authority.issue("client");
    for (number, url) in urls(&world).iter().enumerate() {
        // The certificate's file changes while the application runs.
        let dir = world.path(&format!("client{number}"));
        std::fs::create_dir(&dir).unwrap();
        stranger.write(&dir, "client");
        let tls = ClientTls {
            identity: Some(in_files(&dir, "client")),
            ..ClientTls::pinned([server.pin()])
        };
        let synddb = open(&world, &format!("{number}.db"), url, tls);
        for pair in [&stranger, &late] {
            pair.write(&dir, "client");
            write(&synddb, 3);
            let left = refused(&synddb);
            let told = left.to_string();
            assert!(told.contains("refuses this one"), "{left}");
        }
        log::wait_for(&["a connection was refused", url, "no root that is trusted here"]);
        log::wait_for(&["a connection was refused", url, "its certificate expired"]);
        assert!(world.store().streams().unwrap().len() == number, "nothing was let in");
        known.write(&dir, "client");
        world.check(&synddb, url);

        let none =
            open(&world, &format!("none{number}.db"), url, ClientTls::pinned([server.pin()]));
        told(&refused(&none), "none");
        log::wait_for(&["a connection was refused", url, "it showed no certificate"]);
    }
}

/// Without access rules, too: the key that TLS asks for is whose the stream is.
#[test]
fn a_stream_is_its_keys() {
    let server = Pair::self_signed();
    let (owner, other) = (Pair::self_signed(), Pair::self_signed());
    let pins = vec![owner.pin(), other.pin()];
    let world = world(&server, move |tls| {
        tls.clients = Clients::Known { roots: None, pins: pins.clone() };
    });
    let by = |pair: &Pair| ClientTls {
        identity: Some(pair.identity()),
        ..ClientTls::pinned([server.pin()])
    };
    for (number, url) in urls(&world).iter().enumerate() {
        let name = format!("orders{number}");
        let attach = |file: &str, pair: &Pair| {
            let connection = world.open(file);
            let table = "CREATE TABLE IF NOT EXISTS item(id INTEGER PRIMARY KEY, v)";
            connection.execute_batch(table).unwrap();
            let config = Config {
                sequencer_url: url.clone(),
                stream: Some(name.clone()),
                tls: Some(by(pair)),
                shutdown_timeout: Duration::ZERO,
                ..world.config()
            };
            SyndDB::own(connection, config).unwrap()
        };
        let synddb = attach(&format!("{name}.db"), &owner);
        write(&synddb, 3);
        world.check(&synddb, url);
        let thief = attach(&format!("thief{number}.db"), &other);
        write(&thief, 3);
        told(&refused(&thief), "which another key created");
        write(&synddb, 3);
        world.check(&synddb, "nothing was taken");
        let streams = world.store().streams().unwrap();
        assert_eq!(streams.len(), number + 1);
        assert!(streams.iter().all(|info| info.owner == owner.pin().to_string()), "{streams:?}");
    }
}

#[test]
fn tls_and_no_tls_do_not_meet_and_say_so() {
    let server = Pair::self_signed();
    let world = world(&server, |_| {});
    let [https, unix_tls] = urls(&world);
    let [http, unix] = [world.addresses()[2].to_string(), world.addresses()[3].to_string()];
    let tls = || Some(ClientTls::pinned([server.pin()]));
    for (number, (url, tls, client_says, server_says)) in [
        (
            https.replace("https", "http"),
            None,
            "only TLS is spoken at this address",
            (&https, "does not speak TLS"),
        ),
        (
            http.replace("http", "https"),
            tls(),
            "what answers does not speak TLS",
            (&http, "is it TLS, at an address without it?"),
        ),
        (
            unix_tls.replace("+tls", ""),
            None,
            "the sequencer speaks only TLS at this address",
            (&unix_tls, "does not speak TLS"),
        ),
        (
            unix.replace("unix", "unix+tls"),
            tls(),
            "does it speak TLS there?",
            (&unix, "TLS, at an address without it"),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let connection = world.open(&format!("{number}.db"));
        connection.execute_batch("CREATE TABLE item(id INTEGER PRIMARY KEY, v)").unwrap();
        let config = Config {
            sequencer_url: url.clone(),
            tls,
            shutdown_timeout: Duration::ZERO,
            ..world.config()
        };
        let synddb = SyndDB::own(connection, config).unwrap();
        write(&synddb, 3);
        told(&refused(&synddb), client_says);
        let (address, says) = server_says;
        log::wait_for(&[address, says]);
        drop(synddb);
        assert_eq!(world.store().streams().unwrap().len(), 0, "{url}");
    }
}

#[test]
fn a_new_certificate_drops_no_stream() {
    let (old, new) = (Pair::self_signed(), Pair::self_signed());
    let world = world(&old, |_| {});
    let tls = || ClientTls::pinned([old.pin()]);
    let [https, stream] = urls(&world);
    let senders =
        [open(&world, "https.db", &https, tls()), open(&world, "stream.db", &stream, tls())];
    for synddb in &senders {
        push(synddb, "before");
    }
    let connections = senders.each_ref().map(|synddb| synddb.stats().connections);
    new.write(&world.path(""), "server");
    world.reload();
    // Who comes now is shown the new one.
    let other = open(&world, "new.db", &https, ClientTls::pinned([new.pin()]));
    push(&other, "a new connection");
    for synddb in &senders {
        for _ in 0..10 {
            write(synddb, 3);
            push(synddb, "over the old connection");
        }
        world.check(synddb, "after");
    }
    assert_eq!(connections, senders.each_ref().map(|synddb| synddb.stats().connections));

    // Half of a renewal changes nothing.
    std::fs::write(world.path("server.key"), "").unwrap();
    world.reload();
    log::wait_for(&["what was read before stays", "server.key"]);
    write(&other, 3);
    world.check(&other, "at the end");
}

#[test]
fn attestation_decides_on_both_sides() {
    let server = Pair::self_signed();
    let client = Pair::self_signed();
    let fine = Arc::new(AtomicBool::new(false));
    /// Keys and channel bindings.
    type Seen = Vec<(Option<Pin>, [u8; 32])>;
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let check = |side: &'static str| {
        let (fine, seen) = (Arc::clone(&fine), Arc::clone(&seen));
        Attestation::new(move |peer| {
            seen.lock().unwrap().push((peer.pin(), peer.exporter));
            match fine.load(Ordering::SeqCst) || side == "client" {
                true => Ok(()),
                false => Err(format!("{side} has another measurement")),
            }
        })
    };
    let on_server = check("server");
    let world = world(&server, move |tls| {
        tls.clients = Clients::AnyKey;
        tls.attestation = Some(on_server.clone());
    });
    let of_client = |attestation| ClientTls {
        identity: Some(client.identity()),
        attestation: Some(attestation),
        ..ClientTls::pinned([server.pin()])
    };
    for (number, url) in urls(&world).iter().enumerate() {
        fine.store(false, Ordering::SeqCst);
        let synddb = open(&world, &format!("{number}.db"), url, of_client(check("client")));
        write(&synddb, 3);
        told(&refused(&synddb), "server has another measurement");
        log::wait_for(&["a connection was refused", url, "server has another measurement"]);
        assert_eq!(world.store().streams().unwrap().len(), number, "nothing was let in");
        fine.store(true, Ordering::SeqCst);
        world.check(&synddb, url);
    }
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    for (pin, exporter) in &seen {
        assert!([Some(server.pin()), Some(client.pin())].contains(pin));
        let both = seen.iter().filter(|(_, other)| other == exporter);
        assert_eq!(both.count(), 2, "each connection is seen by both sides, and has its own bytes");
    }

    let never = Attestation::new(|_| Err("not the code that was audited".into()));
    for (number, url) in urls(&world).iter().enumerate() {
        let name = format!("never{number}.db");
        let synddb = open(&world, &name, url, of_client(never.clone()));
        write(&synddb, 3);
        told(&refused(&synddb), "its attestation: not the code that was audited");
    }
    assert_eq!(world.store().streams().unwrap().len(), 2);
}

#[test]
fn settings_that_cannot_be_honoured_start_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::self_signed();
    let start = |listen: &str, change: &dyn Fn(&mut SequencerConfig)| {
        let mut config = SequencerConfig::new(listen.parse().unwrap(), dir.path().join("log"));
        change(&mut config);
        Server::start(config).map(drop)
    };
    let tls = |config: &mut SequencerConfig| config.tls = Some(ServerTls::new(pair.identity()));
    let known = |config: &mut SequencerConfig| {
        let clients = Clients::Known { roots: None, pins: vec![pair.pin()] };
        config.tls = Some(ServerTls { clients, ..ServerTls::new(pair.identity()) });
    };
    assert!(matches!(start("https://127.0.0.1:0", &|_| {}), Err(StartError::NoTls(_))));
    assert!(matches!(start("http://127.0.0.1:0", &tls), Err(StartError::NoTlsAddress)));
    let no_file = |config: &mut SequencerConfig| {
        config.tls = Some(ServerTls::new(in_files(dir.path(), "none")));
    };
    assert!(matches!(start("https://127.0.0.1:0", &no_file), Err(StartError::Tls(_))));
    // TLS alone says who the sequencer is, and lets everybody in.
    assert!(matches!(start("https://0.0.0.0:0", &tls), Err(StartError::Insecure(_))));
    assert!(matches!(start("http://0.0.0.0:0", &|_| {}), Err(StartError::Insecure(_))));
    start("https://127.0.0.1:0", &known).unwrap();
}
