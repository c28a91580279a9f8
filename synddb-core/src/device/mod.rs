//! Sending rows into somebody's SQLite far away, from a machine that has none: a microcontroller, a
//! unikernel, firmware.
//!
//! ```text
//!  const TABLES ──▶ base of the epoch: the tables, empty (an image computed as it is asked for)
//!  commit(rows) ──▶ changeset ──▶ Storage ──▶ Sender ──▶ Driver ══ frames ══▶ sequencer
//!                                 (flash)     ◀── acks ◀──         ◀════════
//! ```
//!
//! A [`Device`] is a [`Sender`] with its outbox: it declares [`Table`]s, turns the [`Rows`] of a
//! transaction into an entry, has its [`Storage`] keep the entry until it is acknowledged, and goes
//! on after a reset where it was. It does no I/O but the storage's; a [`Driver`] or an
//! [`AsyncDriver`] moves its frames over any [transport](crate::transport).
//!
//! ```
//! use synddb_core::{
//!     Instant,
//!     device::{Column, Device, DeviceConfig, RamStorage, Table},
//! };
//!
//! const READINGS: Table =
//!     Table::new("readings", &[Column::integer("id").key(), Column::real("celsius")]);
//!
//! // Two frames on their way at most, transactions of up to 1 KiB; memory in the place of flash.
//! let config = DeviceConfig::new("greenhouse", [7; 32]);
//! let mut device =
//!     Device::<_, 2, 1024>::open(config, &[READINGS], RamStorage::<32, 4096>::new())?;
//! device.commit(Instant::from_micros(0), 0, |rows| {
//!     rows.insert(&READINGS, &[1.into(), 20.5.into()])?;
//!     rows.insert(&READINGS, &[2.into(), 20.6.into()])
//! })?;
//! assert_eq!(device.status().queued, 1);
//! # Ok::<_, synddb_core::device::DeviceError<core::convert::Infallible>>(())
//! ```
//!
//! Then [`Driver::turn`] again and again. Whole programs: `examples/cortex-m` (blocking, a serial
//! line, flash) and `examples/bare-guest` (asynchronous, vsock, a disk).
//!
//! # What survives a reset
//!
//! Stream, epoch, position and the entries that are not acknowledged: what [`Device::commit`]
//! returned `Ok` for is durable, and nothing is sent before it is. A reset at any moment neither
//! loses nor repeats a row at the replica.
//!
//! What is acknowledged is written down when room is needed, after every 64 entries, and at
//! [`Device::save`]: a start from an older position asks the sequencer and compares chains. Flash is
//! erased for that, once for each start, and once for each sector of entries.
//!
//! # What it does not do
//!
//! It holds no rows once they are acknowledged, so that it cannot begin anew by itself when the
//! sequencer has lost what it had acknowledged, or holds something else under the stream's name: it
//! [halts](Status::halted), goes on queueing, and somebody decides
//! ([`begin_anew`](Device::begin_anew)). It compresses nothing, and takes no snapshots but the empty
//! one that an epoch begins from.
//!
//! # Size
#![doc = include_str!("../../SIZES.md")]

mod base;
mod drive;
mod flash;
mod rows;
mod state;
mod storage;
mod table;

use core::{fmt, time::Duration};

use sha2::{Digest, Sha256};

pub use self::{
    drive::{Alarm, AsyncDriver, Driver, Shared},
    flash::{Flash, FlashStorage},
    rows::{RowError, Rows},
    storage::{MAX_RECORD, RamStorage, Storage},
    table::{Column, ColumnKind, MAX_COLUMNS, MAX_TABLES, Table, TableError},
};

use self::{
    base::{Base, SCHEMA_VERSION},
    state::{State, Wish},
};
use crate::{
    Chain, Epoch, Instant, Nonce, OpenId, SeqNo, SnapshotId, StreamId,
    backoff::BackoffConfig,
    batcher::BatchConfig,
    content::{ContentKey, ContentSum, deltas},
    sender::{
        Action, Event, OnDivergence, Position, Sender, SenderConfig, SnapshotOffer, StopReason,
    },
    transport::TransportErrorKind,
    wire::{
        EntriesWriter, Entry, EntryKind, EntryMeta, Message, SnapshotNote, WireError,
        entries::FRAME_OVERHEAD,
        entry::MAX_META_LEN,
        header::VERSION,
        message::{
            Compression, Fragment, Hello, MAX_NAME_LEN, ResyncReason, SnapshotBegin, SnapshotChunk,
            SnapshotEnd,
        },
    },
};

