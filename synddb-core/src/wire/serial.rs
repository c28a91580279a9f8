//! Frames on a line that has no connections of its own: a serial line.
//!
//! A reset in the middle of a frame does not close such a line, and bytes may be lost on it. So
//! frames are packed there: encoded by [consistent overhead byte stuffing][cobs], which leaves no
//! zero in them, and ended by a zero. Whatever came before, a zero is where a frame may begin; what
//! is no frame between two zeros is dropped.
//!
//! A sender begins a connection with a zero. A frame on an ordinary stream begins with `S`, so that
//! the receiver knows by the first byte what it is.
//!
//! [cobs]: https://doi.org/10.1109/90.769765

use super::header;

/// Ends a packed frame, and is in none.
pub const END: u8 = 0;
/// Most bytes of a block that are not zero.
const BLOCK: usize = 254;

/// Packs a frame: blocks of one length byte and up to 254 others, which go to the line one behind
/// the other, and the [`END`] behind the last.
pub fn pack(frame: &[u8]) -> Packed<'_> {
    Packed { rest: Some(frame) }
}

/// Iterator over the blocks of a packed frame.
#[derive(Debug, Clone)]
pub struct Packed<'f> {
    rest: Option<&'f [u8]>,
}

impl<'f> Iterator for Packed<'f> {
    type Item = (u8, &'f [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest?;
        let window = &rest[..rest.len().min(BLOCK)];
        let run = window.iter().position(|byte| *byte == END).unwrap_or(window.len());
        let (block, rest) = rest.split_at(run);
        self.rest = match rest.split_first() {
            // A full block has no zero behind it, any other one has, but for the last.
            Some(_) if run == BLOCK => Some(rest),
            Some((_, rest)) => Some(rest),
            None => None,
        };
        Some((run as u8 + 1, block))
    }
}

