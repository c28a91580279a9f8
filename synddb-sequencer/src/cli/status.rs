use std::{
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

use synddb_sequencer::{
    Moment,
    status::{Status, StreamStatus},
    store::SqliteStore,
};

use super::{
    Failure,
    fetch::{Address, fetch},
    link, text,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The sequencer: an address where HTTP is spoken, http+unix:/path too.
    #[arg(default_value = "http://127.0.0.1:8433")]
    url: Address,
    /// Read a data directory instead of asking a sequencer.
    #[arg(long, conflicts_with = "url")]
    data: Option<PathBuf>,
    /// One JSON object: what `GET /status` answers; `version` and `uptime_s` are null for a data
    /// directory.
    #[arg(long)]
    json: bool,
    /// Wait no longer for an answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    timeout: u64,
    #[command(flatten)]
    link: link::LinkArgs,
}

impl Args {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let (source, status) = match &self.data {
            Some(data) => {
                let store = SqliteStore::open_read_only(data)?;
                (data.display().to_string(), Status::read(&store)?)
            }
            None => {
                let timeout = Duration::from_secs(self.timeout);
                let link = self.link.link(self.url.has_tls(), timeout)?;
                let status = fetch(&self.url, &link).map_err(|error| error.to_string())?;
                (self.url.to_string(), status)
            }
        };
        let mut out = io::stdout().lock();
        if self.json {
            let json = serde_json::to_string(&status).map_err(io::Error::from)?;
            writeln!(out, "{json}")?;
        } else {
            out.write_all(show(&source, &status).as_bytes())?;
        }
        Ok(())
    }
}

fn show(source: &str, status: &Status) -> String {
    let mut shown = text::harmless(source);
    if let Some(version) = &status.version {
        shown += &format!(": synddb {}", text::name(version));
    }
    shown += &format!(", protocol {}", status.protocol);
    if let Some(uptime) = status.uptime_s {
        shown += &format!(", up {}", text::duration(uptime));
    }
    shown.push('\n');
    if status.streams.is_empty() {
        return shown + "no streams yet\n";
    }
    let head = ["STREAM", "NAME", "EPOCH", "NEXT", "BASE", "ENTRIES", "LAST APPEND"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(status.streams.iter().map(row));
    shown + &text::table(&rows)
}

fn row(stream: &StreamStatus) -> Vec<String> {
    let last = stream.last_append_ms.map(|ms| Moment::from_unix_ms(ms).to_string());
    vec![
        text::name(&stream.id),
        if stream.name.is_empty() { "-".into() } else { text::name(&stream.name) },
        stream.epoch.to_string(),
        stream.next_seq.to_string(),
        if stream.base_complete { "complete".into() } else { "pending".into() },
        stream.entries.to_string(),
        last.unwrap_or_else(|| "-".into()),
    ]
}
