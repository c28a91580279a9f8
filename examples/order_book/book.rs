//! Accounts, orders and trades, with most of what SQLite offers to a schema.

use synddb_client::rusqlite::{Connection, OptionalExtension, Result, Transaction, params};
use synddb_core::Rng;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS accounts(
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, balance REAL NOT NULL, avatar BLOB
);
CREATE TABLE IF NOT EXISTS orders(
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  account INTEGER NOT NULL REFERENCES accounts ON DELETE CASCADE ON UPDATE CASCADE,
  symbol TEXT NOT NULL, side TEXT NOT NULL CHECK (side IN ('buy', 'sell')),
  price REAL NOT NULL, quantity INTEGER NOT NULL, note TEXT
);
CREATE INDEX IF NOT EXISTS best ON orders(symbol, side, price);
CREATE TABLE IF NOT EXISTS trades(
  id INTEGER PRIMARY KEY,
  buyer INTEGER REFERENCES accounts ON DELETE SET NULL ON UPDATE CASCADE,
  seller INTEGER REFERENCES accounts ON DELETE SET NULL ON UPDATE CASCADE,
  symbol TEXT NOT NULL, price REAL NOT NULL, quantity INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS positions(
  account INTEGER REFERENCES accounts ON DELETE CASCADE ON UPDATE CASCADE,
  symbol TEXT, quantity INTEGER NOT NULL, PRIMARY KEY (account, symbol)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events(what TEXT, order_id INTEGER, detail);
CREATE TABLE IF NOT EXISTS book(version INTEGER NOT NULL);
CREATE TRIGGER IF NOT EXISTS placed AFTER INSERT ON orders BEGIN
  INSERT INTO events VALUES ('placed', new.id, new.price);
END;
CREATE TRIGGER IF NOT EXISTS gone AFTER DELETE ON orders BEGIN
  INSERT INTO events VALUES ('gone', old.id, old.note);
  DELETE FROM events WHERE rowid < (SELECT max(rowid) FROM events) - 5000;
END;
";

const SYMBOLS: [&str; 4] = ["BTC", "ETH", "SOL", "ÆTHER"];
const ACCOUNTS: u64 = 50;

pub(crate) struct Book {
    conn: &'static Connection,
    rng: Rng,
}

impl Book {
    /// Goes on with the book in the database, or begins one.
    pub(crate) fn open(conn: &'static Connection, seed: u64) -> Result<Self> {
        conn.execute_batch(SCHEMA)?;
        let begun: bool = conn.query_row("SELECT EXISTS (SELECT 1 FROM book)", [], |r| r.get(0))?;
        let mut book = Self { conn, rng: Rng::new(seed) };
        if !begun {
            let tx = conn.unchecked_transaction()?;
            tx.execute("INSERT INTO book VALUES (0)", [])?;
            for _ in 0..ACCOUNTS {
                open_account(&tx, &mut book.rng)?;
            }
            tx.commit()?;
        }
        Ok(book)
    }

    /// One transaction. Each raises the book's version by one.
    pub(crate) fn trade(&mut self) -> Result<()> {
        let tx = self.conn.unchecked_transaction()?;
        let rng = &mut self.rng;
        match rng.up_to(99) {
            0..50 => place(&tx, rng)?,
            50..80 => settle(&tx, rng)?,
            80..88 => cancel(&tx, rng)?,
            88..92 => {
                close_account(&tx, rng)?;
                open_account(&tx, rng)?;
            }
            92..94 => renumber_account(&tx, rng)?,
            94..97 => think_better_of_it(&tx, rng)?,
            _ => reset_position(&tx, rng)?,
        }
        tx.execute("UPDATE book SET version = version + 1", [])?;
        tx.commit()
    }
}

fn place(tx: &Transaction<'_>, rng: &mut Rng) -> Result<()> {
    let Some(account) = any_account(tx, rng)? else { return Ok(()) };
    let side = if rng.up_to(1) == 0 { "buy" } else { "sell" };
    let price = 100.0 + rng.up_to(1000) as f64 / 50.0;
    let note = (rng.up_to(3) == 0).then(|| format!("note {}", rng.up_to(1 << 40)));
    tx.prepare_cached(
        "INSERT INTO orders(account, symbol, side, price, quantity, note)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        account,
        any_symbol(rng),
        side,
        price,
        rng.up_to(99) as i64 + 1,
        note
    ])?;
    Ok(())
}

/// Brings the best two orders of a symbol together.
fn settle(tx: &Transaction<'_>, rng: &mut Rng) -> Result<()> {
    let symbol = any_symbol(rng);
    let best = |side, order| {
        tx.prepare_cached(&format!(
            "SELECT id, account, price, quantity FROM orders
             WHERE symbol = ?1 AND side = ?2 ORDER BY price {order} LIMIT 1"
        ))?
        .query_row(params![symbol, side], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get(2)?, row.get::<_, i64>(3)?))
        })
        .optional()
    };
    let (Some(buy), Some(sell)) = (best("buy", "DESC")?, best("sell", "ASC")?) else {
        return Ok(());
    };
    let (price, quantity): (f64, i64) = (sell.2, buy.3.min(sell.3));
    tx.prepare_cached(
        "INSERT INTO trades(buyer, seller, symbol, price, quantity) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![buy.1, sell.1, symbol, price, quantity])?;
    for ((order, account, _, _), sign) in [(buy, 1), (sell, -1)] {
        tx.prepare_cached("UPDATE orders SET quantity = quantity - ?2 WHERE id = ?1")?
            .execute([order, quantity])?;
        tx.prepare_cached("UPDATE accounts SET balance = balance - ?2 WHERE id = ?1")?
            .execute(params![account, price * (quantity * sign) as f64])?;
        tx.prepare_cached(
            "INSERT INTO positions VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET quantity = quantity + excluded.quantity",
        )?
        .execute(params![account, symbol, quantity * sign])?;
    }
    tx.prepare_cached("DELETE FROM orders WHERE quantity = 0")?.execute([])?;
    Ok(())
}

