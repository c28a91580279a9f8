//! The sequencer's HTTP bodies, over a socket to a real one.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{LazyLock, Mutex},
    time::Duration,
};

use synddb_core::{
    Chain, Epoch, Nonce, SeqNo, StreamId,
    wire::{Message, message::Hello},
};
use synddb_sequencer::{Config, Server};
use tempfile::TempDir;

use crate::decode::frame;

struct Sequencer {
    _dir: TempDir,
    _server: Server,
    address: SocketAddr,
    connection: Option<TcpStream>,
}

static SEQUENCER: LazyLock<Mutex<Sequencer>> = LazyLock::new(|| {
    let dir = TempDir::new().expect("a temporary folder");
    let config = Config::new(SocketAddr::from(([127, 0, 0, 1], 0)).into(), dir.path().join("log"));
    let server = Server::start(config).expect("a sequencer");
    let address = server.addr();
    Mutex::new(Sequencer { _dir: dir, _server: server, address, connection: None })
});

/// A Hello, and the frames that `data` describes: kind, length, body, and so on.
pub(crate) fn post(data: &[u8]) {
    let mut body = hello(data);
    let mut rest = data;
    while let [kind, low, high, more @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(more.len());
        body.extend(frame(*kind, &more[..len]));
        rest = &more[len..];
    }
    // Something that is no frame at its end.
    body.extend_from_slice(rest);
    let mut sequencer = SEQUENCER.lock().expect("no other thread");
    let answer = exchange(&mut sequencer, &body).or_else(|| exchange(&mut sequencer, &body));
    let answer = answer.expect("an answer, whatever was sent");
    let status = answer.get(9..12).expect("a status");
    assert!(matches!(status, b"200" | b"400" | b"413"), "{}", String::from_utf8_lossy(&answer));
}

fn hello(data: &[u8]) -> Vec<u8> {
    let stream = StreamId::from_name(&format!("{}", data.first().copied().unwrap_or_default() % 4));
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        features: 1,
        stream,
        name: "",
        instance: Nonce([1; 16]),
        nonce: Nonce([2; 16]),
        ticket: 0,
        epoch: Epoch(0),
        next_seq: SeqNo(1),
        chain: Chain([0; 32]),
        max_frame: 1 << 16,
        token: b"",
    };
    let mut buffer = vec![0; 1024];
    let len = Message::Hello(hello).encode(1, &mut buffer).expect("it fits");
    buffer.truncate(len);
    buffer
}

/// `None` where the connection of the last request had ended.
fn exchange(sequencer: &mut Sequencer, body: &[u8]) -> Option<Vec<u8>> {
    let mut connection = match sequencer.connection.take() {
        Some(connection) => connection,
        None => {
            let connection = TcpStream::connect(sequencer.address).expect("it listens");
            connection.set_nodelay(true).expect("a socket");
            connection.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
            connection
        }
    };
    let head = format!(
        "POST /v1/frames HTTP/1.1\r\nHost: fuzz\r\nContent-Type: application/vnd.synddb.frames\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    connection.write_all(&[head.as_bytes(), body].concat()).ok()?;
    let mut answer = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        let head_end = answer.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4);
        if let Some(head_end) = head_end {
            let head = String::from_utf8_lossy(&answer[..head_end]).to_ascii_lowercase();
            let length: usize = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"))
                .and_then(|length| length.trim().parse().ok())?;
            if answer.len() >= head_end + length {
                if !head.contains("connection: close") {
                    sequencer.connection = Some(connection);
                }
                return Some(answer);
            }
        }
        match connection.read(&mut buffer) {
            Ok(read) if read > 0 => answer.extend_from_slice(&buffer[..read]),
            _ => return None,
        }
    }
}