/// Shortest buffer for a frame in bytes: what a Hello with the longest name, or the note of an
/// epoch's base, takes. Entries longer than it allows go in pieces; from 1024 on those are of a
/// sensible size.
pub const MIN_FRAME: usize = 600;
/// Bytes of an entry's buffer that are not changeset: the time of its commit, and the sum of the
/// changes of it and all before it.
const ENTRY_HEAD: usize = 8 + 16;
/// Acknowledged entries after which the position is written although nobody needs the room: how
/// many a restart compares once more.
const SAVE_AFTER: u64 = 64;

/// Settings of a [`Device`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceConfig<'c> {
    /// The stream's name, of 1 to 128 bytes; its [`StreamId`] is made from it.
    pub name: &'c str,
    /// What tells this device from all others and, where there is a source of randomness, this start
    /// from all others: everything that must be unique is drawn from it. A serial number will do
    /// where nobody copies the device's storage.
    pub seed: [u8; 32],
    /// Shown to the sequencer in every Hello; empty where none is needed.
    pub token: &'c [u8],
    /// Longest frame that is sent, in bytes: the length of the driver's buffer.
    pub max_frame: usize,
    /// Longest reply that the driver takes, in bytes.
    pub max_reply: usize,
    /// The longest that an entry waits for company.
    pub linger: Duration,
    /// When to try again.
    pub backoff: BackoffConfig,
    /// How long an answer may take before the connection is given up.
    pub response_timeout: Duration,
    /// How long a quiet connection goes without a Ping; zero for never.
    pub keep_alive: Duration,
}

impl<'c> DeviceConfig<'c> {
    /// Frames of 1 KiB, replies of 512 bytes, 100 ms of linger, 10 s for an answer, a Ping after 30 s.
    pub fn new(name: &'c str, seed: [u8; 32]) -> Self {
        Self {
            name,
            seed,
            token: b"",
            max_frame: 1024,
            max_reply: 512,
            linger: Duration::from_millis(100),
            backoff: BackoffConfig::default(),
            response_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(30),
        }
    }
}

/// What went wrong; `E` is the storage's error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceError<E> {
    /// The storage failed. After a commit it is not known whether its entry is there: the device
    /// takes no more until it is opened again.
    Storage(E),
    /// The tables are none that SQLite could hold.
    Tables(TableError),
    /// The name is empty or over 128 bytes, or `max_frame` is below [`MIN_FRAME`] and the token's
    /// length, or above `ENTRY`.
    Config,
    /// The storage belongs to another stream: [`wipe`](Storage::wipe) it if that one is of no use any
    /// more.
    OtherStream(StreamId),
    /// The tables are not those that the stream's epoch began with. Open it with those, or
    /// [`Device::open_anew`].
    TablesChanged,
    /// The storage's record is damaged or of a newer version, or entries are missing. Rows may be
    /// lost: [`wipe`](Storage::wipe) it, and begin anew.
    Damaged,
    /// A row of the transaction was not taken; nothing was committed.
    Row(RowError),
    /// There is no room for the entry until others are acknowledged; nothing was committed.
    Full,
    /// An earlier commit failed in the storage: open the device again.
    Failed,
    /// The driver's buffer is shorter than `max_frame`.
    Buffer,
}

impl<E: fmt::Debug> fmt::Display for DeviceError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Storage(error) => write!(f, "the storage failed: {error:?}"),
            Self::Tables(error) => error.fmt(f),
            Self::Config => write!(
                f,
                "the stream's name must have 1 to {MAX_NAME_LEN} bytes, max_frame at least \
                 {MIN_FRAME} and the token's length, and an entry's buffer at least max_frame"
            ),
            Self::OtherStream(stream) => write!(
                f,
                "the storage belongs to stream {stream}; wipe it if that one is of no use any more"
            ),
            Self::TablesChanged => f.write_str(
                "the tables are not those that the stream began with; open with those, or open anew",
            ),
            Self::Damaged => {
                f.write_str("the storage is damaged; wipe it and begin anew, rows may be lost")
            }
            Self::Row(error) => error.fmt(f),
            Self::Full => f.write_str("no room for the entry until others are acknowledged"),
            Self::Failed => f.write_str("an earlier commit failed; open the device again"),
            Self::Buffer => f.write_str("the buffer for a frame is shorter than max_frame"),
        }
    }
}

