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
    http::HttpFrames,
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
    rows.extend(compare("Unix socket", scale, unix, UnixStream::connect(&plain_path)?)?);

    let address = Address::Unix { path: tls_path.clone() };
    let mut unix = transport_with_tls(address, Timeouts::default(), connector.clone())?;
    unix.connect()?;
    let bare = bare_tls(&connector, UnixStream::connect(&tls_path)?)?;
    rows.extend(compare("TLS over it", scale, unix, bare)?);

    let limits = UreqConfig::default();
    let exchange = UreqExchange::new(&format!("http://127.0.0.1:{http}"), limits)?;
    let bare = connect_tcp(tcp)?;
    rows.extend(compare("HTTP by ureq", scale, greeted(HttpFrames::new(exchange))?, bare)?);

    let url = format!("https://127.0.0.1:{https}");
    let exchange = UreqExchange::with_tls(&url, limits, connector.clone())?;
    let bare = bare_tls(&connector, connect_tcp(tcp_tls)?)?;
    rows.extend(compare("HTTPS by ureq", scale, greeted(HttpFrames::new(exchange))?, bare)?);
    Ok(Table {
        setting: format!(
            "{ROUNDS} rounds; a frame of {SMALL} bytes and its answer of {ANSWER}; {WINDOW} frames of \
             1 MiB on their way at once; a thread at the other end that stores nothing"
        ),
        floor: "the same bytes, written to and read from a bare socket of the same kind: Unix, TCP, \
                rustls over them",
        rows,
    })
}

/// One side of the comparison: sends a frame so often and takes the answers.
trait Exchange {
    fn exchange(&mut self, frame: &[u8], times: usize) -> Result<()>;
}

struct Ours<T>(T, Vec<u8>);

impl<T: Transport> Exchange for Ours<T>
where
    T::Error: std::error::Error + 'static,
{
    fn exchange(&mut self, frame: &[u8], times: usize) -> Result<()> {
        for _ in 0..times {
            self.0.send(frame)?;
        }
        let mut answers = 0;
        while answers < times {
            answers += usize::from(self.0.recv(&mut self.1, Duration::from_secs(5))?.is_some());
        }
        Ok(())
    }
}

struct Bare<S>(S);

impl<S: Read + Write> Exchange for Bare<S> {
    fn exchange(&mut self, frame: &[u8], times: usize) -> Result<()> {
        for _ in 0..times {
            self.0.write_all(frame)?;
            self.0.flush()?;
        }
        for _ in 0..times {
            self.0.read_exact(&mut [0; ANSWER])?;
        }
        Ok(())
    }
}

fn compare<T: Transport>(
    what: &str,
    scale: Scale,
    ours: T,
    bare: impl Read + Write,
) -> Result<[Row; 2]>
where
    T::Error: std::error::Error + 'static,
{
    let mut ours = Ours(ours, vec![0; MAX_CONTROL_FRAME]);
    let mut bare = Bare(bare);
    let (small, large) = (frame(SMALL)?, frame(LARGE)?);
    let (trips, batches) = (scale.pick(2_000, 100), scale.pick(12, 2));
    let mut times = [Vec::new(), Vec::new()];
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        for (at, side) in [&mut ours as &mut dyn Exchange, &mut bare].into_iter().enumerate() {
            for _ in 0..trips {
                let start = Instant::now();
                side.exchange(&small, 1)?;
                // The first round warms up.
                if round > 0 {
                    times[at].push(start.elapsed().as_secs_f64() * 1e6);
                }
            }
            for _ in 0..batches {
                let start = Instant::now();
                side.exchange(&large, WINDOW)?;
                if round > 0 {
                    let bytes = (WINDOW * large.len()) as f64;
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

/// Over HTTP nothing goes before a Hello.
fn greeted(mut transport: HttpFrames<UreqExchange>) -> Result<HttpFrames<UreqExchange>> {
    let hello = Hello {
        version_min: header::VERSION,
        version_max: header::VERSION,
        features: 0,
        stream: StreamId::from_name("bench"),
        name: "bench",
        instance: Nonce([1; 16]),
        nonce: Nonce([2; 16]),
        ticket: 0,
        epoch: Epoch(0),
        next_seq: SeqNo(1),
        chain: Chain::default(),
        max_frame: MAX_CONTROL_FRAME as u32,
        token: b"",
    };
    let mut room = vec![0; MAX_CONTROL_FRAME];
    let len = Message::Hello(hello).encode(1, &mut room)?;
    transport.connect()?;
    transport.send(&room[..len])?;
    transport.recv(&mut room, Duration::from_secs(5))?.ok_or("no HelloAck")?;
    Ok(transport)
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
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line)? == 0 {
                return Ok(());
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
        stream.read_exact(&mut body)?;
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
