//! The database that a device's epoch begins from: its tables, empty.
//!
//! The image is a function of the declaration and is computed as it is asked for, so that nobody
//! has to hold it. It follows the [database file format](https://www.sqlite.org/fileformat2.html):
//! page 1 is the header and the schema table's only leaf, each further page the empty root of one
//! table.

use sha2::{Digest, Sha256};

use super::table::{self, Table, TableError};

/// Smallest and largest size of a page in bytes.
const PAGES: [usize; 7] = [512, 1024, 2048, 4096, 8192, 16_384, 32_768];
/// Length of the file's header, and of a leaf's behind it.
const FILE_HEAD: usize = 100;
const LEAF_HEAD: usize = 8;
/// First byte of a leaf.
const TABLE_LEAF: u8 = 0x0D;
const INDEX_LEAF: u8 = 0x0A;
/// Most bytes of a page that its cells do not get: a longer row would need overflow pages.
const ROW_RESERVE: usize = 35;
/// The version of SQLite that says it wrote the file: only told to people.
const SQLITE_VERSION: u32 = 3_040_000;

/// The image of a database that holds these tables and no rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Base<'t> {
    tables: &'t [Table],
    page: usize,
}

impl<'t> Base<'t> {
    pub(super) fn new(tables: &'t [Table]) -> Result<Self, TableError> {
        table::check(tables)?;
        let rows: usize = tables.iter().map(|table| 2 + Row::of(table).cell_len()).sum();
        let longest = tables.iter().map(|table| Row::of(table).payload_len()).max();
        let needed = (FILE_HEAD + LEAF_HEAD + rows).max(longest.unwrap_or(0) + ROW_RESERVE);
        let page = PAGES.into_iter().find(|page| needed <= *page).ok_or(TableError::TooLong)?;
        Ok(Self { tables, page })
    }

    /// Length of the image in bytes.
    pub(super) fn len(&self) -> u64 {
        (self.page * (1 + self.tables.len())) as u64
    }

    /// Fills `out` with the image from `offset` on.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) {
        out.fill(0);
        let mut image = Window { at: 0, from: usize::try_from(offset).unwrap_or(usize::MAX), out };
        self.write_head(&mut image);
        self.write_schema(&mut image);
        for (at, table) in self.tables.iter().enumerate() {
            image.at = self.page * (at + 1);
            let kind = if table.has_rowid() { TABLE_LEAF } else { INDEX_LEAF };
            put_leaf(&mut image, kind, 0, self.page);
        }
    }

    /// SHA-256 of the image.
    pub(super) fn sha256(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut piece = [0; 128];
        let mut offset = 0;
        while offset < self.len() {
            // A page's length is a multiple of the piece's.
            self.read(offset, &mut piece);
            hash.update(piece);
            offset += piece.len() as u64;
        }
        hash.finalize().into()
    }

    fn write_head(&self, image: &mut Window<'_>) {
        image.put(b"SQLite format 3\0");
        image.put(&(self.page as u16).to_be_bytes());
        // Rollback journal; no reserved bytes; the fractions that the format fixes.
        image.put(&[1, 1, 0, 64, 32, 32]);
        let change_counter = 1;
        let pages = 1 + self.tables.len() as u32;
        let schema_cookie = SCHEMA_VERSION;
        let (schema_format, utf8) = (4, 1);
        let words = [change_counter, pages, 0, 0, schema_cookie, schema_format, 0, 0, utf8];
        words.iter().for_each(|word: &u32| image.put(&word.to_be_bytes()));
        image.at = 92;
        image.put(&change_counter.to_be_bytes());
        image.put(&SQLITE_VERSION.to_be_bytes());
    }

    fn write_schema(&self, image: &mut Window<'_>) {
        let cells: usize = self.tables.iter().map(|table| Row::of(table).cell_len()).sum();
        image.at = FILE_HEAD;
        put_leaf(image, TABLE_LEAF, self.tables.len(), self.page - cells);
        let mut cell_at = self.page - cells;
        for table in self.tables {
            image.put(&(cell_at as u16).to_be_bytes());
            cell_at += Row::of(table).cell_len();
        }
        image.at = self.page - cells;
        for (at, table) in self.tables.iter().enumerate() {
            Row::of(table).write(image, at);
        }
    }
}

/// `PRAGMA schema_version` of the image.
pub(super) const SCHEMA_VERSION: u32 = 1;

fn put_leaf(image: &mut Window<'_>, kind: u8, cells: usize, content_at: usize) {
    image.put(&[kind, 0, 0]);
    image.put(&(cells as u16).to_be_bytes());
    image.put(&(content_at as u16).to_be_bytes());
    image.put(&[0]);
}

/// A table's row in the schema table: type, name, tbl_name, rootpage, sql.
struct Row<'t> {
    table: &'t Table,
    name_len: usize,
    sql_len: usize,
}

impl<'t> Row<'t> {
    fn of(table: &'t Table) -> Self {
        let mut sql_len = 0;
        table.sql(&mut |piece| sql_len += piece.len());
        Self { table, name_len: table.name().len(), sql_len }
    }

