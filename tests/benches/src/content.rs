//! What the content hash costs: of a changeset on the writer's thread, of a database by reading it.

use std::{hint::black_box, time::Instant};

use rusqlite::{Connection, types::ValueRef};
use synddb_core::{
    StreamId,
    changeset::{ChangesetWriter, Value, validate},
    content::{ContentKey, ContentSum, deltas},
};
use synddb_sequencer::replica::content_of;

use crate::{
    Result, Scale,
    measure::median,
    table::{Row, Table},
};

const ROUNDS: usize = 7;
/// Cells of a row: its being there counts as one, instead of the key.
const CELLS: usize = 4;

pub(crate) fn run(scale: Scale) -> Result<Table> {
    let rows = scale.pick(100_000, 5_000);
    let key = ContentKey::of(StreamId::from_name("bench"));
    let changeset = changeset(rows)?;
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    let per_cell = |start: Instant| start.elapsed().as_nanos() as f64 / (rows * CELLS) as f64;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut sum = ContentSum::default();
        deltas(key, black_box(&changeset), |_, delta| sum += delta)?;
        ours.push(per_cell(start));
        black_box(sum);
        let start = Instant::now();
        black_box(validate(black_box(&changeset))?);
        floor.push(per_cell(start));
    }

    let db = Connection::open_in_memory()?;
    db.execute_batch(&format!(
        "CREATE TABLE trades(id INTEGER PRIMARY KEY, account INTEGER, amount REAL, note TEXT);
         WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {rows})
         INSERT INTO trades SELECT i, i % 100, i * 1.5, 'note ' || i || ' of a trade' FROM c"
    ))?;
    let bytes: i64 = db.query_row(
        "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size",
        [],
        |row| row.get(0),
    )?;
    let speed = |start: Instant| bytes as f64 / 1e6 / start.elapsed().as_secs_f64();
    let (mut scanned, mut read) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        black_box(content_of(&db, key)?);
        scanned.push(speed(start));
        let start = Instant::now();
        read_all(&db)?;
        read.push(speed(start));
    }
    Ok(Table {
        setting: format!("{rows} rows of {CELLS} columns, some 50 bytes each"),
        floor: "reading the changeset without hashing; reading all values of the table",
        rows: vec![
            Row::new("ns per cell of a changeset", "lower is better", median(ours), median(floor)),
            Row::new("MB/s of a database", "higher is better", median(scanned), median(read)),
        ],
    })
}

fn changeset(rows: usize) -> Result<Vec<u8>> {
    let mut buffer = vec![0; rows * 80 + 64];
    let mut writer = ChangesetWriter::new(&mut buffer);
    writer.table("trades", &[1, 0, 0, 0])?;
    for row in 0..rows {
        let note = format!("note {row} of a trade");
        let row = row as i64;
        writer.insert(&[
            row.into(),
            (row % 100).into(),
            Value::Real(row as f64 * 1.5),
            note.as_str().into(),
        ])?;
    }
    let len = writer.len();
    buffer.truncate(len);
    Ok(buffer)
}

fn read_all(db: &Connection) -> Result<()> {
    let mut select = db.prepare("SELECT id, account, amount, note FROM trades NOT INDEXED")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        for column in 0..CELLS {
            if let ValueRef::Text(text) = black_box(row.get_ref(column)?) {
                black_box(text);
            }
        }
    }
    Ok(())
}
