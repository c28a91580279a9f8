//! Where a device keeps what must survive a reset.

use core::fmt;

use heapless::Deque;

/// Longest record that a device [stores](Storage::store), in bytes.
pub const MAX_RECORD: usize = 208;

/// What survives a reset: one small record, and the entries that are not acknowledged yet.
///
/// Entries have numbers that count up by one. All of it is durable on return, but for
/// [`trim`](Self::trim): forgotten entries that come back do no harm.
pub trait Storage {
    /// What can go wrong.
    type Error: fmt::Debug;

    /// Reads the record that was stored last into the start of `record` and gives its length;
    /// `None` where there is none. `record` has at least [`MAX_RECORD`] bytes.
    ///
    /// # Errors
    /// Those of the memory behind it.
    fn load(&mut self, record: &mut [u8]) -> Result<Option<usize>, Self::Error>;

    /// Replaces the record: whatever happens meanwhile, the old one or the new one is there.
    ///
    /// # Errors
    /// Those of the memory behind it; which of the two is there is not known then.
    fn store(&mut self, record: &[u8]) -> Result<(), Self::Error>;

    /// The numbers of the oldest and the newest entry that are held, without gaps between them.
    fn held(&self) -> Option<(u64, u64)>;

    /// Adds an entry, one after the newest (any number where none is held). `Ok(false)`: there is no
    /// room, and nothing changed.
    ///
    /// # Errors
    /// Those of the memory behind it; the entry may be held then, whole, or not at all.
    fn append(&mut self, number: u64, entry: &[u8]) -> Result<bool, Self::Error>;

    /// Reads an entry into the start of `buffer` and gives its length; `None` where it is not held
    /// or longer than `buffer`.
    ///
    /// # Errors
    /// Those of the memory behind it.
    fn read(&mut self, number: u64, buffer: &mut [u8]) -> Result<Option<usize>, Self::Error>;

    /// The entries before `number` are not needed any more.
    ///
    /// # Errors
    /// Those of the memory behind it.
    fn trim(&mut self, number: u64) -> Result<(), Self::Error>;

    /// Forgets everything, for a device that begins anew as somebody else.
    ///
    /// # Errors
    /// Those of the memory behind it.
    fn wipe(&mut self) -> Result<(), Self::Error>;
}

impl<S: Storage + ?Sized> Storage for &mut S {
    type Error = S::Error;

    fn load(&mut self, record: &mut [u8]) -> Result<Option<usize>, Self::Error> {
        (**self).load(record)
    }

    fn store(&mut self, record: &[u8]) -> Result<(), Self::Error> {
        (**self).store(record)
    }

    fn held(&self) -> Option<(u64, u64)> {
        (**self).held()
    }

    fn append(&mut self, number: u64, entry: &[u8]) -> Result<bool, Self::Error> {
        (**self).append(number, entry)
    }

    fn read(&mut self, number: u64, buffer: &mut [u8]) -> Result<Option<usize>, Self::Error> {
        (**self).read(number, buffer)
    }

    fn trim(&mut self, number: u64) -> Result<(), Self::Error> {
        (**self).trim(number)
    }

    fn wipe(&mut self) -> Result<(), Self::Error> {
        (**self).wipe()
    }
}

/// A [`Storage`] in memory, for tests and for devices whose rows may be lost with their power: at
/// most `ENTRIES` entries of `BYTES` bytes in all.
///
/// A device that loses it begins its stream anew; see
/// [`Device::begin_anew`](super::Device::begin_anew).
#[derive(Debug, Clone)]
pub struct RamStorage<const ENTRIES: usize, const BYTES: usize> {
    record: heapless::Vec<u8, MAX_RECORD>,
    /// Number of the oldest entry.
    first: u64,
    lengths: Deque<usize, ENTRIES>,
    bytes: Deque<u8, BYTES>,
}

impl<const ENTRIES: usize, const BYTES: usize> RamStorage<ENTRIES, BYTES> {
    /// A storage that holds nothing.
    pub const fn new() -> Self {
        Self { record: heapless::Vec::new(), first: 0, lengths: Deque::new(), bytes: Deque::new() }
    }

    fn drop_oldest(&mut self) {
        let len = self.lengths.pop_front().unwrap_or(0);
        for _ in 0..len {
            self.bytes.pop_front();
        }
        self.first += 1;
    }
}

impl<const ENTRIES: usize, const BYTES: usize> Default for RamStorage<ENTRIES, BYTES> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const ENTRIES: usize, const BYTES: usize> Storage for RamStorage<ENTRIES, BYTES> {
    type Error = core::convert::Infallible;

    fn load(&mut self, record: &mut [u8]) -> Result<Option<usize>, Self::Error> {
        let len = self.record.len();
        Ok(record.get_mut(..len).filter(|_| len > 0).map(|room| {
            room.copy_from_slice(&self.record);
            len
        }))
    }

    fn store(&mut self, record: &[u8]) -> Result<(), Self::Error> {
        self.record.clear();
        // Records are at most MAX_RECORD long.
        let _ = self.record.extend_from_slice(record);
        Ok(())
    }

    fn held(&self) -> Option<(u64, u64)> {
        let count = self.lengths.len() as u64;
        (count > 0).then(|| (self.first, self.first + count - 1))
    }

    fn append(&mut self, number: u64, entry: &[u8]) -> Result<bool, Self::Error> {
        if self.lengths.is_full() || self.bytes.capacity() - self.bytes.len() < entry.len() {
            return Ok(false);
        }
        if self.lengths.is_empty() {
            self.first = number;
        }
        // There is room for both, as was just seen.
        let _ = self.lengths.push_back(entry.len());
        for byte in entry {
            let _ = self.bytes.push_back(*byte);
        }
        Ok(true)
    }

    fn read(&mut self, number: u64, buffer: &mut [u8]) -> Result<Option<usize>, Self::Error> {
        let Some(at) = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok())
        else {
            return Ok(None);
        };
        let Some(len) = self.lengths.iter().nth(at).copied() else { return Ok(None) };
        let Some(room) = buffer.get_mut(..len) else { return Ok(None) };
        let before: usize = self.lengths.iter().take(at).sum();
        for (to, byte) in room.iter_mut().zip(self.bytes.iter().skip(before)) {
            *to = *byte;
        }
        Ok(Some(len))
    }

    fn trim(&mut self, number: u64) -> Result<(), Self::Error> {
        while !self.lengths.is_empty() && self.first < number {
            self.drop_oldest();
        }
        Ok(())
    }

    fn wipe(&mut self) -> Result<(), Self::Error> {
        *self = Self::new();
        Ok(())
    }
}
