//! Applies changes of the schema to a replica.
//!
//! Definitions come from elsewhere and are run as SQL, so each is looked at before and after: it has
//! to begin as `sqlite_schema` writes it, to be one statement, and to leave exactly the object that
//! the step names. Modules of virtual tables are never called: their tables are entered into
//! `sqlite_schema` as the command-line shell's `.dump` does it, and their content is that of their
//! shadow tables.

use rusqlite::{Connection, params};
use synddb_core::wire::schema::{ObjectKind, SchemaChange, SchemaStep};

use super::{Applier, ApplyError, quoted};

impl Applier<'_> {
    /// Applies the payload of a Schema entry. The caller has opened a transaction.
    ///
    /// # Errors
    /// Any [`ApplyError`]; the caller must roll back, for part of it may be applied.
    pub fn apply_schema(&mut self, payload: &[u8]) -> Result<(), ApplyError> {
        let change = SchemaChange::parse(payload).map_err(ApplyError::Schema)?;
        // Statements kept for tables that change would not stand in the way, but be stale.
        self.forget_tables();
        for step in change.steps() {
            let failed = |name: &str| {
                let name = name.to_owned();
                move |error| ApplyError::Sqlite { table: name, error }
            };
            match step {
                SchemaStep::Rows => self.apply(change.changeset())?,
                SchemaStep::Drop { kind, name } => {
                    drop_object(self.db, kind, name).map_err(failed(name))?;
                }
                SchemaStep::Create { kind, name, table, sql } => {
                    create(self.db, kind, [name, table, sql]).map_err(failed(name))?;
                    expect(self.db, kind, name, sql)?;
                }
                SchemaStep::Redefine { kind, name, sql } => {
                    redefine(self.db, kind, name, sql).map_err(failed(name))?;
                    expect(self.db, kind, name, sql)?;
                }
                SchemaStep::UserVersion(version) => self
                    .db
                    .pragma_update(None, "user_version", version)
                    .map_err(failed("user_version"))?,
                SchemaStep::ApplicationId(id) => self
                    .db
                    .pragma_update(None, "application_id", id)
                    .map_err(failed("application_id"))?,
                _ => return Err(ApplyError::UnknownStep),
            }
        }
        self.forget_tables();
        Ok(())
    }
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

fn drop_object(db: &Connection, kind: ObjectKind, name: &str) -> rusqlite::Result<()> {
    if kind != ObjectKind::VirtualTable {
        return db.execute_batch(&format!("DROP {} main.{}", words(kind).1, quoted(name)));
    }
    edit_schema(db, || {
        db.execute(
            "DELETE FROM main.sqlite_schema WHERE type = 'table' AND name = ?1 AND rootpage = 0",
            [name],
        )
    })
}

fn create(
    db: &Connection,
    kind: ObjectKind,
    [name, table, sql]: [&str; 3],
) -> rusqlite::Result<()> {
    if kind == ObjectKind::VirtualTable {
        return edit_schema(db, || {
            db.execute(
                "INSERT INTO main.sqlite_schema(type, name, tbl_name, rootpage, sql)
                 VALUES ('table', ?1, ?2, 0, ?3)",
                [name, table, sql],
            )
        });
    }
    let (_, word) = words(kind);
    let begins = |start: &str| {
        sql.strip_prefix("CREATE ").is_some_and(|rest| {
            rest.strip_prefix(start)
                .is_some_and(|rest| rest.starts_with([' ', '"', '\'', '[', '`']))
        })
    };
    if !begins(word) && !(kind == ObjectKind::Index && begins("UNIQUE INDEX")) {
        return Err(rusqlite::Error::InvalidQuery);
    }
    // More than one statement is an error too.
    db.execute(sql, []).map(drop)
}

fn redefine(db: &Connection, kind: ObjectKind, name: &str, sql: &str) -> rusqlite::Result<()> {
    edit_schema(db, || {
        db.execute(
            "UPDATE main.sqlite_schema SET sql = ?3 WHERE type = ?1 AND name = ?2",
            params![words(kind).0, name, sql],
        )
    })
}

/// Edits `sqlite_schema`, and has the connection read it again: what does not parse fails here.
fn edit_schema(
    db: &Connection,
    edit: impl FnOnce() -> rusqlite::Result<usize>,
) -> rusqlite::Result<()> {
    db.pragma_update(None, "writable_schema", "ON")?;
    let edited = edit();
    let version: i32 = db.pragma_query_value(None, "schema_version", |row| row.get(0))?;
    // So that every other statement and connection reads it again as well.
    db.pragma_update(None, "schema_version", version.wrapping_add(1))?;
    db.pragma_update(None, "writable_schema", "RESET")?;
    let edited = edited?;
    db.query_row("SELECT count(*) FROM main.sqlite_schema", [], |_| Ok(()))?;
    if edited == 1 { Ok(()) } else { Err(rusqlite::Error::StatementChangedRows(edited)) }
}

/// Whether the object is there as the step defines it.
fn expect(db: &Connection, kind: ObjectKind, name: &str, sql: &str) -> Result<(), ApplyError> {
    let found = db
        .prepare_cached(
            "SELECT 1 FROM main.sqlite_schema WHERE type = ?1 AND name = ?2 AND sql = ?3",
        )
        .and_then(|mut select| select.exists(params![words(kind).0, name, sql]))
        .map_err(|error| ApplyError::Sqlite { table: name.into(), error })?;
    if found { Ok(()) } else { Err(ApplyError::Definition { name: name.into(), sql: sql.into() }) }
}
