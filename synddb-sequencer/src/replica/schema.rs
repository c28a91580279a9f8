//! Applies changes of the schema to a replica.
//!
//! Definitions come from elsewhere and are run as SQL, so each is looked at before and after: it has
//! to begin as `sqlite_schema` writes it, to be one statement, and to leave exactly the object that
//! the step names. Modules of virtual tables are never called: their tables are entered into
//! `sqlite_schema` as the command-line shell's `.dump` does it, and their content is that of their
//! shadow tables.

use rusqlite::{Connection, params_from_iter};
use synddb_core::{
    content::{ContentSum, may_fill_cells},
    wire::schema::{ObjectKind, SchemaChange, SchemaStep},
};

use super::{Applier, ApplyError, content::table_content, quoted};

impl Applier<'_> {
    /// Applies the payload of a Schema entry. The caller has opened a transaction.
    ///
    /// # Errors
    /// Any [`ApplyError`]; the caller must roll back, for part of it may be applied.
    pub fn apply_schema(&mut self, payload: &[u8]) -> Result<(), ApplyError> {
        let change = SchemaChange::parse(payload).map_err(ApplyError::Schema)?;
        // Statements kept for tables that change would be stale.
        self.forget_tables();
        let (db, mut edited, mut filled) = (self.db, Vec::new(), Vec::new());
        for step in change.steps() {
            if let SchemaStep::Redefine { kind, name, sql } = step {
                if kind == ObjectKind::Table && may_fill_cells(sql) {
                    self.count_table(name, |total, table| *total -= table)?;
                    filled.push(name);
                }
                // All of them before the schema is read again: a definition alone may not fit.
                edit_schema(
                    db,
                    "UPDATE main.sqlite_schema SET sql = ?3 WHERE type = ?1 AND name = ?2",
                    [words(kind).0, name, sql],
                )
                .map_err(failed(name))?;
                edited.push((kind, name, sql));
                continue;
            }
            read_again(db, &mut edited)?;
            match step {
                SchemaStep::Rows => self.apply(change.changeset())?,
                SchemaStep::Drop { kind: ObjectKind::VirtualTable, name } => {
                    edit_schema(
                        db,
                        "DELETE FROM main.sqlite_schema
                        WHERE type = 'table' AND rootpage = 0 AND name = ?1",
                        [name],
                    )
                    .and_then(|()| read_schema(db))
                    .map_err(failed(name))?;
                }
                SchemaStep::Drop { kind, name } => {
                    if kind == ObjectKind::Table {
                        self.count_table(name, |total, table| *total -= table)?;
                    }
                    db.execute_batch(&format!("DROP {} main.{}", words(kind).1, quoted(name)))
                        .map_err(failed(name))?;
                    self.look_at_sequence()?;
                }
                SchemaStep::Create { kind: kind @ ObjectKind::VirtualTable, name, table, sql } => {
                    edit_schema(
                        db,
                        "INSERT INTO main.sqlite_schema(type, name, tbl_name, rootpage, sql)
                        VALUES ('table', ?1, ?2, 0, ?3)",
                        [name, table, sql],
                    )
                    .map_err(failed(name))?;
                    read_again(db, &mut vec![(kind, name, sql)])?;
                }
                SchemaStep::Create { kind, name, sql, .. } => {
                    create(db, kind, sql).map_err(failed(name))?;
                    expect(db, kind, name, sql)?;
                }
                SchemaStep::UserVersion(version) => db
                    .pragma_update(None, "user_version", version)
                    .map_err(failed("user_version"))?,
                SchemaStep::ApplicationId(id) => db
                    .pragma_update(None, "application_id", id)
                    .map_err(failed("application_id"))?,
                _ => return Err(ApplyError::UnknownStep),
            }
        }
        read_again(db, &mut edited)?;
        self.forget_tables();
        filled
            .into_iter()
            .try_for_each(|name| self.count_table(name, |total, table| *total += table))
    }

    /// Counts all rows of a table.
    fn count_table(
        &mut self,
        name: &str,
        count: impl FnOnce(&mut ContentSum, ContentSum),
    ) -> Result<(), ApplyError> {
        if let Some(content) = &mut self.content {
            let table = table_content(self.db, content.key, name).map_err(failed(name))?;
            count(&mut content.total, table);
        }
        Ok(())
    }
}

fn failed(name: &str) -> impl FnOnce(rusqlite::Error) -> ApplyError {
    let table = name.to_owned();
    move |error| ApplyError::Sqlite { table, error }
}

/// As `sqlite_schema` calls it, and as SQL does.
fn words(kind: ObjectKind) -> (&'static str, &'static str) {
    match kind {
        ObjectKind::Index => ("index", "INDEX"),
        ObjectKind::View => ("view", "VIEW"),
        ObjectKind::Trigger => ("trigger", "TRIGGER"),
        _ => ("table", "TABLE"),
    }
}

fn create(db: &Connection, kind: ObjectKind, sql: &str) -> rusqlite::Result<()> {
    let begins = |word: &str| {
        sql.strip_prefix("CREATE ")
            .and_then(|rest| rest.strip_prefix(word))
            .is_some_and(|rest| rest.starts_with([' ', '"', '\'', '[', '`']))
    };
    let unique_index = kind == ObjectKind::Index && begins("UNIQUE INDEX");
    if !(begins(words(kind).1) || unique_index) {
        return Err(rusqlite::Error::InvalidQuery);
    }
    // More than one statement is an error too.
    db.execute(sql, []).map(drop)
}

/// Changes one row of `sqlite_schema`.
fn edit_schema<const N: usize>(
    db: &Connection,
    sql: &str,
    values: [&str; N],
) -> rusqlite::Result<()> {
    db.pragma_update(None, "writable_schema", "ON")?;
    let edited = db.execute(sql, params_from_iter(values));
    db.pragma_update(None, "writable_schema", "OFF")?;
    match edited? {
        1 => Ok(()),
        rows => Err(rusqlite::Error::StatementChangedRows(rows)),
    }
}

/// Has the connection read the schema again after edits: what does not parse fails here.
fn read_schema(db: &Connection) -> rusqlite::Result<()> {
    let version: i32 = db.pragma_query_value(None, "schema_version", |row| row.get(0))?;
    // So that every other statement and connection reads it again as well.
    db.pragma_update(None, "schema_version", version.wrapping_add(1))?;
    db.pragma_update(None, "writable_schema", "RESET")?;
    db.query_row("SELECT count(*) FROM main.sqlite_schema", [], |_| Ok(()))
}

type Edited<'a> = (ObjectKind, &'a str, &'a str);

/// As [`read_schema`], if anything was edited, which has to be there now.
fn read_again(db: &Connection, edited: &mut Vec<Edited<'_>>) -> Result<(), ApplyError> {
    if let Some((_, name, _)) = edited.first() {
        read_schema(db).map_err(failed(name))?;
    }
    edited.drain(..).try_for_each(|(kind, name, sql)| expect(db, kind, name, sql))
}

/// Whether the object is there as the step defines it.
fn expect(db: &Connection, kind: ObjectKind, name: &str, sql: &str) -> Result<(), ApplyError> {
    let found = db
        .prepare_cached(
            "SELECT 1 FROM main.sqlite_schema WHERE type = ?1 AND name = ?2 AND sql = ?3",
        )
        .and_then(|mut select| select.exists([words(kind).0, name, sql]))
        .map_err(failed(name))?;
    if found { Ok(()) } else { Err(ApplyError::Definition { name: name.into(), sql: sql.into() }) }
}
