//! Who is let in, and who is not: through the public interface, over every transport.
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

use std::{
    fmt::Write as _,
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rusqlite::Connection;
use sha2::{Digest, Sha256};
use synddb_client::{
    ConfidentialSpace, Config, Error, NotStored, SyndDB, TokenProvider, tls::ClientTls,
};
use synddb_core::wire::{Header, Message, message::Challenge};
use synddb_sequencer::{
    Address, Config as SequencerConfig, ListenAddress, Rate,
    access::{Access, Subject},
    store::LogStore,
    synddb_tls::ServerTls,
};
use synddb_tests::{
    certs::Pair,
    world::{World, push},
};

fn sha256(token: &str) -> String {
    Sha256::digest(token).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

/// Rules: the name of a principal, its token, and what else is said of it.
fn rules(principals: &[(&str, &str, &str)]) -> String {
    let principal = |(name, token, more): &(&str, &str, &str)| {
        let hash = sha256(token);
        format!("[[principal]]\nname = '{name}'\ntokens_sha256 = ['{hash}']\n{more}\n")
    };
    principals.iter().map(principal).collect()
}

/// A sequencer at all kinds of addresses: https, http, and Unix sockets with TLS, without, and for HTTP; with
/// the access rules of `access.toml`.
fn world(server: &Pair, first_rules: String, change: fn(&Path, &mut SequencerConfig)) -> World {
    let identity = server.identity();
    World::configured(move |dir: &Path, config: &mut SequencerConfig| {
        let file = dir.join("access.toml");
        if !file.exists() {
            std::fs::write(&file, &first_rules).unwrap();
        }
        let ListenAddress::Http(address) = config.listen[0] else { unreachable!() };
        config.listen = vec![
            ListenAddress::Https(address),
            ListenAddress::Http(([127, 0, 0, 1], 0).into()),
            ListenAddress::StreamTls(Address::Unix { path: dir.join("tls") }),
            ListenAddress::Stream(Address::Unix { path: dir.join("plain") }),
            ListenAddress::HttpStream(Address::Unix { path: dir.join("http") }),
        ];
        config.tls = Some(ServerTls::new(identity.clone()));
        config.access = Some(Access::from_file(file).unwrap());
        config.reload_interval = Duration::ZERO;
        change(dir, config);
    })
}

fn as_it_is(_: &Path, _: &mut SequencerConfig) {}

struct Sender<'w> {
    world: &'w World,
    server: &'w Pair,
}

impl Sender<'_> {
    fn open(
        &self,
        name: &str,
        address: &ListenAddress,
        token: Option<TokenProvider>,
    ) -> SyndDB<Connection> {
        self.open_with(name, address, token, |_| {})
    }

    fn open_with(
        &self,
        name: &str,
        address: &ListenAddress,
        token: Option<TokenProvider>,
        change: impl FnOnce(&mut Config),
    ) -> SyndDB<Connection> {
        let connection = self.world.open(&format!("{name}.db"));
        connection
            .execute_batch("CREATE TABLE IF NOT EXISTS item(id INTEGER PRIMARY KEY, v)")
            .unwrap();
        let mut config = Config {
            sequencer_url: address.to_string(),
            stream: Some(name.to_owned()),
            token_provider: token,
            tls: address.has_tls().then(|| ClientTls::pinned([self.server.pin()])),
            shutdown_timeout: Duration::ZERO,
            ..self.world.config()
        };
        change(&mut config);
        SyndDB::own(connection, config).unwrap()
    }
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

/// Gives tokens as the launcher of Confidential Space does; what was asked goes into the list.
fn launcher(
    socket: &Path,
    token: impl Fn(usize) -> String + Send + 'static,
) -> Arc<Mutex<Vec<String>>> {
    let listener = UnixListener::bind(socket).unwrap();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let requests = Arc::clone(&asked);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (mut request, mut buffer) = (String::new(), [0; 1024]);
            while !request.contains("}") {
                let count = stream.read(&mut buffer).unwrap();
                assert!(count > 0, "{request}");
                request.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
            }
            let mut asked = requests.lock().unwrap();
            let token = token(asked.len());
            asked.push(request);
            let (half, rest) = token.split_at(token.len() / 2);
            let answer = format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/plain\r\n\r\n\
                 {:x}\r\n{half}\r\n{:x}\r\n{rest}\r\n0\r\n\r\n",
                half.len(),
                rest.len()
            );
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    asked
}

