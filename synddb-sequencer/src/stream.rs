//! Frames over a stream socket, back to back.
//!
//! ```text
//!            ┌─ reads ──▶ one frame ahead ─▶ handles, in order ─▶ writes the answer ─┐
//!   socket ──┤                                                                       ├──▶ socket
//!            └─ stopped, idle, late: no more is taken in, what was is answered, Bye ─┘
//! ```
//!
//! A stream whose first byte is a zero is a line without connections of its own, a serial line that
//! something passes on: frames come and go packed there, and what is no frame is skipped.
//!
//! A peer that is silent, slow or hostile holds a connection no longer than [`StreamLimits`] allow,
//! and memory only for bytes that it has sent. What was not taken in whole never happened: the
//! sender still has it.

use std::{fmt, io, time::Duration};

use synddb_core::wire::{
    Header, Kind, Unpacker, WireError, header,
    message::{Farewell, Refusal, TooLarge},
    serial,
};
use synddb_transport_vsock::time_for;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{mpsc, watch},
    time::timeout,
};

use crate::{
    ingest::{self, Connection, Reply},
    slots::Guest,
};

/// How long what the peer still sends is thrown away after the last answer. Closing with bytes
/// unread would be a reset, which may overtake that answer.
const LINGER: Duration = Duration::from_secs(1);
/// Longest frame in bytes that is taken from a line without connections: nothing announces its
/// length, so that room for it has to be there.
const MAX_PACKED: usize = 64 << 10;
/// Where a frame's kind stands in its header.
const KIND_AT: usize = 5;

/// Limits in time of a connection over a stream socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamLimits {
    /// How long the first frame may take to begin. Default: 10 seconds.
    pub first_frame: Duration,
    /// How long a frame may take from its first byte to its last; a second more for each 64 KiB of
    /// it. Default: 10 seconds.
    pub frame: Duration,
    /// How long nothing may come between two frames. Senders ask every 30 seconds whether we are
    /// there. Default: 2 minutes.
    pub idle: Duration,
    /// How long the peer may take to take an answer. Default: 10 seconds.
    pub write: Duration,
}

impl Default for StreamLimits {
    fn default() -> Self {
        let ten_seconds = Duration::from_secs(10);
        Self {
            first_frame: ten_seconds,
            frame: ten_seconds,
            idle: Duration::from_secs(120),
            write: ten_seconds,
        }
    }
}

/// Why a connection ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The peer said so, or closed between two frames.
    Done,
    /// The sequencer stops.
    Stopped,
    /// No first frame, or none for too long.
    Idle,
    /// The rest of a frame took too long, or the peer takes no answers.
    Late,
    /// The peer closed in the middle of a frame.
    CutShort,
    /// What came is something else than frames; how it begins.
    NotOurs(Vec<u8>),
    /// What came is no frame, or none that could be answered.
    Garbled,
    /// It had sent nothing yet, and others wanted its place.
    Displaced,
    /// The socket failed.
    Failed(io::Error),
}

/// Serves one connection to its end.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite>(
    stream: S,
    connection: Connection,
    guest: &Guest,
    limits: StreamLimits,
    stopped: watch::Receiver<bool>,
) -> End {
    let (mut reader, writer) = tokio::io::split(stream);
    let mut writer = FrameWriter { writer, is_line: false };
    let first = tokio::select! {
        first = first_bytes(&mut reader, limits.first_frame, stopped.clone()) => first,
        () = guest.must_leave() => Err(End::Displaced),
    };
    let end = match first {
        Err(end) => end,
        Ok(first) => {
            let is_line = first.starts_with(&[serial::END]);
            writer.is_line = is_line;
            let max_frame = connection.limits().max_frame as usize;
            // One frame ahead: while one is being stored the next one comes.
            let (frames, taken) = mpsc::channel(1);
            let mut reader = first.as_slice().chain(&mut reader);
            let reading = async move {
                if is_line {
                    read_packed(&mut reader, max_frame, limits, stopped, frames).await
                } else {
                    read_frames(&mut reader, max_frame, limits, stopped, frames).await
                }
            };
            let answering = answer_frames(&mut writer, connection, guest, limits, taken);
            tokio::pin!(reading, answering);
            tokio::select! {
                // All of what was taken in is answered before the last word.
                end = &mut reading => answering.await.unwrap_or(end),
                end = &mut answering => end.unwrap_or(End::Done),
                () = guest.must_leave() => End::Displaced,
            }
        }
    };
    take_leave(reader, writer, end.farewell(), limits).await;
    end
}

