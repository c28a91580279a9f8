//! The transports for HTTP against a server that answers anything.
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

use synddb_core::{
    Chain, Epoch, Nonce, SeqNo, StreamId,
    http::HttpFrames,
    transport::{Transport, TransportError, TransportErrorKind},
    wire::{
        Message,
        message::{Ack, Head, Hello, HelloAck, Limits},
    },
};
use synddb_transport_hyper::{HyperClient, HyperConfig, HyperExchange};
use synddb_transport_ureq::{UreqConfig, UreqExchange};

#[derive(Debug, Clone, Copy)]
enum Client {
    Ureq,
    Hyper,
}

const CLIENTS: [Client; 2] = [Client::Ureq, Client::Hyper];

impl Client {
    fn connect(self, url: &str) -> Box<dyn Transport<Error = Told>> {
        self.with_timeout(url, Duration::from_secs(30))
    }

    fn with_timeout(self, url: &str, timeout: Duration) -> Box<dyn Transport<Error = Told>> {
        match self {
            Self::Ureq => {
                let config = UreqConfig { timeout, ..Default::default() };
                Box::new(Telling(HttpFrames::new(UreqExchange::new(url, config).unwrap())))
            }
            Self::Hyper => {
                let config = HyperConfig { timeout, ..Default::default() };
                let client = HyperClient::new(url, config).unwrap();
                Box::new(Telling(HttpFrames::new(HyperExchange::new(client).unwrap())))
            }
        }
    }
}