impl<E: fmt::Debug> core::error::Error for DeviceError<E> {}

/// Why a device sends nothing more until somebody decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Halt {
    /// Another device took the stream: a copy of this one, or of its storage.
    Superseded,
    /// The sequencer holds other rows than this device sent; also where this device's storage was
    /// lost.
    Diverged,
    /// The epoch cannot go on; the reason tells why.
    Resync(ResyncReason),
}

/// How a device stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Entries that are not acknowledged.
    pub queued: u64,
    /// The epoch, 0 before the first.
    pub epoch: Epoch,
    /// Whether the sequencer has the base and everything that was committed.
    pub synced: bool,
    /// Why it sends nothing more, where it does not.
    pub halted: Option<Halt>,
    /// Why the last attempt failed, where none succeeded since.
    pub link: Option<TransportErrorKind>,
    /// The sequencer wants a token that is bound to a nonce of its own, which the token of a device
    /// cannot be: have it let in by a principal without `challenge`, or by the key of a certificate.
    pub challenged: bool,
    /// The sequencer's clock at its last acknowledgement, milliseconds since 1970; 0 before.
    pub time_ms: u64,
}

/// What becomes of entries that are not acknowledged when a stream begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unacknowledged {
    /// They are sent into the new epoch: right where rows are only ever inserted.
    Keep,
    /// They are dropped.
    Drop,
}

/// What a driver is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// Open a connection; then `handle_connected` or `handle_disconnected`.
    Connect,
    /// Drop the connection.
    Close,
    /// Send so many bytes of the frame's buffer; `handle_disconnected` where that fails.
    Send(usize),
}

/// A stream of rows from a machine without SQLite.
///
/// `WINDOW` frames are on their way at most; an entry (a transaction) is at most `ENTRY` bytes long,
/// 24 of them for its time and its hash, and never less than `max_frame`.
#[derive(Debug)]
pub struct Device<'c, S, const WINDOW: usize, const ENTRY: usize> {
    config: DeviceConfig<'c>,
    tables: &'c [Table],
    base: Base<'c>,
    base_sha256: [u8; 32],
    storage: S,
    state: State,
    /// Of content hashes.
    key: ContentKey,
    /// Number of the newest entry, 0 before the first.
    newest: u64,
    sender: Sender<WINDOW>,
    /// Drawn since the start.
    drawn: u32,
    halted: Option<Halt>,
    link: Option<TransportErrorKind>,
    challenged: bool,
    base_complete: bool,
    time_ms: u64,
    failed: bool,
    /// An entry, being built or being read.
    entry: [u8; ENTRY],
}

impl<'c, S: Storage, const WINDOW: usize, const ENTRY: usize> Device<'c, S, WINDOW, ENTRY> {
    /// Opens the stream where the storage left it; in an empty storage it begins.
    ///
    /// # Errors
    /// `Config`, `Tables`, `OtherStream`, `TablesChanged`, `Damaged`, `Storage`.
    pub fn open(
        config: DeviceConfig<'c>,
        tables: &'c [Table],
        storage: S,
    ) -> Result<Self, DeviceError<S::Error>> {
        Self::start(config, tables, storage, None)
    }

    /// Opens the stream, but with an epoch of its own, which begins with empty tables: for a firmware
    /// whose tables are others than before. What the replica held stays in the old epoch; see
    /// [`begin_anew`](Self::begin_anew).
    ///
    /// # Errors
    /// Those of [`open`](Self::open) but `TablesChanged`.
    pub fn open_anew(
        config: DeviceConfig<'c>,
        tables: &'c [Table],
        storage: S,
    ) -> Result<Self, DeviceError<S::Error>> {
        // Entries of other tables would not fit into the new ones.
        Self::start(config, tables, storage, Some(Unacknowledged::Drop))
    }