/// Tells a peer that there are too many connections.
pub(crate) async fn turn_away(stream: impl AsyncRead + AsyncWrite, limits: StreamLimits) {
    let (reader, writer) = tokio::io::split(stream);
    let writer = FrameWriter { writer, is_line: false };
    take_leave(reader, writer, Some(Farewell::Busy), limits).await;
}

async fn take_leave(
    mut reader: impl AsyncRead + Unpin,
    mut writer: FrameWriter<impl AsyncWrite + Unpin>,
    farewell: Option<Farewell>,
    limits: StreamLimits,
) {
    // The peer may be gone: then there is nobody to tell.
    if let Some(farewell) = farewell {
        let bye = ingest::farewell(farewell);
        let _ = timeout(limits.write, writer.write(&bye)).await;
    }
    let _ = timeout(LINGER, async {
        let _ = writer.writer.shutdown().await;
        let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
    })
    .await;
}

impl End {
    fn farewell(&self) -> Option<Farewell> {
        match self {
            Self::Stopped => Some(Farewell::Shutdown),
            Self::Idle => Some(Farewell::Idle),
            Self::Late => Some(Farewell::Late),
            Self::Displaced => Some(Farewell::Busy),
            Self::Done | Self::CutShort | Self::NotOurs(_) | Self::Garbled | Self::Failed(_) => {
                None
            }
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("in order"),
            Self::Stopped => f.write_str("the sequencer stops"),
            Self::Idle => f.write_str("nothing came for too long"),
            Self::Late => {
                f.write_str("a frame or an answer took too long: the peer is slow, or hangs")
            }
            Self::Displaced => f.write_str("others wanted its place before it sent anything"),
            Self::CutShort => f.write_str("the peer closed in the middle of a frame"),
            Self::NotOurs(begin) => {
                write!(f, "what came is not synddb's, it begins with {}", begin.escape_ascii())?;
                // A TLS handshake begins with a record of type 22.
                let is_tls = begin.first() == Some(&22);
                if is_tls { f.write_str(": TLS, at an address without it") } else { Ok(()) }
            }
            Self::Garbled => f.write_str("what came is no frame, damaged, or over the limit"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::CutShort,
            _ => Self::Failed(error),
        }
    }
}

/// What came.
enum Incoming {
    /// A frame; only its header where its version is not ours.
    Frame(Vec<u8>),
    /// The header of a frame that is too long to be taken in.
    TooLarge(Header),
}

/// How the stream begins: no more than what every frame has.
async fn first_bytes(
    reader: &mut (impl AsyncRead + Unpin),
    wait: Duration,
    mut stopped: watch::Receiver<bool>,
) -> Result<Vec<u8>, End> {
    let mut first = vec![0; header::LEN];
    let count = tokio::select! {
        biased;
        _ = stopped.wait_for(|stopped| *stopped) => return Err(End::Stopped),
        read = timeout(wait, reader.read(&mut first)) => read.map_err(|_| End::Idle)??,
    };
    if count == 0 {
        return Err(End::Done);
    }
    first.truncate(count);
    Ok(first)
}

/// From a line without connections: a frame that was cut short or damaged is skipped, and its sender
/// sends it again.
async fn read_packed(
    reader: &mut (impl AsyncRead + Unpin),
    max_frame: usize,
    limits: StreamLimits,
    mut stopped: watch::Receiver<bool>,
    frames: mpsc::Sender<Incoming>,
) -> End {
    let mut unpacker = Unpacker::new(vec![0; max_frame.min(MAX_PACKED)]);
    let mut piece = [0; 4096];
    // Any byte counts here: what is cut short on a line is ended by whatever comes next.
    let mut wait = limits.first_frame;
    loop {
        let read = tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => return End::Stopped,
            read = timeout(wait, reader.read(&mut piece)) => read,
        };
        let mut bytes = match read {
            Err(_) => return End::Idle,
            Ok(Err(error)) => return error.into(),
            Ok(Ok(0)) => return End::Done,
            Ok(Ok(count)) => &piece[..count],
        };
        while !bytes.is_empty() {
            let (taken, frame) = unpacker.feed(bytes);
            bytes = &bytes[taken..];
            if let Some(frame) = frame {
                wait = limits.idle;
                if frames.send(Incoming::Frame(frame.to_vec())).await.is_err() {
                    return End::Done;
                }
            }
        }
    }
}