fn cancel(tx: &Transaction<'_>, rng: &mut Rng) -> Result<()> {
    tx.prepare_cached(
        "DELETE FROM orders WHERE id >= ?1 AND id < ?1 + 3
         OR id = (SELECT min(id) FROM orders)",
    )?
    .execute([rng.up_to(100_000) as i64])?;
    Ok(())
}

fn open_account(tx: &Transaction<'_>, rng: &mut Rng) -> Result<()> {
    let avatar = (rng.up_to(1) == 0).then(|| vec![rng.up_to(255) as u8; 300]);
    tx.prepare_cached("INSERT INTO accounts(name, balance, avatar) VALUES (?1, ?2, ?3)")?.execute(
        params![
            format!("trader {:x}", rng.up_to(u64::MAX)),
            rng.up_to(1_000_000) as f64 / 100.0,
            avatar
        ],
    )?;
    Ok(())
}

/// Takes orders and positions with it, and leaves its trades without a name.
fn close_account(tx: &Transaction<'_>, rng: &mut Rng) -> Result<()> {
    let account = any_account(tx, rng)?;
    tx.prepare_cached("DELETE FROM accounts WHERE id = ?1")?.execute([account])?;
    Ok(())
}

fn renumber_account(tx: &Transaction<'_>, rng: &mut Rng) -> Result<()> {
    let account = any_account(tx, rng)?;
    tx.prepare_cached("UPDATE accounts SET id = (SELECT max(id) FROM accounts) + 1 WHERE id = ?1")?
        .execute([account])?;
    Ok(())
}

fn think_better_of_it(tx: &Transaction<'_>, rng: &mut Rng) -> Result<()> {
    tx.execute_batch("SAVEPOINT thought")?;
    place(tx, rng)?;
    close_account(tx, rng)?;
    tx.execute_batch("ROLLBACK TO thought; RELEASE thought")?;
    place(tx, rng)
}

fn reset_position(tx: &Transaction<'_>, rng: &mut Rng) -> Result<()> {
    let Some(account) = any_account(tx, rng)? else { return Ok(()) };
    tx.prepare_cached("INSERT OR REPLACE INTO positions VALUES (?1, ?2, 0)")?
        .execute(params![account, any_symbol(rng)])?;
    Ok(())
}

fn any_account(tx: &Transaction<'_>, rng: &mut Rng) -> Result<Option<i64>> {
    tx.prepare_cached("SELECT id FROM accounts LIMIT 1 OFFSET ?1")?
        .query_row([rng.up_to(ACCOUNTS - 1) as i64], |row| row.get(0))
        .optional()
}

fn any_symbol(rng: &mut Rng) -> &'static str {
    SYMBOLS[rng.up_to(SYMBOLS.len() as u64 - 1) as usize]
}