    fn start(
        config: DeviceConfig<'c>,
        tables: &'c [Table],
        mut storage: S,
        anew: Option<Unacknowledged>,
    ) -> Result<Self, DeviceError<S::Error>> {
        if !(1..=MAX_NAME_LEN).contains(&config.name.len())
            || config.max_frame < MIN_FRAME + config.token.len()
            || config.max_frame > ENTRY
        {
            return Err(DeviceError::Config);
        }
        let base = Base::new(tables).map_err(DeviceError::Tables)?;
        let base_sha256 = base.sha256();
        let mut fingerprint = [0; 8];
        fingerprint.copy_from_slice(&base_sha256[..8]);
        let stream = StreamId::from_name(config.name);
        let mut state = load(&mut storage)?.unwrap_or(State::fresh(stream, fingerprint));
        if state.stream != stream {
            return Err(DeviceError::OtherStream(state.stream));
        }
        if state.tables != fingerprint && anew.is_none() {
            return Err(DeviceError::TablesChanged);
        }
        state.tables = fingerprint;
        state.starts = state.starts.wrapping_add(1);
        let unacknowledged = state.unacknowledged();
        let newest = match storage.held() {
            Some((first, _)) if first > unacknowledged => return Err(DeviceError::Damaged),
            // Before the first record nothing can have been committed.
            Some(_) if state.starts == 1 => return Err(DeviceError::Damaged),
            Some((_, last)) => last.max(unacknowledged - 1),
            None => unacknowledged - 1,
        };
        let mut device = Self {
            // Replaced below, once there is something to draw from.
            sender: Sender::new(
                sender_config(&config, stream, Nonce::default()),
                state.position,
                0,
            ),
            config,
            tables,
            base,
            base_sha256,
            storage,
            state,
            key: ContentKey::of(stream),
            newest,
            drawn: 0,
            halted: None,
            link: None,
            challenged: false,
            base_complete: false,
            time_ms: 0,
            failed: false,
            entry: [0; ENTRY],
        };
        if device.storage.held().is_some_and(|(_, last)| last == newest) {
            device.state.changes = device.load_entry(newest)?.1;
        }
        match anew {
            Some(unacknowledged) => device.wish(ResyncReason::SchemaChanged, unacknowledged)?,
            None if !device.state.has_epoch() => {
                device.wish(ResyncReason::FirstAttach, Unacknowledged::Keep)?;
            }
            None => {}
        }
        device.save()?;
        let instance = Nonce(device.draw());
        let seed = device.draw();
        let seed = u64::from_le_bytes([
            seed[0], seed[1], seed[2], seed[3], seed[4], seed[5], seed[6], seed[7],
        ]);
        device.sender =
            Sender::new(sender_config(&config, stream, instance), device.state.position, seed);
        device.tell_sender(Instant::default());
        Ok(device)
    }

