//! A [`Storage`] in flash memory: two slots for the record, and a ring of sectors for entries.
//!
//! ```text
//!  sector 0, 1   the record, in turn:  counter u32 │ length u32 │ crc u32 │ 0 u32 │ record
//!  sector 2..    entries, back to back: number u64 │ length u32 │ crc u32 │ entry │ padding
//! ```
//!
//! Nothing is written twice without an erase in between, and nothing is erased that is still
//! needed. A write that the power left in the middle of shows by its checksum: it never happened,
//! and what is behind it in its sector is not used before the next erase.

use core::fmt;

use super::storage::{MAX_RECORD, Storage};
use crate::wire::header::CRC;

/// What a flash memory does. Sectors count from 0; all of them have the same size.
///
/// Adapters for `embedded-storage`'s `NorFlash` take one line for each method.
pub trait Flash {
    /// What can go wrong.
    type Error: fmt::Debug;

    /// Bytes of a sector, at least 1024.
    const SECTOR: usize;
    /// Writes begin and end at multiples of so many bytes; at most 16, and a power of two.
    const WRITE: usize;

    /// Reads from `at` bytes into a sector on.
    ///
    /// # Errors
    /// Those of the hardware.
    fn read(&mut self, sector: usize, at: usize, into: &mut [u8]) -> Result<(), Self::Error>;

    /// Writes to bytes that were erased and not written since.
    ///
    /// # Errors
    /// Those of the hardware.
    fn write(&mut self, sector: usize, at: usize, bytes: &[u8]) -> Result<(), Self::Error>;

    /// Sets all bytes of a sector to 0xFF.
    ///
    /// # Errors
    /// Those of the hardware.
    fn erase(&mut self, sector: usize) -> Result<(), Self::Error>;
}

const HEAD: usize = 16;
/// The longest unit of writing that is possible.
const MAX_WRITE: usize = 16;
/// Sectors of the record's two slots.
const SLOTS: usize = 2;

/// What is known of a sector of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Sector {
    /// Number of its first entry.
    first: u64,
    /// How many whole entries are in it.
    count: u32,
    /// Where the next one would go; the sector's end where it takes none any more.
    end: usize,
}

/// A [`Storage`] over `SECTORS` sectors of flash for entries, and two more before them for the
/// record: `SECTORS + 2` in all, `SECTORS` at least 2.
///
/// An entry lies in one sector, so that the longest has `SECTOR` - 16 bytes. Half of a sector may
/// stay unused, and one sector is always being emptied.
#[derive(Debug)]
pub struct FlashStorage<F, const SECTORS: usize> {
    flash: F,
    /// Slot and counter of the record that was stored last.
    record: Option<(usize, u32)>,
    sectors: [Sector; SECTORS],
    /// The sector that entries go to.
    newest: usize,
    /// Entries before this one are not needed.
    needed: u64,
}

impl<F: Flash, const SECTORS: usize> FlashStorage<F, SECTORS> {
    /// Looks at what is there. Memory that was never written must be erased (all bytes 0xFF), or
    /// [wiped](Storage::wipe) by the first firmware.
    ///
    /// # Errors
    /// Those of the hardware.
    pub fn open(flash: F) -> Result<Self, F::Error> {
        const {
            assert!(SECTORS >= 2, "one sector is emptied while the other is written");
            assert!(F::SECTOR >= 1024, "sectors of 1 KiB: a record and its head are shorter");
            assert!(F::WRITE.is_power_of_two() && F::WRITE <= MAX_WRITE, "units of writing");
        };
        let sectors = [Sector::default(); SECTORS];
        let mut storage = Self { flash, record: None, sectors, newest: 0, needed: 0 };
        storage.find_record()?;
        for at in 0..SECTORS {
            storage.sectors[at] = storage.scan(at)?;
        }
        storage.keep_the_newest_run();
        Ok(storage)
    }

    /// The memory behind it.
    pub fn into_inner(self) -> F {
        self.flash
    }

    fn find_record(&mut self) -> Result<(), F::Error> {
        for slot in 0..SLOTS {
            let mut record = [0; MAX_RECORD];
            if let Some((counter, _)) = self.read_slot(slot, &mut record)?
                && self.record.is_none_or(|(_, newest)| counter.wrapping_sub(newest) as i32 > 0)
            {
                self.record = Some((slot, counter));
            }
        }
        Ok(())
    }

