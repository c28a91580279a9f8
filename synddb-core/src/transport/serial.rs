//! Frames over a line that has no connections of its own; see [`crate::wire::serial`].

use core::{convert::Infallible, time::Duration};

use embedded_io::{Error as _, ErrorKind};

use super::{AsyncTransport, Link, StreamError, Transport};
use crate::wire::{
    Unpacker, WireError,
    serial::{END, pack},
};

/// Bytes that are read from the line at a time.
const CHUNK: usize = 64;

/// A transport over a line without connections: blocking where `L` is a [`Link`], asynchronous where
/// it is a stream of `embedded-io-async`. Answers of up to `REPLY` bytes are accepted.
///
/// Such lines (UARTs) drop what comes while nobody reads, so that `max_in_flight` should be no more
/// answers than the line's own buffer holds.
#[derive(Debug)]
pub struct SerialTransport<L, const REPLY: usize> {
    line: L,
    replies: Unpacker<[u8; REPLY]>,
    chunk: [u8; CHUNK],
    /// What is in the chunk and was not looked at.
    fresh: core::ops::Range<usize>,
    max_in_flight: usize,
}

impl<L, const REPLY: usize> SerialTransport<L, REPLY> {
    /// A transport over `line`, good for `max_in_flight` unanswered frames.
    pub const fn new(line: L, max_in_flight: usize) -> Self {
        let replies = Unpacker::new([0; REPLY]);
        Self { line, replies, chunk: [0; CHUNK], fresh: 0..0, max_in_flight }
    }

    /// The line.
    pub fn line(&mut self) -> &mut L {
        &mut self.line
    }

    /// The next whole frame of what was read, if there is one.
    fn take_frame(&mut self, reply: &mut [u8]) -> Result<Option<usize>, StreamError<Infallible>> {
        let (taken, frame) = self.replies.feed(&self.chunk[self.fresh.clone()]);
        self.fresh.start += taken;
        let Some(frame) = frame else { return Ok(None) };
        let full = StreamError::Wire(WireError::BufferFull { needed: frame.len() as u64 });
        reply.get_mut(..frame.len()).ok_or(full)?.copy_from_slice(frame);
        Ok(Some(frame.len()))
    }

    fn filled(&mut self, count: usize) {
        self.fresh = 0..count.min(CHUNK);
    }
}

fn io<E: embedded_io::Error>(error: E) -> StreamError<Infallible> {
    StreamError::Io(error.kind())
}

impl<L: Link, const REPLY: usize> Transport for SerialTransport<L, REPLY> {
    type Error = StreamError<Infallible>;

    fn connect(&mut self) -> Result<(), Self::Error> {
        self.replies.clear();
        // Ends what a reset cut short.
        self.line.write_all(&[END]).map_err(io)
    }

    fn close(&mut self) {}

    fn send(&mut self, frame: &[u8]) -> Result<(), Self::Error> {
        for (len, block) in pack(frame) {
            self.line.write_all(&[len]).map_err(io)?;
            self.line.write_all(block).map_err(io)?;
        }
        self.line.write_all(&[END]).map_err(io)?;
        self.line.flush().map_err(io)
    }

    fn recv(&mut self, reply: &mut [u8], timeout: Duration) -> Result<Option<usize>, Self::Error> {
        self.line.set_read_timeout(timeout.max(Duration::from_millis(1))).map_err(io)?;
        loop {
            if let Some(len) = self.take_frame(reply)? {
                return Ok(Some(len));
            }
            match self.line.read(&mut self.chunk) {
                Ok(0) => return Err(StreamError::Ended),
                Ok(count) => self.filled(count),
                Err(error) if error.kind() == ErrorKind::TimedOut => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(io(error)),
            }
        }
    }

    fn max_in_flight(&self) -> usize {
        self.max_in_flight
    }
}

impl<L, const REPLY: usize> AsyncTransport for SerialTransport<L, REPLY>
where
    L: embedded_io_async::Read + embedded_io_async::Write,
{
    type Error = StreamError<Infallible>;

    async fn connect(&mut self) -> Result<(), Self::Error> {
        self.replies.clear();
        // Ends what a reset cut short.
        self.line.write_all(&[END]).await.map_err(io)
    }

    fn close(&mut self) {}

    async fn send(&mut self, frame: &[u8]) -> Result<(), Self::Error> {
        for (len, block) in pack(frame) {
            self.line.write_all(&[len]).await.map_err(io)?;
            self.line.write_all(block).await.map_err(io)?;
        }
        self.line.write_all(&[END]).await.map_err(io)?;
        self.line.flush().await.map_err(io)
    }

    async fn recv(&mut self, reply: &mut [u8]) -> Result<usize, Self::Error> {
        loop {
            if let Some(len) = self.take_frame(reply)? {
                return Ok(len);
            }
            match self.line.read(&mut self.chunk).await {
                Ok(0) => return Err(StreamError::Ended),
                Ok(count) => self.filled(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(io(error)),
            }
        }
    }

    fn max_in_flight(&self) -> usize {
        self.max_in_flight
    }
}
