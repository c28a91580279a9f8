//! What is written down, record by record.
//!
//! ```text
//! record: kind u8 │ process u32 LE │ connection u32 LE │ length u32 LE │ payload
//! ```

use std::collections::HashMap;
use std::collections::hash_map::{DefaultHasher, Entry};
use std::fs::{File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// The kinds of records, as letters.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A connection is attached. Payload: the file's name.
    Attached = b'A',
    /// It could not be attached. Payload: why.
    Refused = b'R',
    /// The content of a database, to be referred to. Payload: number u32 LE, file.
    Image = b'I',
    /// Changesets from here on build on this image. Payload: its number.
    Base = b'B',
    /// A commit's changeset.
    Changeset = b'C',
    /// A commit that changed the schema. Payload: that of its entry.
    Schema = b'S',
    /// A commit that no changeset tells, or no longer. Payload: why.
    Lost = b'L',
    /// What was captured so far must have led to this image. Payload: its number.
    Compare = b'E',
    /// There is no image to begin or to compare with. Payload: why.
    NoImage = b'N',
    /// The connection closes. Payload: rows it has changed by its own count, u64 LE.
    Closing = b'Z',
    /// The engine is off the connection.
    Detached = b'D',
    /// Too much was written down: no more images and changesets from this process.
    Full = b'F',
}

/// Bytes that one process writes down at most; small records do not count.
const LIMIT: usize = 48 << 20;

struct Log {
    file: Option<File>,
    written: usize,
    images: HashMap<u64, u32>,
}

static LOG: Mutex<Option<Log>> = Mutex::new(None);

fn with_log<T>(use_it: impl FnOnce(&mut Log) -> T) -> T {
    let mut log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
    use_it(log.get_or_insert_with(|| {
        let path = std::env::var_os("SYNDDB_SUITE_LOG");
        let file = path.map(|path| OpenOptions::new().create(true).append(true).open(path));
        Log { file: file.and_then(Result::ok), written: 0, images: HashMap::new() }
    }))
}

impl Log {
    fn put(&mut self, kind: Kind, connection: u32, payload: &[&[u8]]) {
        let len: usize = payload.iter().map(|part| part.len()).sum();
        let mut record = Vec::with_capacity(len + 13);
        record.push(kind as u8);
        record.extend_from_slice(&std::process::id().to_le_bytes());
        record.extend_from_slice(&connection.to_le_bytes());
        record.extend_from_slice(&u32::try_from(len).unwrap_or(0).to_le_bytes());
        payload.iter().for_each(|part| record.extend_from_slice(part));
        // In one call: processes that a script starts write to the same file.
        if let Some(file) = &mut self.file {
            let _ = file.write_all(&record);
        }
    }

    /// False where it is too much.
    fn has_room(&mut self, len: usize) -> bool {
        if self.written > LIMIT {
            return false;
        }
        self.written += len;
        if self.written > LIMIT {
            self.put(Kind::Full, 0, &[]);
        }
        self.written <= LIMIT
    }
}

pub(crate) fn put(kind: Kind, connection: u32, payload: &[u8]) {
    with_log(|log| log.put(kind, connection, &[payload]));
}

/// A changeset or a change of the schema. False if it was too much.
pub(crate) fn put_commit(kind: Kind, connection: u32, changeset: &[u8]) -> bool {
    with_log(|log| {
        let room = log.has_room(changeset.len());
        if room {
            log.put(kind, connection, &[changeset]);
        }
        room
    })
}

/// Writes the image down, unless one like it is there, and refers to it. False if it was too much.
pub(crate) fn put_image(kind: Kind, connection: u32, image: &[u8]) -> bool {
    with_log(|log| {
        let mut hasher = DefaultHasher::new();
        image.hash(&mut hasher);
        let next = u32::try_from(log.images.len()).unwrap_or(u32::MAX);
        let hash = hasher.finish();
        let (number, new) = match log.images.entry(hash) {
            Entry::Occupied(entry) => (*entry.get(), false),
            Entry::Vacant(_) => (next, true),
        };
        if new {
            if !log.has_room(image.len()) {
                return false;
            }
            log.images.insert(hash, number);
            log.put(Kind::Image, connection, &[&number.to_le_bytes(), image]);
        }
        log.put(kind, connection, &[&number.to_le_bytes()]);
        true
    })
}
