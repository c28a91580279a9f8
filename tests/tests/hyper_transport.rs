//! HTTP by hyper: every way there is with every version, in a runtime of one's own and in another's.
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rusqlite::Connection;
use synddb_client::{
    Config, HttpClient, SyndDB,
    tls::{ClientTls, Connector},
};
use synddb_core::{
    http::{FRAMES_CONTENT_TYPE, FRAMES_PATH, HttpExchange, HttpFrames, HttpRequest, HttpResponse},
    transport::{TransportError, TransportErrorKind},
};
use synddb_sequencer::{Address, Config as SequencerConfig, ListenAddress, synddb_tls::ServerTls};
use synddb_tests::{certs::Pair, world::World};
use synddb_transport_hyper::{HyperClient, HyperConfig, HyperError, HyperExchange, Version};

const VERSIONS: [Version; 3] = [Version::Negotiated, Version::Http1, Version::Http2];

/// A sequencer that speaks HTTP over TCP and over a Unix socket, with TLS and without.
fn world(server: &Pair) -> World {
    let identity = server.identity();
    World::configured(move |dir: &Path, config: &mut SequencerConfig| {
        let ListenAddress::Http(address) = config.listen[0] else { unreachable!() };
        config.listen = vec![
            ListenAddress::Https(address),
            ListenAddress::Http(([127, 0, 0, 1], 0).into()),
            ListenAddress::HttpStream(Address::Unix { path: dir.join("plain") }),
            ListenAddress::HttpsStream(Address::Unix { path: dir.join("tls") }),
        ];
        config.tls = Some(ServerTls::new(identity.clone()));
    })
}

fn believing(server: &Pair) -> ClientTls {
    ClientTls::pinned([server.pin()])
}

fn client(address: &ListenAddress, tls: &Connector, version: Version) -> HyperClient {
    let (url, config) = (address.to_string(), HyperConfig { version, ..Default::default() });
    match address.has_tls() {
        true => HyperClient::with_tls(&url, config, tls.clone()).unwrap(),
        false => HyperClient::new(&url, config).unwrap(),
    }
}

fn write(synddb: &SyndDB<Connection>, rows: usize) {
    for _ in 0..rows {
        synddb.connection().execute("INSERT INTO item(v) VALUES (randomblob(100))", []).unwrap();
    }
}

/// Commits small and large, with the sequencer away in between.
fn all_arrives(world: &mut World, synddb: &SyndDB<Connection>, context: &str) {
    write(synddb, 20);
    // Larger than the windows of HTTP/2, and than what sockets hold.
    let large = "INSERT INTO item(v) VALUES (randomblob(3000000))";
    synddb.connection().execute(large, []).unwrap();
    world.check(synddb, context);
    world.stop();
    write(synddb, 20);
    world.start();
    world.check(synddb, context);
    assert_eq!(synddb.stats().resyncs.len(), 1, "{context}: no other snapshot was needed");
}

fn database(world: &World, name: &str) -> Connection {
    let connection = world.open(name);
    connection.execute_batch("CREATE TABLE item(id INTEGER PRIMARY KEY, v)").unwrap();
    connection
}

#[test]
fn commits_arrive_by_every_address() {
    let server = Pair::self_signed();
    let mut world = world(&server);
    for number in 0..4 {
        let address = world.addresses()[number].clone();
        let name = format!("{number}.db");
        let config = Config {
            sequencer_url: address.to_string(),
            http_client: HttpClient::Hyper,
            tls: address.has_tls().then(|| believing(&server)),
            ..world.config()
        };
        let synddb = SyndDB::own(database(&world, &name), config).unwrap();
        // A free port of the sequencer's is another one when it is started again.
        if number == 1 {
            write(&synddb, 20);
            world.check(&synddb, "plain TCP");
        } else {
            all_arrives(&mut world, &synddb, &address.to_string());
        }
    }
}