#[test]
fn tokens_of_every_provider_let_in_over_every_transport() {
    let server = Pair::self_signed();
    let world = world(&server, rules(&[("app", "open-sesame", "create = ['*']")]), as_it_is);
    let sender = Sender { world: &world, server: &server };
    std::fs::write(world.path("token"), "open-sesame\n").unwrap();
    let socket = world.path("launcher");
    let asked = launcher(&socket, |_| "open-sesame".into());
    let space =
        ConfidentialSpace { audience: "my \"sequencer\"".into(), socket, ..Default::default() };
    let providers = [
        ("fixed", TokenProvider::fixed("open-sesame")),
        ("file", TokenProvider::file(world.path("token"))),
        ("closure", TokenProvider::new(|_| Ok("open-sesame".into()))),
        ("launcher", TokenProvider::confidential_space(space)),
    ];
    for (kind, provider) in &providers {
        for (number, address) in world.addresses().iter().enumerate() {
            let name = format!("{kind}{number}");
            let synddb = sender.open(&name, address, Some(provider.clone()));
            write(&synddb, 10);
            world.check(&synddb, &name);
        }
    }
    let owners = world.store().streams().unwrap();
    let expected = providers.len() * world.addresses().len();
    assert!(
        owners.len() == expected && owners.iter().all(|info| info.owner == "app"),
        "{owners:?}"
    );
    let asked = asked.lock().unwrap();
    assert!(asked[0].starts_with("POST /v1/token HTTP/1.1\r\n"), "{asked:?}");
    let body = r#"{"audience":"my \"sequencer\"","token_type":"OIDC","nonces":[]}"#;
    assert!(asked[0].ends_with(body), "{asked:?}");
}

#[test]
fn a_launcher_is_asked_again_only_when_it_has_to_be() {
    let server = Pair::self_signed();
    let world = world(&server, String::new(), |_, config| {
        let rules = "[[principal]]\nname = 'vm'\ncreate = ['*']".parse().unwrap();
        let access = Access::new(rules);
        config.access =
            Some(access.with_token_check(
                |token: &[u8]| match token.split(|b| *b == b'.').nth(2) {
                    Some(b"refused") => Err("of another image".into()),
                    _ => Ok(Subject { principal: "vm".into(), valid_until: None }),
                },
            ));
    });
    let sender = Sender { world: &world, server: &server };
    let socket = world.path("launcher");
    // {"exp":32503680000}: for long; and {"exp":1}.
    let (later, past) = ("eyJleHAiOjMyNTAzNjgwMDAwfQ", "eyJleHAiOjF9");
    let asked = launcher(&socket, move |number| match number {
        0 => format!("h.{later}.refused"),
        1 => format!("h.{later}.fine"),
        _ => format!("h.{past}.fine"),
    });
    let provider = || {
        let space = ConfidentialSpace { socket: socket.clone(), ..Default::default() };
        TokenProvider::confidential_space(space)
    };
    let kept = provider();
    let count = || asked.lock().unwrap().len();
    let address = &world.addresses()[3];
    let synddb = sender.open("vm", address, Some(kept.clone()));
    write(&synddb, 3);
    push(&synddb, "the first one was refused, and so another one asked for");
    assert_eq!(count(), 2);
    drop(synddb);
    world.check(&sender.open("vm", address, Some(kept)), "the one that was kept");
    assert_eq!(count(), 2);
    let expired = provider();
    for number in 3..=4 {
        let synddb = sender.open("vm", address, Some(expired.clone()));
        write(&synddb, 1);
        world.check(&synddb, "it has expired, as far as it says, and is asked for each time");
        assert_eq!(count(), number);
    }
}

