use alloc::rc::Rc;
use core::{cell::RefCell, fmt, future::poll_fn, task::Poll};

use embedded_io::{ErrorKind, ErrorType};
use synddb_core::transport::{DialAsync, TransportError, TransportErrorKind};
use virtio_drivers::{
    device::socket::{
        VMADDR_CID_HOST, VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEvent,
        VsockEventType,
    },
    transport::{DeviceType, pci::PciTransport},
};

use crate::virtio::{Identity, find};

type Manager = VsockConnectionManager<Identity, PciTransport, 4096>;

/// Bytes of a connection's buffer for what comes.
const BUFFER: u32 = 16 << 10;

/// Dials a port of the host.
pub(crate) struct Vsock {
    manager: Rc<RefCell<Manager>>,
    peer: VsockAddr,
    /// The guest's port, another one for each connection.
    port: u32,
}

/// A connection.
pub(crate) struct Stream {
    manager: Rc<RefCell<Manager>>,
    peer: VsockAddr,
    port: u32,
    open: bool,
}

/// The connection is gone, or none could be made.
#[derive(Debug)]
pub(crate) struct Lost;

impl Vsock {
    pub(crate) fn open(port: u32) -> Option<Self> {
        let driver = VirtIOSocket::new(find(DeviceType::Socket)?).ok()?;
        let manager = Rc::new(RefCell::new(Manager::new_with_capacity(driver, BUFFER)));
        Some(Self { manager, peer: VsockAddr { cid: VMADDR_CID_HOST, port }, port: 1024 })
    }
}

impl DialAsync for Vsock {
    type Link = Stream;
    type Error = Lost;

    async fn dial(&mut self) -> Result<Stream, Lost> {
        self.port += 1;
        let (manager, peer, port) = (Rc::clone(&self.manager), self.peer, self.port);
        manager.borrow_mut().connect(peer, port).map_err(|_| Lost)?;
        let mut stream = Stream { manager, peer, port, open: true };
        poll_fn(|_| match stream.poll() {
            Some(VsockEventType::Connected) => Poll::Ready(Ok(())),
            _ if !stream.open => Poll::Ready(Err(Lost)),
            _ => Poll::Pending,
        })
        .await?;
        Ok(stream)
    }
}

impl Stream {
    /// What happened on this connection, if anything did.
    fn poll(&mut self) -> Option<VsockEventType> {
        let event = self.manager.borrow_mut().poll();
        match event {
            Ok(Some(VsockEvent { event_type, destination, .. }))
                if destination.port == self.port =>
            {
                self.open &= !matches!(event_type, VsockEventType::Disconnected { .. });
                Some(event_type)
            }
            Ok(_) => None,
            Err(_) => {
                self.open = false;
                None
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.open {
            // It is gone already where this fails.
            let _ = self.manager.borrow_mut().force_close(self.peer, self.port);
        }
    }
}

impl ErrorType for Stream {
    type Error = Lost;
}

impl embedded_io_async::Read for Stream {
    async fn read(&mut self, into: &mut [u8]) -> Result<usize, Lost> {
        poll_fn(|_| {
            self.poll();
            let (peer, port) = (self.peer, self.port);
            let count = self.manager.borrow_mut().recv(peer, port, into);
            match count {
                Ok(0) if self.open => Poll::Pending,
                Ok(count) => Poll::Ready(Ok(count)),
                Err(_) => Poll::Ready(Err(Lost)),
            }
        })
        .await
    }
}

impl embedded_io_async::Write for Stream {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, Lost> {
        let sent = self.manager.borrow_mut().send(self.peer, self.port, bytes);
        sent.map(|()| bytes.len()).map_err(|_| Lost)
    }

    async fn flush(&mut self) -> Result<(), Lost> {
        Ok(())
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no vsock connection to the host")
    }
}

impl core::error::Error for Lost {}

impl embedded_io::Error for Lost {
    fn kind(&self) -> ErrorKind {
        ErrorKind::ConnectionReset
    }
}

impl TransportError for Lost {
    fn kind(&self) -> TransportErrorKind {
        TransportErrorKind::Unreachable
    }
}
