//! Frames over any byte stream of `embedded-io`: a socket, a serial line, a pipe.

use core::{fmt, time::Duration};

use embedded_io::{Error as _, ErrorKind, Read, Write};

use super::{AsyncTransport, Transport, TransportError, TransportErrorKind};
use crate::wire::{Accumulator, WireError};

/// A connected byte stream with a timeout for reading.
pub trait Link: Read + Write {
    /// From now on a read that has nothing for this long fails with
    /// [`ErrorKind::TimedOut`]; with zero it only takes what is there.
    ///
    /// # Errors
    /// The link is of no use any more.
    fn set_read_timeout(&mut self, timeout: Duration) -> Result<(), Self::Error>;
}

/// Opens byte streams to the other side. Links that are simply there (a serial line) return
/// themselves, emptied of what an earlier connection left.
pub trait Dial {
    /// The stream.
    type Link: Link;
    /// Why it could not be opened.
    type Error: TransportError;

    /// Opens a stream.
    ///
    /// # Errors
    /// Where the other side cannot be reached.
    fn dial(&mut self) -> Result<Self::Link, Self::Error>;
}

/// The asynchronous twin of [`Dial`].
pub trait DialAsync {
    /// The stream.
    type Link: embedded_io_async::Read + embedded_io_async::Write;
    /// Why it could not be opened.
    type Error: TransportError;

    /// Opens a stream.
    fn dial(&mut self) -> impl Future<Output = Result<Self::Link, Self::Error>>;
}

/// Error of a transport over a byte stream.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamError<E> {
    /// No stream could be opened.
    Dial(E),
    /// Sending or receiving before `connect`.
    NotConnected,
    /// The stream failed.
    Io(ErrorKind),
    /// The other side ended the stream.
    Ended,
    /// What came is not a frame.
    Wire(WireError),
}

impl<E: fmt::Display> fmt::Display for StreamError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dial(error) => write!(f, "cannot connect: {error}"),
            Self::NotConnected => f.write_str("not connected"),
            Self::Io(ErrorKind::TimedOut) => {
                f.write_str("the other side did not take a frame in time")
            }
            Self::Io(
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted,
            ) => f.write_str("the other side dropped the connection"),
            // How TLS says it, after its handshake.
            Self::Io(ErrorKind::PermissionDenied) => f.write_str(
                "the other side refuses this one: it accepts neither its certificate nor its key, or \
                 wants one and was shown none",
            ),
            Self::Io(kind) => write!(f, "the link failed: {kind:?}"),
            Self::Ended => f.write_str("the other side ended the connection"),
            Self::Wire(error) => error.fmt(f),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for StreamError<E> {}

impl<E: TransportError> TransportError for StreamError<E> {
    fn kind(&self) -> TransportErrorKind {
        match self {
            Self::Dial(error) => error.kind(),
            Self::Io(ErrorKind::TimedOut) => TransportErrorKind::TimedOut,
            Self::Io(ErrorKind::PermissionDenied) => TransportErrorKind::Unauthorized,
            Self::Wire(WireError::NotOurs | WireError::Version { .. }) => {
                TransportErrorKind::NotASequencer
            }
            Self::NotConnected | Self::Io(_) | Self::Ended | Self::Wire(_) => {
                TransportErrorKind::Disconnected
            }
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Dial(error) => error.retry_after(),
            _ => None,
        }
    }
}

/// A [`Transport`] over the byte streams that `D` opens. Answers of up to `REPLY` bytes are
/// accepted; [`MAX_CONTROL_FRAME`](crate::wire::message::MAX_CONTROL_FRAME) holds every one, 512
/// those of a sequencer that neither signs nor explains itself.
#[derive(Debug)]
pub struct StreamTransport<D: Dial, const REPLY: usize> {
    dial: D,
    link: Option<D::Link>,
    replies: Accumulator<[u8; REPLY]>,
    max_in_flight: usize,
}

impl<D: Dial, const REPLY: usize> StreamTransport<D, REPLY> {
    /// A transport that is not connected yet and is good for `max_in_flight` unanswered frames.
    pub const fn new(dial: D, max_in_flight: usize) -> Self {
        Self { dial, link: None, replies: Accumulator::new([0; REPLY]), max_in_flight }
    }
}

impl<D: Dial, const REPLY: usize> Transport for StreamTransport<D, REPLY> {
    type Error = StreamError<D::Error>;

