//! What the outbox keeps about a sequencer that knows no epochs: a note of the link's own, and that a
//! generation's snapshot is stored there.

use rusqlite::{OptionalExtension, params};
use synddb_core::{Epoch, SeqNo, wire::message::Head};

use super::{Outbox, OutboxError, State, StoredSnapshot};

const TABLE: &str = "CREATE TABLE IF NOT EXISTS peer(
  id INTEGER PRIMARY KEY CHECK (id = 1), known TEXT NOT NULL
) STRICT";

impl Outbox {
    /// The note, if there is one.
    ///
    /// # Errors
    /// `Sqlite`.
    pub(crate) fn peer(&self) -> Result<Option<String>, OutboxError> {
        let db = self.lock()?;
        db.execute(TABLE, [])?;
        Ok(db.query_row("SELECT known FROM peer", [], |row| row.get(0)).optional()?)
    }

    /// Keeps the note, `durable` where a power cut must not take it.
    ///
    /// # Errors
    /// `Sqlite`.
    pub(crate) fn keep_peer(&self, known: &str, durable: bool) -> Result<(), OutboxError> {
        let db = self.lock()?;
        db.execute(TABLE, [])?;
        if !durable {
            db.pragma_update(None, "synchronous", "NORMAL")?;
        }
        let kept = db
            .prepare_cached("INSERT OR REPLACE INTO peer VALUES (1, ?1)")?
            .execute([known])
            .map(drop);
        db.pragma_update(None, "synchronous", "FULL")?;
        Ok(kept?)
    }

    /// The snapshot that the next generation waits for is stored: that becomes the current one, and
    /// the entries before it are forgotten, since it holds them. `None`, and nothing is done, where
    /// another generation waits.
    ///
    /// # Errors
    /// `Sqlite`: a restart begins with another snapshot.
    pub(crate) fn base_is_stored(
        &self,
        snapshot: &StoredSnapshot,
    ) -> Result<Option<State>, OutboxError> {
        let StoredSnapshot { generation, as_of_commit, as_of_bytes, len, .. } = *snapshot;
        let (next, wish) = {
            let next: Option<i64> =
                self.lock()?.query_row("SELECT next FROM outbox", [], |row| row.get(0))?;
            (next, self.state()?.wish)
        };
        let Some(wish) = wish.filter(|_| next == Some(generation)) else { return Ok(None) };
        // Asked for by its name: one that has taken its place meanwhile is not opened.
        let opened = self.opened(Head {
            epoch: Epoch(0),
            open_id: wish.open_id,
            next_seq: SeqNo::FIRST,
            ..Head::default()
        })?;
        if !opened {
            return Ok(None);
        }
        self.lock()?.execute(
            "UPDATE outbox SET base_noted = 1, snapshot_commit = max(snapshot_commit, ?2),
             snapshot_at = ?3, snapshot_len = ?4
             WHERE current = ?1",
            params![generation, as_of_commit as i64, as_of_bytes as i64, len as i64],
        )?;
        self.state().map(Some)
    }
}
