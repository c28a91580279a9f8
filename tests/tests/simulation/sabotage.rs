//! Promises broken on purpose.

/// A promise broken on purpose: the simulation must notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// The sequencer stores what it has once more.
    NoDedupe,
    /// The sequencer acknowledges what its disk does not hold yet.
    AckBeforeFsync,
    /// The application forgets entries when they are sent.
    EarlyTrim,
    /// A full queue drops a commit and tells nobody.
    DropOnFull,
    /// The sequencer takes entries of an older epoch.
    IgnoredEpoch,
    /// Two entries are sent in each other's place.
    SwappedOrder,
    /// What a savepoint's rollback took back stays in the journal.
    SkippedRollback,
    /// What needs a snapshot does not get one.
    ForgottenResync,
}

/// Each, its name on the command line, and within how many seeds from 1 on it is found.
const TABLE: [(Sabotage, &str, u64); 8] = [
    (Sabotage::NoDedupe, "no-dedupe", 20),
    (Sabotage::AckBeforeFsync, "ack-before-fsync", 20),
    (Sabotage::EarlyTrim, "early-trim", 20),
    (Sabotage::DropOnFull, "drop-on-full", 20),
    (Sabotage::IgnoredEpoch, "ignored-epoch", 200),
    (Sabotage::SwappedOrder, "swapped-order", 20),
    (Sabotage::SkippedRollback, "skipped-rollback", 20),
    (Sabotage::ForgottenResync, "forgotten-resync", 20),
];

impl Sabotage {
    pub(crate) fn all() -> impl Iterator<Item = (Self, u64)> {
        TABLE.iter().map(|(sabotage, _, within)| (*sabotage, *within))
    }

    pub(crate) fn name(self) -> &'static str {
        TABLE.iter().find(|(sabotage, ..)| *sabotage == self).map_or("", |(_, name, _)| name)
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        TABLE.iter().find(|(_, known, _)| *known == name).map(|(sabotage, ..)| *sabotage)
    }

    pub(crate) fn names() -> String {
        TABLE.map(|(_, name, _)| name).join(", ")
    }
}
