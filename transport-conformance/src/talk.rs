//! The transport under test, driven as a sender drives it, with an eye on the clock.

use std::time::{Duration, Instant};

use synddb_core::{
    Chain, Epoch, Nonce, SeqNo, StreamId,
    transport::{Transport, TransportError, TransportErrorKind},
    wire::{
        Kind, Message, header,
        message::{Hello, MAX_CONTROL_FRAME},
    },
};

use crate::{
    LIMIT, Protocol, SLACK,
    peer::{ANSWER_BODY, Manner, Peer, checksum_of, encode},
};

/// What a check found wrong.
pub(crate) type Found<T = ()> = Result<T, String>;

/// How long one call of `recv` is asked to wait.
const STEP: Duration = Duration::from_millis(50);
/// How long an answer may take that is on its way.
const PATIENCE: Duration = Duration::from_secs(10);

/// A transport, and the peer that it reaches.
pub(crate) struct Talk<T> {
    transport: T,
    protocol: Protocol,
    peer: Peer,
    next_tag: u32,
    /// Whether something was sent that no answer came to: over HTTP `recv` may take as long as a
    /// request.
    owed: bool,
    reply: Vec<u8>,
}

/// A frame that was sent, as far as its answer shows that it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    tag: u32,
    checksum: [u8; ANSWER_BODY],
    answer_len: usize,
}

impl Sent {
    /// Whether that is its answer, whole and unharmed.
    pub(crate) fn check(&self, frame: &[u8]) -> Found {
        let sent = self;
        let (header, body) = header::open(frame, MAX_CONTROL_FRAME)
            .map_err(|error| format!("recv() gave {} bytes as a frame: {error}", frame.len()))?;
        if header.tag != sent.tag {
            return Err(format!(
                "the answer with tag {} came before that with {}",
                header.tag, sent.tag
            ));
        }
        if body.first_chunk() != Some(&sent.checksum) {
            return Err(format!("the frame with tag {} did not arrive as it was sent", sent.tag));
        }
        if frame.len() != sent.answer_len {
            return Err(format!("an answer of {} bytes has {}", sent.answer_len, frame.len()));
        }
        Ok(())
    }
}

impl<T: Transport> Talk<T> {
    pub(crate) fn new(transport: T, protocol: Protocol, peer: Peer) -> Self {
        let reply = vec![0; MAX_CONTROL_FRAME];
        Self { transport, protocol, peer, next_tag: 100, owed: false, reply }
    }

    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    pub(crate) fn transport(&mut self) -> &mut T {
        &mut self.transport
    }

    pub(crate) fn is_http(&self) -> bool {
        self.protocol == Protocol::Http
    }

    /// Unanswered frames that the transport says it is good for.
    pub(crate) fn window(&self) -> Found<usize> {
        match self.transport.max_in_flight() {
            0 => Err("max_in_flight() is 0: nothing could ever be sent".into()),
            window => Ok(window.min(64)),
        }
    }

    /// Connects and says Hello, as often as it takes nobody to be surprised by the connection before.
    pub(crate) fn begin(&mut self) -> Found {
        self.connect()?;
        self.greet()
    }

    /// Whether a peer that is well again can be talked to.
    pub(crate) fn recovers(&mut self) -> Found {
        self.peer.set(Manner::Answer);
        self.begin().and_then(|()| self.exchange(100, 100)).map_err(|wrong| {
            format!("after the failure, with a peer that is well, connect() leads nowhere: {wrong}")
        })
    }

    pub(crate) fn connect(&mut self) -> Found {
        self.owed = false;
        self.in_time("connect()", LIMIT, |talk| {
            talk.transport.connect().map_err(|error| format!("connect() failed: {error}"))
        })
    }

    pub(crate) fn close(&mut self) -> Found {
        self.owed = false;
        self.in_time("close()", Duration::ZERO, |talk| {
            talk.transport.close();
            Ok(())
        })
    }

    pub(crate) fn greet(&mut self) -> Found {
        self.greet_as(b"")
    }

    pub(crate) fn greet_as(&mut self, token: &[u8]) -> Found {
        let tag = self.tag();
        let hello = hello(tag, token);
        self.send(&hello).map_err(|kind| format!("send() of a Hello failed: {kind:?}"))?;
        let frame = self.frame(PATIENCE)?;
        match Message::decode(&frame, frame.len()) {
            Ok((found, Message::HelloAck(_))) if found == tag => Ok(()),
            Ok((found, message)) => Err(format!(
                "a Hello with tag {tag} was answered by a HelloAck with that tag, and recv() gave \
                 {message:?} with tag {found}"
            )),
            Err(error) => Err(format!("recv() gave {} bytes: {error}", frame.len())),
        }
    }

    /// Sends a frame with so many bytes behind its header, and receives an answer of that length.
    pub(crate) fn exchange(&mut self, body: usize, answer: usize) -> Found {
        let sent = self.ask(body, answer)?;
        self.answered(&sent)
    }

