//! What other threads see of a stream.

use std::{
    future::{Future, poll_fn},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use synddb_core::StreamId;

use crate::{
    Error,
    link::Receipt,
    shared::{Mode, Progress, Shared},
    stats::{Health, Stats},
    synddb::Waiting,
};

/// A stream as other threads see it: figures, health, and waiting for commits. It keeps nothing
/// alive; after a shutdown it tells how things stood then.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    stream: StreamId,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>, stream: StreamId) -> Self {
        Self { shared, stream }
    }

    /// The stream.
    pub fn stream(&self) -> StreamId {
        self.stream
    }

    /// Number of the last commit that was captured.
    pub fn last_commit(&self) -> u64 {
        self.shared.last_commit()
    }

    /// How the stream stands.
    pub fn stats(&self) -> Stats {
        let look = self.shared.look();
        let stored = look.receipt.map_or(0, |receipt| receipt.commit);
        Stats {
            stream: self.stream,
            last_commit: look.last_commit,
            receipt: look.receipt,
            unacknowledged_commits: look.last_commit.saturating_sub(stored),
            queued_entries: look.queued.entries,
            queued_bytes: look.queued.bytes,
            memory_commits: look.commits_in_memory,
            memory_bytes: look.memory,
            unprepared_commits: look.unprepared,
            resent_entries: look.sender.resent_entries,
            connections: look.sender.connections,
            refusals: look.sender.refusals,
            resyncs: look.resyncs,
            snapshots: look.snapshots,
            divergences: look.divergences,
            last_divergence: look.last_divergence,
            behind: match look.mode {
                Mode::Following => None,
                Mode::Behind { reason, .. } => Some(reason),
            },
            oldest_unacknowledged: look.oldest,
            last_ack: look.last_ack,
            link: look.link,
            trouble: look.trouble,
            stuck: look.stuck,
        }
    }

    /// Whether anybody should look.
    pub fn health(&self) -> Health {
        self.stats().health()
    }

    /// Waits until the sequencer has durably stored `commit` and everything before it. Where a
    /// snapshot is due that only the connection's own thread can take (outside WAL mode), that
    /// thread has to push meanwhile.
    ///
    /// # Errors
    /// [`Error::NotStored`], as [`push`](crate::SyndDB::push).
    pub fn wait(&self, commit: u64, timeout: Duration) -> Result<Receipt, Error> {
        let waiting = Waiting::new(&self.shared, commit, false, timeout);
        loop {
            match self.shared.wait_elsewhere(&waiting.target) {
                Progress::Stored(receipt) => return Ok(receipt),
                Progress::GaveUp(why) => return Err(Error::NotStored(why)),
                Progress::SnapshotWanted | Progress::Pending => {}
            }
        }
    }

    /// As [`wait`](Self::wait), as a future of no particular runtime.
    pub fn wait_async(
        &self,
        commit: u64,
        timeout: Duration,
    ) -> impl Future<Output = Result<Receipt, Error>> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        async move {
            let waiting = Waiting::new(&shared, commit, false, timeout);
            poll_fn(|context| match shared.poll(&waiting.target, context.waker()) {
                Progress::Stored(receipt) => Poll::Ready(Ok(receipt)),
                Progress::GaveUp(why) => Poll::Ready(Err(Error::NotStored(why))),
                Progress::SnapshotWanted | Progress::Pending => Poll::Pending,
            })
            .await
        }
    }
}