    /// Commits a transaction: what `write` says was done to rows. On return it is durable, and will
    /// be at the replica, whatever happens. `time_ms` is the device's clock, milliseconds since 1970,
    /// for those who read the log; 0 where there is none.
    ///
    /// # Errors
    /// `Row` where `write` fails, `Full`, `Failed`, `Storage`.
    pub fn commit(
        &mut self,
        now: Instant,
        time_ms: u64,
        write: impl FnOnce(&mut Rows<'_>) -> Result<(), RowError>,
    ) -> Result<(), DeviceError<S::Error>> {
        if self.failed {
            return Err(DeviceError::Failed);
        }
        let Some((head, payload)) = self.entry.split_first_chunk_mut::<ENTRY_HEAD>() else {
            return Err(DeviceError::Row(RowError::TooLarge));
        };
        let mut rows = Rows::new(payload, self.tables);
        write(&mut rows).map_err(DeviceError::Row)?;
        let len = rows.len();
        if len == 0 {
            return Ok(());
        }
        let changes = self.state.changes + sum(self.key, &payload[..len]);
        let (time, sum) = head.split_at_mut(8);
        time.copy_from_slice(&time_ms.to_le_bytes());
        sum.copy_from_slice(&changes.to_bytes());
        let number = self.newest + 1;
        let entry = &self.entry[..ENTRY_HEAD + len];
        let appended = match self.storage.append(number, entry) {
            Ok(false) => {
                // What is acknowledged may go, once it is known to be.
                save(&mut self.storage, &mut self.state, &self.sender)
                    .and_then(|()| self.storage.append(number, entry))
            }
            appended => appended,
        };
        match appended {
            Err(error) => {
                self.failed = true;
                Err(DeviceError::Storage(error))
            }
            Ok(false) => Err(DeviceError::Full),
            Ok(true) => {
                self.newest = number;
                self.state.changes = changes;
                if self.is_flowing() {
                    self.sender.handle_queued(now, self.state.seq(number), len as u64);
                }
                Ok(())
            }
        }
    }

    /// Begins the stream anew, in an epoch whose tables are empty: for a device that halted. What
    /// the replica held until now stays in the old epoch, and a replica of the newest one has only
    /// what is committed from here on, and what is [kept](Unacknowledged::Keep).
    ///
    /// # Errors
    /// `Storage`.
    pub fn begin_anew(
        &mut self,
        now: Instant,
        unacknowledged: Unacknowledged,
    ) -> Result<(), DeviceError<S::Error>> {
        self.halted = None;
        self.wish(ResyncReason::Requested, unacknowledged)?;
        self.save()?;
        let instance = Nonce(self.draw());
        self.sender.handle_restart(now, instance);
        self.tell_sender(now);
        Ok(())
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        let next = match self.state.wish {
            Some(wish) => wish.first,
            None => self.state.number(self.sender.position().next_seq.max(SeqNo(2))),
        };
        let queued = (self.newest + 1).saturating_sub(next);
        Status {
            queued,
            epoch: self.sender.position().epoch,
            synced: queued == 0 && self.base_complete && self.state.wish.is_none(),
            halted: self.halted,
            link: self.link,
            challenged: self.challenged,
            time_ms: self.time_ms,
        }
    }

    /// How many transactions were committed since the stream began: each has the next number.
    pub fn committed(&self) -> u64 {
        self.newest
    }

    /// Writes down what is acknowledged: before a planned stop, to spare the next start a
    /// comparison.
    ///
    /// # Errors
    /// `Storage`.
    pub fn save(&mut self) -> Result<(), DeviceError<S::Error>> {
        save(&mut self.storage, &mut self.state, &self.sender).map_err(DeviceError::Storage)
    }

    /// The storage.
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// The storage, of a device that is done.
    pub fn into_storage(self) -> S {
        self.storage
    }

    // What happened.

    /// The connection is open; see [`Sender::handle_connected`].
    pub fn handle_connected(&mut self, now: Instant, max_in_flight: usize) {
        let nonce = Nonce(self.draw());
        self.sender.handle_connected(now, nonce, max_in_flight);
    }

    /// The connection failed or could not be opened; see [`Sender::handle_disconnected`].
    pub fn handle_disconnected(
        &mut self,
        now: Instant,
        kind: TransportErrorKind,
        retry_after: Option<Duration>,
    ) {
        self.sender.handle_disconnected(now, kind, retry_after);
    }

    /// A frame came.
    ///
    /// # Errors
    /// Why the bytes are no frame, for the log; everything was seen to.
    pub fn handle_frame(&mut self, now: Instant, frame: &[u8]) -> Result<(), WireError> {
        self.sender.handle_frame(now, frame)
    }

    /// Somebody waits: send what is queued now; see [`Sender::handle_flush`].
    pub fn handle_flush(&mut self, now: Instant) {
        self.sender.handle_flush(now);
    }

    // What to do.

    /// The next thing for a driver to do; call until `None`. Frames are written into `frame`.
    ///
    /// # Errors
    /// `Storage`, `Damaged` where an entry is gone from it, `Buffer`.
    pub fn poll_step(
        &mut self,
        now: Instant,
        frame: &mut [u8],
    ) -> Result<Option<Step>, DeviceError<S::Error>> {
        let frame = frame.get_mut(..self.config.max_frame).ok_or(DeviceError::Buffer)?;
        loop {
            while let Some(event) = self.sender.poll_event() {
                self.handle_event(now, event)?;
            }
            let Some(action) = self.sender.poll_action(now) else { return Ok(None) };
            if let Some(step) = self.act(now, action, frame)? {
                return Ok(Some(step));
            }
        }
    }

    /// When to poll again if nothing happens; `None`: not before something does.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.sender.poll_timeout()
    }

    /// Whether frames are on their way whose answers are still to come.
    pub fn awaits_reply(&self) -> bool {
        self.sender.awaits_reply()
    }

    // How the parts above are put together.

    /// Whether entries may be sent: of the granted epoch, whose base is stored.
    fn is_flowing(&self) -> bool {
        self.state.wish.is_none() && self.state.base_stored
    }

    /// Sixteen bytes that are drawn once.
    fn draw(&mut self) -> [u8; 16] {
        self.drawn = self.drawn.wrapping_add(1);
        let hash = Sha256::new()
            .chain_update(b"synddb device v1\0")
            .chain_update(self.config.seed)
            .chain_update(self.state.stream.as_bytes())
            .chain_update(self.state.starts.to_le_bytes())
            .chain_update(self.drawn.to_le_bytes())
            .finalize();
        let mut drawn = [0; 16];
        drawn.copy_from_slice(&hash[..16]);
        drawn
    }