async fn read_frames(
    reader: &mut (impl AsyncRead + Unpin),
    max_frame: usize,
    limits: StreamLimits,
    mut stopped: watch::Receiver<bool>,
    frames: mpsc::Sender<Incoming>,
) -> End {
    let mut wait = limits.first_frame;
    loop {
        let incoming = tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => return End::Stopped,
            incoming = read_frame(reader, max_frame, limits.frame, wait) => incoming,
        };
        match incoming {
            Err(end) => return end,
            Ok(incoming) => {
                if frames.send(incoming).await.is_err() {
                    return End::Done;
                }
                wait = limits.idle;
            }
        }
    }
}

async fn read_frame(
    reader: &mut (impl AsyncRead + Unpin),
    max_frame: usize,
    patience: Duration,
    wait: Duration,
) -> Result<Incoming, End> {
    let mut frame = vec![0; header::LEN];
    let first = timeout(wait, reader.read(&mut frame)).await.map_err(|_| End::Idle)??;
    if first == 0 {
        return Err(End::Done);
    }
    let head = timeout(patience, read_header(reader, &mut frame, first)).await;
    let header = match head.map_err(|_| End::Late)?? {
        Ok(header) => header,
        // Nothing behind the header can be told apart: the refusal needs no more.
        Err(WireError::Version { .. }) => return Ok(Incoming::Frame(frame)),
        Err(_) => return Err(End::Garbled),
    };
    if header.frame_len() > max_frame {
        return Ok(Incoming::TooLarge(header));
    }
    let body_len = header.body_len as usize;
    // Grows with what comes, whatever was announced.
    let mut body = reader.take(body_len as u64);
    let body = timeout(time_for(body_len, patience), body.read_to_end(&mut frame));
    body.await.map_err(|_| End::Late)??;
    if frame.len() < header.frame_len() {
        return Err(End::CutShort);
    }
    Ok(Incoming::Frame(frame))
}

async fn read_header(
    reader: &mut (impl AsyncRead + Unpin),
    head: &mut [u8],
    mut read: usize,
) -> Result<Result<Header, WireError>, End> {
    loop {
        // As soon as a byte is wrong: who speaks something else may wait for an answer.
        match Header::read(&head[..read], usize::MAX) {
            Err(WireError::Truncated) => {}
            Err(WireError::NotOurs) => {
                return Err(End::NotOurs(head[..read].to_vec()));
            }
            header => return Ok(header),
        }
        match reader.read(&mut head[read..]).await? {
            0 => return Err(End::CutShort),
            count => read += count,
        }
    }
}

/// Answers frame by frame; tells why it ended where that was not for lack of frames.
async fn answer_frames(
    writer: &mut FrameWriter<impl AsyncWrite + Unpin>,
    mut connection: Connection,
    guest: &Guest,
    limits: StreamLimits,
    mut taken: mpsc::Receiver<Incoming>,
) -> Option<End> {
    while let Some(incoming) = taken.recv().await {
        let (reply, end) = match incoming {
            Incoming::TooLarge(header) => {
                let limit = connection.limits().max_frame.into();
                let refusal = Refusal::TooLarge { what: TooLarge::Frame, limit };
                let nack = ingest::encode(header.tag, &ingest::nack(refusal, ""));
                (Reply::Close(Some(nack)), End::Garbled)
            }
            Incoming::Frame(frame) => {
                let is_bye = frame.get(KIND_AT) == Some(&(Kind::Bye as u8));
                let handled = tokio::task::spawn_blocking(move || {
                    let reply = connection.handle(&frame);
                    (connection, reply)
                });
                match handled.await {
                    Ok((back, reply)) => {
                        connection = back;
                        if connection.has_session() {
                            guest.is_known();
                        }
                        (reply, if is_bye { End::Done } else { End::Garbled })
                    }
                    Err(error) => return Some(End::Failed(error.into())),
                }
            }
        };
        let (answer, is_last) = match reply {
            Reply::Frame(answer) => (Some(answer), false),
            Reply::Silence => (None, false),
            Reply::Close(answer) => (answer, true),
        };
        if let Some(answer) = answer {
            match timeout(limits.write, writer.write(&answer)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Some(End::Failed(error)),
                Err(_) => return Some(End::Late),
            }
        }
        if is_last {
            return Some(end);
        }
    }
    None
}

/// Writes frames as they go on this stream.
struct FrameWriter<W> {
    writer: W,
    is_line: bool,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    async fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        if self.is_line {
            let mut packed = Vec::with_capacity(frame.len() + frame.len() / 200 + 3);
            for (len, block) in serial::pack(frame) {
                packed.push(len);
                packed.extend_from_slice(block);
            }
            packed.push(serial::END);
            self.writer.write_all(&packed).await?;
        } else {
            self.writer.write_all(frame).await?;
        }
        self.writer.flush().await
    }
}