#[test]
fn commits_arrive_by_every_version() {
    let server = Pair::self_signed();
    let mut world = world(&server);
    let tls = believing(&server).connector().unwrap();
    for number in [0, 2] {
        for version in VERSIONS {
            let address = world.addresses()[number].clone();
            let exchange = HyperExchange::new(client(&address, &tls, version)).unwrap();
            let connection = database(&world, &format!("{number}{version:?}.db"));
            let transport = HttpFrames::new(exchange);
            let synddb = SyndDB::own_with_transport(connection, transport, world.config()).unwrap();
            all_arrives(&mut world, &synddb, &format!("{address} {version:?}"));
        }
    }
}

fn post<'a>(body: &'a [u8]) -> HttpRequest<'a> {
    HttpRequest { path: FRAMES_PATH, content_type: FRAMES_CONTENT_TYPE, token: "t", body }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Posts what is no frame, and is told so by the sequencer.
async fn ask(client: &mut HyperClient) -> Result<(), HyperError> {
    let mut body = Vec::new();
    let response = client.post(post(b"no frame at all, but long enough"), &mut body, 1000).await?;
    assert_eq!(response.status, 400);
    assert!(String::from_utf8_lossy(&body).contains("does not begin with a synddb frame"));
    Ok(())
}

#[test]
fn the_version_is_the_one_that_was_agreed_upon() {
    let server = Pair::self_signed();
    let world = world(&server);
    let tls = believing(&server).connector().unwrap();
    // In a runtime of the user's, whose one thread does all.
    runtime().block_on(async {
        for address in world.addresses() {
            for version in VERSIONS {
                let expected = match (version, address.has_tls()) {
                    (Version::Negotiated, true) => Version::Http2,
                    (Version::Negotiated, false) => Version::Http1,
                    (version, _) => version,
                };
                let mut client = client(address, &tls, version);
                assert_eq!(client.open_version(), None);
                for _ in 0..3 {
                    ask(&mut client).await.unwrap();
                    assert_eq!(client.open_version(), Some(expected), "{address} {version:?}");
                }
            }
        }
    });
}

#[test]
fn a_sequencer_that_was_started_again_is_asked_over_a_new_connection() {
    let server = Pair::self_signed();
    let mut world = world(&server);
    let tls = believing(&server).connector().unwrap();
    let mut exchanges: Vec<_> = [0, 2]
        .into_iter()
        .flat_map(|number| VERSIONS.map(|version| (number, version)))
        .map(|(number, version)| {
            HyperExchange::new(client(&world.addresses()[number], &tls, version)).unwrap()
        })
        .collect();
    let mut ask_all = || {
        for exchange in &mut exchanges {
            let response = exchange.post(post(b"no frame at all"), &mut Vec::new(), 1000).unwrap();
            assert_eq!(response.status, 400, "{exchange:?}");
        }
    };
    ask_all();
    let since = Instant::now();
    world.stop();
    assert!(since.elapsed() < Duration::from_secs(5), "idle connections hold nothing up");
    world.start();
    ask_all();
}

/// Has `serve` serve one connection after the other; they are numbered.
fn server(serve: impl Fn(usize, TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            serve(number, stream.unwrap());
        }
    });
    url
}

/// Reads until what came ends so.
fn read_until(stream: &mut TcpStream, end: &[u8]) {
    let mut read = Vec::new();
    let mut byte = [0];
    while !read.ends_with(end) {
        stream.read_exact(&mut byte).unwrap();
        read.push(byte[0]);
    }
}

#[test]
fn a_connection_that_ended_between_two_requests_fails_none() {
    let (sender, closed) = mpsc::channel();
    let url = server(move |_, mut stream| {
        read_until(&mut stream, b"body");
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        drop(stream);
        sender.send(()).unwrap();
    });
    let client = HyperClient::new(&url, HyperConfig::default()).unwrap();
    let mut exchange = HyperExchange::new(client).unwrap();
    for round in 0..100 {
        let response = exchange.post(post(b"body"), &mut Vec::new(), 1000);
        assert_eq!(response.unwrap().status, 204, "{round}");
        closed.recv().unwrap();
    }
}

