//! Where the new database is made, and how it gets to where it was wanted.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::RestoreError;

/// What SQLite keeps beside a database. Left from an older database, it would be applied to the
/// new one.
const COMPANIONS: [&str; 3] = ["-wal", "-journal", "-shm"];

/// Refuses to overwrite, before anything is done.
pub(super) fn check_free(out: &Path, replace: bool) -> Result<(), RestoreError> {
    if out.file_name().is_none() {
        return Err(failed(out, &io::Error::from(io::ErrorKind::InvalidInput)));
    }
    if out.is_dir() {
        return Err(failed(out, &io::Error::from(io::ErrorKind::IsADirectory)));
    }
    let taken = std::iter::once(out.to_owned()).chain(companions(out));
    match taken.into_iter().find(|path| !replace && path.symlink_metadata().is_ok()) {
        Some(path) => Err(RestoreError::Exists { path: path.display().to_string() }),
        None => Ok(()),
    }
}

/// A folder beside the output, with everything that SQLite makes of the new database. It goes away
/// with this.
#[derive(Debug)]
pub(super) struct Workplace {
    dir: PathBuf,
    db: PathBuf,
}

impl Workplace {
    pub(super) fn create(out: &Path) -> Result<Self, RestoreError> {
        let mut attempt = 0u32;
        loop {
            let mut name = OsString::from(".");
            name.push(out.file_name().unwrap_or_default());
            name.push(format!(".restore-{}-{attempt}", std::process::id()));
            let dir = parent(out).join(name);
            match create_dir(&dir) {
                Ok(()) => return Ok(Self { db: dir.join("db"), dir }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => attempt += 1,
                Err(error) => return Err(failed(parent(out), &error)),
            }
        }
    }

    /// Where the database is made.
    pub(super) fn db(&self) -> &Path {
        &self.db
    }

    /// Makes the database durable and puts it at `out`. Gives its length in bytes.
    pub(super) fn publish(self, out: &Path, replace: bool) -> Result<u64, RestoreError> {
        let sync = || {
            let file = File::options().read(true).write(true).open(&self.db)?;
            file.sync_all()?;
            Ok(file.metadata()?.len())
        };
        let len = sync().map_err(|error| failed(&self.db, &error))?;
        check_free(out, replace)?;
        if replace {
            for companion in companions(out) {
                match fs::remove_file(&companion) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(failed(&companion, &error));
                    }
                    _ => {}
                }
            }
            fs::rename(&self.db, out).map_err(|error| failed(out, &error))?;
        } else {
            // Unlike a rename, a link never replaces what somebody put there meanwhile.
            match fs::hard_link(&self.db, out) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(RestoreError::Exists { path: out.display().to_string() });
                }
                // Not every file system has links.
                Err(_) => fs::rename(&self.db, out).map_err(|error| failed(out, &error))?,
            }
        }
        if cfg!(unix) {
            let dir = parent(out);
            let synced = File::open(dir).and_then(|dir| dir.sync_all());
            synced.map_err(|error| failed(dir, &error))?;
        }
        Ok(len)
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        // A folder that cannot be removed is in nobody's way; its name says what it was.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Only the user may look into it: what is in there has no permissions of its own yet.
fn create_dir(dir: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

fn companions(out: &Path) -> impl Iterator<Item = PathBuf> {
    COMPANIONS.iter().map(|suffix| {
        let mut path = out.as_os_str().to_owned();
        path.push(suffix);
        path.into()
    })
}

fn parent(out: &Path) -> &Path {
    match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

pub(super) fn failed(path: &Path, error: &io::Error) -> RestoreError {
    RestoreError::Io { path: path.display().to_string(), message: error.to_string() }
}
