//! Names for states of a database that outlive the process.
//!
//! Equal names mean equal states: nobody has committed in between. In WAL mode the salts of the
//! log, the number of its frames and the checksum of the last one name the state, for the checksum
//! runs through all frames, and salts change whenever the log begins anew. In other modes it is the
//! change counter in the header, together with what the file system says of the file.
//! <https://www.sqlite.org/fileformat.html#the_write_ahead_log>

use super::ffi::{Db, Location, WalIndexHeader, sqlite3};
use super::fingerprint::Fingerprint;
use super::known::JournalMode;

/// The state of a database after a certain commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    state: State,
    /// Capture learns of its changes late; so it is compared.
    application_id: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// WAL mode.
    Log(LogEnd),
    /// WAL mode with no log to speak of: the file is all there is, and was left alone for longer
    /// than its time stamp is coarse.
    EmptyLog(Fingerprint),
    /// Any other mode.
    File(Fingerprint),
}

/// The last commit in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LogEnd {
    salts: [u8; 8],
    frames: u32,
    /// Of the last frame; zero where there is none.
    checksum: [u32; 2],
}

/// Layout of a log: its header, and that of each frame.
const LOG_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

impl Position {
    const VERSION: u8 = 1;
    const HEAD: usize = 6;

    /// The state that a log ends with, `header` being that of its index. None while a log without
    /// frames cannot be named: it has no salts yet, and the file was written to just now.
    pub(super) fn in_log(db: Db, header: WalIndexHeader, application_id: i64) -> Option<Position> {
        let frames = header.frames();
        let state = if frames > 0 {
            let (salts, checksum) = (header.salts(), header.frame_checksum());
            State::Log(LogEnd { salts, frames, checksum })
        } else if let Some(log) = LogFile::open(db) {
            // Frames of a transaction that is not committed, or never was.
            State::Log(LogEnd { salts: log.salts, frames: 0, checksum: [0; 2] })
        } else {
            State::EmptyLog(Fingerprint::at_rest(db)?)
        };
        Some(Position { state, application_id: application_id as i32 })
    }

    /// As [`Position::in_log`], and waits some milliseconds if that gives the state a name.
    pub(super) fn in_quiet_log(
        db: Db,
        header: WalIndexHeader,
        application_id: i64,
    ) -> Option<Position> {
        if header.frames() == 0 {
            // Its own answer is that of a moment later.
            let _ = Fingerprint::settled(db);
        }
        Position::in_log(db, header, application_id)
    }

    /// The state of a file with a rollback journal; the caller sees to it that nobody commits
    /// meanwhile.
    pub(super) fn in_file(
        db: Db,
        location: Option<&Location>,
        mode: JournalMode,
        application_id: i64,
    ) -> Option<Position> {
        let state = match mode {
            JournalMode::Rollback => State::File(Fingerprint::look_at(db, location?)?),
            _ => return None,
        };
        Some(Position { state, application_id: application_id as i32 })
    }

    /// The change counter, in a mode in which every commit moves it.
    pub(super) fn change_counter(&self) -> Option<u32> {
        match &self.state {
            State::File(file) => Some(file.change_counter()),
            _ => None,
        }
    }

    /// Whether no commit lies between two positions. Other than by comparing them, a rollback
    /// journal that was rolled back is seen through: it leaves all but the file's times alone.
    fn is_same_state(&self, other: &Position) -> bool {
        self.application_id == other.application_id
            && match (&self.state, &other.state) {
                (State::File(one), State::File(two)) => {
                    one.change_counter() == two.change_counter()
                }
                (one, two) => one == two,
            }
    }

    /// For storing.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = vec![Position::VERSION, 0];
        bytes.extend(self.application_id.to_le_bytes());
        bytes[1] = match self.state {
            State::Log(LogEnd { salts, frames, checksum }) => {
                bytes.extend(salts);
                bytes.extend(frames.to_le_bytes());
                bytes.extend(checksum.iter().flat_map(|half| half.to_le_bytes()));
                0
            }
            State::EmptyLog(file) => {
                bytes.extend(file.to_bytes());
                1
            }
            State::File(file) => {
                bytes.extend(file.to_bytes());
                2
            }
        };
        bytes
    }

    /// None for bytes of another version: such a position proves nothing.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Position> {
        let (head, rest) = bytes.split_at_checked(Position::HEAD)?;
        if head[0] != Position::VERSION {
            return None;
        }
        let word = |at: usize| Some(u32::from_le_bytes(rest.get(at..at + 4)?.try_into().ok()?));
        let state = match head[1] {
            0 if rest.len() == 20 => State::Log(LogEnd {
                salts: rest[..8].try_into().ok()?,
                frames: word(8)?,
                checksum: [word(12)?, word(16)?],
            }),
            1 => State::EmptyLog(Fingerprint::from_bytes(rest)?),
            2 => State::File(Fingerprint::from_bytes(rest)?),
            _ => return None,
        };
        let application_id = i32::from_le_bytes(head[2..].try_into().ok()?);
        Some(Position { state, application_id })
    }
}