    fn connect(&mut self) -> Result<(), Self::Error> {
        self.close();
        self.link = Some(self.dial.dial().map_err(StreamError::Dial)?);
        Ok(())
    }

    fn close(&mut self) {
        self.link = None;
        self.replies.clear();
    }

    fn send(&mut self, frame: &[u8]) -> Result<(), Self::Error> {
        let link = self.link.as_mut().ok_or(StreamError::NotConnected)?;
        link.write_all(frame).map_err(|error| StreamError::Io(error.kind()))?;
        link.flush().map_err(|error| StreamError::Io(error.kind()))
    }

    fn recv(&mut self, reply: &mut [u8], timeout: Duration) -> Result<Option<usize>, Self::Error> {
        let link = self.link.as_mut().ok_or(StreamError::NotConnected)?;
        if let Some(len) = take_frame(&mut self.replies, reply)? {
            return Ok(Some(len));
        }
        link.set_read_timeout(timeout).map_err(|error| StreamError::Io(error.kind()))?;
        match link.read(self.replies.space()) {
            Ok(0) => return Err(StreamError::Ended),
            Ok(count) => self.replies.filled(count),
            Err(error) if error.kind() == ErrorKind::TimedOut => return Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(None),
            Err(error) => return Err(StreamError::Io(error.kind())),
        }
        // Where that was a part of a frame the driver looks at its clock before it waits again: who
        // sends a byte now and then must not hold it.
        take_frame(&mut self.replies, reply)
    }

    fn max_in_flight(&self) -> usize {
        self.max_in_flight
    }
}

/// An [`AsyncTransport`] over the byte streams that `D` opens; see [`StreamTransport`].
#[derive(Debug)]
pub struct AsyncStreamTransport<D: DialAsync, const REPLY: usize> {
    dial: D,
    link: Option<D::Link>,
    replies: Accumulator<[u8; REPLY]>,
    max_in_flight: usize,
}

impl<D: DialAsync, const REPLY: usize> AsyncStreamTransport<D, REPLY> {
    /// A transport that is not connected yet and is good for `max_in_flight` unanswered frames.
    pub const fn new(dial: D, max_in_flight: usize) -> Self {
        Self { dial, link: None, replies: Accumulator::new([0; REPLY]), max_in_flight }
    }
}

impl<D: DialAsync, const REPLY: usize> AsyncTransport for AsyncStreamTransport<D, REPLY> {
    type Error = StreamError<D::Error>;

    async fn connect(&mut self) -> Result<(), Self::Error> {
        self.close();
        self.link = Some(self.dial.dial().await.map_err(StreamError::Dial)?);
        Ok(())
    }

    fn close(&mut self) {
        self.link = None;
        self.replies.clear();
    }

    async fn send(&mut self, frame: &[u8]) -> Result<(), Self::Error> {
        use embedded_io_async::Write as _;
        let link = self.link.as_mut().ok_or(StreamError::NotConnected)?;
        link.write_all(frame).await.map_err(|error| StreamError::Io(error.kind()))?;
        link.flush().await.map_err(|error| StreamError::Io(error.kind()))
    }

    async fn recv(&mut self, reply: &mut [u8]) -> Result<usize, Self::Error> {
        use embedded_io_async::Read as _;
        let link = self.link.as_mut().ok_or(StreamError::NotConnected)?;
        loop {
            if let Some(len) = take_frame(&mut self.replies, reply)? {
                return Ok(len);
            }
            match link.read(self.replies.space()).await {
                Ok(0) => return Err(StreamError::Ended),
                Ok(count) => self.replies.filled(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(StreamError::Io(error.kind())),
            }
        }
    }

    fn max_in_flight(&self) -> usize {
        self.max_in_flight
    }
}

fn take_frame<E, const REPLY: usize>(
    replies: &mut Accumulator<[u8; REPLY]>,
    reply: &mut [u8],
) -> Result<Option<usize>, StreamError<E>> {
    let Some(frame) = replies.frame().map_err(StreamError::Wire)? else {
        return Ok(None);
    };
    let room = reply
        .get_mut(..frame.len())
        .ok_or(StreamError::Wire(WireError::BufferFull { needed: frame.len() as u64 }))?;
    room.copy_from_slice(frame);
    Ok(Some(frame.len()))
}
