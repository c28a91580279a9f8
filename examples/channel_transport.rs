//! A transport without a network: frames go through channels to a sequencer in the same process.
//!
//! Whoever moves whole frames by some other means implements `Transport` itself, as here. Whoever has
//! a stream of bytes takes the core's `StreamTransport`, which finds the frames in it.

use std::{
    error::Error,
    fmt,
    ops::ControlFlow,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::Duration,
};

use synddb_client::{
    Config, SyndDB,
    rusqlite::Connection,
    transport::{Transport, TransportError, TransportErrorKind},
};
use synddb_core::wire::header;
use synddb_sequencer::{
    ingest::{self, DEFAULT_LIMITS, Ingest, Reply},
    replica::{Restore, differences},
    store::SqliteStore,
};

/// One end of a connection: where frames go, and where they come from.
pub type End = (Sender<Vec<u8>>, Receiver<Vec<u8>>);

/// Opens a connection by sending its other end to whoever listens.
pub struct ChannelTransport {
    /// Where the ends of new connections go.
    pub listener: Sender<End>,
    /// The connection, if there is one.
    pub connection: Option<End>,
}

impl Transport for ChannelTransport {
    type Error = ChannelError;

    fn connect(&mut self) -> Result<(), ChannelError> {
        let ((to, theirs_in), (theirs_out, from)) = (channel(), channel());
        // What comes over the connection before goes with its channel.
        self.connection = Some((to, from));
        self.listener.send((theirs_out, theirs_in)).map_err(|_| ChannelError::NobodyListens)
    }

    fn close(&mut self) {
        self.connection = None;
    }

    fn send(&mut self, frame: &[u8]) -> Result<(), ChannelError> {
        let (to, _) = self.connection.as_ref().ok_or(ChannelError::Ended)?;
        to.send(frame.to_vec()).map_err(|_| ChannelError::Ended)
    }

    fn recv(&mut self, reply: &mut [u8], timeout: Duration) -> Result<Option<usize>, ChannelError> {
        let (_, from) = self.connection.as_ref().ok_or(ChannelError::Ended)?;
        let frame = match from.recv_timeout(timeout) {
            Ok(frame) => frame,
            Err(RecvTimeoutError::Timeout) => return Ok(None),
            Err(RecvTimeoutError::Disconnected) => return Err(ChannelError::Ended),
        };
        // What is no frame, or too long for the room there is, is not handed on.
        header::open(&frame, reply.len()).map_err(|_| ChannelError::NotAFrame)?;
        reply[..frame.len()].copy_from_slice(&frame);
        Ok(Some(frame.len()))
    }

    fn max_in_flight(&self) -> usize {
        // So many frames are in the channel at most.
        8
    }
}

/// What can go wrong with a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelError {
    /// There is nobody to connect to.
    NobodyListens,
    /// Not connected, or not any more.
    Ended,
    /// Something else than a frame came.
    NotAFrame,
}

impl TransportError for ChannelError {
    fn kind(&self) -> TransportErrorKind {
        match self {
            Self::NobodyListens => TransportErrorKind::Unreachable,
            Self::Ended => TransportErrorKind::Disconnected,
            Self::NotAFrame => TransportErrorKind::NotASequencer,
        }
    }
}

impl fmt::Display for ChannelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NobodyListens => "nobody takes connections: the sequencer's thread has ended",
            Self::Ended => "there is no connection, or the other side has ended it",
            Self::NotAFrame => "what came is not a synddb frame",
        })
    }
}

/// The other side: a sequencer's ingest, connection by connection, until no transport is left.
pub fn serve(listener: &Receiver<End>, ingest: &Ingest) {
    for (to, from) in listener {
        let mut connection = ingest::Connection::new(ingest.clone());
        for frame in from {
            let answered = match connection.handle(&frame) {
                Reply::Frame(answer) => to.send(answer).is_ok(),
                Reply::Silence => true,
                Reply::Close(last) => {
                    // Whoever hung up does not hear the last word.
                    last.map(|last| to.send(last));
                    false
                }
            };
            if !answered {
                break;
            }
        }
    }
}

/// Ships a few commits over it, and compares.
pub fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let log = Arc::new(SqliteStore::open(&dir.path().join("log"))?);
    let ingest = Ingest::new(log.clone(), DEFAULT_LIMITS);
    let (listener, connections) = channel();
    let sequencer = thread::spawn(move || serve(&connections, &ingest));

    let app: &'static Connection =
        Box::leak(Box::new(Connection::open(dir.path().join("app.db"))?));
    app.pragma_update(None, "journal_mode", "WAL")?;
    let transport = ChannelTransport { listener, connection: None };
    let synddb = SyndDB::attach_with_transport(app, transport, Config::default())?;
    app.execute_batch(
        "CREATE TABLE trades(id INTEGER PRIMARY KEY, amount INTEGER);
         INSERT INTO trades VALUES (1, 100), (2, 200);
         UPDATE trades SET amount = 300 WHERE id = 2;",
    )?;
    let receipt = synddb.push()?;

    let replica = dir.path().join("replica.db");
    Restore::new(&*log, receipt.stream).run(&replica, |_| ControlFlow::Continue(()))?;
    let found = differences(app, &Connection::open(&replica)?)?;
    assert!(found.is_empty(), "{found:#?}");
    println!("through a channel: the replica equals the database, as of commit {}", receipt.commit);
    // With the transport the last way to the sequencer ends, and so does its thread.
    assert!(synddb.shutdown()?.left.is_none(), "it was pushed");
    sequencer.join().map_err(|_| "the sequencer's thread panicked")?;
    Ok(())
}
