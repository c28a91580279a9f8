//! An order book, as an example of an application: it keeps accounts, orders and trades in SQLite
//! and ships every commit to a sequencer.
//!
//! ```text
//! order_book DATABASE URL [SEED]
//! ```
//!
//! It trades with itself until its standard input ends, then pushes, shuts down, and exits with 0 if
//! everything is stored. Ten times a second it prints how things stand, as a line of JSON.

mod book;
mod report;

use std::{
    env,
    error::Error,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use synddb_client::{SyndDB, rusqlite::Connection};

use crate::book::Book;

/// Time between two transactions of the book.
const PACE: Duration = Duration::from_micros(500);
/// How long to wait at the end for a sequencer that is away.
const LAST_PUSH: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let usage = "usage: order_book DATABASE URL [SEED]";
    let (path, url) = (args.next().ok_or(usage)?, args.next().ok_or(usage)?);
    let seed = args.next().map_or(Ok(1), |seed| seed.parse())?;

    // The application's own connection, opened and used as ever.
    let conn: &'static Connection = Box::leak(Box::new(Connection::open(path)?));
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    conn.pragma_update(None, "foreign_keys", true)?;
    let mut book = Book::open(conn, seed)?;

    // This is all that synddb needs.
    let synddb = SyndDB::attach(conn, &url)?;

    let reporter = report::every(Duration::from_millis(100), synddb.handle());
    let stop = stop_at_end_of_input();
    while !stop.load(Ordering::Relaxed) {
        book.trade()?;
        thread::sleep(PACE);
    }
    drop(reporter);

    synddb.push_timeout(LAST_PUSH)?;
    report::print(&synddb.stats());
    let report = synddb.shutdown()?;
    match report.left {
        None => Ok(()),
        Some(left) => Err(left.to_string().into()),
    }
}

fn stop_at_end_of_input() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    thread::spawn(move || {
        // However it ends.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        flag.store(true, Ordering::Relaxed);
    });
    stop
}