    /// A new epoch is wanted.
    fn wish(
        &mut self,
        reason: ResyncReason,
        unacknowledged: Unacknowledged,
    ) -> Result<(), DeviceError<S::Error>> {
        let (first, first_changes) = match (unacknowledged, self.state.wish) {
            (Unacknowledged::Keep, Some(wish)) => (wish.first, wish.first_changes),
            (Unacknowledged::Keep, None) => {
                let position = self.sender.position();
                let first = self.state.number(position.next_seq.max(SeqNo(2)));
                (first, self.changes_before(first)?)
            }
            (Unacknowledged::Drop, _) => (self.newest + 1, self.state.changes),
        };
        // A wish that waits already may have been granted: it stays the same one.
        let waiting = self.state.wish.map(|wish| (wish.open_id, wish.reason));
        let (open_id, reason) = waiting.unwrap_or_else(|| (OpenId(self.draw()), reason));
        self.state.wish = Some(Wish { open_id, reason, first, first_changes });
        Ok(())
    }

    /// The sum of the changes of the entries before `number`.
    fn changes_before(&mut self, number: u64) -> Result<ContentSum, DeviceError<S::Error>> {
        if number > self.newest {
            return Ok(self.state.changes);
        }
        let (_, changes, len) = self.load_entry(number)?;
        Ok(changes - sum(self.key, &self.entry[ENTRY_HEAD..ENTRY_HEAD + len]))
    }

    /// Reads an entry from the storage: its time, the sum of the changes up to it, and the length of
    /// the changeset that is behind its head.
    fn load_entry(
        &mut self,
        number: u64,
    ) -> Result<(u64, ContentSum, usize), DeviceError<S::Error>> {
        let read = self.storage.read(number, &mut self.entry).map_err(DeviceError::Storage)?;
        let len = read.ok_or(DeviceError::Damaged)?;
        let (time, rest) =
            self.entry[..len].split_first_chunk::<8>().ok_or(DeviceError::Damaged)?;
        let (changes, payload) = rest.split_first_chunk::<16>().ok_or(DeviceError::Damaged)?;
        Ok((u64::from_le_bytes(*time), ContentSum::from_bytes(*changes), payload.len()))
    }

    /// What the sender has to know of the state, after a start or a new epoch.
    fn tell_sender(&mut self, now: Instant) {
        if let Some(wish) = self.state.wish {
            if self.state.has_epoch() {
                self.sender.handle_abandoned();
            }
            self.sender.handle_next_epoch(wish.open_id, wish.reason);
        } else if self.state.base_stored {
            let last = self.state.seq(self.newest).max(SeqNo::FIRST);
            // How many bytes there are does not matter: what is old goes at once.
            self.sender.handle_queued(now, last, 0);
            self.sender.handle_flush(now);
        } else {
            self.sender.handle_snapshot(SnapshotOffer {
                id: self.base_id(),
                len: self.base.len(),
                sha256: self.base_sha256,
            });
        }
    }

    /// The base is named after the wish: a reset in mid-upload goes on with the same.
    fn base_id(&self) -> SnapshotId {
        SnapshotId(self.state.opened.0)
    }

    fn handle_event(&mut self, now: Instant, event: Event) -> Result<(), DeviceError<S::Error>> {
        match event {
            Event::Acked { head, time_ms } => {
                self.base_complete = head.base_complete;
                self.time_ms = self.time_ms.max(time_ms);
                let saved = self.state.position.next_seq;
                if head.next_seq.0.saturating_sub(saved.0) >= SAVE_AFTER {
                    self.save()?;
                }
            }
            Event::EpochOpened { head } => {
                let position =
                    Position { epoch: head.epoch, next_seq: head.next_seq, chain: head.chain };
                if self.state.wish.is_some_and(|wish| wish.open_id == head.open_id) {
                    self.state.opened(head.open_id, position);
                    self.base_complete = false;
                }
                self.save()?;
                self.tell_sender(now);
            }
            Event::SnapshotStored(id) if id == self.base_id() && self.state.wish.is_none() => {
                self.state.base_stored = true;
                self.save()?;
                self.tell_sender(now);
            }
            Event::SnapshotRefused { .. } => {
                self.halted = Some(Halt::Resync(ResyncReason::EntryRefused));
            }
            Event::ResyncNeeded(reason) => self.halted = Some(Halt::Resync(reason)),
            Event::Stopped(StopReason::Superseded) => self.halted = Some(Halt::Superseded),
            Event::Stopped(_) => self.halted = Some(Halt::Diverged),
            Event::LinkUp => (self.link, self.challenged) = (None, false),
            Event::LinkFailed { kind, .. } => self.link = Some(kind),
            Event::SnapshotStored(_) => {}
        }
        Ok(())
    }

