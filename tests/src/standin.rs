//! Stands in for an existing SyndDB sequencer: CBOR over HTTP, with its flaws. It numbers what it takes
//! and looks no further: no message is recognised when it comes twice, no order is checked, and what
//! was confirmed is forgotten where it stops before a flush.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use ciborium::Value;
use rusqlite::{Connection, session::ConflictAction};
use serde_json::json;
use synddb_core::Rng;

/// Bytes of a whole body.
pub const MAX_BODY: usize = 2_097_152;

/// A message that was numbered.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// Of `POST /changesets`: each with its number and its time in seconds.
    Changesets(Vec<(Vec<u8>, u64, u64)>),
    /// Of `POST /snapshots`, with its number.
    Snapshot(Vec<u8>, u64),
    /// Somebody else's.
    Foreign,
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq)]
pub struct Faults {
    /// Of a hundred requests so many are stored without an answer.
    pub lost_answers: u64,
    /// Of a hundred requests so many end before they are stored.
    pub resets: u64,
    /// Of a hundred messages so many are confirmed with a warning.
    pub warnings: u64,
    /// Of a hundred requests so many restart the sequencer first, which forgets what is not flushed.
    pub restarts: u64,
    /// Of a hundred requests so many are preceded by a message of somebody else's.
    pub foreign: u64,
    /// A body above the limit ends the connection, as opposed to 400.
    pub resets_above_limit: bool,
    /// Bytes of a whole body.
    pub max_body: usize,
    /// The token that has to be in each message.
    pub token: Option<String>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            lost_answers: 0,
            resets: 0,
            warnings: 0,
            restarts: 0,
            foreign: 0,
            resets_above_limit: false,
            max_body: MAX_BODY,
            token: None,
        }
    }
}

/// A running stand-in. It ends with the process.
pub struct StandIn {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
}

struct State {
    log: Vec<Message>,
    durable: usize,
    unflushed_bytes: usize,
    faults: Faults,
    rng: Rng,
    /// Requests by path.
    requests: BTreeMap<String, u64>,
    /// Answers other than 2xx.
    refusals: u64,
    largest: usize,
}

impl StandIn {
    /// One that listens, and whose faults are drawn with `seed`.
    pub fn start(seed: u64) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = listener.local_addr().expect("its address");
        let state = Arc::new(Mutex::new(State {
            log: Vec::new(),
            durable: 0,
            unflushed_bytes: 0,
            faults: Faults::default(),
            rng: Rng::new(seed),
            requests: BTreeMap::new(),
            refusals: 0,
            largest: 0,
        }));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || serve(stream, &state));
            }
        });
        Self { state, address }
    }

    /// Also listens on a Unix socket.
    pub fn listen_on(&self, path: &Path) {
        let listener = UnixListener::bind(path).expect("a socket");
        let shared = Arc::clone(&self.state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || serve(stream, &state));
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its address, as a client has it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What goes wrong from now on.
    pub fn set(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// Stops and starts it: what is not flushed is forgotten.
    pub fn restart(&self) {
        self.lock().restart();
    }

    /// What it has.
    pub fn log(&self) -> Vec<Message> {
        self.lock().log.clone()
    }

    /// Requests for `path`.
    pub fn requests(&self, path: &str) -> u64 {
        self.lock().requests.get(path).copied().unwrap_or_default()
    }

    /// Answers that were not of success.
    pub fn refusals(&self) -> u64 {
        self.lock().refusals
    }

    /// Bytes of the largest body that it took.
    pub fn largest(&self) -> usize {
        self.lock().largest
    }

    /// A database by the log, as who reads it builds it: by SQLite's own means, which conflict with
    /// anything that is missing or comes twice. What does not apply makes it useless until the next
    /// snapshot; `None` where that is how it ends.
    pub fn replay(&self) -> Option<Connection> {
        let mut replica = None;
        for message in self.log() {
            match message {
                Message::Snapshot(data, _) => {
                    let mut db = Connection::open_in_memory().expect("memory");
                    db.deserialize_read_exact("main", data.as_slice(), data.len(), false)
                        .expect("a snapshot is a database");
                    replica = Some(db);
                }
                Message::Changesets(changesets) => {
                    for (data, ..) in changesets {
                        let Some(db) = &replica else { break };
                        let applied = db.apply_strm(
                            &mut data.as_slice(),
                            None::<fn(&str) -> bool>,
                            |_, _| ConflictAction::SQLITE_CHANGESET_ABORT,
                        );
                        if applied.is_err() {
                            replica = None;
                        }
                    }
                }
                Message::Foreign => {}
            }
        }
        replica
    }
}

impl State {
    fn restart(&mut self) {
        let durable = self.durable;
        self.log.truncate(durable);
        self.unflushed_bytes = 0;
    }

    fn flush(&mut self) {
        self.durable = self.log.len();
        self.unflushed_bytes = 0;
    }

    fn chance(&mut self, of_hundred: u64) -> bool {
        self.rng.up_to(99) < of_hundred
    }

    /// Numbers a message.
    fn take(&mut self, message: Message, len: usize) -> (u16, String) {
        self.log.push(message);
        self.unflushed_bytes += len;
        self.largest = self.largest.max(len);
        if self.log.len() - self.durable >= 50 || self.unflushed_bytes >= 1 << 20 {
            self.flush();
        }
        let sequence = self.log.len();
        let mut answer = json!({
            "sequence": sequence,
            "timestamp": 1_700_000_000,
            "message_hash": format!("0xhash{sequence}"),
            "signature": format!("0xsignature{sequence}"),
            "signer": "0xsigner",
        });
        let warnings = self.faults.warnings;
        if self.chance(warnings) {
            answer["batch_warning"] = "the batch could not be kept".into();
        }
        (201, answer.to_string())
    }
}

/// A request.
struct Request {
    method: String,
    path: String,
    content_type: String,
    body: Vec<u8>,
}

fn serve<S: Read + Write>(stream: S, state: &Mutex<State>) {
    let mut stream = BufReader::new(stream);
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    while let Some((mut request, len)) = read_head(&mut stream) {
        let Faults { max_body, resets_above_limit, .. } = lock().faults;
        if len > max_body {
            lock().refusals += 1;
            if resets_above_limit {
                return;
            }
            // All of it is read, so that the answer is.
            let _ = std::io::copy(&mut (&mut stream).take(len as u64), &mut std::io::sink());
            answer(
                stream.get_mut(),
                400,
                "Failed to buffer the request body: length limit exceeded",
            );
            continue;
        }
        request.body.resize(len, 0);
        if stream.read_exact(&mut request.body).is_err() {
            return;
        }
        let (status, text, is_lost) = {
            let mut state = lock();
            let Faults { resets, restarts, foreign, lost_answers, .. } = state.faults;
            if state.chance(restarts) {
                state.restart();
            }
            if state.chance(foreign) {
                state.log.push(Message::Foreign);
            }
            if state.chance(resets) {
                return;
            }
            *state.requests.entry(request.path.clone()).or_default() += 1;
            let (status, text) = handle(&mut state, &request);
            state.refusals += u64::from(status >= 300);
            (status, text, state.chance(lost_answers))
        };
        if is_lost {
            return;
        }
        answer(stream.get_mut(), status, &text);
    }
}

fn read_head<S: Read>(stream: &mut BufReader<S>) -> Option<(Request, usize)> {
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (mut len, mut content_type) = (0, String::new());
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => len = value.trim().parse().ok()?,
            "content-type" => content_type = value.trim().to_owned(),
            _ => {}
        }
    }
    Some((Request { method, path, content_type, body: Vec::new() }, len))
}

