use std::{
    io::{self, Write},
    path::PathBuf,
};

use synddb_sequencer::store::{LogStore, SqliteStore};

use super::{Failure, text};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The sequencer's data directory.
    #[arg(long)]
    data: PathBuf,
}

impl Args {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        for info in SqliteStore::open_read_only(&self.data)?.streams()? {
            let head = info.receiver.head();
            writeln!(
                out,
                "{}\tepoch {}\tnext {}\t{}\t{}",
                info.receiver.stream(),
                head.epoch,
                head.next_seq,
                if head.base_complete { "base complete" } else { "base pending" },
                text::name(&info.name)
            )?;
        }
        Ok(())
    }
}
