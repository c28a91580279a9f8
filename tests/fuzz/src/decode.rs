//! Decoders without anything behind them. Checksums are made right, since they keep nobody away who
//! means harm.

use synddb_core::{
    changeset::{self, Value},
    wire::{
        EntryMeta, Message, SnapshotNote,
        header::{Kind, LEN, seal},
        schema::SchemaChange,
    },
};

const KINDS: [Kind; 14] = [
    Kind::Hello,
    Kind::HelloAck,
    Kind::Challenge,
    Kind::OpenEpoch,
    Kind::Entries,
    Kind::Fragment,
    Kind::Ack,
    Kind::Nack,
    Kind::SnapshotBegin,
    Kind::SnapshotChunk,
    Kind::SnapshotEnd,
    Kind::SnapshotAck,
    Kind::Ping,
    Kind::Bye,
];

/// A frame of some kind around `body`.
pub(crate) fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; LEN];
    frame.extend_from_slice(body);
    let kind = KINDS[usize::from(kind) % KINDS.len()];
    seal(&mut frame, kind, 7).expect("bodies are short");
    frame
}

/// A header as it came, and a body behind one that is right. What decodes encodes to what decodes to
/// the same.
pub(crate) fn frames(data: &[u8]) {
    let _ = Message::decode(data, 1 << 16);
    let Some((kind, body)) = data.split_first() else { return };
    let frame = frame(*kind, body);
    let Ok((tag, message)) = Message::decode(&frame, frame.len()) else { return };
    if let Message::Entries(entries) = message {
        // Written by another hand.
        for entry in entries.entries() {
            if entry.is_err() {
                break;
            }
        }
        return;
    }
    let mut buffer = vec![0; frame.len() + 4096];
    let len = message.encode(tag, &mut buffer).expect("what was read can be written");
    assert_eq!(Message::decode(&buffer[..len], len).expect("what was written").1, message);
}

/// What the reader takes for valid is read to its end, without an error.
pub(crate) fn changeset(data: &[u8]) {
    let valid = changeset::validate(data);
    let mut changes = 0;
    for change in changeset::changes(data) {
        let Ok(change) = change else {
            assert!(valid.is_err(), "valid, and cannot be read");
            return;
        };
        changes += 1;
        for record in [change.old, change.new].into_iter().flatten() {
            for value in record.values() {
                if let Value::Text(text) = value {
                    std::hint::black_box(text.len());
                }
            }
        }
    }
    if let Ok(summary) = valid {
        assert_eq!(summary.inserts + summary.updates + summary.deletes, changes);
    }
}

/// What entries carry: metas, notes, changes of the schema.
pub(crate) fn entries(data: &[u8]) {
    if let Ok(meta) = EntryMeta::decode(data) {
        let mut buffer = [0; 512];
        let encoded = meta.encode(&mut buffer).expect("metas fit");
        assert_eq!(EntryMeta::decode(encoded), Ok(meta));
    }
    let _ = SnapshotNote::decode(data);
    if let Ok(change) = SchemaChange::parse(data) {
        let _ = change.steps().count();
        changeset::validate(change.changeset()).expect("checked when it was parsed");
    }
}
