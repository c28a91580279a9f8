//! Boundaries taken by another thread while the app does not commit.
//!
//! A second connection sees the state after some commit; which one, only the log can tell. So
//! after each hand-over the engine notes the header of the WAL-index, which every commit of any
//! connection changes. Another thread opens a reader and then looks at the header: if it is the
//! one noted, the reader sees exactly the state after the commit handed over last. If it still is
//! the last once the hand-overs are held up for a moment, the boundary lies right behind it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::CommitSink;
use super::ffi::{Db, Location, WalIndexHeader};
use super::known::{JournalMode, Known};
use super::position::Position;
use crate::snapshot::{Boundary, Reader, SnapshotError};

/// Takes boundaries from any thread; see [`super::Capture::idle_boundary`].
#[derive(Clone)]
pub(crate) struct IdleBoundary {
    pub(super) shared: Arc<HandOver>,
}

/// Orders the hand-overs of the engine and the boundaries of other threads.
pub(super) struct HandOver {
    pub(super) sink: Arc<dyn CommitSink>,
    pub(super) location: Option<Location>,
    state: Mutex<State>,
}

/// What is known of the last hand-over.
#[derive(Clone, Copy, Default)]
pub(super) struct State {
    /// Names the state of the database after it, where a header can.
    pub(super) header: Option<WalIndexHeader>,
    /// Names it beyond the end of the process, where that can be done.
    pub(super) position: Option<Position>,
    /// The sink panicked: until that is reported no name means anything.
    pub(super) panicked: bool,
    /// Counts hand-overs: equal numbers mean that none came in between.
    pub(super) number: u64,
}

impl HandOver {
    pub(super) fn new(sink: Arc<dyn CommitSink>, location: Option<Location>) -> Arc<HandOver> {
        Arc::new(HandOver { sink, location, state: Mutex::new(State::default()) })
    }

    /// Capture begins, with a database that is not handed over.
    pub(super) fn begin(&self, db: Db, known: &Known, mode: JournalMode) {
        let (location, application_id) = (self.location.as_ref(), known.application_id);
        let position = match known.header {
            Some(header) => Position::in_quiet_log(db, header, application_id),
            None => Position::in_file(db, location, mode, application_id),
        };
        let mut state = self.lock();
        state.header = known.header;
        state.position = position;
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something was committed that is not handed over, or capture ended.
    pub(super) fn forget(&self) {
        let mut state = self.lock();
        state.header = None;
        state.position = None;
        state.panicked = true;
        state.number += 1;
    }

    /// The state after the last hand-over is found to have this name.
    pub(super) fn name(&self, position: Option<Position>) {
        let mut state = self.lock();
        let position = position.filter(|_| !state.panicked);
        if state.position != position {
            state.position = position;
            if let Some(position) = position {
                self.sink.named(position);
            }
        }
    }
}

impl IdleBoundary {
    /// Takes a boundary if the sink wants one and this moment allows it; true if it was handed
    /// to the sink.
    ///
    /// False says nothing but: not now. The app may be committing, may have uncaptured commits
    /// (they come with its next commit or flush), may not be in WAL mode, or be detached; or
    /// another process writes. Costs the opening of a connection, about 0.2 ms, and holds up a
    /// commit of the app no longer than [`CommitSink::boundary`] takes.
    ///
    /// # Errors
    /// If the database cannot be opened or read by a second connection.
    pub(crate) fn try_take(&self) -> Result<bool, SnapshotError> {
        Ok(match self.look()? {
            Some(look) => self.deliver(look),
            None => false,
        })
    }

    fn look(&self) -> Result<Option<Look>, SnapshotError> {
        let HandOver { sink, location, .. } = &*self.shared;
        let Some(location) = location.as_ref().filter(|_| sink.wants_snapshot()) else {
            return Ok(None);
        };
        let State { header, number, .. } = *self.shared.lock();
        let Some(header) = header else { return Ok(None) };
        let reader = Reader::open_at(location, header)?;
        Ok(reader.map(|reader| Look { boundary: Boundary::from_reader(reader), number }))
    }

    /// What the app commits from here on is handed over later, for that takes the same lock.
    fn deliver(&self, look: Look) -> bool {
        let now = self.shared.lock();
        if now.number != look.number {
            return false;
        }
        self.shared.sink.boundary(look.boundary.at(now.position));
        true
    }
}

/// The state after a hand-over, and the number of that hand-over.
struct Look {
    boundary: Boundary,
    number: u64,
}

#[cfg(test)]
mod tests {
    use super::super::tests::{App, Mode};

    #[test]
    fn a_commit_handed_over_while_the_reader_opens_refuses_the_boundary() {
        let app = App::with(Mode::Wal, "CREATE TABLE item(id INTEGER PRIMARY KEY)");
        let idle = app.capture.as_ref().unwrap().idle_boundary();
        app.log.want_snapshot();
        let look = idle.look().unwrap().expect("an idle app");
        // Not by the commit itself, which would take its own.
        app.log.unwant_snapshot();
        app.run("INSERT INTO item VALUES (1)");
        assert!(!idle.deliver(look));
        app.log.want_snapshot();
        let look = idle.look().unwrap().expect("an idle app");
        app.run("BEGIN; INSERT INTO item VALUES (2)");
        assert!(idle.deliver(look), "what is not committed does not matter");
        assert_eq!(app.log.take().len(), 2);
    }
}