    /// The slot's counter and the record's length, where it holds a whole one.
    fn read_slot(
        &mut self,
        slot: usize,
        record: &mut [u8],
    ) -> Result<Option<(u32, usize)>, F::Error> {
        let mut head = [0; HEAD];
        self.flash.read(slot, 0, &mut head)?;
        let [counter, len, crc, _] = words(&head);
        let Some(room) = record.get_mut(..len as usize).filter(|room| room.len() <= MAX_RECORD)
        else {
            return Ok(None);
        };
        self.flash.read(slot, HEAD, room)?;
        Ok((len > 0 && checksum(&head[..8], room) == crc).then_some((counter, len as usize)))
    }

    /// The whole entries of a sector.
    fn scan(&mut self, sector: usize) -> Result<Sector, F::Error> {
        let mut found = Sector::default();
        loop {
            let mut head = [0xFF; HEAD];
            if found.end + HEAD > F::SECTOR {
                break;
            }
            self.flash.read(SLOTS + sector, found.end, &mut head)?;
            if head == [0xFF; HEAD] && self.is_blank(sector, found.end)? {
                return Ok(found);
            }
            let (number, len, crc) = entry_head(&head);
            let in_order =
                found.count == 0 || number == found.first.wrapping_add(found.count.into());
            let fits = len <= F::SECTOR - HEAD - found.end;
            if !in_order || !fits || self.checksum_at(sector, found.end, len, &head)? != crc {
                break;
            }
            if found.count == 0 {
                found.first = number;
            }
            found.count += 1;
            found.end += padded::<F>(HEAD + len);
        }
        found.end = F::SECTOR;
        Ok(found)
    }

    /// Whether nothing was written from `at` on. The head alone does not tell: the power may have
    /// gone before it was programmed and after what is behind it was.
    fn is_blank(&mut self, sector: usize, mut at: usize) -> Result<bool, F::Error> {
        while at < F::SECTOR {
            let mut piece = [0xFF; 64];
            let len = piece.len().min(F::SECTOR - at);
            self.flash.read(SLOTS + sector, at, &mut piece[..len])?;
            if piece.iter().any(|byte| *byte != 0xFF) {
                return Ok(false);
            }
            at += len;
        }
        Ok(true)
    }

    fn checksum_at(
        &mut self,
        sector: usize,
        at: usize,
        len: usize,
        head: &[u8; HEAD],
    ) -> Result<u32, F::Error> {
        let mut digest = CRC.digest();
        digest.update(&head[..12]);
        let (mut at, end) = (at + HEAD, at + HEAD + len);
        while at < end {
            let mut piece = [0; 64];
            let count = piece.len().min(end - at);
            self.flash.read(SLOTS + sector, at, &mut piece[..count])?;
            digest.update(&piece[..count]);
            at += count;
        }
        Ok(digest.finalize())
    }

    /// Of what the sectors hold, what belongs together: the run of numbers that ends with the
    /// newest. What else is there are remains of entries that were trimmed.
    fn keep_the_newest_run(&mut self) {
        let newest = (0..SECTORS).filter(|at| self.sectors[*at].count > 0);
        self.newest = newest.max_by_key(|at| self.sectors[*at].last()).unwrap_or(0);
        let mut first = self.sectors[self.newest].first;
        while let Some(before) = self.sectors.iter().find(|sector| {
            sector.count > 0 && first > 0 && sector.first < first && sector.last() + 1 == first
        }) {
            first = before.first;
        }
        self.needed = first;
    }

    /// The entry's sector and place in it.
    fn find(&mut self, number: u64) -> Result<Option<(usize, usize, usize)>, F::Error> {
        if number < self.needed {
            return Ok(None);
        }
        let Some(sector) = (0..SECTORS).find(|at| self.sectors[*at].has(number)) else {
            return Ok(None);
        };
        let mut at = 0;
        for _ in self.sectors[sector].first..number {
            at += padded::<F>(HEAD + self.len_at(sector, at)?);
        }
        let len = self.len_at(sector, at)?;
        Ok(Some((sector, at + HEAD, len)))
    }

