//! The other side: a sequencer that stores nothing, and behaves as it is told.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use synddb_core::{
    Chain, Nonce,
    http::{FRAMES_CONTENT_TYPE, FRAMES_PATH},
    wire::{
        Header, Kind, Message, header,
        message::{Bye, Farewell, Head, HelloAck, Limits, MAX_CONTROL_FRAME},
    },
};

use crate::Protocol;

/// Longest frame that is taken: what sequencers take where nothing else is set.
pub(crate) const MAX_FRAME: usize = 4 << 20;
/// Body of an answer: the checksum of what it answers, and padding.
pub(crate) const ANSWER_BODY: usize = 4;

/// How the peer treats whatever comes from now on.
#[derive(Debug, Clone)]
pub(crate) enum Manner {
    /// Answers every frame.
    Answer,
    /// The same, in pieces of so many bytes.
    Dribble { piece: usize, pause: Duration },
    /// The same, and takes what comes in pieces.
    Sip { piece: usize, pause: Duration },
    /// Takes everything and answers nothing.
    Silent,
    /// Takes nothing but the beginning.
    Deaf,
    /// Says so many bytes of its answers and hangs up. Over HTTP the response's length is that of all.
    Cut(usize),
    /// Says these bytes in the place of its answers and hangs up. Over HTTP they are the body.
    Say(Vec<u8>),
    /// Says these bytes, below HTTP, and hangs up.
    Raw(Vec<u8>),
    /// Answers, says Bye, and hangs up.
    Bye,
}

/// Shared by the suite and the peer's threads.
#[derive(Clone)]
pub(crate) struct Peer(Arc<(Mutex<State>, Condvar)>);

struct State {
    manner: Manner,
    /// Counts the manners, so that a connection that is held notices the next.
    turn: u64,
    complaints: Vec<String>,
    /// Head of the last request.
    head: String,
}

