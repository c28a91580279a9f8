//! The smallest program: open, write, wait until it is stored elsewhere.
//!
//! `SYNDDB_SEQUENCER_URL` says where the sequencer is; without it one is started in this process.

use std::{env, error::Error};

use synddb_client::SyndDB;
use synddb_sequencer::{Config, Server};

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let (url, _server) = match env::var("SYNDDB_SEQUENCER_URL") {
        Ok(url) => (url, None),
        Err(_) => {
            let server =
                Server::start(Config::new("127.0.0.1:0".parse()?, dir.path().join("log")))?;
            (format!("http://{}", server.addr()), Some(server))
        }
    };

    let synddb = SyndDB::open(dir.path().join("app.db"), &url)?;
    synddb.connection().execute_batch(
        "CREATE TABLE trades(id INTEGER PRIMARY KEY, amount INTEGER);
         INSERT INTO trades VALUES (1, 100), (2, 200);",
    )?;
    let receipt = synddb.push()?;
    println!(
        "stored by {url}: stream {}, epoch {}, everything up to commit {}",
        receipt.stream, receipt.head.epoch, receipt.commit
    );
    let report = synddb.shutdown()?;
    assert!(report.left.is_none(), "it was pushed");
    Ok(())
}
