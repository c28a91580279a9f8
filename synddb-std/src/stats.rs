//! Figures for those who watch.

use std::time::Duration;

use synddb_core::{Epoch, SeqNo, StreamId, content::ContentSum, wire::message::ResyncReason};

use crate::link::{LinkState, Receipt};

/// How a stream stands at one moment.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// The stream.
    pub stream: StreamId,
    /// Number of the last commit that was captured. Losses count as commits too.
    pub last_commit: u64,
    /// What the sequencer has stored durably.
    pub receipt: Option<Receipt>,
    /// Commits that are not acknowledged.
    pub unacknowledged_commits: u64,
    /// Entries in the outbox.
    pub queued_entries: u64,
    /// Bytes of entries in the outbox.
    pub queued_bytes: u64,
    /// Commits in memory, on their way to the outbox.
    pub memory_commits: usize,
    /// Bytes of commits in memory.
    pub memory_bytes: usize,
    /// Commits that [`BeforeCommit`](crate::Durability::BeforeCommit) could not write to the outbox
    /// before they happened.
    pub unprepared_commits: u64,
    /// Entries that were sent more than once.
    pub resent_entries: u64,
    /// Connections that the sequencer greeted.
    pub connections: u64,
    /// Frames that the sequencer refused.
    pub refusals: u64,
    /// Snapshots that began a new epoch, and why.
    pub resyncs: Vec<(ResyncReason, u64)>,
    /// Snapshots that the sequencer stored.
    pub snapshots: u64,
    /// Snapshots that held something else than the changesets before them led to, by their hashes:
    /// a commit was captured wrongly. Each began a new epoch.
    pub divergences: u64,
    /// The last of them.
    pub last_divergence: Option<Divergence>,
    /// Why commits wait for a snapshot instead of being queued, while they do.
    pub behind: Option<ResyncReason>,
    /// Age of the oldest commit that is not acknowledged; a little more where it is not known to
    /// the millisecond.
    pub oldest_unacknowledged: Option<Duration>,
    /// Time since the sequencer last acknowledged anything.
    pub last_ack: Option<Duration>,
    /// State of the link.
    pub link: LinkState,
    /// What is wrong on this machine: the outbox or a snapshot cannot be written.
    pub trouble: Option<String>,
    /// What stays wrong until somebody does something, and what: the snapshot that is due is too large
    /// for the sequencer, a thread of synddb panicked.
    pub stuck: Option<String>,
}

/// What changesets led to, and what the database was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Divergence {
    /// The epoch.
    pub epoch: Epoch,
    /// The entry after which it was found. It came in after the snapshot that was found right before.
    pub seq: SeqNo,
    /// The commit as of which the snapshot is.
    pub commit: u64,
    /// The content hash by the entries.
    pub expected: ContentSum,
    /// That of the snapshot's rows.
    pub found: ContentSum,
}

/// Whether anybody should look.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// Commits flow, or there are none.
    Well,
    /// Commits queue: the sequencer cannot be reached, or this machine has trouble.
    Waiting {
        /// What happened, for people.
        why: String,
    },
    /// Commits queue until somebody decides.
    Stopped {
        /// What happened, for people.
        why: String,
    },
}

impl Stats {
    /// The state in one word, and why.
    pub fn health(&self) -> Health {
        if let Some(why) = &self.stuck {
            return Health::Stopped { why: why.clone() };
        }
        match (&self.link, &self.trouble) {
            (LinkState::Stopped(reason), _) => Health::Stopped { why: format!("{reason:?}") },
            (_, Some(trouble)) => Health::Waiting { why: trouble.clone() },
            (LinkState::Failing { error, .. }, None) => Health::Waiting { why: error.clone() },
            (LinkState::NotDriven, None) => {
                Health::Waiting { why: "nobody drives the link: spawn its future".into() }
            }
            (LinkState::Connecting | LinkState::Up, None) => Health::Well,
        }
    }
}