    /// Length of the record's header: its own length, and the type of each column.
    fn head_len(&self) -> usize {
        1 + 1
            + 2 * varint(text_type(self.name_len)).len()
            + 1
            + varint(text_type(self.sql_len)).len()
    }

    fn payload_len(&self) -> usize {
        self.head_len() + "table".len() + 2 * self.name_len + 4 + self.sql_len
    }

    fn cell_len(&self) -> usize {
        // The row's number is at most MAX_TABLES, one byte.
        varint(self.payload_len()).len() + 1 + self.payload_len()
    }

    fn write(&self, image: &mut Window<'_>, at: usize) {
        let root = at as u32 + 2;
        image.put(&varint(self.payload_len()));
        image.put(&[at as u8 + 1, self.head_len() as u8, text_type("table".len()) as u8]);
        image.put(&varint(text_type(self.name_len)));
        image.put(&varint(text_type(self.name_len)));
        // An integer of 4 bytes.
        image.put(&[4]);
        image.put(&varint(text_type(self.sql_len)));
        image.put(b"table");
        image.put(self.table.name().as_bytes());
        image.put(self.table.name().as_bytes());
        image.put(&root.to_be_bytes());
        self.table.sql(&mut |piece| image.put(piece.as_bytes()));
    }
}

/// The type code of a text of this length.
const fn text_type(len: usize) -> usize {
    13 + 2 * len
}

/// SQLite's integer of variable length.
fn varint(number: usize) -> heapless::Vec<u8, 5> {
    let groups = (1..5).rev().filter(|group| number >> (7 * group) > 0);
    let bytes = groups.map(|group| (number >> (7 * group)) as u8 & 0x7F | 0x80);
    bytes.chain([number as u8 & 0x7F]).collect()
}

/// The part of the image that is wanted.
struct Window<'o> {
    /// Where the next byte goes.
    at: usize,
    /// Where the part begins.
    from: usize,
    out: &'o mut [u8],
}

impl Window<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let end = self.at + bytes.len();
        if end > self.from && self.at < self.from.saturating_add(self.out.len()) {
            let skip = self.from.saturating_sub(self.at);
            let to = (self.at + skip) - self.from;
            let count = (bytes.len() - skip).min(self.out.len() - to);
            self.out[to..to + count].copy_from_slice(&bytes[skip..skip + count]);
        }
        self.at = end;
    }
}

#[cfg(test)]
mod tests {
    extern crate alloc;

    use alloc::vec;

    use super::*;
    use crate::device::{Column, MAX_TABLES};

    const READINGS: Table = Table::new(
        "readings",
        &[Column::integer("id").key(), Column::integer("at_ms"), Column::real("celsius")],
    );
    const BY_PLACE: Table = Table::new(
        "by \"place\"",
        &[Column::text("room").key(), Column::integer("shelf").key(), Column::blob("label")],
    );

    #[test]
    fn the_image_is_the_same_however_it_is_read() {
        let base = Base::new(&[READINGS, BY_PLACE]).unwrap();
        let mut whole = vec![0; base.len() as usize];
        base.read(0, &mut whole);
        for step in [1, 7, 99, 100, 512, 513] {
            let mut pieces = vec![0xAA; whole.len()];
            for (at, piece) in pieces.chunks_mut(step).enumerate() {
                base.read((at * step) as u64, piece);
            }
            assert!(pieces == whole, "in steps of {step}");
        }
        assert_eq!(<[u8; 32]>::from(Sha256::digest(&whole)), base.sha256());
    }

    #[test]
    fn what_is_no_table_is_refused() {
        let columns = |columns: &[Column]| -> &'static [Column] { columns.to_vec().leak() };
        let refused = |declared: &[Column]| Base::new(&[Table::new("t", columns(declared))]).err();
        assert_eq!(refused(&[]), Some(TableError::ColumnCount("t")));
        assert_eq!(refused(&[Column::real("a")]), Some(TableError::NoKey("t")));
        let twice = [Column::integer("a").key(), Column::integer("A")];
        assert_eq!(refused(&twice), Some(TableError::ColumnName("A")));
        assert_eq!(refused(&[Column::integer("").key()]), Some(TableError::ColumnName("")));
        let wide = vec![Column::integer("a").key(); 65];
        assert_eq!(refused(&wide), Some(TableError::ColumnCount("t")));

        let key = columns(&[Column::integer("id").key()]);
        for name in ["", "SQLite_x", "a\0b"] {
            assert_eq!(Base::new(&[Table::new(name, key)]).err(), Some(TableError::Name(name)));
        }
        let same = [Table::new("t", key), Table::new("T", key)];
        assert_eq!(Base::new(&same).err(), Some(TableError::Name("T")));
        assert_eq!(Base::new(&[]).err(), Some(TableError::Count));
        assert_eq!(Base::new(&vec![READINGS; MAX_TABLES + 1]).err(), Some(TableError::Count));
        let long: &'static str = "x".repeat(20_000).leak();
        assert_eq!(Base::new(&[Table::new(long, key)]).err(), Some(TableError::TooLong));
    }
}
