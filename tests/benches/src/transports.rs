//! What a transport adds to the socket that it stands on.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use synddb_core::{
    Chain, Epoch, Nonce, SeqNo, StreamId,
    http::{AsyncHttpFrames, HttpExchange, HttpFrames},
    transport::Transport,
    wire::{
        Header, Kind, Message, header,
        message::{Head, Hello, HelloAck, Limits, MAX_CONTROL_FRAME},
    },
};
use synddb_tls::{
    ClientStream, ClientTls, Connector, Identity, Pem, ServerTls,
    rustls::{ServerConfig, ServerConnection, StreamOwned},
};
use synddb_transport_hyper::{HyperClient, HyperConfig};
use synddb_transport_ureq::{UreqConfig, UreqExchange};
use synddb_transport_vsock::{Address, Timeouts, transport, transport_with_tls};

use crate::{
    Result, Scale,
    measure::percentile,
    table::{Row, Table},
};

const ROUNDS: usize = 7;
/// Frames on their way at once: the window of every transport.
const WINDOW: usize = 8;
/// What a single-row commit takes, about.
const SMALL: usize = 150;
const LARGE: usize = 1 << 20;
/// What an acknowledgement takes, about.
const ANSWER: usize = 100;

pub(crate) fn run(scale: Scale) -> Result<Table> {
    let dir = tempfile::tempdir()?;
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let identity = Identity {
        certificates: Pem::Text(pair.cert.pem()),
        key: Pem::Text(pair.signing_key.serialize_pem()),
    };
    let connector = ClientTls::pinned([identity.pin()?]).connector()?;
    let tls = ServerTls::new(identity).acceptor()?.config();

    let plain_path = dir.path().join("plain");
    serve_unix(&plain_path, None)?;
    let tls_path = dir.path().join("tls");
    serve_unix(&tls_path, Some(Arc::clone(&tls)))?;
    let tcp = serve_tcp(None, answer_frames)?;
    let tcp_tls = serve_tcp(Some(Arc::clone(&tls)), answer_frames)?;
    let http = serve_tcp(None, answer_requests)?;
    let https = serve_tcp(Some(tls), answer_requests)?;

    let mut rows = Vec::new();
    let mut unix = transport(Address::Unix { path: plain_path.clone() });
    unix.connect()?;
    let bare = Bare(UnixStream::connect(&plain_path)?);
    rows.extend(compare("Unix socket", scale, ours(unix), bare)?);

    let address = Address::Unix { path: tls_path.clone() };
    let mut unix = transport_with_tls(address, Timeouts::default(), connector.clone())?;
    unix.connect()?;
    let bare = Bare(bare_tls(&connector, UnixStream::connect(&tls_path)?)?);
    rows.extend(compare("TLS over it", scale, ours(unix), bare)?);

    let (url, secure) = (format!("http://127.0.0.1:{http}"), format!("https://127.0.0.1:{https}"));
    let limits = UreqConfig::default();
    let bare_http = || BareHttp::new(connect_tcp(http)?);
    let bare_https = || BareHttp::new(bare_tls(&connector, connect_tcp(https)?)?);
    rows.extend(compare("HTTP itself", scale, bare_http()?, Bare(connect_tcp(tcp)?))?);
    let by_ureq = greeted(UreqExchange::new(&url, limits)?)?;
    rows.extend(compare("HTTP by ureq", scale, by_ureq, bare_http()?)?);
    let by_hyper = InRuntime::greeted(HyperClient::new(&url, HyperConfig::default())?)?;
    rows.extend(compare("HTTP by hyper", scale, by_hyper, bare_http()?)?);

    let bare = Bare(bare_tls(&connector, connect_tcp(tcp_tls)?)?);
    rows.extend(compare("HTTPS itself", scale, bare_https()?, bare)?);
    let by_ureq = greeted(UreqExchange::with_tls(&secure, limits, connector.clone())?)?;
    rows.extend(compare("HTTPS by ureq", scale, by_ureq, bare_https()?)?);
    let client = HyperClient::with_tls(&secure, HyperConfig::default(), connector.clone())?;
    let by_hyper = InRuntime::greeted(client)?;
    rows.extend(compare("HTTPS by hyper", scale, by_hyper, bare_https()?)?);
    Ok(Table {
        setting: format!(
            "{ROUNDS} rounds; a frame of {SMALL} bytes and its answer of {ANSWER}; {WINDOW} frames of \
             1 MiB on their way at once; a thread at the other end that stores nothing"
        ),
        floor: "the same bytes, written to and read from a bare socket of the same kind: Unix, TCP, \
                rustls over them; of ureq and hyper the same requests, written by hand to the same \
                server over a connection that is kept",
        rows,
    })
}

/// One side of the comparison: sends frames and takes the answers.
trait Exchange {
    fn exchange(&mut self, frames: &[Vec<u8>]) -> Result<()>;
}

struct Ours<T>(T, Vec<u8>);

