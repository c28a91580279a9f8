mod human;
mod json;

use std::{
    io::{self, BufWriter, Write},
    path::PathBuf,
    time::Duration,
};

use synddb_core::{
    Epoch, SeqNo, StreamId, changeset,
    wire::{
        EntryKind, EntryMeta, SnapshotNote,
        schema::{ObjectKind, SchemaChange, SchemaStep},
    },
};
use synddb_sequencer::store::{LogStore, MAX_NUMBER, SqliteStore, StoredEntry};

use super::{Failure, choose_stream, signals::Stop};

pub(crate) use json::HELP as JSON_HELP;

/// Entries that are shown where nothing else is asked for.
const SHOWN: u64 = 10;
/// How often the log is looked at for new entries.
const POLL: Duration = Duration::from_millis(200);
/// Bytes of payload that are read at a time.
const CHUNK: usize = 1 << 20;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The sequencer's data directory.
    #[arg(long)]
    data: PathBuf,
    /// The stream, by identifier or name; may be left out where there is one.
    #[arg(long, value_name = "ID_OR_NAME")]
    stream: Option<String>,
    /// The epoch to begin in; without it the newest.
    #[arg(long)]
    epoch: Option<u64>,
    /// The first entry to show; without it the last 10 of the epoch are shown, or --limit.
    #[arg(long, value_name = "SEQ", value_parser = clap::value_parser!(u64).range(1..))]
    from: Option<u64>,
    /// Wait for entries to come, in later epochs too. Ends with status 0 at Ctrl-C, or once nobody
    /// reads the output.
    #[arg(long, short)]
    follow: bool,
    /// One JSON object per line and entry; --help describes it.
    #[arg(long)]
    json: bool,
    /// Show at most so many entries, then end.
    #[arg(long, short = 'n', value_name = "N")]
    limit: Option<u64>,
}

impl Args {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let store = SqliteStore::open_read_only(&self.data)?;
        let info = choose_stream(&store, &self.data, self.stream.as_deref())?;
        let stop = match self.follow {
            true => Some(
                Stop::on_signals(true)
                    .map_err(|error| format!("cannot listen to signals: {error}"))?,
            ),
            false => None,
        };
        let mut tail = Tail {
            store: &store,
            stream: info.receiver.stream(),
            epoch: Epoch(0),
            next: SeqNo(0),
            left: self.limit.unwrap_or(u64::MAX),
            json: self.json,
            out: BufWriter::new(io::stdout().lock()),
        };
        tail.start(&self)?;
        let is_stopped = || stop.as_ref().is_some_and(Stop::is_set);
        loop {
            let more = tail.show_epoch(&is_stopped)? && self.follow;
            tail.out.flush()?;
            if tail.left == 0 || is_stopped() {
                break;
            }
            if more && tail.next_epoch()? {
                continue;
            }
            match &stop {
                Some(stop) if !stop.wait(POLL) => {}
                _ => break,
            }
        }
        Ok(())
    }
}

struct Tail<'s, W> {
    store: &'s SqliteStore,
    stream: StreamId,
    epoch: Epoch,
    /// The next entry to show.
    next: SeqNo,
    /// How many more may be shown.
    left: u64,
    json: bool,
    out: W,
}

