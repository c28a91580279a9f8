//! Payloads that are accepted, of any content.

use synddb_core::changeset::{ChangesetWriter, Value};

/// A changeset that inserts `content`.
pub(crate) fn carrying(content: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; content.len() + 32];
    let mut writer = ChangesetWriter::new(&mut buffer);
    writer.table("t", &[1]).unwrap();
    writer.insert(&[Value::Blob(content)]).unwrap();
    let len = writer.len();
    buffer.truncate(len);
    buffer
}