/// A sequencer that wants a token bound to its nonce, as far as the second Hello.
#[test]
fn a_token_is_bound_to_the_sequencers_nonce() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, launcher_socket) = (dir.path().join("sequencer"), dir.path().join("launcher"));
    let asked = launcher(&launcher_socket, |number| format!("token-{number}"));
    let listener = UnixListener::bind(&socket).unwrap();
    let nonce = [0xa5; 32];
    let sequencer = thread::spawn(move || {
        let stream = listener.accept().unwrap().0;
        let mut received = Vec::new();
        let mut hello = || {
            loop {
                if let Ok(header) = Header::read(&received, usize::MAX)
                    && received.len() >= header.frame_len()
                {
                    let rest = received.split_off(header.frame_len());
                    let frame = std::mem::replace(&mut received, rest);
                    let (tag, Message::Hello(hello)) = Message::decode(&frame, 1 << 16).unwrap()
                    else {
                        panic!("not a Hello")
                    };
                    return (tag, String::from_utf8(hello.token.to_vec()).unwrap());
                }
                let mut buffer = [0; 1024];
                let count = (&stream).read(&mut buffer).unwrap();
                assert!(count > 0, "the sender hung up");
                received.extend_from_slice(&buffer[..count]);
            }
        };
        let (tag, first) = hello();
        let mut challenge = [0; 256];
        let len = Message::Challenge(Challenge { nonce }).encode(tag, &mut challenge).unwrap();
        (&stream).write_all(&challenge[..len]).unwrap();
        (first, hello().1)
    });
    let settings = ConfidentialSpace { socket: launcher_socket, ..Default::default() };
    let connection = Connection::open(dir.path().join("app.db")).unwrap();
    let config = Config {
        sequencer_url: format!("unix:{}", socket.display()),
        token_provider: Some(TokenProvider::confidential_space(settings)),
        shutdown_timeout: Duration::ZERO,
        ..Default::default()
    };
    let synddb = SyndDB::own(connection, config).unwrap();
    let tokens = sequencer.join().unwrap();
    assert_eq!(tokens, ("token-0".into(), "token-1".into()));
    drop(synddb);
    let asked = asked.lock().unwrap();
    assert!(asked[0].contains("\"nonces\":[]"), "{asked:?}");
    let bound = format!("\"nonces\":[\"{}\"]", "a5".repeat(32));
    assert!(asked[1].contains(&bound), "{asked:?}");
}

/// Text in the form that the parts of a JWT have.
fn base64url(text: &str) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut encoded = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let bits =
            (0..3).fold(0, |bits, at| bits << 8 | chunk.get(at).map_or(0, |b| u32::from(*b)));
        let digit = |at: usize| char::from(DIGITS[(bits >> (18 - 6 * at) & 63) as usize]);
        encoded.extend((0..=chunk.len()).map(digit));
    }
    encoded
}

