//! The database: the smallest one in which a rollback can be got wrong, and what is told of it.

/// Its rows.
pub(crate) type Rows = [u32; 8];

/// A row and its new content.
pub(crate) type Write = (u8, u32);

/// What is in front of every payload and image: commit and lineage.
const HEAD: usize = 16;

pub(crate) fn payload(commit: u64, lineage: u64, writes: &[Write], padding: usize) -> Vec<u8> {
    let mut bytes = head(commit, lineage);
    bytes.push(writes.len() as u8);
    for (row, content) in writes {
        bytes.push(*row);
        bytes.extend(content.to_le_bytes());
    }
    bytes.resize(bytes.len() + padding, 0);
    bytes
}

pub(crate) fn image(commit: u64, lineage: u64, rows: &Rows, padding: usize) -> Vec<u8> {
    let mut bytes = head(commit, lineage);
    bytes.extend(rows.iter().flat_map(|content| content.to_le_bytes()));
    bytes.resize(bytes.len() + padding, 0);
    bytes
}

fn head(commit: u64, lineage: u64) -> Vec<u8> {
    [commit.to_le_bytes(), lineage.to_le_bytes()].concat()
}

/// Commit and lineage of a payload or an image.
pub(crate) fn numbers(bytes: &[u8]) -> (u64, u64) {
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    (number(0), number(8))
}

pub(crate) fn writes(payload: &[u8]) -> Vec<Write> {
    let count = usize::from(payload[HEAD]);
    let content = |write: &[u8]| u32::from_le_bytes(write.try_into().expect("4 bytes"));
    payload[HEAD + 1..].chunks_exact(5).take(count).map(|w| (w[0], content(&w[1..]))).collect()
}

pub(crate) fn rows(image: &[u8]) -> Rows {
    let mut rows = Rows::default();
    for (row, content) in rows.iter_mut().zip(image[HEAD..].chunks_exact(4)) {
        *row = u32::from_le_bytes(content.try_into().expect("4 bytes"));
    }
    rows
}

pub(crate) fn apply(rows: &mut Rows, writes: &[Write]) {
    for (row, content) in writes {
        rows[usize::from(*row)] = *content;
    }
}