impl Peer {
    pub(crate) fn start<W: Read + Write + Send + 'static>(
        protocol: Protocol,
        mut accept: impl FnMut() -> io::Result<W> + Send + 'static,
    ) -> Self {
        let state =
            State { manner: Manner::Answer, turn: 0, complaints: Vec::new(), head: String::new() };
        let peer = Self(Arc::new((Mutex::new(state), Condvar::new())));
        let shared = peer.clone();
        // Ends with the process, or with what `accept` waits for.
        let _detached = thread::spawn(move || {
            loop {
                match accept() {
                    Ok(wire) => {
                        let shared = shared.clone();
                        // How a connection ends is the transport's to tell.
                        let _detached = thread::spawn(move || shared.serve(protocol, wire));
                    }
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return,
                    Err(_) => {}
                }
            }
        });
        peer
    }

    /// As new.
    pub(crate) fn begin(&self) {
        self.set(Manner::Answer);
        let mut state = self.state();
        state.complaints.clear();
        state.head.clear();
    }

    /// Behaves so from now on, connections that are open included.
    pub(crate) fn set(&self, manner: Manner) {
        let mut state = self.state();
        state.manner = manner;
        state.turn += 1;
        self.0.1.notify_all();
    }

    /// What was wrong with what came, for the end of a sentence.
    pub(crate) fn complaints(&self) -> String {
        self.state().complaints.iter().map(|text| format!("; the peer says: {text}")).collect()
    }

    /// Head of the last request, in lower case but for values.
    pub(crate) fn head(&self) -> String {
        self.state().head.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn manner(&self) -> Manner {
        self.state().manner.clone()
    }

    fn complain<T>(&self, text: impl Into<String>) -> io::Result<T> {
        self.state().complaints.push(text.into());
        Err(io::ErrorKind::InvalidData.into())
    }

    /// Until the manner is another one: what is held is not taken and not dropped.
    fn hold(&self) {
        let state = self.state();
        let turn = state.turn;
        drop(self.0.1.wait_while(state, |state| state.turn == turn));
    }

    fn serve<W: Read + Write>(&self, protocol: Protocol, wire: W) -> io::Result<()> {
        let mut wire = BufReader::with_capacity(1 << 16, wire);
        loop {
            let (answers, bye) = match protocol {
                Protocol::Stream => {
                    let mut frame = vec![0; header::LEN];
                    wire.read_exact(&mut frame)?;
                    let Ok(header) = Header::read(&frame, MAX_FRAME) else {
                        return self.complain(format!("no frame begins with {frame:02x?}"));
                    };
                    frame.resize(header.frame_len(), 0);
                    self.take(&mut wire, &mut frame[header::LEN..])?;
                    self.answers(&frame)?
                }
                Protocol::Http => {
                    let mut body = vec![0; self.request_head(&mut wire)?];
                    self.take(&mut wire, &mut body)?;
                    self.answers(&body)?
                }
            };
            self.say(protocol, wire.get_mut(), &answers)?;
            if bye {
                return Ok(());
            }
        }
    }

    fn take(&self, wire: &mut impl Read, room: &mut [u8]) -> io::Result<()> {
        match self.manner() {
            Manner::Deaf => {
                self.hold();
                Err(io::ErrorKind::TimedOut.into())
            }
            Manner::Sip { piece, pause } => room.chunks_mut(piece).try_for_each(|piece| {
                thread::sleep(pause);
                wire.read_exact(piece)
            }),
            _ => wire.read_exact(room),
        }
    }

    fn say(&self, protocol: Protocol, wire: &mut impl Write, answers: &[u8]) -> io::Result<()> {
        let hung_up = Err(io::ErrorKind::ConnectionAborted.into());
        let manner = self.manner();
        // Who hangs up after a whole response says so, as HTTP has it: a client that keeps connections
        // could otherwise begin a request on one that is being closed, and not be to blame.
        let goes_on =
            matches!(manner, Manner::Answer | Manner::Sip { .. } | Manner::Dribble { .. });
        let more = if goes_on { "" } else { CLOSE };
        let framed = |body: &[u8]| match protocol {
            Protocol::Stream => body.to_vec(),
            Protocol::Http => response("200 OK", FRAMES_CONTENT_TYPE, more, body),
        };
        let all = framed(answers);
        match manner {
            Manner::Answer | Manner::Sip { .. } => write(wire, &all),
            Manner::Dribble { piece, pause } => all.chunks(piece).try_for_each(|piece| {
                thread::sleep(pause);
                write(wire, piece)
            }),
            Manner::Silent if protocol == Protocol::Stream => Ok(()),
            Manner::Silent | Manner::Deaf => {
                self.hold();
                hung_up
            }
            Manner::Cut(len) => {
                // Of the body: the head of a response is whole.
                let kept = all.len() - answers.len() + len.min(answers.len());
                write(wire, all.get(..if len == 0 { 0 } else { kept }).unwrap_or(&all))?;
                hung_up
            }
            Manner::Say(bytes) => {
                write(wire, &framed(&bytes))?;
                hung_up
            }
            Manner::Raw(bytes) => {
                write(wire, &bytes)?;
                hung_up
            }
            Manner::Bye => {
                write(wire, &framed(&[answers, &bye()].concat()))?;
                hung_up
            }
        }
    }

    /// The answers to whole frames back to back, and whether one of them was a Bye.
    fn answers(&self, mut frames: &[u8]) -> io::Result<(Vec<u8>, bool)> {
        let (mut answers, mut said_bye) = (Vec::new(), false);
        while !frames.is_empty() {
            let len = Header::read(frames, MAX_FRAME).map_or(frames.len(), |it| it.frame_len());
            let (frame, rest) = frames.split_at(len.min(frames.len()));
            frames = rest;
            let (header, body) = match header::open(frame, MAX_FRAME) {
                Ok(opened) => opened,
                Err(error) => return self.complain(format!("{} bytes came: {error}", frame.len())),
            };
            match header.kind() {
                Ok(Kind::Hello) => match Message::decode_body(&header, body) {
                    Ok(Message::Hello(hello)) if hello.ticket == 0 => {
                        answers.extend_from_slice(&hello_ack(header.tag));
                    }
                    Ok(_) => {}
                    Err(error) => return self.complain(format!("a Hello came: {error}")),
                },
                Ok(Kind::Bye) => said_bye = true,
                _ => answers.extend_from_slice(&answer(&header, frame, body)),
            }
        }
        Ok((answers, said_bye))
    }

    /// Reads the head of a request, and gives the length of its body.
    fn request_head(&self, wire: &mut impl BufRead) -> io::Result<usize> {
        let mut head = String::new();
        loop {
            let mut line = String::new();
            if wire.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let name = if value.is_empty() { name.to_owned() } else { name.to_lowercase() };
            head += &format!("{name}:{}\n", value.trim());
        }
        self.state().head.clone_from(&head);
        if !head.starts_with(&format!("POST {FRAMES_PATH} HTTP/1.1:\n")) {
            return self.complain(format!("the request begins {:?}", head.lines().next()));
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        match length.and_then(|length| length.parse().ok()) {
            Some(length) => Ok(length),
            None => self.complain("the request tells no length"),
        }
    }
}

fn write(wire: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    wire.write_all(bytes)?;
    wire.flush()
}

/// Header of a response after which the peer hangs up.
pub(crate) const CLOSE: &str = "Connection: close\r\n";

/// A response over HTTP.
pub(crate) fn response(status: &str, content_type: &str, more: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n{more}\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// The first four bytes of a frame's body say how long the answer is to be; without them it is short.
fn answer(header: &Header, frame: &[u8], body: &[u8]) -> Vec<u8> {
    let wanted = body.first_chunk().map_or(0, |len| u32::from_le_bytes(*len) as usize);
    let len = wanted.clamp(header::LEN + ANSWER_BODY, MAX_CONTROL_FRAME);
    let mut answer: Vec<u8> = (0..len).map(|at| (at as u8) ^ (header.tag as u8)).collect();
    answer[header::LEN..][..ANSWER_BODY].copy_from_slice(checksum_of(frame));
    header::seal(&mut answer, Kind::Ack, header.tag).expect("it has room for a header");
    answer
}

/// A frame's checksum, as it stands in its header.
pub(crate) fn checksum_of(frame: &[u8]) -> &[u8] {
    &frame[header::LEN - ANSWER_BODY..header::LEN]
}

/// The Bye that the peer says.
pub(crate) fn bye() -> Vec<u8> {
    encode(0, &Message::Bye(Bye { farewell: Farewell::Shutdown }))
}

fn hello_ack(tag: u32) -> Vec<u8> {
    let limits = Limits {
        max_frame: MAX_FRAME as u32,
        max_entry: 1 << 30,
        max_snapshot: 1 << 30,
        credit: 64 << 20,
    };
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
    encode(tag, &Message::HelloAck(ack))
}

pub(crate) fn encode(tag: u32, message: &Message<'_>) -> Vec<u8> {
    let mut frame = vec![0; MAX_CONTROL_FRAME];
    let len = message.encode(tag, &mut frame).expect("control frames have room");
    frame.truncate(len);
    frame
}