impl<T: Transport> Exchange for Ours<T>
where
    T::Error: std::error::Error + 'static,
{
    fn exchange(&mut self, frames: &[Vec<u8>]) -> Result<()> {
        for frame in frames {
            self.0.send(frame)?;
        }
        let mut answers = 0;
        while answers < frames.len() {
            answers += usize::from(self.0.recv(&mut self.1, Duration::from_secs(5))?.is_some());
        }
        Ok(())
    }
}

/// hyper as the link drives it: a runtime on the thread that waits.
struct InRuntime(tokio::runtime::Runtime, AsyncHttpFrames<HyperClient>);

impl InRuntime {
    fn greeted(client: HyperClient) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut ours = Self(runtime, AsyncHttpFrames::new(client));
        ours.1.send(&hello(0)?)?;
        ours.0.block_on(ours.1.recv(&mut [0; MAX_CONTROL_FRAME]))?.ok_or("no HelloAck")?;
        Ok(ours)
    }
}

impl Exchange for InRuntime {
    fn exchange(&mut self, frames: &[Vec<u8>]) -> Result<()> {
        let Self(runtime, transport) = self;
        runtime.block_on(async {
            for frame in frames {
                transport.send(frame)?;
            }
            for _ in frames {
                transport.recv(&mut [0; MAX_CONTROL_FRAME]).await?.ok_or("no answer")?;
            }
            Ok(())
        })
    }
}

struct Bare<S>(S);

impl<S: Read + Write> Exchange for Bare<S> {
    fn exchange(&mut self, frames: &[Vec<u8>]) -> Result<()> {
        for frame in frames {
            self.0.write_all(frame)?;
            self.0.flush()?;
        }
        for _ in frames {
            self.0.read_exact(&mut [0; ANSWER])?;
        }
        Ok(())
    }
}

/// Requests with the least that HTTP/1.1 asks for.
struct BareHttp<S: Read + Write> {
    stream: BufReader<S>,
    /// The Hello in front of every body.
    hello: Vec<u8>,
    answers: Vec<u8>,
}

impl<S: Read + Write> BareHttp<S> {
    fn new(stream: S) -> Result<Self> {
        Ok(Self { stream: BufReader::new(stream), hello: hello(7)?, answers: Vec::new() })
    }
}

impl<S: Read + Write> Exchange for BareHttp<S> {
    fn exchange(&mut self, frames: &[Vec<u8>]) -> Result<()> {
        let length = self.hello.len() + frames.iter().map(Vec::len).sum::<usize>();
        let mut head = format!(
            "POST /v1/frames HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: \
             application/vnd.synddb.frames\r\nContent-Length: {length}\r\n\r\n"
        )
        .into_bytes();
        head.extend_from_slice(&self.hello);
        let stream = self.stream.get_mut();
        if length < LARGE {
            head.extend(frames.concat());
            stream.write_all(&head)?;
        } else {
            stream.write_all(&head)?;
            for frame in frames {
                stream.write_all(frame)?;
            }
        }
        stream.flush()?;
        read_message(&mut self.stream, &mut self.answers)?.ok_or("no response")?;
        if self.answers.len() == frames.len() * ANSWER {
            Ok(())
        } else {
            Err("wrong answers".into())
        }
    }
}

fn compare(
    what: &str,
    scale: Scale,
    mut ours: impl Exchange,
    mut bare: impl Exchange,
) -> Result<[Row; 2]> {
    // Nobody sends the same bytes twice: they are not in the processor's cache.
    let (small, large) = (vec![frame(SMALL)?], vec![frame(LARGE)?; WINDOW]);
    let (trips, batches) = (scale.pick(2_000, 100), scale.pick(12, 2));
    let mut times = [Vec::new(), Vec::new()];
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        for (at, side) in [&mut ours as &mut dyn Exchange, &mut bare].into_iter().enumerate() {
            for _ in 0..trips {
                let start = Instant::now();
                side.exchange(&small)?;
                // The first round warms up.
                if round > 0 {
                    times[at].push(start.elapsed().as_secs_f64() * 1e6);
                }
            }
        }
        // In turns, so that what else the machine does falls upon both.
        for _ in 0..batches {
            for (at, side) in [&mut ours as &mut dyn Exchange, &mut bare].into_iter().enumerate() {
                let start = Instant::now();
                side.exchange(&large)?;
                if round > 0 {
                    let bytes = (WINDOW * LARGE) as f64;
                    rates[at].push(bytes / 1e6 / start.elapsed().as_secs_f64());
                }
            }
        }
    }
    let [mut ours, mut floor] = times;
    let trip = Row::new(
        format!("{what}: round trip"),
        "µs",
        percentile(&mut ours, 0.5),
        percentile(&mut floor, 0.5),
    );
    let [mut ours, mut floor] = rates;
    let rate = Row::new(
        format!("{what}: frames of 1 MiB"),
        "MB/s",
        percentile(&mut ours, 0.5),
        percentile(&mut floor, 0.5),
    );
    Ok([trip, rate])
}

fn frame(len: usize) -> Result<Vec<u8>> {
    let mut frame: Vec<u8> = (0..len).map(|at| (at * 31 % 251) as u8).collect();
    header::seal(&mut frame, Kind::Fragment, 1)?;
    Ok(frame)
}

