//! When to try again: exponential backoff with full jitter.
//!
//! Each wait is drawn evenly from zero to a ceiling that doubles with every failure, so that many
//! senders that lost the same receiver come back spread out. A receiver's own Retry-After is
//! honoured, up to a cap: no answer may silence a sender for ever.

use core::time::Duration;

use crate::Rng;

/// Limits of a [`Backoff`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffConfig {
    /// The ceiling of the first wait.
    pub first: Duration,
    /// The ceiling that the doubling stops at.
    pub max: Duration,
    /// The longest Retry-After that is honoured.
    pub max_retry_after: Duration,
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(100),
            max: Duration::from_secs(30),
            max_retry_after: Duration::from_secs(60),
        }
    }
}

/// Draws the wait before each further attempt.
#[derive(Debug, Clone)]
pub struct Backoff {
    config: BackoffConfig,
    failures: u32,
    rng: Rng,
}

impl Backoff {
    /// A backoff that has seen no failure. The same seed gives the same waits.
    pub const fn new(config: BackoffConfig, seed: u64) -> Self {
        Self { config, failures: 0, rng: Rng::new(seed) }
    }

    /// Failures since the last [`reset`](Self::reset).
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Counts a failure and draws the wait before the next attempt.
    pub fn next_wait(&mut self, retry_after: Option<Duration>) -> Duration {
        let ceiling = self
            .config
            .first
            .saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX))
            .min(self.config.max);
        self.failures = self.failures.saturating_add(1);
        self.draw(ceiling, retry_after)
    }

    /// Draws a wait that counts no failure, for a receiver that is well but busy.
    pub fn busy_wait(&mut self, retry_after: Duration) -> Duration {
        self.draw(self.config.first, Some(retry_after))
    }

    fn draw(&mut self, ceiling: Duration, retry_after: Option<Duration>) -> Duration {
        let jitter = Duration::from_micros(
            self.rng.up_to(u64::try_from(ceiling.as_micros()).unwrap_or(u64::MAX)),
        );
        match retry_after {
            // Asked to wait: at least that long, and spread out after it.
            Some(asked) => asked.min(self.config.max_retry_after) + jitter.min(self.config.first),
            None => jitter,
        }
    }

    /// Forgets the failures. Call it after useful work, not after a mere connect: a receiver that
    /// accepts and hangs up must not be hammered.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_below_a_doubling_ceiling() {
        let config = BackoffConfig::default();
        for seed in 0..100 {
            let mut backoff = Backoff::new(config, seed);
            let mut ceiling = config.first;
            for _ in 0..80 {
                assert!(backoff.next_wait(None) <= ceiling);
                ceiling = (ceiling * 2).min(config.max);
            }
        }
    }

    #[test]
    fn waits_are_spread_over_the_whole_range() {
        let mut backoff = Backoff::new(BackoffConfig::default(), 7);
        let (mut low, mut high) = (0, 0);
        for _ in 0..1000 {
            backoff.reset();
            let wait = backoff.next_wait(None);
            low += u32::from(wait < Duration::from_millis(20));
            high += u32::from(wait > Duration::from_millis(80));
        }
        assert!(low > 100 && high > 100, "{low} below 20 ms, {high} above 80 ms");
    }

    #[test]
    fn retry_after_is_honoured_and_capped() {
        let mut backoff = Backoff::new(BackoffConfig::default(), 1);
        let wait = backoff.next_wait(Some(Duration::from_secs(5)));
        assert!(wait >= Duration::from_secs(5) && wait < Duration::from_secs(6));
        let wait = backoff.next_wait(Some(Duration::from_secs(86_400)));
        assert!(wait < Duration::from_secs(61));
        let before = backoff.failures();
        let _ = backoff.busy_wait(Duration::from_secs(1));
        assert_eq!(backoff.failures(), before);
    }
}