/// A token of `app`'s that holds this nonce, or none.
fn bound(nonce: Option<[u8; 32]>) -> String {
    let claims = nonce.map_or_else(
        || r#"{"sub":"app"}"#.to_owned(),
        |nonce| {
            let digits: String = nonce.iter().map(|byte| format!("{byte:02x}")).collect();
            format!(r#"{{"sub":"app","eat_nonce":["{digits}"]}}"#)
        },
    );
    format!("h.{}.signed", base64url(&claims))
}

/// The tokens of `app` have to hold a nonce of the sequencer's.
fn challenging(server: &Pair) -> World {
    world(server, String::new(), |_, config| {
        let rules = "[[principal]]\nname = 'app'\ncreate = ['*']\nread = ['*']\nchallenge = true";
        let access = Access::new(rules.parse().unwrap());
        config.access = Some(access.with_token_check(|token: &[u8]| {
            if !token.ends_with(b".signed") {
                return Err("not signed".into());
            }
            Ok(Subject { principal: "app".into(), valid_until: None })
        }));
    })
}

#[test]
fn a_challenged_sender_binds_a_token_to_each_connection() {
    let server = Pair::self_signed();
    let mut world = challenging(&server);
    let mut senders = Vec::new();
    for number in 0..world.addresses().len() {
        let address = world.addresses()[number].clone();
        let (nonces, name) = (Arc::new(Mutex::new(Vec::new())), format!("app{number}"));
        let provider = TokenProvider::new({
            let nonces = Arc::clone(&nonces);
            move |request| {
                nonces.lock().unwrap().extend(request.challenge);
                Ok(bound(request.challenge))
            }
        });
        let synddb = Sender { world: &world, server: &server }.open_with(
            &name,
            &address,
            Some(provider),
            |config| config.response_timeout = Duration::from_secs(30),
        );
        for _ in 0..3 {
            write(&synddb, 5);
            world.check(&synddb, &name);
        }
        assert_eq!(nonces.lock().unwrap().len(), 1, "one connection, one nonce: {address}");
        senders.push((synddb, nonces, address));
    }
    world.stop();
    world.start();
    for (synddb, nonces, address) in &senders {
        // A free port is another one after the restart.
        if matches!(address, ListenAddress::Http(_)) {
            continue;
        }
        write(synddb, 5);
        world.check(synddb, "after a restart");
        let nonces = nonces.lock().unwrap();
        let distinct: std::collections::BTreeSet<_> = nonces.iter().collect();
        assert!(nonces.len() >= 2 && distinct.len() == nonces.len(), "{address}: {nonces:?}");
        assert_eq!(synddb.stats().resyncs.len(), 1, "{synddb:?}");
    }
}

/// Each is genuine, and none is bound to the connection that it is shown on.
#[test]
fn a_token_without_the_nonce_of_its_connection_lets_nobody_in() {
    let server = Pair::self_signed();
    let world = challenging(&server);
    let sender = Sender { world: &world, server: &server };
    let stolen = Arc::new(Mutex::new(None));
    let witness = TokenProvider::new({
        let stolen = Arc::clone(&stolen);
        move |request| {
            *stolen.lock().unwrap() = request.challenge;
            Ok(bound(request.challenge))
        }
    });
    for (number, address) in world.addresses().iter().enumerate() {
        let honest = sender.open(&format!("honest{number}"), address, Some(witness.clone()));
        write(&honest, 3);
        push(&honest, "honest");
        let theirs = stolen.lock().unwrap().take().unwrap();
        for (what, token) in [
            ("none", bound(None)),
            ("invented", bound(Some([7; 32]))),
            ("stolen", bound(Some(theirs))),
        ] {
            let name = format!("{what}{number}");
            let thief = sender.open(&name, address, Some(TokenProvider::fixed(token)));
            write(&thief, 3);
            let left = refused(&thief);
            // A stream knows that it has asked; of requests the sender does.
            let is_stream =
                matches!(address, ListenAddress::Stream(_) | ListenAddress::StreamTls(_));
            told(&left, if is_stream { "does not hold the nonce" } else { "bound to its nonce" });
        }
        assert_eq!(world.store().streams().unwrap().len(), number + 1, "nobody was let in");
    }
    let http = world.addresses()[1].to_string();
    let mut stream = TcpStream::connect(http.trim_start_matches("http://")).unwrap();
    let token = bound(None);
    let request = format!(
        "GET /status HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 401") && answer.contains("let another one read"),
        "{answer}"
    );
}

#[test]
fn without_credentials_nothing_is_let_in_and_nothing_is_lost() {
    let server = Pair::self_signed();
    let world = world(&server, rules(&[("app", "right", "create = ['*']")]), as_it_is);
    let sender = Sender { world: &world, server: &server };
    for (number, address) in world.addresses().iter().enumerate() {
        let nobody = sender.open(&format!("nobody{number}"), address, None);
        write(&nobody, 3);
        told(&refused(&nobody), "neither a token nor a client certificate was shown");

        let file = world.path(&format!("token{number}"));
        let name = format!("app{number}");
        let synddb = sender.open(&name, address, Some(TokenProvider::file(&file)));
        write(&synddb, 3);
        told(&refused(&synddb), "the token's file");
        std::fs::write(&file, "wrong").unwrap();
        write(&synddb, 3);
        told(&wait_for_error(&synddb, "not known here"), "not known here");
        assert_eq!(world.store().streams().unwrap().len(), number, "nothing was let in");
        let stats = format!("{:?} {synddb:?}", synddb.stats());
        assert!(!stats.contains("wrong"), "{stats}");
        std::fs::write(&file, "right").unwrap();
        world.check(&synddb, &name);
        assert_eq!(synddb.stats().resyncs.len(), 1, "{synddb:?}");
    }
}

/// Pushes until what it is told holds `why`.
fn wait_for_error(synddb: &SyndDB<Connection>, why: &str) -> NotStored {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let left = refused(synddb);
        if left.to_string().contains(why) {
            return left;
        }
        assert!(Instant::now() < deadline, "no {why:?} in: {left}");
    }
}

