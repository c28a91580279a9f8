use std::io::{self, Read, Write};

use rustls::{ClientConnection, StreamOwned};

use crate::{Failure, client::say_why, failure_of};

/// A byte stream with TLS over it, whose handshake is done.
#[derive(Debug)]
pub struct ClientStream<S: Read + Write>(StreamOwned<ClientConnection, S>);

impl<S: Read + Write> ClientStream<S> {
    /// Over `stream`, by a connection whose handshake was done over it.
    pub fn new(connection: ClientConnection, stream: S) -> Self {
        Self(StreamOwned::new(connection, stream))
    }

    /// The stream below.
    pub fn get_ref(&self) -> &S {
        &self.0.sock
    }

    /// The stream below: for its time limits. Bytes that are read or written there are missing here.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.0.sock
    }

    /// The state of the connection.
    pub fn connection(&self) -> &ClientConnection {
        &self.0.conn
    }

    /// Reads what there is, with one read of the stream below at most. `WouldBlock` where that brought
    /// no whole record: who is asked again decides how long it goes on, and not a peer that sends a
    /// byte now and then.
    ///
    /// # Errors
    /// As [`read`](Read::read), and `WouldBlock`.
    pub fn read_once(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let StreamOwned { conn, sock } = &mut self.0;
        match conn.reader().read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
        while conn.wants_write() {
            conn.write_tls(sock)?;
        }
        conn.read_tls(sock)?;
        if let Err(error) = conn.process_new_packets() {
            say_why(conn, sock);
            return Err(told(io::Error::other(error)));
        }
        conn.reader().read(buffer)
    }

    /// Why the other side ended the connection, where it said so: a client certificate is refused
    /// after the handshake is done here.
    fn last_words(&mut self, error: io::Error) -> io::Error {
        let waits =
            [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut, io::ErrorKind::Interrupted];
        if waits.contains(&error.kind()) {
            return error;
        }
        while let Ok(1..) = self.0.conn.read_tls(&mut self.0.sock) {
            if let Err(said) = self.0.conn.process_new_packets() {
                return told(io::Error::other(said));
            }
        }
        told(error)
    }
}

impl<S: Read + Write> Read for ClientStream<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(told)
    }
}

impl<S: Read + Write> Write for ClientStream<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(|error| self.last_words(error))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(|error| self.last_words(error))
    }
}

/// With the meaning of a failure as its text.
pub(crate) fn told(error: io::Error) -> io::Error {
    match failure_of(&error) {
        Some(failure @ (Failure::Untrusted(_) | Failure::Refused(_) | Failure::NotTls)) => {
            failure.into()
        }
        _ => error,
    }
}