    /// Sends a frame with so many bytes behind its header; its answer is to have that length.
    pub(crate) fn ask(&mut self, body: usize, answer: usize) -> Found<Sent> {
        let (frame, sent) = self.frame_to_send(body, answer);
        self.send(&frame).map_err(|kind| {
            format!("send() of a frame of {} bytes failed: {kind:?}", frame.len())
        })?;
        Ok(sent)
    }

    pub(crate) fn frame_to_send(&mut self, body: usize, answer: usize) -> (Vec<u8>, Sent) {
        let tag = self.tag();
        // Bytes without a pattern that a power of two would hide.
        let mut state = tag.wrapping_mul(0x9E37_79B9) | 1;
        let mut frame: Vec<u8> = (0..header::LEN + body)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                state as u8
            })
            .collect();
        let told = (answer as u32).to_le_bytes();
        let room = &mut frame[header::LEN..];
        let tells = room.len() >= told.len();
        if tells {
            room[..told.len()].copy_from_slice(&told);
        }
        header::seal(&mut frame, Kind::Fragment, tag).expect("a frame has room for its header");
        let checksum = checksum_of(&frame).try_into().expect("it has that length");
        let answer_len = if tells { answer } else { 0 };
        let answer_len = answer_len.clamp(header::LEN + ANSWER_BODY, MAX_CONTROL_FRAME);
        (frame, Sent { tag, checksum, answer_len })
    }

    /// Sends, in time.
    pub(crate) fn send(&mut self, frame: &[u8]) -> Result<(), TransportErrorKind> {
        self.owed = true;
        self.transport.send(frame).map_err(|error| error.kind())
    }

    /// Receives the answer to `sent`, whole and unharmed.
    pub(crate) fn answered(&mut self, sent: &Sent) -> Found {
        let frame = self.frame(PATIENCE)?;
        sent.check(&frame)
    }

    /// The next frame, which has to come.
    pub(crate) fn frame(&mut self, patience: Duration) -> Found<Vec<u8>> {
        let since = Instant::now();
        loop {
            match self.recv(STEP)? {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) if since.elapsed() > patience => {
                    return Err(format!("an answer that was sent did not come in {patience:?}"));
                }
                Ok(None) => {}
                Err(kind) => {
                    return Err(format!("recv() failed, an answer being on its way: {kind:?}"));
                }
            }
        }
    }

    /// One call of `recv`, which keeps to its time and gives no more than it was given room for.
    pub(crate) fn recv(
        &mut self,
        timeout: Duration,
    ) -> Found<Result<Option<Vec<u8>>, TransportErrorKind>> {
        let limit = if self.owed && self.is_http() { LIMIT.max(timeout) } else { timeout };
        let what = format!("recv() with a time-out of {timeout:?}");
        self.in_time(&what, limit, |talk| match talk.transport.recv(&mut talk.reply, timeout) {
            Ok(Some(len)) => {
                talk.owed = false;
                let frame = talk.reply.get(..len).ok_or_else(|| {
                    format!("recv() gave {len} bytes, into room for {}", talk.reply.len())
                })?;
                Ok(Ok(Some(frame.to_vec())))
            }
            Ok(None) => Ok(Ok(None)),
            Err(error) => Ok(Err(error.kind())),
        })
    }

    /// The failure that has to come now, of one of these kinds, and no frame before it.
    pub(crate) fn fails(&mut self, kinds: &[TransportErrorKind]) -> Found {
        let since = Instant::now();
        loop {
            match self.recv(STEP)? {
                Ok(Some(frame)) => {
                    return Err(format!(
                        "recv() gave {} bytes as a frame where none can be: {:02x?}…",
                        frame.len(),
                        &frame[..frame.len().min(8)]
                    ));
                }
                Err(kind) if kinds.is_empty() || kinds.contains(&kind) => return Ok(()),
                Err(kind) => return Err(format!("the error is {kind:?} instead of {kinds:?}")),
                Ok(None) if since.elapsed() > LIMIT + SLACK => {
                    return Err("recv() goes on saying that nothing came yet".into());
                }
                Ok(None) => {}
            }
        }
    }

    /// Does something that has to be over by then.
    pub(crate) fn in_time<R>(
        &mut self,
        what: &str,
        limit: Duration,
        act: impl FnOnce(&mut Self) -> Found<R>,
    ) -> Found<R> {
        let since = Instant::now();
        let outcome = act(self);
        let took = since.elapsed();
        if took > limit + SLACK {
            return Err(format!("{what} took {took:.1?}"));
        }
        outcome
    }

    fn tag(&mut self) -> u32 {
        self.next_tag += 1;
        self.next_tag
    }
}

fn hello(tag: u32, token: &[u8]) -> Vec<u8> {
    let hello = Hello {
        version_min: header::VERSION,
        version_max: header::VERSION,
        features: 0,
        stream: StreamId::from_name("conformance"),
        name: "conformance",
        instance: Nonce([1; 16]),
        nonce: Nonce([2; 16]),
        ticket: 0,
        epoch: Epoch(0),
        next_seq: SeqNo(1),
        chain: Chain::default(),
        max_frame: MAX_CONTROL_FRAME as u32,
        token,
    };
    encode(tag, &Message::Hello(hello))
}