fn answer(stream: &mut impl Write, status: u16, text: &str) {
    let kind = if text.starts_with('{') { "application/json" } else { "text/plain" };
    // Whoever asked may be gone.
    let _ = write!(
        stream,
        "HTTP/1.1 {status} Status\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    );
    let _ = stream.flush();
}

fn handle(state: &mut State, request: &Request) -> (u16, String) {
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/status") => {
            let answer = json!({
                "current_sequence": state.log.len(),
                "signer_address": "0xsigner",
                "signer_pubkey": "0xkey",
            });
            (200, answer.to_string())
        }
        ("GET", "/health" | "/ready") => (200, "OK".into()),
        ("POST", "/batch/flush") => {
            state.flush();
            (200, json!({ "flushed": true }).to_string())
        }
        ("POST", "/changesets" | "/snapshots") => {
            if request.content_type != "application/cbor" {
                return (415, "Expected request with `Content-Type: application/cbor`".into());
            }
            let Some(message) = decode(&request.path, &request.body) else {
                return (400, "Failed to parse the request body as CBOR".into());
            };
            let (message, token) = message;
            if state.faults.token.is_some() && state.faults.token != token {
                return (401, json!({ "error": "attestation token missing or bad" }).to_string());
            }
            state.take(message, request.body.len())
        }
        _ => (404, String::new()),
    }
}

/// The message and its token, if every field is there, of its type, and nothing else.
fn decode(path: &str, body: &[u8]) -> Option<(Message, Option<String>)> {
    let mut rest = body;
    let value: Value = ciborium::from_reader(&mut rest).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let mut fields = fields(value)?;
    let token = match fields.remove("attestation_token") {
        Some(token) => Some(token.into_text().ok()?),
        None => None,
    };
    let message = if path == "/changesets" {
        fields.remove("batch_id")?.into_text().ok()?;
        let changesets = fields.remove("changesets")?.into_array().ok()?;
        let changesets = changesets.into_iter().map(|changeset| {
            let mut fields = self::fields(changeset)?;
            let data = fields.remove("data")?.into_bytes().ok()?;
            let sequence = number(fields.remove("sequence")?)?;
            let timestamp = number(fields.remove("timestamp")?)?;
            fields.is_empty().then_some((data, sequence, timestamp))
        });
        Message::Changesets(changesets.collect::<Option<_>>()?)
    } else {
        let mut snapshot = self::fields(fields.remove("snapshot")?)?;
        fields.remove("message_id")?.into_text().ok()?;
        let data = snapshot.remove("data")?.into_bytes().ok()?;
        number(snapshot.remove("timestamp")?)?;
        let sequence = number(snapshot.remove("sequence")?)?;
        if !snapshot.is_empty() {
            return None;
        }
        Message::Snapshot(data, sequence)
    };
    fields.is_empty().then_some((message, token))
}

fn fields(value: Value) -> Option<BTreeMap<String, Value>> {
    let pairs = value.into_map().ok()?;
    pairs.into_iter().map(|(name, value)| Some((name.into_text().ok()?, value))).collect()
}

fn number(value: Value) -> Option<u64> {
    u64::try_from(value.into_integer().ok()?).ok()
}

/// How long a test waits for what comes by itself.
pub const PATIENCE: Duration = Duration::from_secs(60);