impl<W: Write> Tail<'_, W> {
    /// Finds where to begin.
    fn start(&mut self, args: &Args) -> Result<(), Failure> {
        let newest = self.store.receiver(self.stream)?.head().epoch;
        self.epoch = args.epoch.map_or(newest, Epoch);
        if !self.store.epochs(self.stream)?.iter().any(|info| info.epoch == self.epoch)
            && args.epoch.is_some()
        {
            let epoch = self.epoch;
            return Err(format!("there is no epoch {epoch}; the newest one is {newest}").into());
        }
        let last = self.last()?;
        let shown = args.limit.filter(|_| !args.follow).unwrap_or(SHOWN);
        self.next = match args.from {
            Some(from) if SeqNo(from) > last.next() && !args.follow => {
                let epoch = self.epoch;
                return Err(
                    format!("epoch {epoch} has no entry {from}; its last one is {last}").into()
                );
            }
            Some(from) => SeqNo(from),
            None => SeqNo(last.0.saturating_sub(shown)).next(),
        };
        Ok(())
    }

    /// The last entry of the epoch that is there now.
    fn last(&self) -> Result<SeqNo, Failure> {
        let last = self.store.last_received(self.stream, self.epoch, SeqNo(MAX_NUMBER))?;
        Ok(last.map_or(SeqNo(0), |last| last.seq))
    }

    /// Shows the rest of the epoch. Whether nothing more will come in it.
    fn show_epoch(&mut self, is_stopped: &dyn Fn() -> bool) -> Result<bool, Failure> {
        // First: once a later epoch is there, this one is as it will stay.
        let newest = self.store.receiver(self.stream)?.head().epoch;
        if self.epoch == Epoch(0) {
            return Ok(newest > self.epoch);
        }
        let last = self.last()?;
        while self.next <= last && self.left > 0 {
            let entries = self.store.entries(self.stream, self.epoch, self.next, CHUNK)?;
            for entry in &entries {
                if self.left == 0 || is_stopped() {
                    return Ok(false);
                }
                self.show(entry)?;
                self.next = entry.seq.next();
                self.left -= 1;
            }
        }
        Ok(newest > self.epoch)
    }

    /// Goes on to the epoch after this one, where there is one.
    fn next_epoch(&mut self) -> Result<bool, Failure> {
        let epochs = self.store.epochs(self.stream)?;
        let next = epochs.iter().find(|info| info.epoch > self.epoch);
        if let Some(next) = next {
            (self.epoch, self.next) = (next.epoch, SeqNo::FIRST);
        }
        Ok(next.is_some())
    }

    fn show(&mut self, stored: &StoredEntry) -> Result<(), Failure> {
        let (epoch, seq) = (self.epoch, stored.seq);
        let after = |what: String| {
            let next = seq.next();
            format!("{what}; --epoch {epoch} --from {next} shows what follows")
        };
        if seq != self.next {
            let missing = format!("entry {} of epoch {epoch} is missing in the log", self.next);
            let hint = format!("; --epoch {epoch} --from {seq} shows what follows");
            self.out.flush()?;
            return Err((missing + &hint).into());
        }
        let entry = match Shown::new(self.stream, stored) {
            Ok(entry) => entry,
            Err(what) => {
                self.out.flush()?;
                return Err(after(format!("entry {seq} of epoch {epoch} {what}")).into());
            }
        };
        if self.json {
            serde_json::to_writer(&mut self.out, &json::Line(&entry)).map_err(io::Error::from)?;
            self.out.write_all(b"\n")?;
        } else {
            human::write(&entry, &mut self.out)?;
        }
        Ok(())
    }
}

/// An entry whose payload is what its meta says.
struct Shown<'a> {
    stream: StreamId,
    stored: &'a StoredEntry,
    meta: EntryMeta,
    payload: Payload<'a>,
}

/// A step of a change of the schema as SQL; a new definition of what is there already as itself.
fn sql(step: &SchemaStep<'_>) -> Option<String> {
    Some(match step {
        SchemaStep::Drop { kind, name } => {
            let kind = match kind {
                ObjectKind::Index => "INDEX",
                ObjectKind::View => "VIEW",
                ObjectKind::Trigger => "TRIGGER",
                _ => "TABLE",
            };
            format!("DROP {kind} \"{}\"", name.replace('"', "\"\""))
        }
        SchemaStep::Create { sql, .. } | SchemaStep::Redefine { sql, .. } => (*sql).to_owned(),
        SchemaStep::UserVersion(version) => format!("PRAGMA user_version = {version}"),
        SchemaStep::ApplicationId(id) => format!("PRAGMA application_id = {id}"),
        _ => return None,
    })
}

enum Payload<'a> {
    /// Read to its end without an error.
    Changeset(&'a [u8]),
    Schema(SchemaChange<'a>),
    Snapshot(SnapshotNote),
    Other,
}

impl<'a> Shown<'a> {
    /// The error says what is wrong with the entry.
    fn new(stream: StreamId, stored: &'a StoredEntry) -> Result<Self, String> {
        let meta = stored
            .decoded_meta()
            .map_err(|_| "is damaged, or of a kind that this version does not know".to_owned())?;
        let bytes = stored.payload.as_slice();
        let payload = match meta.kind {
            EntryKind::Changeset => {
                changeset::validate(bytes).map_err(|error| format!("is damaged: {error}"))?;
                Payload::Changeset(bytes)
            }
            EntryKind::Schema => Payload::Schema(
                SchemaChange::parse(bytes).map_err(|error| format!("is damaged: {error}"))?,
            ),
            EntryKind::Snapshot => Payload::Snapshot(
                SnapshotNote::decode(bytes)
                    .map_err(|_| "is damaged: what it says of a snapshot does not decode")?,
            ),
            _ => Payload::Other,
        };
        Ok(Self { stream, stored, meta, payload })
    }

    fn kind(&self) -> &'static str {
        match self.meta.kind {
            EntryKind::Changeset => "changeset",
            EntryKind::Schema => "schema",
            EntryKind::Snapshot => "snapshot",
            _ => "other",
        }
    }
}