/// What every transport's error tells.
#[derive(Debug)]
struct Told {
    kind: TransportErrorKind,
    retry_after: Option<Duration>,
    text: String,
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl TransportError for Told {
    fn kind(&self) -> TransportErrorKind {
        self.kind
    }

    fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

/// A transport with an error that all have in common.
struct Telling<T>(T);

fn told(error: impl TransportError) -> Told {
    Told { kind: error.kind(), retry_after: error.retry_after(), text: error.to_string() }
}

impl<T: Transport> Transport for Telling<T> {
    type Error = Told;

    fn connect(&mut self) -> Result<(), Told> {
        self.0.connect().map_err(told)
    }

    fn close(&mut self) {
        self.0.close();
    }

    fn send(&mut self, frame: &[u8]) -> Result<(), Told> {
        self.0.send(frame).map_err(told)
    }

    fn recv(&mut self, reply: &mut [u8], timeout: Duration) -> Result<Option<usize>, Told> {
        self.0.recv(reply, timeout).map_err(told)
    }

    fn max_in_flight(&self) -> usize {
        self.0.max_in_flight()
    }
}

const FRAMES: &str = "application/vnd.synddb.frames";

/// Answers the requests of one connection after the other, each body with what `answer` says;
/// gives the bodies that came and the number of the connection each came over.
fn server(
    answer: impl Fn(usize, &[u8]) -> Vec<u8> + Send + 'static,
) -> (String, mpsc::Receiver<(usize, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, bodies) = mpsc::channel();
    thread::spawn(move || {
        let mut requests = 0;
        for (connection, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            while let Some(body) = request(&mut stream) {
                let reply = answer(requests, &body);
                requests += 1;
                // The client may have gone away on purpose.
                if sender.send((connection, body)).is_err() || stream.write_all(&reply).is_err() {
                    return;
                }
            }
        }
    });
    (url, bodies)
}

fn request(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut reader = BufReader::new(stream);
    let mut len = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            len = value.trim().parse().ok()?;
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; len];
    reader.read_exact(&mut body).ok()?;
    Some(body)
}

fn response(status: &str, content_type: &str, extra: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{extra}\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

fn frame(tag: u32, message: Message<'_>) -> Vec<u8> {
    let mut buffer = vec![0; 4096];
    let len = message.encode(tag, &mut buffer).unwrap();
    buffer.truncate(len);
    buffer
}

fn hello() -> Vec<u8> {
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        features: 0,
        stream: StreamId::from_name("s"),
        name: "s",
        instance: Nonce([1; 16]),
        nonce: Nonce([2; 16]),
        ticket: 0,
        epoch: Epoch(0),
        next_seq: SeqNo(1),
        chain: Chain::default(),
        max_frame: 16384,
        token: b"",
    };
    frame(1, Message::Hello(hello))
}

fn hello_ack() -> Vec<u8> {
    let ack = HelloAck {
        version: 1,
        features: 0,
        nonce: Nonce([2; 16]),
        ticket: 77,
        head: Head::default(),
        genesis: Chain::default(),
        chain_at_next: None,
        staged: None,
        snapshot: None,
        limits: Limits { max_frame: 4096, max_entry: 1, max_snapshot: 1, credit: 1 },
        time_ms: 0,
    };
    frame(1, Message::HelloAck(ack))
}

fn ack(tag: u32) -> Vec<u8> {
    let head = Head::default();
    frame(tag, Message::Ack(Ack { head, staged: None, credit: 1, time_ms: 0, signature: b"" }))
}

/// What greeting a server that gives `reply` ends with.
fn greet(client: Client, reply: Vec<u8>) -> (TransportErrorKind, Option<Duration>, String) {
    let (url, _bodies) = server(move |_, _| reply.clone());
    let mut transport = client.connect(&url);
    transport.connect().unwrap();
    transport.send(&hello()).unwrap();
    let mut buffer = vec![0; 16384];
    let error = transport.recv(&mut buffer, Duration::from_secs(5)).unwrap_err();
    (error.kind(), error.retry_after(), error.to_string())
}

#[test]
fn a_session_goes_on_over_one_connection_with_its_ticket() {
    for client in CLIENTS {
        let (url, bodies) = server(|request, body| {
            let reply = if request == 0 {
                hello_ack()
            } else {
                // One answer for every frame behind the Hello.
                let pings = body.windows(4).filter(|window| window == b"SYDB").count() - 1;
                (0..pings).flat_map(|at| ack(10 + at as u32)).collect()
            };
            response("200 OK", FRAMES, "", &reply)
        });
        let mut transport = client.connect(&url);
        let mut buffer = vec![0; 16384];
        transport.connect().unwrap();
        transport.send(&hello()).unwrap();
        let len = transport.recv(&mut buffer, Duration::from_secs(5)).unwrap().unwrap();
        assert_eq!(buffer[..len], hello_ack());
        assert_eq!(bodies.recv().unwrap(), (0, hello()), "the first Hello goes alone and as it is");

        transport.send(&frame(10, Message::Ping)).unwrap();
        transport.send(&frame(11, Message::Ping)).unwrap();
        for tag in [10, 11] {
            let len = transport.recv(&mut buffer, Duration::from_secs(5)).unwrap().unwrap();
            assert_eq!(buffer[..len], ack(tag));
        }
        let (connection, body) = bodies.recv().unwrap();
        assert_eq!(connection, 0, "the connection is kept");
        let first = synddb_core::wire::Header::read(&body, body.len()).unwrap().frame_len();
        let (_, message) = Message::decode(&body[..first], body.len()).unwrap();
        let Message::Hello(resumed) = message else { panic!("{message:?}") };
        assert_eq!(resumed.ticket, 77);
        assert_eq!(body[first..], [frame(10, Message::Ping), frame(11, Message::Ping)].concat());
    }
}

#[test]
fn statuses_are_told_in_the_terms_that_decide_what_to_do() {
    for client in CLIENTS {
        use TransportErrorKind::{Busy, NotASequencer, Other, TooLarge, Unauthorized};
        for (status, kind) in [
            ("401 Unauthorized", Unauthorized),
            ("403 Forbidden", Unauthorized),
            ("404 Not Found", NotASequencer),
            ("405 Method Not Allowed", NotASequencer),
            ("413 Content Too Large", TooLarge),
            ("415 Unsupported Media Type", NotASequencer),
            ("429 Too Many Requests", Busy),
            ("500 Internal Server Error", Other),
            ("503 Service Unavailable", Busy),
        ] {
            let (found, retry_after, text) =
                greet(client, response(status, "text/plain", "", b"no"));
            assert_eq!(found, kind, "{status}: {text}");
            assert_eq!(retry_after, None, "{status}");
        }
        let reply = response("429 Too Many Requests", "text/plain", "Retry-After: 7\r\n", b"");
        let (found, retry_after, _) = greet(client, reply);
        assert_eq!((found, retry_after), (Busy, Some(Duration::from_secs(7))));
        let (_, _, text) = greet(client, response("404 Not Found", "text/plain", "", b""));
        assert!(text.contains("/v1/frames"), "it names the protocol: {text}");
    }
}

#[test]
fn a_web_page_and_garbage_are_no_sequencer() {
    for client in CLIENTS {
        let html = b"<html><body>Welcome to the proxy</body></html>";
        let (kind, _, text) = greet(client, response("200 OK", "text/html", "", html));
        assert_eq!(kind, TransportErrorKind::NotASequencer, "{text}");
        assert!(text.contains("Welcome to the proxy"), "{text}");
        let (kind, _, text) =
            greet(client, response("200 OK", FRAMES, "", b"these are no frames at all....."));
        assert_eq!(kind, TransportErrorKind::NotASequencer, "{text}");
    }
}

#[test]
fn an_answer_that_is_cut_short_is_a_lost_connection() {
    for client in CLIENTS {
        let mut reply = response("200 OK", FRAMES, "", &hello_ack()[..30]);
        let (kind, _, text) = greet(client, reply.clone());
        assert_eq!(kind, TransportErrorKind::Disconnected, "cut in the frame: {text}");
        reply = response("200 OK", FRAMES, "Connection: close\r\n", &hello_ack());
        reply.truncate(reply.len() - 30);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            request(&mut stream);
            stream.write_all(&reply).unwrap();
        });
        let mut transport = client.connect(&url);
        transport.connect().unwrap();
        transport.send(&hello()).unwrap();
        let error = transport.recv(&mut [0; 16384], Duration::from_secs(5)).unwrap_err();
        assert_eq!(error.kind(), TransportErrorKind::Disconnected, "cut in the body: {error}");
    }
}

#[test]
fn nobody_there_is_unreachable() {
    for client in CLIENTS {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let mut transport = client.connect(&url);
        transport.connect().unwrap();
        transport.send(&hello()).unwrap();
        let error = transport.recv(&mut [0; 16384], Duration::from_secs(5)).unwrap_err();
        assert_eq!(error.kind(), TransportErrorKind::Unreachable, "{error}");
    }
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    for client in CLIENTS {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut transport = client.with_timeout(&url, Duration::from_millis(300));
        transport.connect().unwrap();
        transport.send(&hello()).unwrap();
        let error = transport.recv(&mut [0; 16384], Duration::from_secs(5)).unwrap_err();
        assert_eq!(error.kind(), TransportErrorKind::TimedOut, "{error}");
        drop(listener);
    }
}
