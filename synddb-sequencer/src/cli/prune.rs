use std::{
    io::Write,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use synddb_core::SeqNo;
use synddb_sequencer::{
    Moment,
    prune::{PruneError, plan},
    replica::RestoreError,
    store::{LogStore, SqliteStore},
};

use super::{Failure, choose_stream, signals::Stop, text};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The sequencer's data directory. No sequencer may run on it, unless with --dry-run.
    #[arg(long)]
    data: PathBuf,
    /// The stream, by identifier or name; without it all of them.
    #[arg(long, value_name = "ID_OR_NAME")]
    stream: Option<String>,
    /// Keep what is needed to restore any state of this time back from now: 30d, 12h, 90m, 45s. Without
    /// it only the newest state can be restored afterwards, and what comes.
    #[arg(long, value_name = "TIME", value_parser = time_back)]
    retain: Option<Duration>,
    /// Say what would go, and remove nothing.
    #[arg(long)]
    dry_run: bool,
}

impl Args {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let store = match self.dry_run {
            true => SqliteStore::open_read_only(&self.data)?,
            false => SqliteStore::open(&self.data)?,
        };
        let stop = Stop::on_signals(false);
        let stop = stop.map_err(|error| format!("cannot listen to signals: {error}"))?;
        let streams = match &self.stream {
            Some(wanted) => vec![choose_stream(&store, &self.data, Some(wanted))?],
            None => store.streams()?,
        };
        let since = self.retain.map(|back| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let since = now.saturating_sub(back).as_millis();
            Moment::from_unix_ms(u64::try_from(since).unwrap_or(u64::MAX))
        });
        let (mut out, mut pruned, mut refused) = (std::io::stdout().lock(), false, 0);
        for info in streams {
            let stream = info.receiver.stream();
            let plan = match plan(&store, stream, since, &mut || !stop.is_set()) {
                Ok(plan) => plan,
                Err(PruneError::Restore(
                    error @ (RestoreError::NoStream { .. }
                    | RestoreError::NothingYet { .. }
                    | RestoreError::TooEarly { .. }),
                )) => {
                    writeln!(out, "stream {stream}: nothing can go: {error}")?;
                    continue;
                }
                Err(error) => {
                    writeln!(out, "stream {stream}: {}", text::harmless(&error.to_string()))?;
                    refused += 1;
                    continue;
                }
            };
            if plan.is_empty() {
                writeln!(out, "stream {stream}: nothing can go")?;
                continue;
            }
            let (goes, epoch) =
                (if self.dry_run { "would go" } else { "gone" }, plan.prunable.epoch);
            let entries = match plan.prunable.seq {
                SeqNo(0) => String::new(),
                seq => format!(", the entries of epoch {epoch} up to {seq}"),
            };
            if !self.dry_run {
                store.prune(stream, &plan.prunable)?;
                pruned = true;
            }
            writeln!(
                out,
                "stream {stream}: {goes}: {} epochs before {epoch}{entries}, {} snapshots, {}",
                plan.epochs,
                plan.prunable.snapshots.len(),
                text::bytes(plan.snapshot_bytes),
            )?;
        }
        if pruned {
            store.shrink()?;
        }
        match refused {
            0 => Ok(()),
            _ => {
                Err(format!("{refused} streams are damaged or cannot be read: `synddb verify`")
                    .into())
            }
        }
    }
}

fn time_back(text: &str) -> Result<Duration, String> {
    let unit = |suffix: &str, seconds: u64| {
        let count: u64 = text.strip_suffix(suffix)?.parse().ok()?;
        count.checked_mul(seconds).map(Duration::from_secs)
    };
    unit("d", 86_400)
        .or_else(|| unit("h", 3600))
        .or_else(|| unit("m", 60))
        .or_else(|| unit("s", 1))
        .ok_or_else(|| "expected a number and d, h, m or s, as in 30d".into())
}
