//! How many connections there may be, and who has to go where there are too many.
//!
//! Who has shown nothing yet makes room for whoever comes: so peers that connect and say nothing,
//! however many there are, keep nobody out who has something to say.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The connections of one address.
pub(crate) struct Slots {
    slots: Arc<Semaphore>,
    limit: usize,
    /// In the order in which they came.
    guests: Mutex<Vec<Weak<Guest>>>,
}

/// A connection, for as long as it lives.
pub(crate) struct Slot {
    pub(crate) guest: Arc<Guest>,
    _permit: OwnedSemaphorePermit,
}

/// What is known of a connection.
#[derive(Debug, Default)]
pub(crate) struct Guest {
    is_known: AtomicBool,
    must_leave: Notify,
}

impl Guest {
    /// It has sent something that was let in: it stays.
    pub(crate) fn is_known(&self) {
        self.is_known.store(true, Ordering::Relaxed);
    }

    /// Returns once it has to make room.
    pub(crate) async fn must_leave(&self) {
        self.must_leave.notified().await;
    }
}

impl Slots {
    pub(crate) fn new(limit: usize) -> Self {
        Self { slots: Arc::new(Semaphore::new(limit)), limit, guests: Mutex::default() }
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// A place, for which a stranger may have to go. `None` where everybody is known.
    pub(crate) async fn enter(&self) -> Option<Slot> {
        if let Some(slot) = self.take() {
            return Some(slot);
        }
        if !self.ask_a_stranger_to_leave() {
            return None;
        }
        Some(self.wait().await)
    }

    /// A place, if one is free.
    pub(crate) fn take(&self) -> Option<Slot> {
        Arc::clone(&self.slots).try_acquire_owned().ok().map(|permit| self.seat(permit))
    }

    /// A place, as soon as one is free.
    pub(crate) async fn wait(&self) -> Slot {
        let permit = Arc::clone(&self.slots).acquire_owned().await;
        self.seat(permit.expect("the semaphore is never closed"))
    }

    fn seat(&self, permit: OwnedSemaphorePermit) -> Slot {
        let guest = Arc::new(Guest::default());
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        guests.retain(|guest| guest.strong_count() > 0);
        guests.push(Arc::downgrade(&guest));
        Slot { guest, _permit: permit }
    }

    /// The one that has said nothing for longest.
    fn ask_a_stranger_to_leave(&self) -> bool {
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        let mut strangers = guests.iter().enumerate().filter_map(|(at, guest)| {
            let guest = guest.upgrade()?;
            (!guest.is_known.load(Ordering::Relaxed)).then_some((at, guest))
        });
        let Some((at, stranger)) = strangers.next() else { return false };
        drop(strangers);
        // Nobody is asked twice.
        guests.remove(at);
        stranger.must_leave.notify_one();
        true
    }

    /// Waits until all connections have ended, but not for ever.
    pub(crate) async fn all_free(&self, patience: Duration) {
        let all = u32::try_from(self.limit).unwrap_or(u32::MAX);
        let _ = tokio::time::timeout(patience, self.slots.acquire_many(all)).await;
    }
}
