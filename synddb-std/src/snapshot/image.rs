//! A complete snapshot: bytes of an SQLite database, their number and their hash.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use synddb_core::content::ContentKey;

use super::library::{Access, OwnedDb, SerializedDb, sqlite_path};
use super::{CopyControl, SnapshotError};
use crate::content::Content;
use crate::link::Image;

/// Bytes hashed between two looks at whether the snapshot is cancelled.
const CHUNK: usize = 256 * 1024;

/// The database as of a boundary, in SQLite's file format and not in WAL mode, so that it opens
/// without a log beside it. But for that mark and the counters SQLite keeps for itself, it is
/// what the source would be after a checkpoint, `PRAGMA schema_version` included.
pub(crate) struct SnapshotImage {
    body: Body,
    len: u64,
    sha256: [u8; 32],
}

enum Body {
    File { file: File, _removed: ImageFile },
    Memory(SerializedDb),
}

impl SnapshotImage {
    /// Size in bytes, never 0.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// SHA-256 of all its bytes.
    pub(crate) fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// The content, by reading every row of it; `None` where this SQLite cannot read a table, for
    /// example one that is ordered by a collation of the application's.
    ///
    /// # Errors
    /// [`SnapshotError::Cancelled`].
    pub(crate) fn content(
        &self,
        key: ContentKey,
        control: &CopyControl,
    ) -> Result<Option<Content>, SnapshotError> {
        let read = || {
            let goes_on = || !control.is_cancelled();
            match &self.body {
                Body::File { _removed: image, .. } => {
                    let Some(name) = sqlite_path(image.path()) else { return Ok(None) };
                    let db = OwnedDb::open(&name, None, Access::ReadOnly)?;
                    Content::read(key, *db, goes_on)
                }
                Body::Memory(bytes) => Content::read(key, *OwnedDb::of_serialized(bytes)?, goes_on),
            }
        };
        let content = read().unwrap_or_else(|error| {
            tracing::warn!(%error, "the snapshot's rows cannot be read: there is no content hash");
            None
        });
        control.check()?;
        Ok(content)
    }

    /// The file, which goes when the image is dropped. None in memory.
    #[cfg(test)]
    pub(crate) fn path(&self) -> Option<&Path> {
        match &self.body {
            Body::File { _removed: file, .. } => Some(file.path()),
            Body::Memory(_) => None,
        }
    }

    /// Reads from `offset` into `buf`; fewer bytes than asked for only at the end.
    pub(crate) fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.body {
            Body::File { file, .. } => {
                file.seek(SeekFrom::Start(offset))?;
                read_full(file, buf)
            }
            Body::Memory(bytes) => {
                let offset = usize::try_from(offset).unwrap_or(usize::MAX);
                let rest = bytes.bytes().get(offset..).unwrap_or_default();
                let len = rest.len().min(buf.len());
                buf[..len].copy_from_slice(&rest[..len]);
                Ok(len)
            }
        }
    }

    pub(super) fn of_file(
        image: ImageFile,
        schema_version: u32,
        control: &CopyControl,
    ) -> Result<SnapshotImage, SnapshotError> {
        let path = image.path().to_owned();
        let io = |doing| {
            let path = path.clone();
            move |error: io::Error| SnapshotError::io(doing, &path, &error)
        };
        let mut file =
            File::options().read(true).write(true).open(&path).map_err(io("open the snapshot"))?;
        for (offset, bytes) in header_patches(schema_version) {
            file.seek(SeekFrom::Start(offset as u64)).map_err(io("write the snapshot"))?;
            file.write_all(&bytes).map_err(io("write the snapshot"))?;
        }
        file.rewind().map_err(io("read the snapshot"))?;
        let (mut hash, mut len) = (Sha256::new(), 0);
        let mut chunk = vec![0; CHUNK];
        loop {
            control.check()?;
            let read = read_full(&mut file, &mut chunk).map_err(io("read the snapshot"))?;
            if read == 0 {
                break;
            }
            hash.update(&chunk[..read]);
            len += read as u64;
        }
        file.sync_all().map_err(io("sync the snapshot"))?;
        let sha256 = hash.finalize().into();
        Ok(SnapshotImage { body: Body::File { file, _removed: image }, len, sha256 })
    }

    pub(super) fn of_memory(
        mut bytes: SerializedDb,
        schema_version: u32,
        control: &CopyControl,
    ) -> Result<SnapshotImage, SnapshotError> {
        for (offset, patch) in header_patches(schema_version) {
            if let Some(field) = bytes.bytes_mut().get_mut(offset..offset + patch.len()) {
                field.copy_from_slice(&patch);
            }
        }
        let mut hash = Sha256::new();
        for chunk in bytes.bytes().chunks(CHUNK) {
            control.check()?;
            hash.update(chunk);
        }
        let (len, sha256) = (bytes.bytes().len() as u64, hash.finalize().into());
        Ok(SnapshotImage { body: Body::Memory(bytes), len, sha256 })
    }
}

impl Image for SnapshotImage {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.read_at(offset, buffer)? < buffer.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

/// What the backup leaves wrong in the [header](https://www.sqlite.org/fileformat.html): the
/// marks of WAL mode, taken over from the source, and a schema version of its own.
fn header_patches(schema_version: u32) -> [(usize, Vec<u8>); 2] {
    const FORMAT_VERSIONS: usize = 18;
    const SCHEMA_COOKIE: usize = 40;
    [(FORMAT_VERSIONS, vec![1, 1]), (SCHEMA_COOKIE, schema_version.to_be_bytes().to_vec())]
}

fn read_full(file: &mut File, buf: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < buf.len() {
        match file.read(&mut buf[read..]) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// A file that is removed when dropped.
pub(crate) struct ImageFile {
    path: PathBuf,
}

impl ImageFile {
    pub(super) fn new(path: PathBuf) -> ImageFile {
        ImageFile { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn set_path(&mut self, path: PathBuf) {
        self.path = path;
    }
}

impl Drop for ImageFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "snapshot file not removed");
        }
    }
}
