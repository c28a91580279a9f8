//! Snapshot images, one file each.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use sha2::{Digest, Sha256};
use synddb_core::{SnapshotId, StreamId};

use crate::store::StoreError;

/// Streams share so many locks.
const STRIPES: usize = 64;

#[derive(Debug)]
pub(super) struct Images {
    dir: PathBuf,
    stripes: Vec<Mutex<()>>,
}

impl Images {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, stripes: (0..STRIPES).map(|_| Mutex::default()).collect() }
    }

    /// Held while files of the stream change: an old connection may still be writing when a new
    /// one comes.
    pub(super) fn guard(&self, stream: StreamId) -> MutexGuard<'_, ()> {
        let stripe = usize::from(stream.as_bytes()[0]) % STRIPES;
        self.stripes[stripe].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an empty image, emptying one that is there.
    pub(super) fn create(&self, stream: StreamId, id: SnapshotId) -> Result<(), StoreError> {
        let path = self.path(stream, id);
        in_place(&self.dir, fs::create_dir_all(self.dir.join(stream.to_string())))?;
        in_place(&path, File::create(&path)).map(drop)
    }

    /// Length of the image in bytes; 0 where there is none.
    pub(super) fn len(&self, stream: StreamId, id: SnapshotId) -> Result<u64, StoreError> {
        let path = self.path(stream, id);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(super::io(&path, &error)),
        }
    }

    pub(super) fn append(
        &self,
        stream: StreamId,
        id: SnapshotId,
        at: u64,
        data: &[u8],
    ) -> Result<(), StoreError> {
        let path = self.path(stream, id);
        let write = || {
            // Created anew where a crash left the row without its file.
            let mut file = File::options().create(true).truncate(false).write(true).open(&path)?;
            file.seek(SeekFrom::Start(at))?;
            file.write_all(data)
        };
        in_place(&path, write())
    }

    /// Makes the image durable and gives its SHA-256, read back from the file.
    pub(super) fn seal(&self, stream: StreamId, id: SnapshotId) -> Result<[u8; 32], StoreError> {
        let path = self.path(stream, id);
        let seal = || {
            let mut file = File::options().read(true).write(true).open(&path)?;
            file.sync_all()?;
            let mut hash = Sha256::new();
            let mut buffer = vec![0; 1 << 16];
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok(hash.finalize().into()),
                    count => hash.update(&buffer[..count]),
                }
            }
        };
        let hash = in_place(&path, seal())?;
        // The names on the way to the file must be durable too.
        for dir in path.ancestors().skip(1).take(3) {
            sync_dir(dir)?;
        }
        Ok(hash)
    }

    pub(super) fn remove(&self, stream: StreamId, id: SnapshotId) -> Result<(), StoreError> {
        let path = self.path(stream, id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(super::io(&path, &error)),
            _ => Ok(()),
        }
    }

    pub(super) fn open(&self, stream: StreamId, id: SnapshotId) -> Result<File, StoreError> {
        let path = self.path(stream, id);
        in_place(&path, File::open(&path))
    }

    fn path(&self, stream: StreamId, id: SnapshotId) -> PathBuf {
        self.dir.join(stream.to_string()).join(id.to_string())
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    if cfg!(unix) {
        in_place(dir, File::open(dir).and_then(|dir| dir.sync_all()))?;
    }
    Ok(())
}

fn in_place<T>(path: &Path, result: io::Result<T>) -> Result<T, StoreError> {
    result.map_err(|error| super::io(path, &error))
}
