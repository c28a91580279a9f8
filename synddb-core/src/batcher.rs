//! When to send: by count, by bytes, or because the oldest entry has waited long enough.

use core::time::Duration;

use crate::Instant;

/// Limits of a [`Batcher`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchConfig {
    /// Entries in one frame, at most.
    pub max_entries: u32,
    /// Bytes of entries in one frame, at most, unless one entry alone is larger.
    pub max_bytes: u32,
    /// The longest that an entry waits for company while other frames are on their way.
    pub linger: Duration,
    /// The longest that an entry waits while the link is idle; never more than `linger`.
    pub idle_linger: Duration,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            max_entries: 10_000,
            max_bytes: 1 << 20,
            linger: Duration::from_secs(1),
            idle_linger: Duration::from_millis(5),
        }
    }
}

/// Decides when the entries that wait are worth a frame. It keeps counts, never entries.
#[derive(Debug, Clone)]
pub struct Batcher {
    config: BatchConfig,
    entries: u64,
    bytes: u64,
    oldest: Option<Instant>,
    flush: bool,
}

impl Batcher {
    /// A batcher with nothing waiting.
    pub const fn new(config: BatchConfig) -> Self {
        Self { config, entries: 0, bytes: 0, oldest: None, flush: false }
    }

    /// `entries` more entries of `bytes` in all wait since `now`.
    pub fn handle_queued(&mut self, now: Instant, entries: u64, bytes: u64) {
        if entries == 0 {
            return;
        }
        self.entries += entries;
        self.bytes += bytes;
        self.oldest.get_or_insert(now);
    }

    /// `entries` of the waiting entries, `bytes` in all, went into a frame at `now`.
    pub fn handle_sent(&mut self, now: Instant, entries: u64, bytes: u64) {
        self.entries = self.entries.saturating_sub(entries);
        self.bytes = self.bytes.saturating_sub(bytes);
        // When the rest came is not known one by one: it counts as new, except that a flush
        // covers everything that waited when it was asked for.
        self.oldest = (self.entries > 0).then_some(now);
        if self.entries == 0 {
            self.bytes = 0;
            self.flush = false;
        }
    }

    /// Forgets what waits; what is to be sent again is told anew.
    pub fn clear(&mut self) {
        *self = Self::new(self.config);
    }

    /// Somebody waits for what is queued: it is due now.
    pub fn flush(&mut self) {
        self.flush = self.entries > 0;
    }

    /// Entries that wait.
    pub const fn entries(&self) -> u64 {
        self.entries
    }

    /// Whether a frame should go out at `now`; `idle` when nothing is in flight.
    #[must_use]
    pub fn is_due(&self, now: Instant, idle: bool) -> bool {
        self.due_at(idle).is_some_and(|due| due <= now)
    }

    /// When a frame is due, if nothing else happens; the past means at once.
    #[must_use]
    pub fn due_at(&self, idle: bool) -> Option<Instant> {
        let oldest = self.oldest?;
        let full = self.entries >= u64::from(self.config.max_entries)
            || self.bytes >= u64::from(self.config.max_bytes);
        if full || self.flush {
            return Some(oldest);
        }
        let wait =
            if idle { self.config.idle_linger.min(self.config.linger) } else { self.config.linger };
        Some(oldest + wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: BatchConfig = BatchConfig {
        max_entries: 10,
        max_bytes: 1000,
        linger: Duration::from_millis(100),
        idle_linger: Duration::from_millis(5),
    };

    fn at(millis: u64) -> Instant {
        Instant::from_micros(millis * 1000)
    }

    #[test]
    fn a_batch_is_due_by_count_bytes_age_or_flush() {
        let mut batcher = Batcher::new(CONFIG);
        assert_eq!(batcher.due_at(true), None);
        batcher.handle_queued(at(0), 1, 10);
        assert!(!batcher.is_due(at(4), true) && batcher.is_due(at(5), true));
        assert!(!batcher.is_due(at(99), false) && batcher.is_due(at(100), false));
        batcher.handle_queued(at(1), 9, 10);
        assert!(batcher.is_due(at(1), false), "ten entries");
        batcher.handle_sent(at(1), 10, 20);
        assert!(!batcher.is_due(at(1000), true));
        batcher.handle_queued(at(1000), 1, 1000);
        assert!(batcher.is_due(at(1000), false), "a thousand bytes");
        batcher.clear();
        batcher.handle_queued(at(2000), 1, 1);
        batcher.flush();
        assert!(batcher.is_due(at(2000), false), "flush");
    }
}
