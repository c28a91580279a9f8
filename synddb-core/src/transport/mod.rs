//! How frames reach the other side: the traits that a transport implements.
//!
//! A transport moves whole frames and knows nothing of what is in them. Sending and receiving are
//! apart, so that several frames can be on their way. It never retries by itself: when to try
//! again is the [`Sender`](crate::sender::Sender)'s decision, which also resends what was lost.

mod serial;
mod stream;

use core::{fmt, future::Future, time::Duration};

pub use serial::SerialTransport;
pub use stream::{AsyncStreamTransport, Dial, DialAsync, Link, StreamError, StreamTransport};

/// What went wrong, in the terms that decide what to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TransportErrorKind {
    /// Nobody could be reached: refused, no route, no such host, no such device.
    Unreachable,
    /// No answer in time.
    TimedOut,
    /// The connection ended in the middle of something.
    Disconnected,
    /// The other side is well but asks to wait (HTTP 429, 503).
    Busy,
    /// The other side refuses this client (HTTP 401, 403, a certificate).
    Unauthorized,
    /// The other side is not who it should be: its certificate, its key.
    Untrusted,
    /// What was sent is over a limit on the way (HTTP 413).
    TooLarge,
    /// What answers is not a synddb sequencer: a web page, another protocol.
    NotASequencer,
    /// The configuration cannot work: a bad address, a missing file.
    Misconfigured,
    /// Anything else.
    Other,
}

/// What the operating system's errors come to, on a connection over sockets.
#[cfg(feature = "std")]
impl From<std::io::ErrorKind> for TransportErrorKind {
    fn from(kind: std::io::ErrorKind) -> Self {
        use std::io::ErrorKind;
        match kind {
            ErrorKind::ConnectionRefused
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::AddrNotAvailable
            | ErrorKind::NotFound => Self::Unreachable,
            // A socket says WouldBlock where its time is over.
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::TimedOut,
            ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::NotConnected
            | ErrorKind::UnexpectedEof => Self::Disconnected,
            _ => Self::Other,
        }
    }
}

/// Error of a transport.
pub trait TransportError: fmt::Display + fmt::Debug {
    /// What went wrong.
    fn kind(&self) -> TransportErrorKind;

    /// How long the other side asks to wait, where it does.
    fn retry_after(&self) -> Option<Duration> {
        None
    }
}

impl TransportError for core::convert::Infallible {
    fn kind(&self) -> TransportErrorKind {
        match *self {}
    }
}

/// Moves frames, blocking.
pub trait Transport {
    /// What can go wrong.
    type Error: TransportError;

    /// Opens a connection, dropping one that is open. Transports without connections do nothing.
    ///
    /// # Errors
    /// Where the other side cannot be reached.
    fn connect(&mut self) -> Result<(), Self::Error>;

    /// Drops the connection, if any. Frames on their way may or may not arrive.
    fn close(&mut self);

    /// Sends one whole frame, or keeps it for the next [`recv`](Self::recv) to send.
    ///
    /// # Errors
    /// The connection is of no use any more.
    fn send(&mut self, frame: &[u8]) -> Result<(), Self::Error>;

    /// Waits up to `timeout` for a frame, writes it into `reply` and returns its length; `None`
    /// where none came in time, or so far only a part of one. With a `timeout` of zero it only
    /// takes what is there. A `reply` of
    /// [`MAX_CONTROL_FRAME`](crate::wire::message::MAX_CONTROL_FRAME) bytes holds every answer.
    ///
    /// A transport that asks and waits for the answer in one step (HTTP) may take longer than
    /// `timeout`, within its own limits.
    ///
    /// # Errors
    /// The connection is of no use any more.
    fn recv(&mut self, reply: &mut [u8], timeout: Duration) -> Result<Option<usize>, Self::Error>;

    /// How many unanswered frames the transport is good for.
    fn max_in_flight(&self) -> usize;
}

impl<T: Transport + ?Sized> Transport for &mut T {
    type Error = T::Error;

    fn connect(&mut self) -> Result<(), Self::Error> {
        (**self).connect()
    }

    fn close(&mut self) {
        (**self).close();
    }

    fn send(&mut self, frame: &[u8]) -> Result<(), Self::Error> {
        (**self).send(frame)
    }

    fn recv(&mut self, reply: &mut [u8], timeout: Duration) -> Result<Option<usize>, Self::Error> {
        (**self).recv(reply, timeout)
    }

    fn max_in_flight(&self) -> usize {
        (**self).max_in_flight()
    }
}

/// Moves frames, asynchronously: the twin of [`Transport`], of no particular runtime.
///
/// A dropped future of [`recv`](Self::recv) must lose no frame, so that a driver may wait for a
/// frame and for something else at once; timeouts are the driver's.
pub trait AsyncTransport {
    /// What can go wrong.
    type Error: TransportError;

    /// See [`Transport::connect`].
    fn connect(&mut self) -> impl Future<Output = Result<(), Self::Error>>;

    /// See [`Transport::close`].
    fn close(&mut self);

    /// See [`Transport::send`].
    fn send(&mut self, frame: &[u8]) -> impl Future<Output = Result<(), Self::Error>>;

    /// Waits for a frame, writes it into `reply` and returns its length.
    fn recv(&mut self, reply: &mut [u8]) -> impl Future<Output = Result<usize, Self::Error>>;

    /// See [`Transport::max_in_flight`].
    fn max_in_flight(&self) -> usize;
}
