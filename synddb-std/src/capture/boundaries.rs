//! Boundaries on the app's thread: by a second connection where one can read beside the app, by a
//! copy in steps where not.

use std::sync::Arc;

use super::ffi::{Db, SqliteError};
use super::idle::HandOver;
use super::known::{JournalMode, Statements};
use super::{CaptureError, CaptureOptions, FlushMode};
use crate::snapshot::{Advance, Boundary, ForegroundCopy, Reader, SnapshotError};

/// Takes boundaries for an engine, between two transactions.
pub(super) struct Boundaries {
    db: Db,
    options: CaptureOptions,
    hand_over: Arc<HandOver>,
    pub(super) mode: JournalMode,
    /// A reader could not be opened; only a flush tries again.
    reader_failed: bool,
    /// A snapshot being copied on this thread.
    copy: Option<ForegroundCopy>,
}

impl Boundaries {
    pub(super) fn new(
        db: Db,
        options: CaptureOptions,
        hand_over: Arc<HandOver>,
        mode: JournalMode,
    ) -> Boundaries {
        Boundaries { db, options, hand_over, mode, reader_failed: false, copy: None }
    }

    /// Notices a changed journal mode, which decides how boundaries are taken.
    pub(super) fn look_at_mode(
        &mut self,
        statements: &mut Statements,
    ) -> Result<JournalMode, SqliteError> {
        let mode = statements.mode()?;
        if mode != self.mode {
            self.mode = mode;
            self.copy = None;
            // The header was not read, or is of a log that is gone.
            let mut last = self.hand_over.lock();
            last.header = None;
            last.position = None;
        }
        Ok(mode)
    }

    pub(super) fn in_hook(&mut self) {
        if self.mode != JournalMode::SharedWal || self.reader_failed {
            return;
        }
        if let Err(error) = self.by_reader() {
            self.reader_failed = true;
            tracing::warn!(%error, "no second connection for a snapshot; the next flush tries again");
        }
    }

    pub(super) fn in_flush(
        &mut self,
        mode: FlushMode,
        schema_version: u32,
    ) -> Result<(), CaptureError> {
        if !self.hand_over.sink.wants_snapshot() {
            self.copy = None;
            return Ok(());
        }
        if self.mode == JournalMode::SharedWal {
            match self.by_reader() {
                Ok(()) => {
                    self.reader_failed = false;
                    return Ok(());
                }
                Err(error) => tracing::warn!(
                    %error,
                    "no second connection for a snapshot; copying on the application's thread"
                ),
            }
        }
        let copy = match self.copy.take() {
            Some(copy) => copy,
            None => {
                let Boundaries { db, options, .. } = self;
                // SAFETY: the connection outlives the copy, which `drop` takes off it.
                unsafe {
                    ForegroundCopy::start(*db, &options.snapshot_dir, &options.snapshot_prefix)
                }
                .map_err(CaptureError::Snapshot)?
            }
        };
        match copy.advance(mode == FlushMode::Complete).map_err(CaptureError::Snapshot)? {
            Advance::Complete(copied) => {
                let boundary = Boundary::from_copy(schema_version, copied);
                let last = self.hand_over.lock();
                self.hand_over.sink.boundary(boundary.at(last.position));
            }
            Advance::Unfinished(copy) => self.copy = Some(copy),
        }
        Ok(())
    }

    fn by_reader(&mut self) -> Result<(), SnapshotError> {
        let HandOver { sink, location, .. } = &*self.hand_over;
        let Some(location) = location.as_ref().filter(|_| sink.wants_snapshot()) else {
            return Ok(());
        };
        let reader = Reader::open(location)?;
        // Ordered with the boundaries of other threads.
        let last = self.hand_over.lock();
        sink.boundary(Boundary::from_reader(reader).at(last.position));
        Ok(())
    }
}