#[test]
fn a_token_that_expires_in_mid_stream_is_replaced() {
    const LIFE_MS: u64 = 400;
    let now_ms = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let server = Pair::self_signed();
    let world = world(&server, String::new(), |_, config| {
        let rules = "[[principal]]\nname = 'app'\ncreate = ['*']".parse().unwrap();
        config.access = Some(Access::new(rules).with_token_check(|token: &[u8]| {
            let text = std::str::from_utf8(token).map_err(|_| "not text")?;
            let until = text.strip_prefix("until:").and_then(|until| until.parse().ok());
            let until: u64 = until.ok_or("not ours")?;
            let valid_until = Some(UNIX_EPOCH + Duration::from_millis(until));
            Ok(Subject { principal: "app".into(), valid_until })
        }));
    });
    let sender = Sender { world: &world, server: &server };
    for (number, address) in world.addresses().iter().enumerate() {
        let (given, refusals) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let provider = TokenProvider::new({
            let (given, refusals) = (Arc::clone(&given), Arc::clone(&refusals));
            move |request| {
                given.fetch_add(1, Ordering::SeqCst);
                refusals.fetch_add(usize::from(request.refused), Ordering::SeqCst);
                Ok(format!("until:{}", now_ms() + LIFE_MS))
            }
        });
        let name = format!("app{number}");
        let synddb = sender.open(&name, address, Some(provider));
        let deadline = Instant::now() + Duration::from_secs(60);
        while refusals.load(Ordering::SeqCst) < 2 {
            assert!(Instant::now() < deadline, "{synddb:?}");
            write(&synddb, 2);
            // It may fall into the moment of a refusal.
            let _ = synddb.push_timeout(Duration::from_secs(5));
        }
        assert!(given.load(Ordering::SeqCst) >= 3);
        world.check(&synddb, &name);
        assert_eq!(synddb.stats().resyncs.len(), 1, "{synddb:?}");
    }
}

#[test]
fn rights_that_are_taken_away_end_at_the_next_frame() {
    let server = Pair::self_signed();
    let (client, all) = (Pair::self_signed(), "create = ['*']");
    let with_key = format!("keys = ['{}']\n{all}", client.pin());
    let both = rules(&[("app", "app's", all), ("vm", "unused", &with_key)]);
    let world = world(&server, both.clone(), as_it_is);
    let sender = Sender { world: &world, server: &server };
    let mut senders = Vec::new();
    for (number, address) in world.addresses().iter().enumerate() {
        let token = Some(TokenProvider::fixed("app's"));
        senders.push(sender.open(&format!("app{number}"), address, token));
        if address.has_tls() {
            let name = format!("vm{number}");
            senders.push(sender.open_with(&name, address, None, |config| {
                config.tls.as_mut().unwrap().identity = Some(client.identity());
            }));
        }
    }
    for synddb in &senders {
        write(synddb, 3);
        push(synddb, "before");
    }
    let entries = || {
        let store = world.store();
        let heads = store.streams().unwrap();
        heads.iter().map(|info| info.receiver.head().next_seq.0).collect::<Vec<_>>()
    };
    let before = entries();
    std::fs::write(world.path("access.toml"), rules(&[("other", "other's", all)])).unwrap();
    world.reload();
    for synddb in &senders {
        told(&refused(synddb), "not known here");
    }
    let after = entries();
    for synddb in &senders {
        write(synddb, 5);
        refused(synddb);
    }
    // Those pushes that came before the rules were read again got through, and nothing since.
    assert_eq!(entries(), after);
    assert_eq!(before.len(), after.len());
    std::fs::write(world.path("access.toml"), both).unwrap();
    world.reload();
    for synddb in &senders {
        world.check(synddb, "after");
        assert_eq!(synddb.stats().resyncs.len(), 1, "{synddb:?}");
    }
}

