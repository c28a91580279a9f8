//! What can stand between an application and its sequencer's Unix socket: a relay that behaves badly
//! on demand, or like a VMM.

use std::{
    collections::HashSet,
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use synddb_core::wire::{Header, Kind, header};

/// How long the relay holds an answer back for frames that do not come.
const PATIENCE: Duration = Duration::from_secs(30);

/// How the relay behaves towards connections made from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// As it should.
    Pass,
    /// Like a VMM: the first line asks for a port, which has to be this one.
    Vmm(u32),
    /// Hangs up after so many bytes went to the sequencer.
    CutRequests(usize),
    /// Hangs up after so many bytes came from the sequencer.
    CutAnswers(usize),
    /// Takes everything and never answers.
    Silent,
    /// Takes nothing.
    Deaf,
    /// Says this, and hangs up.
    Say(Vec<u8>),
    /// Answers with this, a byte now and then.
    Trickle(Vec<u8>),
    /// Holds answers to the pieces of snapshots back until so many of them are on their way.
    HoldUntil(usize),
}

/// A listener on a socket of its own.
pub struct Relay {
    path: PathBuf,
    state: Arc<Mutex<State>>,
}

struct State {
    mode: Mode,
    target: PathBuf,
    open: Vec<UnixStream>,
    most_on_their_way: usize,
    kinds: Vec<u8>,
    closed: bool,
}

impl Relay {
    /// On `path`, in front of `target`, and well behaved.
    pub fn start(path: &Path, target: &Path) -> Self {
        let listener = UnixListener::bind(path).expect("a path of its own");
        let state = Arc::new(Mutex::new(State {
            mode: Mode::Pass,
            target: target.to_owned(),
            open: Vec::new(),
            most_on_their_way: 0,
            kinds: Vec::new(),
            closed: false,
        }));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for connection in listener.incoming() {
                let Ok(client) = connection else { continue };
                {
                    let mut state = lock(&shared);
                    if state.closed {
                        return;
                    }
                    state.open.extend(client.try_clone().ok());
                }
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let same = client.try_clone();
                    // What goes wrong ends the connection, as it should here.
                    let _ = serve(client, &shared);
                    let _ = same.map(|same| same.shutdown(Shutdown::Both));
                });
            }
        });
        Self { path: path.to_owned(), state }
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("unix:{}", self.path.display())
    }

    /// Behaves so from now on; connections that are open are cut.
    pub fn set(&self, mode: Mode) {
        let mut state = lock(&self.state);
        state.mode = mode;
        for connection in state.open.drain(..) {
            // It may have ended.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// The most pieces of snapshots that were on their way at once, while it held answers back.
    pub fn most_on_their_way(&self) -> usize {
        lock(&self.state).most_on_their_way
    }

    /// The kinds of the frames that went to the sequencer.
    pub fn kinds(&self) -> Vec<u8> {
        lock(&self.state).kinds.clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.set(Mode::Pass);
        lock(&self.state).closed = true;
        // Wakes the listener.
        let _ = UnixStream::connect(&self.path);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(mut client: UnixStream, state: &Arc<Mutex<State>>) -> io::Result<()> {
    let (mode, target) = {
        let state = lock(state);
        (state.mode.clone(), state.target.clone())
    };
    match mode {
        Mode::Silent => return io::copy(&mut client, &mut io::sink()).map(drop),
        Mode::Deaf => {
            // Until it is cut.
            while client.take_error()?.is_none() {
                thread::sleep(Duration::from_millis(10));
                if lock(state).mode != Mode::Deaf {
                    break;
                }
            }
            return Ok(());
        }
        Mode::Say(bytes) => {
            client.write_all(&bytes)?;
            client.shutdown(Shutdown::Write)?;
            return io::copy(&mut client, &mut io::sink()).map(drop);
        }
        Mode::Trickle(bytes) => {
            for byte in bytes {
                client.write_all(&[byte])?;
                thread::sleep(Duration::from_millis(2));
            }
            return io::copy(&mut client, &mut io::sink()).map(drop);
        }
        Mode::Vmm(port) => {
            let mut line = [0; 64];
            let read = client.read(&mut line)?;
            if line[..read] != *format!("CONNECT {port}\n").as_bytes() {
                return Ok(());
            }
            client.write_all(b"OK 1073741824\n")?;
        }
        Mode::Pass | Mode::CutRequests(_) | Mode::CutAnswers(_) | Mode::HoldUntil(_) => {}
    }
    let server = UnixStream::connect(target)?;
    let (mut up_from, mut up_to) = (client.try_clone()?, server.try_clone()?);
    let gate = Arc::new(Gate::default());
    let mode_of_answers = mode.clone();
    if let Mode::HoldUntil(_) | Mode::Pass | Mode::Vmm(_) = mode {
        let (its_state, its_gate) = (Arc::clone(state), Arc::clone(&gate));
        thread::spawn(move || {
            let requests = frames(&mut up_from, &mut up_to, |header| {
                lock(&its_state).kinds.push(header.kind);
                if let Mode::HoldUntil(_) = mode {
                    let on_their_way = its_gate.sent(header);
                    let mut state = lock(&its_state);
                    state.most_on_their_way = state.most_on_their_way.max(on_their_way);
                }
            });
            let _ = up_to.shutdown(Shutdown::Write);
            requests
        });
    } else {
        let left = if let Mode::CutRequests(left) = mode { left } else { usize::MAX };
        thread::spawn(move || cut(up_from, up_to, left));
    }
    let (mut from, mut to) = (server, client);
    match mode_of_answers {
        Mode::CutAnswers(left) => cut(from, to, left),
        Mode::CutRequests(_) => cut(from, to, usize::MAX),
        mode => {
            let answers = frames(&mut from, &mut to, |header| {
                if let Mode::HoldUntil(wanted) = mode {
                    gate.answered(header, wanted);
                }
            });
            let _ = from.shutdown(Shutdown::Both);
            answers
        }
    }
}

/// Passes on frame by frame.
fn frames(
    from: &mut UnixStream,
    to: &mut UnixStream,
    mut seen: impl FnMut(&Header),
) -> io::Result<()> {
    loop {
        let mut frame = vec![0; header::LEN];
        from.read_exact(&mut frame)?;
        let header = Header::read(&frame, usize::MAX)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        frame.resize(header.frame_len(), 0);
        from.read_exact(&mut frame[header::LEN..])?;
        seen(&header);
        to.write_all(&frame)?;
    }
}

/// Passes on, and hangs up after `left` bytes.
fn cut(mut from: UnixStream, mut to: UnixStream, left: usize) -> io::Result<()> {
    let passed = io::copy(&mut (&mut from).take(left as u64), &mut to);
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
    passed.map(drop)
}

/// Which pieces of snapshots are on their way.
#[derive(Default)]
struct Gate {
    pieces: Mutex<(HashSet<u32>, bool)>,
    changed: Condvar,
}

impl Gate {
    /// How many are on their way.
    fn sent(&self, header: &Header) -> usize {
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        if header.kind == Kind::SnapshotChunk as u8 {
            pieces.0.insert(header.tag);
            self.changed.notify_all();
        }
        pieces.0.len()
    }

    /// Returns once the answer may pass.
    fn answered(&self, header: &Header, wanted: usize) {
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        if pieces.0.contains(&header.tag) {
            let waits = |pieces: &mut (HashSet<u32>, bool)| !pieces.1 && pieces.0.len() < wanted;
            pieces = self
                .changed
                .wait_timeout_while(pieces, PATIENCE, waits)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            pieces.1 = true;
            pieces.0.remove(&header.tag);
        }
    }
}