/// Finds packed frames in the bytes of a line, and drops what is none.
///
/// The buffer's length is the longest frame that is accepted.
#[derive(Debug)]
pub struct Unpacker<B> {
    buffer: B,
    len: usize,
    /// Bytes until the next length byte.
    block: u8,
    /// Whether a zero is due before the next block.
    zero: bool,
    /// Whether the bytes until the next end are of no use.
    lost: bool,
    /// Whether the bytes here were handed out.
    taken: bool,
    dropped: u64,
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Unpacker<B> {
    /// An unpacker over `buffer`. What comes before the first end is dropped unless it is a frame.
    pub const fn new(buffer: B) -> Self {
        Self { buffer, len: 0, block: 0, zero: false, lost: false, taken: false, dropped: 0 }
    }

    /// Takes bytes up to the end of the next frame: gives how many it took, and the frame where one
    /// is whole, its checksum checked. Call until it has taken all.
    pub fn feed(&mut self, bytes: &[u8]) -> (usize, Option<&[u8]>) {
        for (at, byte) in bytes.iter().enumerate() {
            if core::mem::take(&mut self.taken) {
                self.clear();
            }
            if *byte != END {
                self.push(*byte);
                continue;
            }
            let whole = !self.lost && self.block == 0;
            let limit = self.buffer.as_ref().len();
            if whole && header::open(&self.buffer.as_ref()[..self.len], limit).is_ok() {
                self.taken = true;
                return (at + 1, Some(&self.buffer.as_ref()[..self.len]));
            }
            self.dropped += u64::from(self.is_mid_frame());
            self.clear();
        }
        (bytes.len(), None)
    }

    /// How many runs of bytes were no frame since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Whether something came since the last end.
    pub fn is_mid_frame(&self) -> bool {
        !self.taken && (self.len > 0 || self.block > 0 || self.zero || self.lost)
    }

    /// Forgets what came since the last end.
    pub fn clear(&mut self) {
        self.len = 0;
        self.block = 0;
        self.zero = false;
        self.lost = false;
        self.taken = false;
    }

    fn push(&mut self, byte: u8) {
        if self.block > 0 {
            self.block -= 1;
            self.put(byte);
            return;
        }
        if core::mem::take(&mut self.zero) {
            self.put(END);
        }
        self.block = byte - 1;
        self.zero = usize::from(byte) <= BLOCK;
    }

    fn put(&mut self, byte: u8) {
        match self.buffer.as_mut().get_mut(self.len) {
            Some(room) => {
                *room = byte;
                self.len += 1;
            }
            None => self.lost = true,
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate alloc;

    use alloc::vec::Vec;

    use super::*;
    use crate::{Rng, wire::header::Kind};

    fn packed(frame: &[u8]) -> Vec<u8> {
        let mut line = Vec::new();
        for (len, block) in pack(frame) {
            line.push(len);
            line.extend_from_slice(block);
        }
        line.push(END);
        line
    }

    /// A frame whose body has the given bytes.
    fn frame(body: &[u8]) -> Vec<u8> {
        let mut frame = Vec::from([0; header::LEN]);
        frame.extend_from_slice(body);
        header::seal(&mut frame, Kind::Entries, 1).unwrap();
        frame
    }

    fn frames(unpacker: &mut Unpacker<[u8; 1024]>, mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let (taken, frame) = unpacker.feed(bytes);
            found.extend(frame.map(Vec::from));
            bytes = &bytes[taken..];
        }
        found
    }

    #[test]
    fn blocks_are_those_of_the_published_examples() {
        assert_eq!(packed(&[]), [1, 0]);
        assert_eq!(packed(&[0]), [1, 1, 0]);
        assert_eq!(packed(&[0x11, 0x22, 0, 0x33]), [3, 0x11, 0x22, 2, 0x33, 0]);
        assert_eq!(packed(&[0x11, 0, 0, 0]), [2, 0x11, 1, 1, 1, 0]);
        let full: Vec<u8> = (1..=254).collect();
        assert_eq!(packed(&full)[..2], [255, 1]);
        assert_eq!(packed(&full).len(), 256);
        assert_eq!(packed(&(1..=255).collect::<Vec<u8>>())[255..], [2, 255, 0]);
    }

    #[test]
    fn what_is_packed_comes_out_whole_whatever_is_in_it() {
        let mut rng = Rng::new(1);
        for len in (0..700).chain([253, 254, 255, 507, 508, 509, 762, 1004]) {
            for zeros in [0, 1, 3, 200] {
                let body: Vec<u8> = (0..len)
                    .map(|_| if rng.up_to(200) < zeros { 0 } else { rng.up_to(255) as u8 })
                    .collect();
                let frame = frame(&body);
                let line = packed(&frame);
                assert_eq!(line.iter().filter(|byte| **byte == END).count(), 1);
                let mut unpacker = Unpacker::new([0; 1024]);
                assert_eq!(frames(&mut unpacker, &line), [frame]);
                assert!(!unpacker.is_mid_frame());
            }
        }
    }

    #[test]
    fn after_a_reset_in_mid_frame_the_next_frame_is_found() {
        let (first, second) = (frame(b"the first \0 frame"), frame(&[b'S', 0, 1, 2]));
        let line = packed(&first);
        for cut in 0..line.len() {
            let mut unpacker = Unpacker::new([0; 1024]);
            assert!(frames(&mut unpacker, &line[..cut]).is_empty());
            let mut again = Vec::from([END]);
            again.extend(packed(&second));
            let found = frames(&mut unpacker, &again);
            // All but the end may have come: then the first frame is whole after all.
            let whole = cut == line.len() - 1;
            assert_eq!(found.last(), Some(&second), "cut at {cut}");
            assert_eq!(found.len(), if whole { 2 } else { 1 }, "cut at {cut}");
            assert_eq!(unpacker.dropped(), u64::from(cut > 0 && !whole));
        }
    }

    #[test]
    fn noise_and_frames_that_are_too_long_are_dropped() {
        let good = frame(b"good");
        let mut line = packed(&frame(&[7; 2000]));
        let mut rng = Rng::new(7);
        line.extend((0..5000).map(|_| rng.up_to(255) as u8));
        line.push(END);
        line.extend(packed(&good));
        let mut unpacker = Unpacker::new([0; 1024]);
        assert_eq!(frames(&mut unpacker, &line), [good]);
        assert!(unpacker.dropped() > 1);
    }
}
