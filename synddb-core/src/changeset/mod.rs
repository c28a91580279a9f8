//! Reader and writer of SQLite's changeset format.
//!
//! A changeset is the net effect of one or more transactions: for every table that changed a
//! header, and behind it the rows that were inserted, updated or deleted, each with its old and new
//! values. The format is described in the
//! [session extension](https://www.sqlite.org/session/changeset.html) and at the head of its source.
//!
//! ```text
//! 'T' │ columns varint │ 1 byte each: place in the key │ name │ 0      the table
//!   0x12 INSERT │ indirect │ new values                                  its changes
//!   0x17 UPDATE │ indirect │ old values │ new values
//!   0x09 DELETE │ indirect │ old values
//! value: 0 undefined │ 1 i64 BE │ 2 f64 BE │ 3 text, 4 blob: varint length, bytes │ 5 NULL
//! ```
//!
//! Received changesets are hostile until read to the end without an error: [`validate`] is what a
//! receiver calls before it stores one. Reading is linear, copies nothing and never panics.

mod reader;
mod value;
mod writer;

pub use reader::{
    Change, Changes, Operation, Record, Summary, TableHeader, Values, changes, validate,
};
pub use value::Value;
pub use writer::{ChangesetWriter, WriteError};

use core::fmt;

/// Most columns of a table, SQLite's own limit.
pub const MAX_COLUMNS: usize = 32_767;

/// Why bytes are not a changeset, and where they stop being one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangesetError {
    /// Offset in bytes.
    pub at: usize,
    /// What is wrong there.
    pub what: ChangesetFault,
}

/// What is wrong with a changeset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChangesetFault {
    /// The bytes end in the middle of something.
    Truncated,
    /// Neither a table nor a change begins here.
    UnexpectedByte(u8),
    /// A patchset, which lacks the old values.
    Patchset,
    /// A change before the first table header.
    NoTable,
    /// No columns, or more than SQLite allows.
    ColumnCount(u64),
    /// A flag that is neither 0 nor 1.
    Flag(u8),
    /// A table without any key column: rows could not be told apart.
    NoKey,
    /// The table's name is empty or not UTF-8.
    TableName,
    /// A type of value that does not exist.
    ValueType(u8),
    /// A length that is not written in its shortest form, or is beyond all limits.
    Varint,
    /// A value that the kind of change must have is undefined.
    MissingValue {
        /// Its column, from 0.
        column: usize,
    },
    /// A value that the kind of change must not have.
    ExtraValue {
        /// Its column, from 0.
        column: usize,
    },
    /// A real that is not a number; SQLite stores NULL instead.
    NotANumber,
}

impl fmt::Display for ChangesetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a valid changeset, at byte {}: ", self.at)?;
        match self.what {
            ChangesetFault::Truncated => f.write_str("it is cut short"),
            ChangesetFault::UnexpectedByte(byte) => {
                write!(f, "byte {byte:#04x} begins neither a table nor a change")
            }
            ChangesetFault::Patchset => {
                f.write_str("this is a patchset, which lacks the old values; send changesets")
            }
            ChangesetFault::NoTable => f.write_str("a change before the first table"),
            ChangesetFault::ColumnCount(count) => {
                write!(f, "a table of {count} columns; 1 to {MAX_COLUMNS} are possible")
            }
            ChangesetFault::Flag(byte) => write!(f, "a flag of {byte}; 0 and 1 are possible"),
            ChangesetFault::NoKey => f.write_str("a table without a key column"),
            ChangesetFault::TableName => f.write_str("a table name that is empty or not UTF-8"),
            ChangesetFault::ValueType(byte) => write!(f, "a value of unknown type {byte}"),
            ChangesetFault::Varint => f.write_str("a length that is too long or badly written"),
            ChangesetFault::MissingValue { column } => {
                write!(f, "the value of column {column} is missing")
            }
            ChangesetFault::ExtraValue { column } => {
                write!(f, "column {column} has a value that this kind of change cannot have")
            }
            ChangesetFault::NotANumber => f.write_str("a real that is not a number"),
        }
    }
}

impl core::error::Error for ChangesetError {}