    fn len_at(&mut self, sector: usize, at: usize) -> Result<usize, F::Error> {
        let mut head = [0; HEAD];
        self.flash.read(SLOTS + sector, at, &mut head)?;
        Ok(entry_head(&head).1)
    }

    /// Writes head and bytes, padded to whole units of writing, as one run.
    fn put(
        &mut self,
        sector: usize,
        at: usize,
        head: &[u8; HEAD],
        bytes: &[u8],
    ) -> Result<(), F::Error> {
        self.flash.write(sector, at, head)?;
        let whole = bytes.len() - bytes.len() % F::WRITE;
        let (whole, rest) = bytes.split_at(whole);
        if !whole.is_empty() {
            self.flash.write(sector, at + HEAD, whole)?;
        }
        if !rest.is_empty() {
            let mut unit = [0; MAX_WRITE];
            unit[..rest.len()].copy_from_slice(rest);
            self.flash.write(sector, at + HEAD + whole.len(), &unit[..F::WRITE])?;
        }
        Ok(())
    }

    /// Whether the sector's entries are all trimmed.
    fn is_free(&self, sector: usize) -> bool {
        let sector = self.sectors[sector];
        sector.count == 0 || sector.last() < self.needed
    }
}

impl Sector {
    fn last(&self) -> u64 {
        self.first.saturating_add(u64::from(self.count)).saturating_sub(1)
    }

    fn has(&self, number: u64) -> bool {
        self.count > 0 && (self.first..=self.last()).contains(&number)
    }
}

impl<F: Flash, const SECTORS: usize> Storage for FlashStorage<F, SECTORS> {
    type Error = F::Error;

    fn load(&mut self, record: &mut [u8]) -> Result<Option<usize>, Self::Error> {
        let Some((slot, _)) = self.record else { return Ok(None) };
        Ok(self.read_slot(slot, record)?.map(|(_, len)| len))
    }

    fn store(&mut self, record: &[u8]) -> Result<(), Self::Error> {
        let (slot, counter) = match self.record {
            Some((slot, counter)) => (1 - slot, counter.wrapping_add(1)),
            None => (0, 0),
        };
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(&counter.to_le_bytes());
        head[4..8].copy_from_slice(&(record.len() as u32).to_le_bytes());
        let crc = checksum(&head[..8], record);
        head[8..12].copy_from_slice(&crc.to_le_bytes());
        self.flash.erase(slot)?;
        self.put(slot, 0, &head, record)?;
        self.record = Some((slot, counter));
        Ok(())
    }

    fn held(&self) -> Option<(u64, u64)> {
        // The newest sector may be empty still, or its only entry was cut short.
        let filled = self.sectors.iter().filter(|sector| sector.count > 0);
        let last = filled.map(Sector::last).max()?;
        (last >= self.needed).then_some((self.needed, last))
    }

    fn append(&mut self, number: u64, entry: &[u8]) -> Result<bool, Self::Error> {
        let room = HEAD + padded::<F>(entry.len());
        if room > F::SECTOR {
            return Ok(false);
        }
        let newest = self.sectors[self.newest];
        let follows = newest.count == 0 || newest.last() + 1 == number;
        if !follows || newest.end + room > F::SECTOR {
            let next = (self.newest + 1) % SECTORS;
            if !self.is_free(next) {
                return Ok(false);
            }
            self.flash.erase(SLOTS + next)?;
            self.sectors[next] = Sector::default();
            self.newest = next;
        }
        if self.held().is_none() {
            self.needed = number;
        }
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(&number.to_le_bytes());
        head[8..12].copy_from_slice(&(entry.len() as u32).to_le_bytes());
        let crc = checksum(&head[..12], entry);
        head[12..].copy_from_slice(&crc.to_le_bytes());
        let at = self.sectors[self.newest].end;
        // Should the write fail, what is there is not known: nothing goes behind it.
        self.sectors[self.newest].end = F::SECTOR;
        self.put(SLOTS + self.newest, at, &head, entry)?;
        let sector = &mut self.sectors[self.newest];
        if sector.count == 0 {
            sector.first = number;
        }
        sector.count += 1;
        sector.end = at + room;
        Ok(true)
    }

