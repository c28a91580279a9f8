//! What a sequencer, or a log without one, says of itself: the JSON of `GET /status`.

use serde::{Deserialize, Serialize};
use synddb_core::{SeqNo, wire::header};

use crate::store::{LogStore, MAX_NUMBER, StoreError, StreamInfo};

/// State of a log and of the sequencer that serves it.
///
/// Later versions add fields; those that are here stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// Version of the sequencer; null where the log was read without one.
    pub version: Option<String>,
    /// Version of the protocol.
    pub protocol: u8,
    /// Seconds since the sequencer started; null where the log was read without one.
    pub uptime_s: Option<u64>,
    /// All streams, the oldest first.
    pub streams: Vec<StreamStatus>,
}

/// State of one stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StreamStatus {
    /// Its identifier, 32 hexadecimal digits.
    pub id: String,
    /// The user's name for it; empty where there is none.
    pub name: String,
    /// Current epoch; 0 before the first.
    pub epoch: u64,
    /// The entry that is expected next.
    pub next_seq: u64,
    /// Whether the current epoch can be restored: its snapshot is stored whole.
    pub base_complete: bool,
    /// Entries in the log, of all epochs.
    pub entries: u64,
    /// When the last of them came, milliseconds since 1970 by the sequencer's clock; null where
    /// there is none.
    pub last_append_ms: Option<u64>,
}

impl Status {
    /// Looks at every stream of a log.
    ///
    /// # Errors
    /// The store's.
    pub fn read(store: &dyn LogStore) -> Result<Self, StoreError> {
        Self::read_some(store, |_| true)
    }

    /// Looks at some of the streams.
    pub(crate) fn read_some(
        store: &dyn LogStore,
        wanted: impl Fn(&StreamInfo) -> bool,
    ) -> Result<Self, StoreError> {
        let streams = store.streams()?;
        let streams = streams.iter().filter(|info| wanted(info));
        let streams = streams.map(|info| StreamStatus::read(store, info));
        Ok(Self {
            version: None,
            protocol: header::VERSION,
            uptime_s: None,
            streams: streams.collect::<Result<_, _>>()?,
        })
    }
}

impl StreamStatus {
    fn read(store: &dyn LogStore, info: &StreamInfo) -> Result<Self, StoreError> {
        let (stream, head) = (info.receiver.stream(), info.receiver.head());
        let (mut entries, mut last_append_ms) = (0, None);
        for epoch in store.epochs(stream)? {
            if let Some(last) = store.last_received(stream, epoch.epoch, SeqNo(MAX_NUMBER))? {
                entries += last.seq.0;
                last_append_ms = Some(last.ms);
            }
        }
        Ok(Self {
            id: stream.to_string(),
            name: info.name.clone(),
            epoch: head.epoch.0,
            next_seq: head.next_seq.0,
            base_complete: head.base_complete,
            entries,
            last_append_ms,
        })
    }
}
