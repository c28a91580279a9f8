//! A socket as the byte stream that the core's transport wants, with a deadline for every frame.

use std::{
    io::{self, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use synddb_core::transport::Link;

/// The slowest that a frame may travel, bytes in a second, once its time for nothing is over.
const MIN_RATE: usize = 64 << 10;

/// How long a frame of `len` bytes may take: `timeout`, and a second more for each 64 KiB. Both ends
/// keep to it.
pub fn time_for(len: usize, timeout: Duration) -> Duration {
    timeout.saturating_add(Duration::from_secs_f64(len as f64 / MIN_RATE as f64))
}

/// A blocking byte stream with timeouts. What encrypts another one passes them on.
pub trait Socket: Read + Write {
    /// A read that has nothing for this long fails with `WouldBlock` or `TimedOut`.
    ///
    /// # Errors
    /// The socket is of no use any more.
    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()>;

    /// A write that can leave nothing for this long fails with `WouldBlock` or `TimedOut`.
    ///
    /// # Errors
    /// The socket is of no use any more.
    fn set_write_timeout(&self, timeout: Duration) -> io::Result<()>;

    /// Whether reads and writes fail with `WouldBlock` instead of waiting at all.
    ///
    /// # Errors
    /// The socket is of no use any more.
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()>;
}

impl Socket for UnixStream {
    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        Self::set_read_timeout(self, Some(timeout))
    }

    fn set_write_timeout(&self, timeout: Duration) -> io::Result<()> {
        Self::set_write_timeout(self, Some(timeout))
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        Self::set_nonblocking(self, nonblocking)
    }
}

/// A [`Link`] over a socket.
#[derive(Debug)]
pub struct SocketLink<S> {
    socket: S,
    write_timeout: Duration,
    /// What the socket was last told.
    read_timeout: Option<Duration>,
    nonblocking: bool,
}

impl<S: Socket> SocketLink<S> {
    /// A link over a connected socket that blocks. The other side has `write_timeout` to take
    /// anything, and that and a second more for each 64 KiB to take a frame.
    pub fn new(socket: S, write_timeout: Duration) -> Self {
        Self { socket, write_timeout, read_timeout: None, nonblocking: false }
    }

    /// The socket.
    pub fn socket(&self) -> &S {
        &self.socket
    }

    fn nonblocking(&mut self, nonblocking: bool) -> io::Result<()> {
        if self.nonblocking != nonblocking {
            self.socket.set_nonblocking(nonblocking)?;
            self.nonblocking = nonblocking;
        }
        Ok(())
    }
}

impl<S: Socket> Link for SocketLink<S> {
    fn set_read_timeout(&mut self, timeout: Duration) -> io::Result<()> {
        self.nonblocking(timeout.is_zero())?;
        if !timeout.is_zero() && self.read_timeout != Some(timeout) {
            self.socket.set_read_timeout(timeout)?;
            self.read_timeout = Some(timeout);
        }
        Ok(())
    }
}

impl<S: Socket> embedded_io::ErrorType for SocketLink<S> {
    type Error = io::Error;
}

impl<S: Socket> embedded_io::Read for SocketLink<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.read(buffer).map_err(as_timeout)
    }
}

impl<S: Socket> embedded_io::Write for SocketLink<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.nonblocking(false)?;
        self.socket.set_write_timeout(self.write_timeout)?;
        self.socket.write(bytes).map_err(as_timeout)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush().map_err(as_timeout)
    }

    /// In as few and as large writes as the socket takes, all of it before the deadline: a peer that
    /// takes a byte now and then must not hold the caller.
    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.nonblocking(false)?;
        let deadline = Instant::now() + time_for(bytes.len(), self.write_timeout);
        while !bytes.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            self.socket.set_write_timeout(left.min(self.write_timeout))?;
            match self.socket.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(as_timeout(error)),
            }
        }
        Ok(())
    }
}

/// Sockets say `WouldBlock` where their time is over.
fn as_timeout(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock => ErrorKind::TimedOut.into(),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(100);

    fn pair() -> (SocketLink<UnixStream>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (SocketLink::new(ours, SHORT), theirs)
    }

    #[test]
    fn nobody_is_held_by_a_peer_that_takes_nothing() {
        let (mut link, _theirs) = pair();
        let since = Instant::now();
        let refused = embedded_io::Write::write_all(&mut link, &vec![0; 4 << 20]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::TimedOut);
        assert!(since.elapsed() >= SHORT && since.elapsed() < SHORT * 50, "{:?}", since.elapsed());
    }

    /// Each write leaves something, and all of them together take too long.
    #[test]
    fn nobody_is_held_by_a_peer_that_takes_a_little_now_and_then() {
        struct Slow;
        impl Read for Slow {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Ok(0)
            }
        }
        impl Write for Slow {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                std::thread::sleep(SHORT / 10);
                Ok(1)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        impl Socket for Slow {
            fn set_read_timeout(&self, _: Duration) -> io::Result<()> {
                Ok(())
            }
            fn set_write_timeout(&self, _: Duration) -> io::Result<()> {
                Ok(())
            }
            fn set_nonblocking(&self, _: bool) -> io::Result<()> {
                Ok(())
            }
        }
        let mut link = SocketLink::new(Slow, SHORT);
        let refused = embedded_io::Write::write_all(&mut link, &[0; 1000]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn a_read_waits_for_as_long_as_it_is_told_and_no_longer() {
        let (mut link, mut theirs) = pair();
        let mut buffer = [0; 10];
        let mut read = |link: &mut SocketLink<_>, timeout| {
            link.set_read_timeout(timeout).unwrap();
            embedded_io::Read::read(link, &mut buffer).map_err(|error| error.kind())
        };
        let since = Instant::now();
        assert_eq!(read(&mut link, Duration::ZERO), Err(ErrorKind::TimedOut));
        assert!(since.elapsed() < SHORT, "not at all");
        assert_eq!(read(&mut link, SHORT), Err(ErrorKind::TimedOut));
        assert!(since.elapsed() >= SHORT);
        theirs.write_all(b"abc").unwrap();
        assert_eq!(read(&mut link, Duration::ZERO), Ok(3));
        drop(theirs);
        assert_eq!(read(&mut link, SHORT), Ok(0));
    }
}
