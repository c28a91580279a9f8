use std::{
    io::{self, IsTerminal, Write},
    ops::ControlFlow,
    path::PathBuf,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use synddb_core::{Epoch, SeqNo};
use synddb_sequencer::{
    Moment,
    replica::{Progress, Restore, Restored},
    store::SqliteStore,
};

use super::{Failure, choose_stream, signals::Stop, text};

/// Between two lines of progress, where it is not drawn.
const LINE_EVERY: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The sequencer's data directory.
    #[arg(long)]
    data: PathBuf,
    /// The stream, by identifier or name; may be left out where there is one.
    #[arg(long, value_name = "ID_OR_NAME")]
    stream: Option<String>,
    /// The epoch; without it the newest one that can be restored.
    #[arg(long)]
    epoch: Option<u64>,
    /// The last entry whose changes to apply; 0 for the state that the epoch begins from.
    #[arg(long, value_name = "N", conflicts_with = "to_time")]
    to_seq: Option<u64>,
    /// As of this moment: what the sequencer had received then, by its clock. RFC 3339 (without an
    /// offset it is UTC), or seconds or milliseconds since 1970.
    #[arg(long, value_name = "TIME")]
    to_time: Option<Moment>,
    /// Start from the newest snapshot that holds no entry after this one: for when a later snapshot
    /// is damaged. 0 for the one that the epoch begins from.
    #[arg(long, value_name = "SEQ")]
    base: Option<u64>,
    /// Do not run PRAGMA quick_check on the result, nor hash its rows: for a database that was damaged
    /// at its source.
    #[arg(long)]
    no_check: bool,
    /// Replace OUT.db, once the new one is whole. Nobody may have it open.
    #[arg(long)]
    force: bool,
    /// Where to put the database.
    #[arg(value_name = "OUT.db")]
    out: PathBuf,
}

impl Args {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let store = SqliteStore::open_read_only(&self.data)?;
        let info = choose_stream(&store, &self.data, self.stream.as_deref())?;
        self.check_place()?;
        let mut restore =
            Restore::new(&store, info.receiver.stream()).replace(self.force).check(!self.no_check);
        if let Some(epoch) = self.epoch {
            restore = restore.epoch(Epoch(epoch));
        }
        if let Some(seq) = self.to_seq {
            restore = restore.to_seq(SeqNo(seq));
        }
        if let Some(moment) = self.to_time {
            restore = restore.to_moment(moment);
        }
        if let Some(seq) = self.base {
            restore = restore.base(SeqNo(seq));
        }
        let stop = Stop::on_signals(false);
        let stop = stop.map_err(|error| format!("cannot listen to signals: {error}"))?;
        let mut shown = Shown::new();
        let restored = restore.run(&self.out, |progress| {
            shown.show(progress);
            if stop.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        shown.bar.finish_and_clear();
        self.summarize(&restored?, &info.name)?;
        Ok(())
    }

    /// `--force` must not reach the log itself.
    fn check_place(&self) -> Result<(), Failure> {
        let real = |path: &std::path::Path| path.canonicalize().ok();
        let parent = self.out.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = real(parent.unwrap_or(".".as_ref()));
        if parent.is_some() && parent == real(&self.data) {
            let out = self.out.display();
            return Err(format!("{out} is in the data directory; choose another place").into());
        }
        Ok(())
    }

    fn summarize(&self, restored: &Restored, name: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let stream = match name {
            "" => restored.stream.to_string(),
            name => format!("{} ({})", text::name(name), restored.stream),
        };
        let Restored { seq, epoch, moment, snapshot_as_of, .. } = restored;
        writeln!(out, "restored  {}, {}", self.out.display(), text::bytes(restored.bytes))?;
        writeln!(out, "stream    {stream}")?;
        writeln!(out, "as of     {moment}, epoch {epoch}, entry {seq}")?;
        writeln!(
            out,
            "from      a snapshot as of entry {snapshot_as_of}, {}, and {} after it, {}",
            text::bytes(restored.snapshot_bytes),
            text::entries(restored.entries),
            text::bytes(restored.entry_bytes)
        )?;
        if let Some(pending) = restored.pending {
            writeln!(
                out,
                "note      epoch {pending} is newer, but the snapshot that it begins from is not \
                 stored whole"
            )?;
        }
        Ok(())
    }
}

/// Progress as a bar where somebody looks, otherwise in lines.
struct Shown {
    bar: ProgressBar,
    drawn: bool,
    step: &'static str,
    told: Instant,
}

impl Shown {
    fn new() -> Self {
        let drawn = io::stderr().is_terminal();
        let bar = if drawn { ProgressBar::new(0) } else { ProgressBar::hidden() };
        Self { bar, drawn, step: "", told: Instant::now() }
    }

    fn show(&mut self, progress: Progress) {
        let (step, template, done, total) = match progress {
            Progress::Snapshot { done, total } => {
                ("snapshot", "{msg:8} {wide_bar} {bytes}/{total_bytes} {eta:>4}", done, total)
            }
            Progress::Entries { done, total } => {
                ("entries", "{msg:8} {wide_bar} {human_pos}/{human_len} {eta:>4}", done, total)
            }
            _ => ("check", "{msg:8} {spinner}", 0, 0),
        };
        let is_new = self.step != step;
        self.step = step;
        if self.drawn {
            if is_new {
                let style = ProgressStyle::with_template(template);
                self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                self.bar.set_message(step);
                self.bar.set_length(total);
                self.bar.reset();
            }
            self.bar.set_position(done);
        } else if is_new || self.told.elapsed() >= LINE_EVERY {
            self.told = Instant::now();
            let line = match progress {
                Progress::Snapshot { done, total } => {
                    format!("{} of {}", text::bytes(done), text::bytes(total))
                }
                Progress::Entries { done, total } => format!("{done} of {total}"),
                _ => "the result".into(),
            };
            // A restore goes on whether or not anybody reads this.
            let _ = writeln!(io::stderr(), "{step:8}  {line}");
        }
    }
}
