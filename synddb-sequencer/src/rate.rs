//! How much a sender may send.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use synddb_core::StreamId;

/// Bytes that a frame counts as, at least: many small ones cost too.
const MIN_COST: usize = 1024;
/// Senders that are remembered. Those that have been quiet for a while are forgotten first.
const MAX_SENDERS: usize = 4096;

/// How much a sender may send. Who sends more is asked to wait, by Busy, which loses nothing and
/// counts as no failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bytes in a second, at least 1: of frames as they come. A frame counts as 1 KiB or more.
    pub bytes_per_second: u64,
    /// Bytes that may come at once after a quiet time.
    pub burst: u64,
}

impl Default for Rate {
    /// 256 MiB in a second, and as much at once.
    fn default() -> Self {
        Self { bytes_per_second: 256 << 20, burst: 256 << 20 }
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum Sender {
    Principal(String),
    Stream(StreamId),
}

/// What each sender has left.
#[derive(Debug)]
pub(crate) struct Rates {
    rate: Rate,
    left: Mutex<HashMap<Sender, Bucket>>,
}

/// As of a moment; negative where more was taken than there was.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Rates {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, left: Mutex::default() }
    }

    /// Takes `bytes`, or says how long to wait. Something that is left is enough for any frame, or
    /// those longer than the burst could never come.
    pub(crate) fn take(
        &self,
        principal: Option<&str>,
        stream: StreamId,
        bytes: usize,
    ) -> Result<(), Duration> {
        let sender = match principal {
            Some(name) => Sender::Principal(name.to_owned()),
            None => Sender::Stream(stream),
        };
        self.take_at(Instant::now(), sender, bytes)
    }

    fn take_at(&self, now: Instant, sender: Sender, bytes: usize) -> Result<(), Duration> {
        let (per_second, burst) =
            (self.rate.bytes_per_second.max(1) as f64, self.rate.burst.max(1) as f64);
        let refilled = |bucket: &Bucket| {
            let since = now.saturating_duration_since(bucket.at).as_secs_f64();
            (bucket.left + since * per_second).min(burst)
        };
        let mut senders = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        if senders.len() >= MAX_SENDERS && !senders.contains_key(&sender) {
            // Who has all of it left is as good as new.
            senders.retain(|_, bucket| refilled(bucket) < burst);
            if senders.len() >= MAX_SENDERS {
                return Err(Duration::from_secs(1));
            }
        }
        let bucket = senders.entry(sender).or_insert(Bucket { left: burst, at: now });
        *bucket = Bucket { left: refilled(bucket), at: now };
        if bucket.left <= 0.0 {
            return Err(Duration::from_secs_f64(-bucket.left / per_second));
        }
        bucket.left -= bytes.max(MIN_COST) as f64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(number: usize) -> Sender {
        Sender::Principal(number.to_string())
    }

    #[test]
    fn who_sends_too_much_waits_and_then_may() {
        let rates = Rates::new(Rate { bytes_per_second: 10_000, burst: 20_000 });
        let start = Instant::now();
        assert_eq!(rates.take_at(start, sender(1), 50_000), Ok(()), "something was left");
        let wait = rates.take_at(start, sender(1), 1).unwrap_err();
        assert_eq!(wait, Duration::from_secs(3));
        assert_eq!(rates.take_at(start, sender(2), 1), Ok(()), "another's is another's");
        let later = start + wait + Duration::from_millis(1);
        assert_eq!(rates.take_at(later, sender(1), 1), Ok(()));
        assert!(rates.take_at(later, sender(1), 1).is_err(), "a small frame costs too");
        let much_later = later + Duration::from_secs(1000);
        assert_eq!(rates.take_at(much_later, sender(1), 20_000), Ok(()));
        assert!(rates.take_at(much_later, sender(1), 1).is_err(), "no more than the burst");
    }

    #[test]
    fn it_does_not_remember_for_ever() {
        let rates = Rates::new(Rate { bytes_per_second: 10_000, burst: 20_000 });
        let start = Instant::now();
        for number in 0..MAX_SENDERS {
            assert_eq!(rates.take_at(start, sender(number), 5000), Ok(()));
        }
        assert!(rates.take_at(start, sender(MAX_SENDERS), 1).is_err());
        let later = start + Duration::from_secs(10);
        assert_eq!(rates.take_at(later, sender(MAX_SENDERS), 1), Ok(()));
        assert_eq!(rates.left.lock().unwrap().len(), 1);
    }
}