    fn act(
        &mut self,
        now: Instant,
        action: Action,
        frame: &mut [u8],
    ) -> Result<Option<Step>, DeviceError<S::Error>> {
        let buffer = |_| DeviceError::Buffer;
        let len = match action {
            Action::Connect => return Ok(Some(Step::Connect)),
            Action::Close => return Ok(Some(Step::Close)),
            Action::SendHello { challenge: Some(_), .. } => {
                self.challenged = true;
                self.sender.handle_disconnected(now, TransportErrorKind::Unauthorized, None);
                return Ok(None);
            }
            Action::SendHello { tag, features, nonce, position, challenge: None } => {
                Message::Hello(Hello {
                    version_min: VERSION,
                    version_max: VERSION,
                    features,
                    stream: self.state.stream,
                    name: self.config.name,
                    instance: self.sender.instance(),
                    nonce,
                    ticket: 0,
                    epoch: position.epoch,
                    next_seq: position.next_seq,
                    chain: position.chain,
                    max_frame: self.config.max_reply as u32,
                    token: self.config.token,
                })
                .encode(tag, frame)
                .map_err(buffer)?
            }
            Action::SendOpenEpoch { tag, open } => {
                Message::OpenEpoch(open).encode(tag, frame).map_err(buffer)?
            }
            Action::SendEntries { tag, epoch, first, chain_before, max_entries, max_frame } => {
                let frame = frame.get_mut(..max_frame).ok_or(DeviceError::Buffer)?;
                let mut writer =
                    EntriesWriter::new(frame, epoch, first, chain_before).map_err(buffer)?;
                let mut oversized = None;
                let mut seq = first;
                while seq <= self.last_seq() && writer.count() < max_entries {
                    let mut meta = [0; MAX_META_LEN];
                    let entry = self.read(seq, &mut meta)?;
                    if writer.push(entry).is_err() {
                        oversized = Some(chain_before.next(entry.meta, entry.payload));
                        break;
                    }
                    seq = seq.next();
                }
                if writer.count() == 0 {
                    // Asked for entries that are not there: the storage lost them.
                    self.sender.handle_oversized(oversized.ok_or(DeviceError::Damaged)?);
                    return Ok(None);
                }
                let written = writer.finish(tag).map_err(buffer)?;
                self.sender.handle_sent_entries(now, tag, &written);
                written.frame_len
            }
            Action::SendFragment {
                tag,
                epoch,
                seq,
                chain_before,
                chain_after,
                offset,
                max_len,
            } => {
                let mut meta = [0; MAX_META_LEN];
                let Entry { meta, payload } = self.read(seq, &mut meta)?;
                let total = payload.len() as u64;
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(payload.len());
                let data = &payload[from..payload.len().min(from.saturating_add(max_len))];
                let len = data.len();
                let fragment = Fragment {
                    epoch,
                    seq,
                    chain_before,
                    chain_after,
                    meta,
                    total,
                    offset,
                    compression: Compression::None,
                    len: len as u32,
                    data,
                };
                let frame_len = Message::Fragment(fragment).encode(tag, frame).map_err(buffer)?;
                self.sender.handle_sent_fragment(now, tag, len, total);
                frame_len
            }
            Action::SendSnapshotBegin { tag, epoch, snapshot } => {
                let SnapshotOffer { id, len, .. } = snapshot;
                let begin = SnapshotBegin { epoch, id, len };
                Message::SnapshotBegin(begin).encode(tag, frame).map_err(buffer)?
            }
            Action::SendSnapshotChunk { tag, epoch, id, offset, len } => {
                let data = self.entry.get_mut(..len);
                let data = data.ok_or(DeviceError::Buffer)?;
                self.base.read(offset, data);
                let compression = Compression::None;
                let chunk = SnapshotChunk { epoch, id, offset, compression, len: len as u32, data };
                Message::SnapshotChunk(chunk).encode(tag, frame).map_err(buffer)?
            }
            Action::SendSnapshotEnd { tag, epoch, snapshot } => {
                let SnapshotOffer { id, len, sha256 } = snapshot;
                Message::SnapshotEnd(SnapshotEnd { epoch, id, len, sha256 })
                    .encode(tag, frame)
                    .map_err(buffer)?
            }
            Action::Verify { first, chain, end } => {
                let chain = self.chain_until(first, chain, end)?;
                self.sender.handle_verified(chain);
                return Ok(None);
            }
            Action::SendPing { tag } => Message::Ping.encode(tag, frame).map_err(buffer)?,
        };
        Ok(Some(Step::Send(len)))
    }