#[test]
fn a_stream_is_its_owners() {
    let server = Pair::self_signed();
    let principals = [
        ("a", "a's", "create = ['orders', 'a-*']"),
        ("b", "b's", "create = ['*']"),
        ("reader", "reader's", "read = ['*']"),
        ("helper", "helper's", "append = ['orders']"),
    ];
    let world = world(&server, rules(&principals), as_it_is);
    let sender = Sender { world: &world, server: &server };
    for address in world.addresses() {
        let token = |name: &str| Some(TokenProvider::fixed(format!("{name}'s")));
        let is_first = address == &world.addresses()[0];
        let name = if is_first {
            "orders".to_owned()
        } else {
            format!("a-{}", sha256(&address.to_string()))
        };
        let a = sender.open(&name, address, token("a"));
        write(&a, 3);
        push(&a, "its owner");
        let connections = a.stats().connections;
        // Each with a database of its own, which calls itself like that stream.
        let as_stream = |config: &mut Config| config.stream = Some(name.clone());
        let of = |who: &str| format!("{who}{}", &sha256(&address.to_string())[..8]);
        let b = sender.open_with(&of("b"), address, token("b"), as_stream);
        write(&b, 3);
        told(&refused(&b), "which another principal created");
        let reader = sender.open_with(&of("reader"), address, token("reader"), as_stream);
        write(&reader, 3);
        told(&refused(&reader), "reader may not append to");
        let reader = sender.open(&of("readers"), address, token("reader"));
        write(&reader, 3);
        told(&refused(&reader), "reader may not create");
        let outside = sender.open(&of("z"), address, token("a"));
        write(&outside, 3);
        told(&refused(&outside), "a may not create");

        write(&a, 3);
        world.check(&a, "after");
        assert_eq!(a.stats().connections, connections, "nobody took the stream from it");
        let own = sender.open(&of("own"), address, token("b"));
        write(&own, 3);
        world.check(&own, "a stream of its own");
        if is_first {
            drop(a);
            let helper = sender.open_with("helper", address, token("helper"), as_stream);
            write(&helper, 3);
            world.check(&helper, "who may append to a stream of another's");
        }
    }
    let owner_of = |name: &str| {
        let streams = world.store().streams().unwrap();
        streams.iter().find(|info| info.name == name).map(|info| info.owner.clone())
    };
    assert_eq!(owner_of("orders").as_deref(), Some("a"));
}

fn get(world: &World, headers: &str) -> (String, String) {
    let ListenAddress::Http(address) = world.addresses()[1] else { unreachable!() };
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

#[test]
fn one_reads_what_one_may() {
    let server = Pair::self_signed();
    let principals = [
        ("a", "a's", "create = ['a-*']"),
        ("b", "b's", "create = ['b-*']"),
        ("half", "half's", "read = ['a-*']"),
        ("all", "all's", "read = ['*']"),
    ];
    let world = world(&server, rules(&principals), as_it_is);
    let sender = Sender { world: &world, server: &server };
    for (name, token) in [("a-1", "a's"), ("b-1", "b's")] {
        let provider = Some(TokenProvider::fixed(token));
        let synddb = sender.open(name, &world.addresses()[1], provider);
        push(&synddb, name);
    }
    for headers in ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic YTpi\r\n"] {
        let (head, body) = get(&world, headers);
        assert!(head.starts_with("HTTP/1.1 401"), "{head}");
        assert!(head.to_lowercase().contains("www-authenticate: bearer"), "{head}");
        assert!(!body.contains("a-1"), "{body}");
    }
    for (token, sees) in [
        ("a's", [true, false]),
        ("b's", [false, true]),
        ("half's", [true, false]),
        ("all's", [true; 2]),
    ] {
        let (head, body) = get(&world, &format!("Authorization: Bearer {token}\r\n"));
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!([body.contains("\"a-1\""), body.contains("\"b-1\"")], sees, "{token}: {body}");
    }
}

/// Opens connections that begin to say something and do not go on.
fn silent(address: &ListenAddress, begin: &[u8]) -> Box<dyn Send> {
    match address {
        ListenAddress::Http(address) | ListenAddress::Https(address) => {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(begin).unwrap();
            Box::new(stream)
        }
        ListenAddress::Stream(address)
        | ListenAddress::StreamTls(address)
        | ListenAddress::HttpStream(address)
        | ListenAddress::HttpsStream(address) => {
            let mut stream = UnixStream::connect(address.listening_path().unwrap()).unwrap();
            // Some were asked to leave already.
            let _ = stream.write_all(begin);
            Box::new(stream)
        }
    }
}

