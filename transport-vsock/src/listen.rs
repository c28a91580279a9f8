//! Listens on sockets.

use core::fmt;
use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::{
            fs::{FileTypeExt, MetadataExt},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
};

use crate::{
    Address,
    dial::{socket, unix, vsock},
    error::explain,
};

/// Connections that may wait to be taken.
const BACKLOG: i32 = 128;
/// Any free port, as the system calls it.
const ANY_PORT: u32 = u32::MAX;

/// Why an [`Address`] cannot be listened on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenError {
    /// The address.
    pub address: Address,
    /// What the operating system said, and what to do.
    pub problem: String,
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on {}: {}", self.address, self.problem)
    }
}

impl core::error::Error for ListenError {}

/// A socket that connections come to. A Unix socket's file goes with it.
#[derive(Debug)]
pub struct Listener {
    socket: socket2::Socket,
    address: Address,
    _file: Option<SocketFile>,
}

impl Listener {
    /// Listens on `address`.
    ///
    /// The file of a Unix socket gets the permissions that the process's umask leaves; to connect
    /// takes the right to write to it. A file that a killed process left is taken over, if nobody
    /// listens on it.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn bind(address: &Address) -> Result<Self, ListenError> {
        Self::try_bind(address).map_err(|error| {
            let advice = explain(address, error.raw_os_error(), error.kind());
            let advice = advice.map(|advice| format!(": {advice}")).unwrap_or_default();
            ListenError { address: address.clone(), problem: format!("{error}{advice}") }
        })
    }

    fn try_bind(address: &Address) -> io::Result<Self> {
        let Some(path) = address.listening_path() else {
            return Self::bind_vsock(address);
        };
        let socket = bind_unix(&path)?;
        let file = SocketFile::new(path)?;
        socket.listen(BACKLOG)?;
        Ok(Self { socket, address: address.clone(), _file: Some(file) })
    }

    fn bind_vsock(address: &Address) -> io::Result<Self> {
        let Address::Vsock { cid, port } = *address else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let wanted = vsock(cid, if port == 0 { ANY_PORT } else { port })?;
        let socket = socket(&wanted)?;
        socket.bind(&wanted)?;
        socket.listen(BACKLOG)?;
        let port = bound_port(&socket)?.unwrap_or(port);
        Ok(Self { socket, address: Address::Vsock { cid, port }, _file: None })
    }

    /// Where it listens, with the port that was free.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Takes the next connection: a stream socket of whatever family.
    ///
    /// # Errors
    /// Those of the operating system; `WouldBlock` where none waits and
    /// [`set_nonblocking`](Self::set_nonblocking) asks for that.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (socket, _) = self.socket.accept()?;
        Ok(OwnedFd::from(socket).into())
    }

    /// Whether [`accept`](Self::accept) fails with `WouldBlock` instead of waiting.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.socket.set_nonblocking(nonblocking)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn bound_port(socket: &socket2::Socket) -> io::Result<Option<u32>> {
    Ok(socket.local_addr()?.as_vsock_address().map(|(_, port)| port))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn bound_port(_: &socket2::Socket) -> io::Result<Option<u32>> {
    Ok(None)
}

fn bind_unix(path: &Path) -> io::Result<socket2::Socket> {
    let address = unix(path)?;
    let socket = socket(&address)?;
    match socket.bind(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_abandoned(path) => {
            fs::remove_file(path)?;
            socket.bind(&address)?;
        }
        bound => bound?,
    }
    Ok(socket)
}

/// Whether it is a socket that nobody listens on.
fn is_abandoned(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    // Not waiting: one with a full queue is not abandoned.
    let connected = unix(path).and_then(|address| {
        let socket = socket(&address)?;
        socket.set_nonblocking(true)?;
        socket.connect(&address)
    });
    is_socket && connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// The file of a Unix socket, removed at the end unless another has taken its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn new(path: PathBuf) -> io::Result<Self> {
        let found = fs::symlink_metadata(&path)?;
        Ok(Self { path, device: found.dev(), inode: found.ino() })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode));
        if is_ours {
            // It may be gone already, and the next to listen would take it over.
            let _ = fs::remove_file(&self.path);
        }
    }
}
