//! Tells what speaks at an address, before an application is pointed at it.

use std::{
    io::{self, Write},
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use hyper::{StatusCode, body::Bytes};
use minicbor::Encoder;
use rusqlite::{Connection, OpenFlags};

use super::{
    Failure,
    fetch::{self, Address, Answer, FetchError, Wanted, ask_for},
    link::{Link, LinkArgs},
};

/// What existing sequencers take in one body.
const USUAL: usize = 2_097_152;
/// Bodies that are tried have up to so many bytes.
const MOST: usize = 64 << 20;
/// Bytes of a snapshot's request that are not the database, at most; a token comes on top.
const AROUND: u64 = 512;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The address, as an application has it; `synddb+` before it is understood.
    url: String,
    /// The database that is to be attached: whether its snapshot fits.
    #[arg(long, value_name = "FILE")]
    database: Option<PathBuf>,
    /// Wait no longer for an answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
    #[command(flatten)]
    link: LinkArgs,
}

impl Args {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let prefix = "synddb+";
        let is_prefixed =
            self.url.get(..prefix.len()).is_some_and(|it| it.eq_ignore_ascii_case(prefix));
        let plain = if is_prefixed { &self.url[prefix.len()..] } else { &self.url };
        let address: Address = plain.parse()?;
        let link = self.link.link(address.has_tls(), Duration::from_secs(self.timeout))?;
        let failed = |error: FetchError| Failure::Message(error.to_string());
        let mut out = io::stdout().lock();
        let began = Instant::now();
        let answer = ask_for(&address, &link, look()).map_err(failed)?;
        let took = began.elapsed();
        let protocol = match current_sequence(&answer) {
            Some(_) => "CBOR over HTTP, of existing SyndDB sequencers",
            None => {
                let status = fetch::read(&address, &answer).map_err(failed)?;
                let _ = status;
                "synddb's own frames"
            }
        };
        writeln!(out, "speaks      {protocol}")?;
        writeln!(out, "round trip  {:.1} ms, connecting included", took.as_secs_f64() * 1000.0)?;
        match answer.date.as_deref().and_then(clock_difference) {
            Some(0) => writeln!(out, "clock       as here, to the second")?,
            Some(ahead) if ahead > 0 => writeln!(out, "clock       {ahead} s ahead of here")?,
            Some(ahead) => writeln!(out, "clock       {} s behind here", -ahead)?,
            None => writeln!(out, "clock       it does not tell")?,
        }
        let Some(before) = current_sequence(&answer) else {
            let token = if link.token.is_empty() { "none was shown" } else { "accepted" };
            writeln!(out, "token       {token}")?;
            if is_prefixed {
                let advice = "this is a sequencer of synddb's own frames: write its address \
                              without `synddb+`";
                return Err(Failure::Message(advice.into()));
            }
            return Ok(());
        };
        let limit = probe_limit(&address, &link)?;
        match limit {
            Limit::Exactly(bytes) => writeln!(out, "body limit  {bytes} bytes")?,
            Limit::Between(from, to) => {
                writeln!(out, "body limit  from {from} to {to} bytes")?;
            }
            Limit::Beyond => writeln!(out, "body limit  above {MOST} bytes")?,
        }
        if !link.token.is_empty() {
            let answer = post(&address, &link, empty_batch(&link.token)).map_err(failed)?;
            match answer.status {
                StatusCode::CREATED => writeln!(
                    out,
                    "token       accepted, in a message without changes that was numbered for it"
                )?,
                status => {
                    let text = String::from_utf8_lossy(&answer.body);
                    let text: String = text.trim().chars().take(200).collect();
                    writeln!(out, "token       refused: {status}, {text}")?;
                    return Err(Failure::Message("the token is refused".into()));
                }
            }
        }
        let answer = ask_for(&address, &link, look()).map_err(failed)?;
        if let Some(after) = current_sequence(&answer) {
            let ours = u64::from(!link.token.is_empty());
            if after > before + ours {
                writeln!(out, "others      wrote {} messages meanwhile", after - before - ours)?;
            }
        }
        if let Some(database) = &self.database {
            let len = database_len(database)?;
            let room = limit.least() as u64;
            let room = room.saturating_sub(AROUND + link.token.len() as u64);
            if len > room {
                return Err(Failure::Message(format!(
                    "the database {} has {len} bytes, and a snapshot may have {room} here: begin \
                     with a smaller one (VACUUM may help), or have the sequencer's limit raised",
                    database.display()
                )));
            }
            writeln!(out, "snapshot    fits: {len} of {room} bytes")?;
        }
        Ok(())
    }
}