/// What lies between a position and the database as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Distance {
    /// Nothing.
    Same,
    /// One commit, whoever made it.
    OneCommit,
    /// More than one, or it cannot be told.
    Unknown,
}

/// The present state of a connection's database, before anything is written to it.
pub(crate) struct Present {
    db: Db,
    location: Option<Location>,
    position: Option<Position>,
}

impl Present {
    /// Looks at the database. May wait some milliseconds until the times of its file tell a later
    /// write from the last one.
    ///
    /// # Safety
    /// As for [`super::Capture::attach`], as long as the value is used.
    pub(crate) unsafe fn look(db: *mut sqlite3) -> Option<Present> {
        // SAFETY: promised by the caller.
        let db = unsafe { Db::from_raw(db) }?;
        let location = db.location();
        let position = Present::position_now(db, location.as_ref());
        Some(Present { db, location, position })
    }

    fn position_now(db: Db, location: Option<&Location>) -> Option<Position> {
        // This read recovers a log, or rolls back what was left half written.
        let application_id = db.query_i64(c"PRAGMA main.application_id").ok()?;
        match JournalMode::read(db).ok()? {
            JournalMode::SharedWal => {
                let header = db.wal_index_header()?;
                Position::in_quiet_log(db, header, application_id)
            }
            mode => {
                // Twice: the counter, and the times that belong to it.
                let look = || Position::in_file(db, location, mode, application_id);
                look().filter(|position| look() == Some(*position))
            }
        }
    }

    pub(crate) fn position(&self) -> Option<Position> {
        self.position
    }

    /// How far the database has come since `then`.
    pub(crate) fn distance_from(&self, then: &Position) -> Distance {
        let Some(now) = &self.position else { return Distance::Unknown };
        if then.is_same_state(now) {
            return Distance::Same;
        }
        let one = then.application_id == now.application_id
            && match (&then.state, &now.state) {
                (State::Log(then), State::Log(now)) => {
                    then.salts == now.salts
                        && LogFile::open(self.db).is_some_and(|log| {
                            log.salts == now.salts
                                && log.ends_at(then)
                                && log.is_one_commit(then.frames, now.frames)
                        })
                }
                // All that was committed since is in the log, for the file was left alone.
                (State::EmptyLog(then), State::Log(now)) => {
                    let location = self.location.as_ref();
                    location.and_then(|at| Fingerprint::look_at(self.db, at)) == Some(*then)
                        && LogFile::open(self.db).is_some_and(|log| {
                            log.salts == now.salts && log.is_one_commit(0, now.frames)
                        })
                }
                (State::File(then), State::File(now)) => {
                    now.change_counter() == then.change_counter().wrapping_add(1)
                }
                _ => false,
            };
        if one { Distance::OneCommit } else { Distance::Unknown }
    }
}

/// The log's file, read through the connection's own handle.
struct LogFile {
    db: Db,
    salts: [u8; 8],
    page_size: usize,
}

impl LogFile {
    /// None where it has no header.
    fn open(db: Db) -> Option<LogFile> {
        let mut header = [0; LOG_HEADER];
        db.read_log(0, &mut header)?;
        let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
        // The lowest bit tells the byte order of checksums.
        const MAGIC: u32 = 0x377f_0682;
        let mut salts = [0; 8];
        salts.copy_from_slice(&header[16..24]);
        let page_size = usize::try_from(word(8)).ok()?;
        (word(0) & !1 == MAGIC).then_some(LogFile { db, salts, page_size })
    }

    /// The number of pages after the commit that frame `number` ends, or 0; and its checksum.
    fn frame(&self, number: u32) -> Option<(u32, [u32; 2])> {
        let before = u64::from(number.checked_sub(1)?) * (FRAME_HEADER + self.page_size) as u64;
        let mut header = [0; FRAME_HEADER];
        self.db.read_log(i64::try_from(before).ok()? + LOG_HEADER as i64, &mut header)?;
        let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
        (header[8..16] == self.salts).then(|| (word(4), [word(16), word(20)]))
    }

    fn ends_at(&self, end: &LogEnd) -> bool {
        end.frames == 0
            || self.frame(end.frames).is_some_and(|(_, checksum)| checksum == end.checksum)
    }

    /// Whether the frames behind `from`, up to and including `to`, are those of one commit.
    fn is_one_commit(&self, from: u32, to: u32) -> bool {
        from < to
            && (from + 1..=to).all(|number| {
                self.frame(number).is_some_and(|(pages, _)| (pages != 0) == (number == to))
            })
    }
}
