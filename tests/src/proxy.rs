//! What can stand between an application and its sequencer: a proxy on loopback that behaves badly
//! on demand.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use synddb_core::Rng;

/// How the proxy behaves towards connections made from now on.
#[derive(Debug, Clone)]
pub enum Mode {
    /// As it should.
    Pass,
    /// Hangs up at once.
    HangUp,
    /// Takes everything and never answers.
    BlackHole,
    /// Answers every request by itself, with these bytes.
    Answer(Vec<u8>),
    /// Passes requests on and loses the answers.
    LoseAnswers,
    /// Ends answers after so many bytes.
    Truncate(usize),
    /// Flips one bit of every piece of the requests.
    FlipRequests(u64),
    /// Flips one bit of every piece of the answers.
    FlipAnswers(u64),
    /// Passes everything on one byte at a time.
    Trickle,
    /// Refuses bodies that are longer with 413.
    Limit(usize),
}

impl Mode {
    /// A complete response.
    pub fn answer(status: &str, headers: &str, body: &str) -> Self {
        Self::Answer(response(status, headers, body))
    }
}

fn response(status: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\n");
    format!("{head}Connection: close\r\n\r\n{body}").into_bytes()
}

/// A listener on a port of its own.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    mode: Mode,
    target: SocketAddr,
    open: Vec<TcpStream>,
    closed: bool,
}

impl Proxy {
    /// In front of `target`, and well behaved.
    pub fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let state = State { mode: Mode::Pass, target, open: Vec::new(), closed: false };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for connection in listener.incoming() {
                let (mode, target) = {
                    let mut state = lock(&shared);
                    if state.closed {
                        return;
                    }
                    state.open.extend(connection.as_ref().ok().and_then(|c| c.try_clone().ok()));
                    (state.mode.clone(), state.target)
                };
                let Ok(client) = connection else { continue };
                // What goes wrong ends the connection, as it should here.
                thread::spawn(move || serve(client, target, mode));
            }
        });
        Self { address, state }
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Behaves so from now on; connections that are open are cut.
    pub fn set(&self, mode: Mode) {
        let mut state = lock(&self.state);
        state.mode = mode;
        for connection in state.open.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Mode::HangUp);
        lock(&self.state).closed = true;
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(mut client: TcpStream, target: SocketAddr, mode: Mode) -> io::Result<()> {
    match mode {
        Mode::HangUp => client.shutdown(Shutdown::Both),
        Mode::BlackHole => io::copy(&mut client, &mut io::sink()).map(drop),
        Mode::Answer(answer) => {
            read_request(&mut client)?;
            client.write_all(&answer)?;
            client.shutdown(Shutdown::Write)
        }
        Mode::Limit(limit) => loop {
            let request = read_request(&mut client)?;
            if request.body > limit {
                client.write_all(&response("413 Payload Too Large", "", "too large"))?;
                return client.shutdown(Shutdown::Both);
            }
            let mut server = TcpStream::connect(target)?;
            server.write_all(&request.bytes)?;
            let answer = read_request(&mut server)?;
            client.write_all(&answer.bytes)?;
        },
        _ => {
            let server = TcpStream::connect(target)?;
            let piece = if matches!(mode, Mode::Trickle) { 1 } else { 16 << 10 };
            let (up, down) = manglers(mode);
            let (from, to) = (client.try_clone()?, server.try_clone()?);
            thread::spawn(move || pump(from, to, piece, up));
            pump(server, client, piece, down)
        }
    }
}

type Mangle = Box<dyn FnMut(&mut Vec<u8>) -> bool + Send>;

/// For requests and answers: what becomes of a piece, and whether the connection goes on.
fn manglers(mode: Mode) -> (Mangle, Mangle) {
    let pass = || -> Mangle { Box::new(|_| true) };
    let flip = |seed| -> Mangle {
        let mut rng = Rng::new(seed);
        Box::new(move |piece: &mut Vec<u8>| {
            let at = rng.up_to(piece.len() as u64 - 1) as usize;
            piece[at] ^= 1 << rng.up_to(7);
            true
        })
    };
    match mode {
        Mode::LoseAnswers => {
            let lose: Mangle = Box::new(|piece| {
                piece.clear();
                false
            });
            (pass(), lose)
        }
        Mode::Truncate(mut left) => {
            let cut: Mangle = Box::new(move |piece| {
                piece.truncate(left);
                left -= piece.len();
                left > 0
            });
            (pass(), cut)
        }
        Mode::FlipRequests(seed) => (flip(seed), pass()),
        Mode::FlipAnswers(seed) => (pass(), flip(seed)),
        _ => (pass(), pass()),
    }
}

fn pump(
    mut from: TcpStream,
    mut to: TcpStream,
    piece: usize,
    mut mangle: Mangle,
) -> io::Result<()> {
    let _ = to.set_nodelay(true);
    let mut buffer = vec![0; piece];
    loop {
        let read = from.read(&mut buffer).unwrap_or(0);
        let mut piece = buffer[..read].to_vec();
        let goes_on = read > 0 && mangle(&mut piece);
        to.write_all(&piece)?;
        if !goes_on {
            let _ = from.shutdown(Shutdown::Both);
            return to.shutdown(Shutdown::Both);
        }
    }
}

struct Request {
    bytes: Vec<u8>,
    body: usize,
}

/// Reads one HTTP message whose length its header tells.
fn read_request(stream: &mut TcpStream) -> io::Result<Request> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let head_end = bytes.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4);
        if let Some(head_end) = head_end {
            let head = String::from_utf8_lossy(&bytes[..head_end]).to_ascii_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"))
                .and_then(|value| value.trim().parse().ok())
                .unwrap_or(0);
            if bytes.len() >= head_end + length {
                return Ok(Request { bytes, body: length });
            }
        }
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => bytes.extend_from_slice(&buffer[..read]),
        }
    }
}
