//! Files that are made once and kept in the target directory, and errors that say which one it was.

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::process;

/// `target/vm`.
pub(super) fn dir() -> PathBuf {
    target().join("vm")
}

/// A path in it for what is made of what the key tells: another key, another path.
pub(super) fn keyed<K: Hash>(name: &str, key: impl Iterator<Item = K>) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    key.for_each(|part| part.hash(&mut hasher));
    dir().join(format!("{name}-{:016x}", hasher.finish()))
}

/// The target directory of this workspace.
pub(super) fn target() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    process::root().join(target.unwrap_or_else(|| "target".into()))
}

/// A directory to make something in. It is removed with this; what is to stay is moved out of it, so
/// that what is found in the cache is complete.
pub(super) struct Work(PathBuf);

impl Work {
    pub(super) fn new(name: &str) -> Result<Self, Failure> {
        let path = dir().join(format!("{name}-{}", std::process::id()));
        create_dir(&path)?;
        Ok(Self(path))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // What cannot be removed is in nobody's way.
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) fn create_dir(path: &Path) -> Result<(), Failure> {
    fs::create_dir_all(path).map_err(|error| about("create", path, error))
}

pub(super) fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| about("read", path, error))
}

pub(super) fn read_bytes(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| about("read", path, error))
}

pub(super) fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<(), Failure> {
    fs::write(path, contents).map_err(|error| about("write", path, error))
}

/// Moves what is complete to its place.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::rename(from, to).map_err(|error| about("create", to, error))
}

fn about(what: &str, path: &Path, error: std::io::Error) -> Failure {
    Failure::Check(format!("could not {what} {}: {error}", path.display()))
}