    /// The last entry that may be sent.
    fn last_seq(&self) -> SeqNo {
        self.state.seq(self.newest).max(SeqNo::FIRST)
    }

    fn chain_until(
        &mut self,
        first: SeqNo,
        mut chain: Chain,
        end: SeqNo,
    ) -> Result<Option<Chain>, DeviceError<S::Error>> {
        let mut seq = first;
        while seq < end {
            if seq > self.last_seq() {
                return Ok(None);
            }
            let mut meta = [0; MAX_META_LEN];
            let entry = self.read(seq, &mut meta)?;
            chain = chain.next(entry.meta, entry.payload);
            seq = seq.next();
        }
        Ok(Some(chain))
    }

    /// An entry of the granted epoch: the first is the note of its base, the others lie in the
    /// storage.
    fn read<'b>(
        &'b mut self,
        seq: SeqNo,
        meta: &'b mut [u8; MAX_META_LEN],
    ) -> Result<Entry<'b>, DeviceError<S::Error>> {
        let number = self.state.number(seq);
        let (kind, commit, time_ms, content, payload) = if seq == SeqNo::FIRST {
            let note = SnapshotNote {
                id: self.base_id(),
                as_of: SeqNo(0),
                len: self.base.len(),
                sha256: self.base_sha256,
                content_hash: Some(ContentSum::default()),
            };
            let note = note.encode(&mut self.entry).map_err(|_| DeviceError::Buffer)?;
            let commit = self.state.first.saturating_sub(1);
            (EntryKind::Snapshot, commit, 0, ContentSum::default(), note)
        } else {
            let (time_ms, changes, len) = self.load_entry(number)?;
            let content = changes - self.state.first_changes;
            let payload = &self.entry[ENTRY_HEAD..ENTRY_HEAD + len];
            (EntryKind::Changeset, number, time_ms, content, payload)
        };
        let encoded = EntryMeta {
            seq,
            kind,
            first_commit: commit,
            last_commit: commit,
            time_ms,
            schema_version: SCHEMA_VERSION,
            content_hash: Some(content),
        };
        let meta = encoded.encode(meta).map_err(|_| DeviceError::Buffer)?;
        Ok(Entry { meta, payload })
    }
}

/// What a changeset of a device's own comes to: it has been checked, and rewrites no key.
fn sum(key: ContentKey, changeset: &[u8]) -> ContentSum {
    let mut sum = ContentSum::default();
    let told = deltas(key, changeset, |_, delta| sum += delta);
    debug_assert!(told.is_ok(), "{told:?}");
    sum
}

/// Writes the record, and lets go of what it shows to be acknowledged.
fn save<S: Storage, const WINDOW: usize>(
    storage: &mut S,
    state: &mut State,
    sender: &Sender<WINDOW>,
) -> Result<(), S::Error> {
    let position = sender.position();
    // The sender may be in an epoch that this device gave up or did not ask for.
    if position.epoch == state.position.epoch && state.wish.is_none() {
        state.position = position;
    }
    let mut record = [0; MAX_RECORD];
    storage.store(state.encode(&mut record))?;
    storage.trim(state.unacknowledged())
}

fn load<S: Storage>(storage: &mut S) -> Result<Option<State>, DeviceError<S::Error>> {
    let mut record = [0; MAX_RECORD];
    match storage.load(&mut record).map_err(DeviceError::Storage)? {
        None => Ok(None),
        Some(len) => State::decode(&record[..len]).map(Some).ok_or(DeviceError::Damaged),
    }
}

fn sender_config(config: &DeviceConfig<'_>, stream: StreamId, instance: Nonce) -> SenderConfig {
    SenderConfig {
        stream,
        instance,
        batch: BatchConfig {
            max_entries: u32::MAX,
            max_bytes: (config.max_frame - FRAME_OVERHEAD) as u32,
            linger: config.linger,
            idle_linger: config.linger,
        },
        backoff: config.backoff,
        response_timeout: config.response_timeout,
        keep_alive: config.keep_alive,
        on_divergence: OnDivergence::Halt,
        compression: Compression::None,
    }
}