#[test]
fn no_more_is_read_than_was_asked_for() {
    let (sender, connections) = mpsc::channel();
    let url = server(move |number, mut stream| {
        sender.send(number).unwrap();
        read_until(&mut stream, b"body");
        // More than is ever sent.
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&[b'x'; 5000]).unwrap();
        // Until the client goes.
        let _ = stream.read(&mut [0]);
    });
    let client = HyperClient::new(&url, HyperConfig::default()).unwrap();
    let mut exchange = HyperExchange::new(client).unwrap();
    for number in 0..3 {
        let mut body = b"what was there before".to_vec();
        exchange.post(post(b"body"), &mut body, 1000).unwrap();
        assert_eq!(body, [b'x'; 1000]);
        assert_eq!(connections.recv().unwrap(), number, "what is left over is not read as another");
    }
}

#[test]
fn a_future_that_is_dropped_ends_its_connection() {
    let (sender, ended) = mpsc::channel();
    let url = server(move |number, mut stream| {
        read_until(&mut stream, b"body");
        if number > 0 {
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        }
        sender.send(stream.read(&mut [0]).unwrap_or(0)).unwrap();
    });
    runtime().block_on(async {
        let mut client = HyperClient::new(&url, HyperConfig::default()).unwrap();
        let mut body = Vec::new();
        let posting = client.post(post(b"body"), &mut body, 1000);
        assert!(tokio::time::timeout(Duration::from_millis(200), posting).await.is_err());
        let end = tokio::task::spawn_blocking(move || ended.recv().unwrap());
        assert_eq!(end.await.unwrap(), 0, "the server is not left waiting");
        let response = client.post(post(b"body"), &mut body, 1000).await.unwrap();
        assert_eq!(response.status, 204);
    });
}

fn outcome(url: &str, version: Version) -> Result<HttpResponse, HyperError> {
    let timeout = Duration::from_millis(500);
    let config = HyperConfig { version, timeout, ..Default::default() };
    let mut exchange = HyperExchange::new(HyperClient::new(url, config).unwrap()).unwrap();
    exchange.post(post(b"body"), &mut Vec::new(), 1000)
}

#[test]
fn who_does_not_speak_http2_is_told_from_who_is_away() {
    let page = server(|_, mut stream| {
        read_until(&mut stream, b"SM\r\n\r\n");
        let reply = "HTTP/1.1 400 Bad Request\r\nContent-Length: 10\r\n\r\nwhat is it";
        stream.write_all(reply.as_bytes()).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let hangs_up = server(|_, mut stream| read_until(&mut stream, b"SM\r\n\r\n"));
    let (sender, held) = mpsc::channel();
    let silent = server(move |_, stream| sender.send(stream).unwrap());
    for (url, kind) in [
        (&page, TransportErrorKind::NotASequencer),
        (&hangs_up, TransportErrorKind::Disconnected),
        (&silent, TransportErrorKind::TimedOut),
    ] {
        let error = outcome(url, Version::Http2).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().starts_with(url.as_str()), "{error}");
    }
    drop(held);
}

#[test]
fn a_socket_that_nobody_has_is_told_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let error = outcome(&format!("http+unix:{}/none", dir.path().display()), Version::Negotiated);
    let error = error.unwrap_err();
    assert_eq!(error.kind(), TransportErrorKind::Unreachable);
    assert!(error.to_string().contains("there is no such socket"), "{error}");
}

#[test]
fn a_thread_that_blocks_uses_the_runtime_that_is_there() {
    let world = World::new();
    let client = || HyperClient::new(&world.url(), HyperConfig::default()).unwrap();
    let one_thread = HyperExchange::on(client(), runtime().handle().clone());
    assert_eq!(one_thread.unwrap_err(), HyperError::CurrentThreadRuntime);

    let builder = &mut tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).enable_all().build().unwrap();
    let exchange = HyperExchange::on(client(), runtime.handle().clone()).unwrap();
    let connection = database(&world, "app.db");
    let transport = HttpFrames::new(exchange);
    let synddb = SyndDB::own_with_transport(connection, transport, world.config()).unwrap();
    write(&synddb, 20);
    world.check(&synddb, "in the runtime of another");
    // What is handed over inside of the runtime is dropped there too.
    runtime.block_on(async { drop(HyperExchange::new(client()).unwrap()) });
}