#[test]
fn peers_that_say_nothing_keep_nobody_out() {
    let server = Pair::self_signed();
    let world = world(&server, rules(&[("app", "app's", "create = ['*']")]), |_, config| {
        config.max_connections = 16;
        // No limit in time helps.
        let long = Duration::from_secs(3600);
        config.handshake_timeout = long;
        config.head_timeout = long;
        config.streams.first_frame = long;
        config.streams.frame = long;
    });
    let sender = Sender { world: &world, server: &server };
    let beginnings: [&[u8]; 4] =
        [b"", b"POST /v1/frames HTTP/1.1\r\nA: b\r\n", b"\x16\x03\x01", b"SYDB"];
    // Each for as long as it is let.
    let mut held = Vec::new();
    let mut fill = |address: &ListenAddress, rounds: usize| {
        for _ in 0..rounds {
            held.extend(beginnings.map(|begin| silent(address, begin)));
        }
    };
    for (number, address) in world.addresses().iter().enumerate() {
        fill(address, 10);
        let name = format!("app{number}");
        let synddb = sender.open(&name, address, Some(TokenProvider::fixed("app's")));
        for _ in 0..20 {
            write(&synddb, 2);
            push(&synddb, &name);
            fill(address, 1);
        }
        world.check(&synddb, &name);
        assert_eq!(synddb.stats().connections, 1, "who is known is not asked to leave");
    }
}

#[test]
fn who_is_slow_is_cut_off() {
    let server = Pair::self_signed();
    let world = world(&server, rules(&[("app", "app's", "create = ['*']")]), |_, config| {
        let short = Duration::from_millis(300);
        config.handshake_timeout = short;
        config.head_timeout = short;
        config.body_timeout = short;
        config.streams.first_frame = short;
        config.streams.frame = short;
    });
    let head = "POST /v1/frames HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\
                Content-Type: application/vnd.synddb.frames\r\nAuthorization: Bearer app's\r\n\r\nab";
    let ends = |mut stream: Box<dyn Read>| {
        let since = Instant::now();
        let mut said = Vec::new();
        // A reset is an end too.
        let _ = stream.read_to_end(&mut said);
        assert!(since.elapsed() < Duration::from_secs(20), "it was held");
        String::from_utf8_lossy(&said).into_owned()
    };
    for address in world.addresses() {
        for begin in [
            "",
            "P",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "POST / HTTP/1.1\r\nA:",
            head,
            "\u{16}",
            "SYDB\u{1}\u{1}",
        ] {
            let stream: Box<dyn Read> = match address {
                ListenAddress::Http(address) | ListenAddress::Https(address) => {
                    let mut stream = TcpStream::connect(address).unwrap();
                    stream.write_all(begin.as_bytes()).unwrap();
                    Box::new(stream)
                }
                ListenAddress::Stream(address)
                | ListenAddress::StreamTls(address)
                | ListenAddress::HttpStream(address)
                | ListenAddress::HttpsStream(address) => {
                    let path = address.listening_path().unwrap();
                    let mut stream = UnixStream::connect(path).unwrap();
                    stream.write_all(begin.as_bytes()).unwrap();
                    Box::new(stream)
                }
            };
            let said = ends(stream);
            if begin == head && matches!(address, ListenAddress::Http(_)) {
                assert!(said.starts_with("HTTP/1.1 408"), "{said}");
            }
        }
    }
    // Without a token no body is waited for.
    let ListenAddress::Http(address) = world.addresses()[1] else { unreachable!() };
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(head.replace("app's", "wrong").as_bytes()).unwrap();
    assert!(ends(Box::new(stream)).starts_with("HTTP/1.1 401"));
}

#[test]
fn who_sends_too_much_waits_and_loses_nothing() {
    let server = Pair::self_signed();
    let world = world(&server, rules(&[("app", "app's", "create = ['*']")]), |_, config| {
        config.rate = Some(Rate { bytes_per_second: 400_000, burst: 100_000 });
    });
    let sender = Sender { world: &world, server: &server };
    for (number, address) in world.addresses().iter().enumerate().skip(1).step_by(2) {
        let name = format!("app{number}");
        let provider = Some(TokenProvider::fixed("app's"));
        let synddb = sender.open_with(&name, address, provider, |config| {
            config.compression = false;
            config.max_batch_size = 64 << 10;
        });
        push(&synddb, &name);
        let since = Instant::now();
        for _ in 0..100 {
            let sql = "INSERT INTO item(v) VALUES (randomblob(8000))";
            synddb.connection().execute(sql, []).unwrap();
        }
        world.check(&synddb, &name);
        // 800 kB, of which 100 kB and what is on its way may come at once.
        assert!(since.elapsed() > Duration::from_millis(500), "{:?}", since.elapsed());
        let stats = synddb.stats();
        assert!(stats.refusals > 0 && stats.resyncs.len() == 1, "{stats:?}");
    }
}
