//! Opens sockets.

use std::{
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use socket2::{Domain, SockAddr, Type};
use synddb_core::transport::Dial;

use crate::{Address, CID_ANY, DialError, SocketLink, error::Handshake};

/// Longest answer of a VMM to `CONNECT PORT` in bytes: `OK`, a number and the line's end.
const MAX_OK: usize = 32;

/// Limits in time of a [`Dialer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// How long a connection may take to be there, the VMM's answer included.
    pub connect: Duration,
    /// How long the other side may take nothing of a frame. For all of it it has a second more for
    /// each 64 KiB.
    pub write: Duration,
}

impl Default for Timeouts {
    /// 10 seconds each.
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), write: Duration::from_secs(10) }
    }
}

/// Opens connections to one address.
#[derive(Debug, Clone)]
pub struct Dialer {
    address: Address,
    timeouts: Timeouts,
}

impl Dialer {
    /// Dials `address`, within `timeouts`.
    pub const fn new(address: Address, timeouts: Timeouts) -> Self {
        Self { address, timeouts }
    }

    /// Opens a connection: a stream socket of whatever family, behind its handshake if there is one.
    ///
    /// # Errors
    /// See [`DialError`].
    pub fn connect(&self) -> Result<UnixStream, DialError> {
        let failed = |error: io::Error| DialError::connect(&self.address, &error);
        match &self.address {
            Address::Vsock { cid: CID_ANY, .. } | Address::Vsock { port: 0, .. } => {
                Err(DialError::OnlyToListenOn { address: self.address.clone() })
            }
            Address::Vsock { cid, port } => {
                let address = vsock(*cid, *port).map_err(failed)?;
                self.open(&address).map_err(failed)
            }
            Address::Unix { path } => self.open(&unix(path).map_err(failed)?).map_err(failed),
            Address::VsockUnix { path, port } => {
                let deadline = Instant::now() + self.timeouts.connect;
                let mut stream = self.open(&unix(path).map_err(failed)?).map_err(failed)?;
                handshake(&mut stream, *port, deadline)
                    .map_err(|outcome| DialError::handshake(&self.address, outcome))?;
                Ok(stream)
            }
        }
    }

    fn open(&self, address: &SockAddr) -> io::Result<UnixStream> {
        let socket = socket(address)?;
        // Over a Unix socket this is also how long a full queue of the listener is waited for.
        socket.set_write_timeout(Some(self.timeouts.connect))?;
        socket.connect(address)?;
        // `UnixStream` reads, writes and waits on any connected stream socket; it is the one type of
        // the standard library that does so without a signal when the other side is gone.
        Ok(OwnedFd::from(socket).into())
    }
}

impl Dial for Dialer {
    type Link = SocketLink<UnixStream>;
    type Error = DialError;

    fn dial(&mut self) -> Result<Self::Link, DialError> {
        Ok(SocketLink::new(self.connect()?, self.timeouts.write))
    }
}

/// A stream socket of the family of `address`, neither bound nor connected.
pub(crate) fn socket(address: &SockAddr) -> io::Result<socket2::Socket> {
    socket2::Socket::new(Domain::from(i32::from(address.family())), Type::STREAM, None)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn vsock(cid: u32, port: u32) -> io::Result<SockAddr> {
    Ok(SockAddr::vsock(cid, port))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn vsock(_: u32, _: u32) -> io::Result<SockAddr> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "there is no AF_VSOCK on this system"))
}

pub(crate) fn unix(path: &Path) -> io::Result<SockAddr> {
    SockAddr::unix(path).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path of a Unix socket has 107 bytes at most",
        )
    })
}

/// Asks the VMM for `port` inside its VM.
fn handshake(stream: &mut UnixStream, port: u32, deadline: Instant) -> Result<(), Handshake> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Handshake::Silence,
        _ => Handshake::Closed,
    };
    // In one piece: VMMs read it by one read.
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).map_err(failed)?;
    let mut answer = Vec::with_capacity(MAX_OK);
    while answer.last() != Some(&b'\n') {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Handshake::Silence);
        }
        stream.set_read_timeout(Some(left)).map_err(failed)?;
        // One by one: what follows the line is the sequencer's.
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => return Err(Handshake::Closed),
            Ok(_) => answer.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
        if answer.len() >= MAX_OK {
            break;
        }
    }
    match answer.strip_prefix(b"OK ").and_then(|rest| rest.strip_suffix(b"\n")) {
        Some(number) if number.iter().all(u8::is_ascii_digit) => Ok(()),
        _ => Err(Handshake::NotAVmm),
    }
}
