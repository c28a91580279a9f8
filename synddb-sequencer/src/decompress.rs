//! Decompression of what frames carry, within the limits.

use lz4_flex::block::decompress_into;
use synddb_core::wire::{
    Message,
    header::VERSION,
    message::{Compression, Fragment, Refusal, SnapshotChunk, TooLarge},
};

/// The message as it was before compression. Its data then lies in `raw`, which grows as needed,
/// never past `max_frame` bytes.
///
/// `frame_len` is the length of the message's frame: with the data uncompressed it must not be over
/// `max_frame` either.
///
/// # Errors
/// `TooLarge`; `Corrupt` where the data does not decompress to the announced length.
pub(crate) fn decompress<'m>(
    message: &Message<'m>,
    frame_len: usize,
    max_frame: u32,
    raw: &'m mut Vec<u8>,
) -> Result<Message<'m>, Refusal> {
    let (compression, data, raw_len) = match message {
        Message::Entries(frame) => (frame.compression, frame.region(), frame.raw_len),
        Message::Fragment(fragment) => (fragment.compression, fragment.data, fragment.len),
        Message::SnapshotChunk(chunk) => (chunk.compression, chunk.data, chunk.len),
        _ => return Ok(*message),
    };
    match compression {
        Compression::None => return Ok(*message),
        Compression::Lz4 => {}
        _ => return Err(Refusal::Unsupported { version_min: VERSION, version_max: VERSION }),
    }
    let beside_data = (frame_len - data.len()) as u64;
    if beside_data + u64::from(raw_len) > u64::from(max_frame) {
        return Err(Refusal::TooLarge { what: TooLarge::Frame, limit: max_frame.into() });
    }
    let raw_len = raw_len as usize;
    if raw.len() < raw_len {
        // A vector that grows by itself would take up to twice as much.
        raw.reserve_exact(raw_len - raw.len());
        raw.resize(raw_len, 0);
    }
    // What is left of earlier frames behind the decompressed bytes is never read: a block that is
    // shorter than announced is refused.
    let raw = &mut raw[..raw_len];
    if decompress_into(data, raw).ok() != Some(raw_len) {
        return Err(Refusal::Corrupt);
    }
    let (compression, data) = (Compression::None, &*raw);
    Ok(match *message {
        Message::Entries(frame) => {
            Message::Entries(frame.with_raw_region(data).map_err(|_| Refusal::Corrupt)?)
        }
        Message::Fragment(fragment) => {
            Message::Fragment(Fragment { compression, data, ..fragment })
        }
        Message::SnapshotChunk(chunk) => {
            Message::SnapshotChunk(SnapshotChunk { compression, data, ..chunk })
        }
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use lz4_flex::block::compress;
    use synddb_core::{Epoch, Rng, SnapshotId};

    use super::*;

    const MAX_FRAME: u32 = 1000;

    fn chunk(len: u32, data: &[u8]) -> Message<'_> {
        Message::SnapshotChunk(SnapshotChunk {
            epoch: Epoch(1),
            id: SnapshotId([0; 16]),
            offset: 0,
            compression: Compression::Lz4,
            len,
            data,
        })
    }

    fn decompressed<'r>(
        len: u32,
        data: &[u8],
        beside_data: usize,
        raw: &'r mut Vec<u8>,
    ) -> Result<&'r [u8], Refusal> {
        let frame_len = beside_data + data.len();
        match decompress(&chunk(len, data), frame_len, MAX_FRAME, raw) {
            Ok(Message::SnapshotChunk(SnapshotChunk { compression, len, .. })) => {
                assert_eq!(compression, Compression::None);
                Ok(&raw[..len as usize])
            }
            Ok(other) => panic!("{other:?}"),
            Err(refusal) => Err(refusal),
        }
    }

    #[test]
    fn the_limit_is_that_of_the_whole_frame_uncompressed() {
        let too_large = Refusal::TooLarge { what: TooLarge::Frame, limit: MAX_FRAME.into() };
        let mut raw = Vec::new();
        for len in [961, 1000, 4_000_000, u32::MAX] {
            let data = compress(&vec![7; (len as usize).min(4_000_000)]);
            let refusal = decompressed(len, &data, 40, &mut raw).unwrap_err();
            assert_eq!(refusal, too_large, "{len} bytes");
        }
        assert_eq!(raw.capacity(), 0, "nothing is allocated for it");
        let data = compress(&[7; 960]);
        assert_eq!(decompressed(960, &data, 40, &mut raw), Ok(&[7; 960][..]));
    }

    #[test]
    fn no_bytes_panic_or_grow_the_buffer_past_the_limit() {
        let mut raw = Vec::new();
        let mut rng = Rng::new(1);
        let (mut whole, mut corrupt) = (0, 0);
        for round in 0..100_000 {
            let text: Vec<u8> = (0..=rng.up_to(900)).map(|_| b'a' + rng.up_to(3) as u8).collect();
            let mut data = if round % 3 == 0 {
                (0..rng.up_to(60)).map(|_| rng.next_u64() as u8).collect()
            } else {
                compress(&text)
            };
            for _ in 0..rng.up_to(2) {
                let at = rng.up_to(data.len() as u64) as usize;
                match data.get_mut(at) {
                    Some(byte) => *byte = rng.next_u64() as u8,
                    None => data.push(rng.next_u64() as u8),
                }
            }
            if rng.up_to(3) == 0 {
                data.truncate(rng.up_to(data.len() as u64) as usize);
            }
            let len = if rng.up_to(3) == 0 { rng.up_to(900) as u32 } else { text.len() as u32 };
            match decompressed(len, &data, 40, &mut raw) {
                Ok(_) => whole += 1,
                Err(Refusal::Corrupt) => corrupt += 1,
                Err(other) => panic!("round {round}: {other:?}"),
            }
            assert!(raw.capacity() <= MAX_FRAME as usize, "round {round}");
        }
        assert!(whole > 10_000 && corrupt > 10_000, "{whole} whole, {corrupt} corrupt");
    }

    /// Bytes that another frame left in the buffer are not to be had.
    #[test]
    fn a_block_cannot_refer_to_what_was_there_before() {
        let mut raw = Vec::new();
        let secret = compress(&[b's'; 500]);
        decompressed(500, &secret, 40, &mut raw).unwrap();
        for (offset, is_sound) in [(1, true), (2, false), (500, false), (0, false)] {
            let [low, high] = u16::to_le_bytes(offset);
            // One byte as it is, then some from `offset` bytes back on, then bytes as they are.
            let near_the_end = [0x14, b'x', low, high, 0x10, b'x'];
            let long_match = [&[0x1f, b'x', low, high, 5, 0x50][..], b"xxxxx"].concat();
            let far_from_the_end = [&[0x1e, b'x', low, high, 0xf0, 5][..], &[b'x'; 20]].concat();
            for (len, block) in
                [(10, &near_the_end[..]), (30, &long_match), (39, &far_from_the_end)]
            {
                let expected = if is_sound { Ok(vec![b'x'; len]) } else { Err(Refusal::Corrupt) };
                let found = decompressed(len as u32, block, 40, &mut raw).map(<[u8]>::to_vec);
                assert_eq!(found, expected, "offset {offset}, {len} bytes");
            }
        }
        // Nor by announcing more than there is.
        let short = compress(b"x");
        assert_eq!(decompressed(500, &short, 40, &mut raw), Err(Refusal::Corrupt));
    }
}
