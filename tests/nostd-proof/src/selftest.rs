//! Sender's and receiver's hands on one frame of entries: written, read back, admitted, stored,
//! acknowledged; and refused when damaged.

use synddb_core::content::ContentSum;
use synddb_core::receiver::{Admission, Receiver};
use synddb_core::wire::message::{Ack, OpenEpoch, ResyncReason};
use synddb_core::wire::{
    EntriesFrame, EntriesWriter, Entry, EntryKind, EntryMeta, Message, WireError,
};
use synddb_core::{Chain, Epoch, OpenId, SeqNo, StreamId};

/// Length of the buffer for a frame, in bytes: the whole test lives on the stack.
const FRAME_LEN: usize = 1024;
const PAYLOADS: [&[u8]; 2] = [b"first changeset", b"second changeset"];
const TAG: u32 = 7;

/// What went wrong.
pub(crate) type Failure = &'static str;

pub(crate) fn run() -> Result<(), Failure> {
    chain_is_sha256()?;

    let mut receiver = Receiver::new(STREAM);
    let head = receiver.handle_open(&OPEN).map_err(|_| "opening an epoch")?;
    receiver.opened(head.ok_or("the epoch was there before it was opened")?);

    let mut buffer = [0; FRAME_LEN];
    let len = write_entries(&receiver, &mut buffer)?;
    let bytes = hold(&buffer[..len]);

    let frame = read_entries(bytes)?;
    let Ok(Admission::Append { skip: 0, head }) = receiver.admit(&frame, |_| None) else {
        return Err("new entries are not admitted");
    };
    receiver.appended(head);
    if receiver.head().next_seq != SeqNo(1 + PAYLOADS.len() as u64) {
        return Err("the head is not behind the entries");
    }
    match receiver.admit(&frame, |_| Some(head.chain)) {
        Ok(Admission::AlreadyHave) => {}
        _ => return Err("a resent frame is not recognised"),
    }

    acknowledge(&receiver)?;
    damage_is_noticed(&buffer[..len])
}

const STREAM: StreamId =
    StreamId::from_bytes([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);

const OPEN: OpenEpoch = OpenEpoch {
    previous: Epoch(0),
    previous_next_seq: SeqNo(0),
    previous_chain: Chain([0; 32]),
    floor: Epoch(0),
    open_id: OpenId([9; 16]),
    reason: ResyncReason::FirstAttach,
};

/// The hash comes out as any other implementation computes it, whatever instructions it took.
fn chain_is_sha256() -> Result<(), Failure> {
    // SHA-256 of "synddb chain v1\0", the bytes 0 to 15, 1 as a little-endian u64, 16 times 9, and
    // 32 zeros.
    const EXPECTED: [u8; 32] = [
        0x2e, 0x98, 0x49, 0x82, 0x99, 0xee, 0x63, 0x7c, 0x17, 0x6d, 0x7e, 0x0f, 0x16, 0x20, 0x61,
        0xe9, 0x9c, 0xef, 0x54, 0xd1, 0x28, 0x14, 0xe3, 0x3c, 0x59, 0xfc, 0xc7, 0xd3, 0x2d, 0xf5,
        0x9e, 0x9d,
    ];
    match Chain::genesis(STREAM, Epoch(1), OPEN.open_id, Chain::default()) {
        Chain(EXPECTED) => Ok(()),
        _ => Err("the hash chain begins with another value"),
    }
}

fn write_entries(receiver: &Receiver, buffer: &mut [u8]) -> Result<usize, Failure> {
    let head = receiver.head();
    let mut writer = EntriesWriter::new(buffer, head.epoch, head.next_seq, head.chain)
        .map_err(|_| "beginning a frame")?;
    for (seq, payload) in (1..).zip(PAYLOADS) {
        let meta = EntryMeta {
            seq: SeqNo(seq),
            kind: EntryKind::Changeset,
            first_commit: seq,
            last_commit: seq,
            time_ms: 0,
            schema_version: 1,
            content_hash: Some(ContentSum::from_bytes([0xa5; 16])),
        };
        let mut encoded = [0; 128];
        let meta = meta.encode(&mut encoded).map_err(|_| "encoding an entry's meta")?;
        writer.push(Entry { meta, payload }).map_err(|_| "adding an entry to a frame")?;
    }
    Ok(writer.finish(TAG).map_err(|_| "completing a frame")?.frame_len)
}

fn read_entries(bytes: &[u8]) -> Result<EntriesFrame<'_>, Failure> {
    let Ok((TAG, Message::Entries(frame))) = Message::decode(bytes, FRAME_LEN) else {
        return Err("a frame of entries does not decode");
    };
    let mut payloads = PAYLOADS.iter();
    for entry in frame.entries() {
        let (_, entry) = entry.map_err(|_| "an entry does not decode")?;
        if payloads.next() != Some(&entry.payload) {
            return Err("an entry's payload changed");
        }
    }
    if payloads.next().is_some() { Err("entries are missing from a frame") } else { Ok(frame) }
}

fn acknowledge(receiver: &Receiver) -> Result<(), Failure> {
    let head = receiver.head();
    let ack = Message::Ack(Ack { head, staged: None, credit: 1 << 20, time_ms: 0, signature: &[] });
    let mut buffer = [0; FRAME_LEN];
    let len = ack.encode(TAG, &mut buffer).map_err(|_| "encoding an acknowledgement")?;
    match Message::decode(&buffer[..len], FRAME_LEN) {
        Ok((TAG, decoded)) if decoded == ack => Ok(()),
        _ => Err("an acknowledgement does not survive the wire"),
    }
}

fn damage_is_noticed(frame: &[u8]) -> Result<(), Failure> {
    let mut damaged = [0; FRAME_LEN];
    let damaged = &mut damaged[..frame.len()];
    damaged.copy_from_slice(frame);
    damaged[frame.len() - 1] ^= 1;
    match Message::decode(damaged, FRAME_LEN) {
        Err(WireError::Checksum) => Ok(()),
        _ => Err("a damaged frame is not noticed"),
    }
}

/// The frame as a driver holds it: on the heap where there is one.
#[cfg(feature = "alloc")]
fn hold(frame: &[u8]) -> &[u8] {
    // Leaked, so that both versions return the same type. The heap frees nothing anyway.
    alloc::vec::Vec::from(frame).leak()
}

/// The frame as a driver holds it: in its own buffer where there is no heap.
#[cfg(not(feature = "alloc"))]
fn hold(frame: &[u8]) -> &[u8] {
    frame
}