fn look() -> Wanted {
    Wanted { path: "/status", post: None }
}

fn post(address: &Address, link: &Link, body: Vec<u8>) -> Result<Answer, FetchError> {
    ask_for(address, link, Wanted { path: "/changesets", post: Some(Bytes::from(body)) })
}

/// Of a sequencer of the existing kind.
fn current_sequence(answer: &Answer) -> Option<u64> {
    let value: serde_json::Value = serde_json::from_slice(&answer.body).ok()?;
    value.get("current_sequence")?.as_u64()
}

/// Seconds that the other clock is ahead.
fn clock_difference(date: &str) -> Option<i64> {
    let there = jiff::fmt::rfc2822::parse(date).ok()?.timestamp().as_millisecond();
    let here = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let here = i64::try_from(here.as_millis()).ok()?;
    // It tells whole seconds, that have begun.
    let ahead = there - here;
    Some(if (-1000..=0).contains(&ahead) {
        0
    } else {
        ahead.div_euclid(1000) + i64::from(ahead < 0)
    })
}

/// The largest body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    Exactly(usize),
    Between(usize, usize),
    Beyond,
}

impl Limit {
    fn least(self) -> usize {
        match self {
            Self::Exactly(bytes) | Self::Between(bytes, _) => bytes,
            Self::Beyond => MOST,
        }
    }
}

/// Posts what is no CBOR, of growing length: refused for what it is, it is within the limit. Nothing
/// is stored.
fn probe_limit(address: &Address, link: &Link) -> Result<Limit, Failure> {
    let fits = |len: usize| -> Result<bool, Failure> {
        match post(address, link, vec![0xFF; len]) {
            Ok(answer) => {
                let text = String::from_utf8_lossy(&answer.body).to_ascii_lowercase();
                let is_limit = answer.status == StatusCode::PAYLOAD_TOO_LARGE
                    || text.contains("length limit")
                    || text.contains("too large");
                match answer.status {
                    _ if is_limit => Ok(false),
                    StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Ok(true),
                    status => Err(Failure::Message(format!(
                        "POST /changesets of what is no CBOR is answered with {status}: expected \
                         400; is there a proxy in between?"
                    ))),
                }
            }
            // The connection was reset.
            Err(FetchError::NotHttp(..) | FetchError::CutShort(_)) => Ok(false),
            Err(error) => Err(Failure::Message(error.to_string())),
        }
    };
    if !fits(1024)? {
        return Err(Failure::Message(
            "a body of 1 KiB is refused: is this the right address?".into(),
        ));
    }
    let (mut least, mut most) = if fits(USUAL)? {
        if !fits(USUAL + 1)? {
            return Ok(Limit::Exactly(USUAL));
        }
        if fits(MOST)? {
            return Ok(Limit::Beyond);
        }
        (USUAL + 1, MOST)
    } else {
        (1024, USUAL)
    };
    while most - least > 1024 {
        let middle = least + (most - least) / 2;
        if fits(middle)? { least = middle } else { most = middle }
    }
    Ok(Limit::Between(least, most - 1))
}

fn empty_batch(token: &str) -> Vec<u8> {
    let mut body = Vec::new();
    let mut to = Encoder::new(&mut body);
    let encoded = to
        .map(3)
        .and_then(|to| to.str("batch_id")?.str("synddb-check")?.str("changesets")?.array(0))
        .and_then(|to| to.str("attestation_token")?.str(token));
    // A `Vec` takes everything.
    debug_assert!(encoded.is_ok());
    body
}

fn database_len(path: &std::path::Path) -> Result<u64, Failure> {
    let read = || -> rusqlite::Result<i64> {
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let pages: i64 = db.pragma_query_value(None, "page_count", |row| row.get(0))?;
        let size: i64 = db.pragma_query_value(None, "page_size", |row| row.get(0))?;
        Ok(pages * size)
    };
    let len = read().map_err(|error| format!("--database {}: {error}", path.display()))?;
    Ok(u64::try_from(len).unwrap_or(u64::MAX))
}
