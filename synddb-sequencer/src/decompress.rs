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
