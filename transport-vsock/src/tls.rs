//! TLS over the sockets.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use synddb_core::{
    transport::{Dial, StreamTransport},
    wire::message::MAX_CONTROL_FRAME,
};
use synddb_tls::{ClientStream, Connector, Failure, TlsError, failure_of};

use crate::{Address, DialError, Dialer, MAX_IN_FLIGHT, Socket, SocketLink, Timeouts};

/// A [`Transport`](synddb_core::transport::Transport) with TLS over sockets that this crate dials.
pub type VsockTlsTransport = StreamTransport<TlsDialer, MAX_CONTROL_FRAME>;

/// A transport to `address` with TLS and these limits. Nothing is sent yet.
///
/// # Errors
/// The settings want a certificate for a name, and neither they nor an address of this kind have one:
/// [`TlsError::NoName`].
pub fn transport_with_tls(
    address: Address,
    timeouts: Timeouts,
    tls: Connector,
) -> Result<VsockTlsTransport, TlsError> {
    tls.without_host()?;
    let dialer =
        TlsDialer { dialer: Dialer::new(address.clone(), timeouts), address, timeouts, tls };
    Ok(StreamTransport::new(dialer, MAX_IN_FLIGHT))
}

/// Opens connections to one address, and does the handshake: within the time for connecting, once
/// more.
#[derive(Debug)]
pub struct TlsDialer {
    dialer: Dialer,
    address: Address,
    timeouts: Timeouts,
    tls: Connector,
}

impl Dial for TlsDialer {
    type Link = SocketLink<TlsSocket>;
    type Error = DialError;

    fn dial(&mut self) -> Result<Self::Link, DialError> {
        let socket = self.dialer.connect()?;
        let deadline = Instant::now() + self.timeouts.connect;
        let handshake = self.tls.handshake(&mut Before { socket: &socket, deadline }, "");
        let connection = handshake.map_err(|error| match failure_of(&error) {
            Some(failure) => DialError::Tls { address: self.address.clone(), failure },
            None if is_timeout(&error) => {
                DialError::Tls { address: self.address.clone(), failure: Failure::Slow }
            }
            None => DialError::connect(&self.address, &error),
        })?;
        Ok(SocketLink::new(TlsSocket(ClientStream::new(connection, socket)), self.timeouts.write))
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// A socket that is of no use after a deadline, however little is done at a time.
struct Before<'s> {
    socket: &'s UnixStream,
    deadline: Instant,
}

impl Before<'_> {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Before<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        self.socket.read(buffer)
    }
}

impl Write for Before<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

/// A socket with TLS over it.
#[derive(Debug)]
pub struct TlsSocket(ClientStream<UnixStream>);

impl Read for TlsSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_once(buffer)
    }
}

impl Write for TlsSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Socket for TlsSocket {
    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        Socket::set_read_timeout(self.0.get_ref(), timeout)
    }

    fn set_write_timeout(&self, timeout: Duration) -> io::Result<()> {
        Socket::set_write_timeout(self.0.get_ref(), timeout)
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        Socket::set_nonblocking(self.0.get_ref(), nonblocking)
    }
}
