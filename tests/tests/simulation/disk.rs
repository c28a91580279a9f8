//! What a disk may do: be slow, be full for a while, or freeze at a sync.

use synddb_core::Rng;

/// A disk, by its syncs.
#[derive(Debug, Default)]
pub(crate) struct Health {
    syncs: u64,
    /// Freezes at the sync of this number: it and all later writes fail until a restart.
    freeze_at: Option<u64>,
    /// Whether the sync that failed reached the platter all the same.
    reaches: bool,
    pub(crate) full: bool,
    pub(crate) slow: bool,
}

/// How a sync ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Synced {
    Yes,
    /// Nothing of it is there, neither now nor after a crash.
    No,
    /// Nobody knows before the crash; then it is there.
    Perhaps,
}

impl Health {
    /// Freezes at the sync of this number, counted from the start.
    pub(crate) fn freeze(&mut self, at: u64, reaches: bool) {
        (self.freeze_at, self.reaches) = (Some(at), reaches);
    }

    /// Freezes at the next sync.
    pub(crate) fn freeze_soon(&mut self, rng: &mut Rng) {
        self.freeze(self.syncs + 1, rng.up_to(1) == 0);
    }

    pub(crate) fn frozen(&self) -> bool {
        self.freeze_at.is_some_and(|at| self.syncs >= at)
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.syncs
    }

    pub(crate) fn sync(&mut self) -> Synced {
        if self.full {
            return Synced::No;
        }
        let was_frozen = self.frozen();
        self.syncs += 1;
        match self.frozen() {
            false => Synced::Yes,
            true if !was_frozen && self.reaches => Synced::Perhaps,
            true => Synced::No,
        }
    }

    /// Whether a write without a sync gets through.
    pub(crate) fn writes(&self) -> bool {
        !self.full && !self.frozen()
    }

    /// The machine has started again, with a disk that is well.
    pub(crate) fn mend(&mut self) {
        if self.frozen() {
            self.freeze_at = None;
        }
        self.full = false;
    }

    /// How long what was asked of it takes, in microseconds.
    pub(crate) fn takes(&self, rng: &mut Rng) -> u64 {
        if self.slow { rng.up_to(400_000) } else { 0 }
    }
}