/// The clients.
fn connect_tcp(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn bare_tls<S: Read + Write>(connector: &Connector, stream: S) -> Result<ClientStream<S>> {
    Ok(connector.connect(stream, "127.0.0.1")?)
}

fn ours<T: Transport>(transport: T) -> Ours<T> {
    Ours(transport, vec![0; MAX_CONTROL_FRAME])
}

/// Over HTTP nothing goes before a Hello.
fn greeted<E: HttpExchange>(exchange: E) -> Result<Ours<HttpFrames<E>>>
where
    E::Error: std::error::Error + 'static,
{
    let mut transport = HttpFrames::new(exchange);
    transport.connect()?;
    transport.send(&hello(0)?)?;
    transport.recv(&mut [0; MAX_CONTROL_FRAME], Duration::from_secs(5))?.ok_or("no HelloAck")?;
    Ok(ours(transport))
}

fn hello(ticket: u64) -> Result<Vec<u8>> {
    let hello = Hello {
        version_min: header::VERSION,
        version_max: header::VERSION,
        features: 0,
        stream: StreamId::from_name("bench"),
        name: "bench",
        instance: Nonce([1; 16]),
        nonce: Nonce([2; 16]),
        ticket,
        epoch: Epoch(0),
        next_seq: SeqNo(1),
        chain: Chain::default(),
        max_frame: MAX_CONTROL_FRAME as u32,
        token: b"",
    };
    let mut frame = vec![0; MAX_CONTROL_FRAME];
    let len = Message::Hello(hello).encode(1, &mut frame)?;
    frame.truncate(len);
    Ok(frame)
}

/// The other end. Each connection is served by what ends with it.
trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

type Serve = fn(&mut dyn Stream) -> Result<()>;

fn spawn(stream: impl Read + Write + Send + 'static, tls: Option<Arc<ServerConfig>>, serve: Serve) {
    thread::spawn(move || match tls {
        None => drop(serve(&mut { stream })),
        Some(tls) => {
            if let Ok(connection) = ServerConnection::new(tls) {
                drop(serve(&mut StreamOwned::new(connection, stream)));
            }
        }
    });
}

fn serve_unix(path: &std::path::Path, tls: Option<Arc<ServerConfig>>) -> Result<()> {
    let listener = UnixListener::bind(path)?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            spawn(stream, tls.clone(), answer_frames);
        }
    });
    Ok(())
}

fn serve_tcp(tls: Option<Arc<ServerConfig>>, serve: Serve) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if stream.set_nodelay(true).is_ok() {
                spawn(stream, tls.clone(), serve);
            }
        }
    });
    Ok(port)
}

fn answer_frames(stream: &mut dyn Stream) -> Result<()> {
    let answer = frame(ANSWER)?;
    let mut room = vec![0; LARGE];
    loop {
        let mut head = [0; header::LEN];
        stream.read_exact(&mut head)?;
        let len = Header::read(&head, LARGE)?.frame_len() - header::LEN;
        stream.read_exact(&mut room[..len])?;
        stream.write_all(&answer)?;
        stream.flush()?;
    }
}

fn answer_requests(stream: &mut dyn Stream) -> Result<()> {
    let answer = frame(ANSWER)?;
    let mut stream = BufReader::new(stream);
    let mut body = Vec::new();
    while read_message(&mut stream, &mut body)?.is_some() {
        let length = body.len();
        let mut rest = &body[Header::read(&body, length)?.frame_len()..];
        let mut answers = Vec::new();
        if rest.is_empty() {
            answers = hello_ack()?;
        }
        while !rest.is_empty() {
            rest = &rest[Header::read(rest, length)?.frame_len()..];
            answers.extend_from_slice(&answer);
        }
        let length = answers.len();
        let mut response = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.synddb.frames\r\nContent-Length: \
             {length}\r\n\r\n"
        )
        .into_bytes();
        response.extend_from_slice(&answers);
        stream.get_mut().write_all(&response)?;
        stream.get_mut().flush()?;
    }
    Ok(())
}

/// The body of a request or a response; `None` where there is no more.
fn read_message(stream: &mut impl BufRead, body: &mut Vec<u8>) -> Result<Option<()>> {
    let mut length = 0;
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let line = line.trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
        if line.is_empty() {
            break;
        }
    }
    body.resize(length, 0);
    stream.read_exact(body)?;
    Ok(Some(()))
}

fn hello_ack() -> Result<Vec<u8>> {
    let limits = Limits { max_frame: 4 << 20, max_entry: 1, max_snapshot: 1, credit: 64 << 20 };
    let ack = HelloAck {
        version: header::VERSION,
        features: 0,
        nonce: Nonce([2; 16]),
        ticket: 7,
        head: Head::default(),
        genesis: Chain::default(),
        chain_at_next: None,
        staged: None,
        snapshot: None,
        limits,
        time_ms: 0,
    };
    let mut frame = vec![0; MAX_CONTROL_FRAME];
    let len = Message::HelloAck(ack).encode(1, &mut frame)?;
    frame.truncate(len);
    Ok(frame)
}
