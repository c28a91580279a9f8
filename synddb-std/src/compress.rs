//! Compression of what frames carry, where it pays.

use std::fmt;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use synddb_core::wire::message::Compression;

/// Less data than this, in bytes, goes out as it is: there is little to save.
const MIN_LEN: usize = 512;

/// Compresses data in buffers that it keeps.
pub(crate) struct Compressor {
    table: CompressTable,
    buffer: Vec<u8>,
}

impl Compressor {
    /// One that has compressed nothing yet.
    pub(crate) fn new() -> Self {
        Self { table: CompressTable::small(), buffer: Vec::new() }
    }

    /// `data` compressed in the way that was agreed on; `None` where that saves less than a tenth
    /// of it.
    pub(crate) fn compress(&mut self, agreed: Compression, data: &[u8]) -> Option<&[u8]> {
        if agreed != Compression::Lz4 || data.len() < MIN_LEN {
            return None;
        }
        let room = get_maximum_output_size(data.len());
        if self.buffer.len() < room {
            self.buffer.resize(room, 0);
        }
        let len = compress_into_with_table(data, &mut self.buffer, &mut self.table).ok()?;
        (len <= data.len() - data.len() / 10).then(|| &self.buffer[..len])
    }

    /// The form in which `data` goes out.
    pub(crate) fn pack<'a>(
        &'a mut self,
        agreed: Compression,
        data: &'a [u8],
    ) -> (Compression, &'a [u8]) {
        match self.compress(agreed, data) {
            Some(compressed) => (agreed, compressed),
            None => (Compression::None, data),
        }
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").field("buffer", &self.buffer.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use lz4_flex::block::decompress_into;
    use synddb_core::{
        Chain, Epoch, Rng, SeqNo,
        wire::{EntriesWriter, Entry, EntryKind, EntryMeta, Message},
    };

    use super::*;

    /// Bytes between noise and one byte over and over.
    fn bytes(rng: &mut Rng, len: usize) -> Vec<u8> {
        let values = 1 << rng.up_to(8);
        let (mut byte, mut run) = (0, 0);
        (0..len)
            .map(|_| {
                if run == 0 {
                    byte = rng.up_to(values - 1) as u8;
                    run = if rng.up_to(9) == 0 { rng.up_to(600) } else { 1 };
                }
                run = run.saturating_sub(1);
                byte
            })
            .collect()
    }

    #[test]
    fn entries_come_out_as_they_went_in() {
        let mut compressor = Compressor::new();
        let (mut frame, mut raw) = (vec![0; 1 << 19], vec![0; 1 << 19]);
        let mut compressed_frames = 0;
        for seed in 0..400 {
            let mut rng = Rng::new(seed);
            let first = SeqNo(1 + rng.up_to(1 << 40));
            let start = Chain([seed as u8; 32]);
            let longest = 1 << (4 + rng.up_to(11));
            let entries: Vec<_> = (0..=rng.up_to(12))
                .map(|at| {
                    let meta = EntryMeta {
                        seq: SeqNo(first.0 + at),
                        kind: EntryKind::Changeset,
                        first_commit: at,
                        last_commit: at,
                        time_ms: rng.next_u64(),
                        schema_version: 1,
                        content_hash: None,
                    };
                    let len = rng.up_to(longest) as usize;
                    (meta.encode(&mut [0; 256]).unwrap().to_vec(), bytes(&mut rng, len))
                })
                .collect();

            let mut writer = EntriesWriter::new(&mut frame, Epoch(3), first, start).unwrap();
            for (meta, payload) in &entries {
                writer.push(Entry { meta, payload }).unwrap();
            }
            let region_len = writer.region().len();
            let written = match compressor.compress(Compression::Lz4, writer.region()) {
                Some(compressed) => {
                    writer.finish_compressed(7, Compression::Lz4, compressed).unwrap()
                }
                None => writer.finish(7).unwrap(),
            };
            assert_eq!(written.region_len, region_len, "seed {seed}");

            let (tag, message) = Message::decode(&frame[..written.frame_len], 1 << 19).unwrap();
            let Message::Entries(mut came) = message else { panic!("{message:?}") };
            assert_eq!((tag, came.first_seq), (7, first));
            if came.compression == Compression::Lz4 {
                compressed_frames += 1;
                let len = decompress_into(came.region(), &mut raw).unwrap();
                came = came.with_raw_region(&raw[..len]).unwrap();
            }
            let mut chain = start;
            let back: Vec<_> = came
                .entries()
                .map(|entry| {
                    let (_, Entry { meta, payload }) = entry.unwrap();
                    chain = chain.next(meta, payload);
                    (meta.to_vec(), payload.to_vec())
                })
                .collect();
            assert_eq!(back, entries, "seed {seed}");
            assert_eq!(chain, written.chain, "seed {seed}");
        }
        assert!((100..300).contains(&compressed_frames), "{compressed_frames} were compressed");
    }

    #[test]
    fn what_does_not_pay_goes_out_as_it_is() {
        let mut compressor = Compressor::new();
        let mut rng = Rng::new(1);
        let noise: Vec<u8> = (0..100_000).map(|_| rng.next_u64() as u8).collect();
        let zeros = [0; MIN_LEN];
        for (agreed, data) in [
            (Compression::None, &zeros[..]),
            (Compression::Lz4, &zeros[1..]),
            (Compression::Lz4, &noise),
            (Compression::Lz4, b""),
        ] {
            assert_eq!(compressor.pack(agreed, data), (Compression::None, data));
        }
        let (compression, packed) = compressor.pack(Compression::Lz4, &zeros);
        assert_eq!(compression, Compression::Lz4);
        assert!(packed.len() < 20, "{} bytes", packed.len());
    }
}
