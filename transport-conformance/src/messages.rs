//! The peer's end of a transport whose medium carries messages and not bytes.

use std::{
    io::{self, Read, Write},
    sync::mpsc::{Receiver, Sender},
};

use synddb_core::wire::{Header, WireError};

/// The peer's end of a pair of channels that carry one frame in each message.
///
/// What the peer writes goes out frame by frame, once a frame is whole; bytes that are no frame go out
/// as they are. A frame that is cut short never goes out: such a medium has no half messages.
#[derive(Debug)]
pub struct Messages {
    to: Sender<Vec<u8>>,
    from: Receiver<Vec<u8>>,
    /// What came and was not read yet.
    unread: Vec<u8>,
    /// What is not whole yet.
    unsent: Vec<u8>,
}

impl Messages {
    /// What is sent into `from` reaches the peer, and what it says comes out of the other end of `to`.
    pub const fn new(to: Sender<Vec<u8>>, from: Receiver<Vec<u8>>) -> Self {
        Self { to, from, unread: Vec::new(), unsent: Vec::new() }
    }
}

impl Read for Messages {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.unread.is_empty() {
            // Nobody sends any more: the end.
            self.unread = self.from.recv().unwrap_or_default();
        }
        let count = self.unread.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.unread[..count]);
        self.unread.drain(..count);
        Ok(count)
    }
}

impl Write for Messages {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.unsent.extend_from_slice(bytes);
        loop {
            let len = match Header::read(&self.unsent, usize::MAX) {
                Ok(header) if header.frame_len() <= self.unsent.len() => header.frame_len(),
                Ok(_) | Err(WireError::Truncated) => return Ok(bytes.len()),
                Err(_) => self.unsent.len(),
            };
            let message = self.unsent.drain(..len).collect();
            self.to.send(message).map_err(|_| io::ErrorKind::BrokenPipe)?;
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
