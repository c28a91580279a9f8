use std::{io::Write, path::PathBuf};

use rusqlite::{Connection, OpenFlags};
use synddb_core::{Epoch, SeqNo};
use synddb_sequencer::{
    replica::Restore,
    store::{LogStore, SqliteStore},
    verify::{Standing, verify_replica, verify_stream},
};

use super::{Failure, choose_stream, signals::Stop, text};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The sequencer's data directory.
    #[arg(long)]
    data: PathBuf,
    /// The stream, by identifier or name; without it all of them.
    #[arg(long, value_name = "ID_OR_NAME")]
    stream: Option<String>,
    /// Do not replay: check the chains, and the bytes of snapshots.
    #[arg(long, conflicts_with = "replica")]
    no_replay: bool,
    /// Where to rebuild databases meanwhile; one is there at a time.
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    work: PathBuf,
    /// Check this database against the log instead: whether it holds what the log leads to, after
    /// which entry, or what is different. Nobody may write to it meanwhile.
    #[arg(long, value_name = "DB")]
    replica: Option<PathBuf>,
    /// With --replica: compare it with the state of this epoch.
    #[arg(long, requires = "replica")]
    epoch: Option<u64>,
    /// With --replica: compare it with the state after this entry.
    #[arg(long, value_name = "N", requires = "replica")]
    to_seq: Option<u64>,
}

impl Args {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let store = SqliteStore::open_read_only(&self.data)?;
        let stop = Stop::on_signals(false);
        let stop = stop.map_err(|error| format!("cannot listen to signals: {error}"))?;
        let mut goes_on = || !stop.is_set();
        match &self.replica {
            Some(replica) => self.replica(&store, replica, &mut goes_on),
            None => self.log(&store, &mut goes_on),
        }
    }

    fn log(&self, store: &SqliteStore, goes_on: &mut dyn FnMut() -> bool) -> Result<(), Failure> {
        let streams = match &self.stream {
            Some(wanted) => vec![choose_stream(store, &self.data, Some(wanted))?],
            None => store.streams()?,
        };
        let work = (!self.no_replay).then_some(self.work.as_path());
        let mut faults = 0;
        let mut out = std::io::stdout().lock();
        if let Some(damage) = store.damage()? {
            writeln!(out, "log.db is damaged: {}", text::harmless(&damage))?;
            faults += 1;
        }
        for info in streams {
            let stream = info.receiver.stream();
            let report = verify_stream(store, stream, work, goes_on)?;
            let replayed = match (self.no_replay, report.without_base) {
                (true, _) => String::new(),
                (false, 0) => format!(", {} epochs replayed", report.replayed),
                (false, none) => {
                    format!(", {} epochs replayed, {none} without a snapshot", report.replayed)
                }
            };
            writeln!(
                out,
                "stream {stream} {}: {} epochs, {}, {} snapshots{replayed}: {}",
                text::name(&info.name),
                report.epochs,
                text::entries(report.entries),
                report.snapshots,
                if report.findings.is_empty() { "sound" } else { "DAMAGED" },
            )?;
            for finding in &report.findings {
                writeln!(out, "{}", text::harmless(&finding.to_string()))?;
            }
            faults += report.findings.len();
        }
        match faults {
            0 => Ok(()),
            1 => Err("the log is damaged in 1 place".to_owned().into()),
            faults => Err(format!("the log is damaged in {faults} places").into()),
        }
    }

    fn replica(
        &self,
        store: &SqliteStore,
        replica: &std::path::Path,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<(), Failure> {
        let info = choose_stream(store, &self.data, self.stream.as_deref())?;
        let stream = info.receiver.stream();
        let failed = |error| Failure::from(format!("{}: {error}", replica.display()));
        let connection = Connection::open_with_flags(replica, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .map_err(failed)?;
        let mut restore = Restore::new(store, stream);
        if let Some(epoch) = self.epoch {
            restore = restore.epoch(Epoch(epoch));
        }
        if let Some(seq) = self.to_seq {
            restore = restore.to_seq(SeqNo(seq));
        }
        let standing = verify_replica(store, stream, &connection, restore, &self.work, goes_on)?;
        let mut out = std::io::stdout().lock();
        match standing {
            Standing::At { epoch, seq } => {
                writeln!(out, "it is stream {stream} as of epoch {epoch}, entry {seq}")?;
                Ok(())
            }
            Standing::Differs { epoch, seq, differences } => {
                for difference in &differences {
                    writeln!(out, "{}", text::harmless(&difference.to_string()))?;
                }
                Err(format!(
                    "{} differs from epoch {epoch}, entry {seq}, above with its own rows first; \
                     restore it anew, or say by --epoch and --to-seq which state it should be",
                    replica.display()
                )
                .into())
            }
            _ => Ok(()),
        }
    }
}