    fn read(&mut self, number: u64, buffer: &mut [u8]) -> Result<Option<usize>, Self::Error> {
        let Some((sector, at, len)) = self.find(number)? else { return Ok(None) };
        let Some(room) = buffer.get_mut(..len) else { return Ok(None) };
        self.flash.read(SLOTS + sector, at, room)?;
        Ok(Some(len))
    }

    fn trim(&mut self, number: u64) -> Result<(), Self::Error> {
        self.needed = self.needed.max(number);
        Ok(())
    }

    fn wipe(&mut self) -> Result<(), Self::Error> {
        for sector in 0..SLOTS + SECTORS {
            self.flash.erase(sector)?;
        }
        self.record = None;
        self.sectors = [Sector::default(); SECTORS];
        self.newest = 0;
        self.needed = 0;
        Ok(())
    }
}

fn padded<F: Flash>(len: usize) -> usize {
    len.next_multiple_of(F::WRITE)
}

fn checksum(head: &[u8], bytes: &[u8]) -> u32 {
    let mut digest = CRC.digest();
    digest.update(head);
    digest.update(bytes);
    digest.finalize()
}

fn words(head: &[u8; HEAD]) -> [u32; 4] {
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    [word(0), word(4), word(8), word(12)]
}

/// An entry's number, length and checksum.
fn entry_head(head: &[u8; HEAD]) -> (u64, usize, u32) {
    let [low, high, len, crc] = words(head);
    (u64::from(low) | u64::from(high) << 32, usize::try_from(len).unwrap_or(usize::MAX), crc)
}

#[cfg(test)]
mod tests {
    extern crate alloc;

    use alloc::{vec, vec::Vec};

    use super::*;

    struct Memory(Vec<Vec<u8>>);

    impl Flash for Memory {
        type Error = core::convert::Infallible;
        const SECTOR: usize = 1024;
        const WRITE: usize = 4;

        fn read(&mut self, sector: usize, at: usize, into: &mut [u8]) -> Result<(), Self::Error> {
            into.copy_from_slice(&self.0[sector][at..at + into.len()]);
            Ok(())
        }

        fn write(&mut self, sector: usize, at: usize, bytes: &[u8]) -> Result<(), Self::Error> {
            let room = &mut self.0[sector][at..at + bytes.len()];
            assert!(room.iter().all(|byte| *byte == 0xFF), "written twice without an erase");
            room.copy_from_slice(bytes);
            Ok(())
        }

        fn erase(&mut self, sector: usize) -> Result<(), Self::Error> {
            self.0[sector].fill(0xFF);
            Ok(())
        }
    }

    fn open(flash: Memory) -> FlashStorage<Memory, 3> {
        FlashStorage::open(flash).unwrap()
    }

    fn entry(number: u64) -> Vec<u8> {
        vec![number as u8; 20 + number as usize % 200]
    }

    #[test]
    fn entries_and_the_record_are_there_after_every_restart() {
        let mut storage = open(Memory(vec![vec![0xFF; 1024]; 5]));
        let (mut first, mut next) = (1, 1);
        let mut trimmed = 0;
        while next < 500 {
            storage.store(&entry(next)[..20]).unwrap();
            if storage.append(next, &entry(next)).unwrap() {
                next += 1;
            } else {
                assert!(next > first, "there is room for one at least");
                first = next - 1;
                storage.trim(first).unwrap();
                trimmed += 1;
            }
            if next % 7 == 0 {
                storage = open(storage.into_inner());
                storage.trim(first).unwrap();
            }
            assert_eq!(storage.held(), Some((first, next - 1)), "after {next}");
            for number in first..next {
                let mut buffer = [0; 300];
                let len = storage.read(number, &mut buffer).unwrap().expect("held");
                assert_eq!(&buffer[..len], entry(number));
            }
        }
        assert!(trimmed > 10);
    }

    #[test]
    fn an_entry_longer_than_a_sector_does_not_fit() {
        let mut storage = open(Memory(vec![vec![0xFF; 1024]; 5]));
        assert_eq!(storage.append(1, &[1; 1009]), Ok(false));
        assert_eq!(storage.append(1, &[1; 1008]), Ok(true));
        assert_eq!(storage.append(2, &[2; 1008]), Ok(true));
        let mut storage = open(storage.into_inner());
        assert_eq!(storage.held(), Some((1, 2)));
        assert_eq!(storage.read(2, &mut [0; 1007]), Ok(None));
    }
}
