//! Settings, and what they may be.

use std::{env, path::PathBuf, str::FromStr, time::Duration};

pub use synddb_core::sender::OnDivergence;

pub use crate::capture::CaptureEngine as Engine;

/// What speaks HTTP, where there is a choice.
#[cfg(all(feature = "http", feature = "hyper"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HttpClient {
    /// ureq: HTTP/1.1, by way of the proxies of the environment.
    #[default]
    Ureq,
    /// hyper: HTTP/2 over TLS where the sequencer has it, else HTTP/1.1; a thread more.
    Hyper,
}

use crate::{Error, TokenProvider};

/// Settings of a stream. `Config { sequencer_url, ..Default::default() }` is enough.
///
/// ```
/// use std::time::Duration;
/// use synddb_std::Config;
///
/// let config = Config {
///     sequencer_url: "http://sequencer:8433".into(),
///     push_interval: Duration::from_millis(200),
///     ..Default::default()
/// };
/// assert_eq!(config.max_batch_size, 1 << 20);
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the sequencer listens: `http://HOST:PORT`; with the feature `vsock`,
    /// `vsock://CID:PORT` (`vsock://host:8433` from inside a VM), `unix:/path`, or
    /// `vsock+unix:/path:PORT` where a VMM has a VM's vsock at that path. With the feature `tls`,
    /// `https://` and `vsock+tls://`, `unix+tls:`, `vsock+unix+tls:`. With the features `hyper` and
    /// `vsock`, HTTP over those sockets: `http+unix:/path`, `https+vsock://CID:PORT` and so on. No
    /// default.
    pub sequencer_url: String,
    /// What speaks HTTP over TCP, with the features `http` and `hyper`; with one of them it is that.
    /// Default: [`HttpClient::Ureq`].
    #[cfg(all(feature = "http", feature = "hyper"))]
    pub http_client: HttpClient,
    /// The longest that a commit waits before it is sent; an idle link sends sooner, and 0 means at
    /// once. Default: 1 second.
    pub push_interval: Duration,
    /// Commits that gather in memory before they are written to the outbox; they are written after
    /// 10 milliseconds in any case. At least 1. Default: 100.
    pub buffer_size: usize,
    /// Bytes of entries in one frame, at most; an entry that is larger goes in pieces. 4 KiB to
    /// 1 GiB. Default: 1 MiB.
    pub max_batch_size: usize,
    /// Compress what is sent with LZ4, where it pays and the sequencer can read it. Off saves CPU on
    /// a fast link. Default: true.
    pub compression: bool,
    /// Failed attempts in a row after which the link counts as down and `push()` says so. The link
    /// goes on trying for ever, and drops nothing. At least 1. Default: 3.
    pub max_retries: u32,
    /// Changesets after which another snapshot is taken, counted from the last one that was
    /// completed; 0 for none by count. It makes restoring shorter. Default: 0.
    pub snapshot_interval: u64,
    /// Another snapshot is taken when the changesets since the last one weigh so many times what that
    /// one does, in bytes; what weighs less than 4 MiB counts as 4 MiB. So the log never takes much
    /// longer to replay than to copy, and what is before a snapshot can be
    /// pruned. Outside WAL mode a snapshot is copied on the application's thread, in steps of some
    /// milliseconds. 0 for none by weight. Default: 1.
    pub snapshot_factor: f64,
    /// Name of the stream, 1 to 128 bytes. Without one the outbox draws an id and keeps it; an
    /// outbox in memory cannot, and needs a name.
    pub stream: Option<String>,
    /// What survives what. Default: [`Durability::Background`]; databases in memory have
    /// [`Durability::Memory`] always.
    pub durability: Durability,
    /// Where the outbox is. Default: beside the database, its name with `-synddb` at the end.
    pub outbox_path: Option<PathBuf>,
    /// Bytes of commits on their way to the outbox. Past it they are given up for a snapshot.
    /// Default: 64 MiB.
    pub max_memory_bytes: usize,
    /// Bytes of entries in the outbox, on disk or in memory. Past it they are given up for a
    /// snapshot, which is taken once the sequencer is there. Default: 1 GiB; 64 MiB in memory.
    pub max_outbox_bytes: Option<u64>,
    /// The largest changeset of one commit, in bytes; a larger commit is carried by a snapshot.
    /// Default: 128 MiB.
    pub max_changeset_bytes: usize,
    /// How long `push()` waits. Default: 30 seconds.
    pub push_timeout: Duration,
    /// How long `shutdown()` and drop wait for what is queued. Default: 5 seconds.
    pub shutdown_timeout: Duration,
    /// How long the sequencer may take to answer. Default: 10 seconds.
    pub response_timeout: Duration,
    /// How long a quiet connection goes without a sign of life; 0 for ever. A sequencer ends
    /// connections over sockets that give none for 2 minutes. Default: 30 seconds.
    pub keep_alive: Duration,
    /// How commits are captured. Default: [`Engine::Session`].
    pub engine: Engine,
    /// What to do where the sequencer holds other entries than this database sent: a machine that
    /// was rolled back, a copied database, a lost outbox. Default: resync from a snapshot, loudly.
    pub on_divergence: OnDivergence,
    /// Gives the token that the sequencer checks, at each connection. Default: none.
    pub token_provider: Option<TokenProvider>,
    /// Which sequencers are believed, and what this side shows of itself, where the address is with
    /// TLS; with another address it is an error. Default: those whose certificate ends at a root of
    /// Mozilla's, and nothing.
    #[cfg(feature = "tls")]
    pub tls: Option<synddb_tls::ClientTls>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sequencer_url: String::new(),
            #[cfg(all(feature = "http", feature = "hyper"))]
            http_client: HttpClient::default(),
            push_interval: Duration::from_secs(1),
            buffer_size: 100,
            max_batch_size: 1 << 20,
            compression: true,
            max_retries: 3,
            snapshot_interval: 0,
            snapshot_factor: 1.0,
            stream: None,
            durability: Durability::default(),
            outbox_path: None,
            max_memory_bytes: 64 << 20,
            max_outbox_bytes: None,
            max_changeset_bytes: 128 << 20,
            push_timeout: Duration::from_secs(30),
            shutdown_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(30),
            engine: Engine::default(),
            on_divergence: OnDivergence::default(),
            token_provider: None,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }
}

/// What survives what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Durability {
    /// Commits are written to the outbox, with a sync, some milliseconds after them, on a thread of
    /// ours; the application waits for none of it.
    ///
    /// After a kill the stream goes on where it was if the last commits had been written: the place
    /// of the database, in WAL mode or with a rollback journal on disk, proves that nothing is
    /// missing. Else, and in most cases after a power cut, it goes on from a snapshot. Nothing is
    /// lost either way.
    #[default]
    Background,
    /// Commits are written to the outbox, with a sync, before they happen, on the application's
    /// thread. After a kill or a power cut the stream goes on where it was, without a snapshot:
    /// whether the last commits happened is found by comparing their rows with the database. Where
    /// the power cut took commits that were sent already (`synchronous` below `FULL`), a snapshot
    /// begins a new epoch.
    ///
    /// It costs every commit a sync, what finding its net effect takes, and waiting for a sync of
    /// ours that is under way: with `synchronous = NORMAL`, measured by `bench durability` on two
    /// busy cores, a single-row commit takes 1.2 ms instead of 0.04 ms in WAL mode, and 1.3 times as
    /// long with a rollback journal, which syncs anyway; its thread uses some 0.2 ms of processor
    /// time more. Needs [`Engine::Preupdate`]. A commit that cannot be written first
    /// happens all the same, is treated as with `Background`, and is counted in
    /// [`Stats::unprepared_commits`](crate::Stats::unprepared_commits): where the outbox cannot be
    /// written; changes of the schema and all else that needs a snapshot; transactions that write
    /// to full text tables or past [`Config::max_changeset_bytes`]; and all of them with
    /// `locking_mode = exclusive`, or a journal that is in memory or off. A database that somebody
    /// else wrote to in between, if only by emptying its log, goes on from a snapshot.
    BeforeCommit,
    /// The outbox is in memory: nothing reaches the disk through us but snapshots on their way.
    /// Each start goes on from a snapshot. Needs [`Config::stream`].
    Memory,
}

impl Config {
    /// The defaults, changed by the environment:
    ///
    /// | variable | setting |
    /// |---|---|
    /// | `SYNDDB_SEQUENCER_URL` | `sequencer_url` |
    /// | `SYNDDB_HTTP_CLIENT` | `http_client`: `ureq` or `hyper` |
    /// | `SYNDDB_PUSH_INTERVAL_MS` | `push_interval`, milliseconds |
    /// | `SYNDDB_BUFFER_SIZE` | `buffer_size` |
    /// | `SYNDDB_MAX_BATCH_SIZE` | `max_batch_size`, bytes |
    /// | `SYNDDB_MAX_RETRIES` | `max_retries` |
    /// | `SYNDDB_SNAPSHOT_INTERVAL` | `snapshot_interval` |
    /// | `SYNDDB_SNAPSHOT_FACTOR` | `snapshot_factor` |
    /// | `SYNDDB_STREAM` | `stream` |
    /// | `SYNDDB_OUTBOX_PATH` | `outbox_path` |
    /// | `SYNDDB_DURABILITY` | `durability`: `background`, `before_commit` or `memory` |
    /// | `SYNDDB_ON_DIVERGENCE` | `on_divergence`: `resync` or `halt` |
    /// | `SYNDDB_TOKEN_FILE` | `token_provider`, by [`TokenProvider::file`] |
    /// | `SYNDDB_TLS_CA` | `tls`: the file of the roots |
    /// | `SYNDDB_TLS_PINS` | `tls`: the pinned keys, commas between them |
    /// | `SYNDDB_TLS_CERT`, `SYNDDB_TLS_KEY` | `tls`: the files of the client's certificate and key |
    /// | `SYNDDB_TLS_SERVER_NAME` | `tls`: the name that the certificate has to be for |
    ///
    /// # Errors
    /// [`Error::Config`] names the variable that cannot be understood.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_variables(|name| match env::var(name) {
            Ok(value) => Ok(Some(value)),
            Err(env::VarError::NotPresent) => Ok(None),
            Err(env::VarError::NotUnicode(_)) => Err("it is not UTF-8".into()),
        })
    }

    fn from_variables(
        variable: impl Fn(&str) -> Result<Option<String>, String>,
    ) -> Result<Self, Error> {
        let text = |name: &'static str| {
            variable(name).map_err(|problem| Error::Config { setting: name, problem })
        };
        let mut config = Self::default();
        if let Some(url) = text("SYNDDB_SEQUENCER_URL")? {
            config.sequencer_url = url;
        }
        http_client(&mut config, &text)?;
        if let Some(millis) = number("SYNDDB_PUSH_INTERVAL_MS", &text)? {
            config.push_interval = Duration::from_millis(millis);
        }
        set(&mut config.buffer_size, number("SYNDDB_BUFFER_SIZE", &text)?);
        set(&mut config.max_batch_size, number("SYNDDB_MAX_BATCH_SIZE", &text)?);
        set(&mut config.max_retries, number("SYNDDB_MAX_RETRIES", &text)?);
        set(&mut config.snapshot_interval, number("SYNDDB_SNAPSHOT_INTERVAL", &text)?);
        set(&mut config.snapshot_factor, number("SYNDDB_SNAPSHOT_FACTOR", &text)?);
        config.stream = text("SYNDDB_STREAM")?;
        config.outbox_path = text("SYNDDB_OUTBOX_PATH")?.map(PathBuf::from);
        let durabilities = [
            ("background", Durability::Background),
            ("before_commit", Durability::BeforeCommit),
            ("memory", Durability::Memory),
        ];
        set(&mut config.durability, one_of("SYNDDB_DURABILITY", &text, &durabilities)?);
        let reactions = [("resync", OnDivergence::Resync), ("halt", OnDivergence::Halt)];
        set(&mut config.on_divergence, one_of("SYNDDB_ON_DIVERGENCE", &text, &reactions)?);
        config.token_provider = text("SYNDDB_TOKEN_FILE")?.map(TokenProvider::file);
        tls(&mut config, &text)?;
        Ok(config)
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        let check = |fine: bool, setting, problem: &str| {
            if fine { Ok(()) } else { Err(Error::Config { setting, problem: problem.into() }) }
        };
        check(self.buffer_size > 0, "buffer_size", "must be at least 1")?;
        let batch = 4096..=1 << 30;
        check(
            batch.contains(&self.max_batch_size),
            "max_batch_size",
            "must be from 4096 bytes to 1 GiB",
        )?;
        check(self.max_retries > 0, "max_retries", "must be at least 1")?;
        check(self.max_memory_bytes > 0, "max_memory_bytes", "must be more than 0 bytes")?;
        check(self.max_outbox_bytes != Some(0), "max_outbox_bytes", "must be more than 0 bytes")?;
        check(self.max_changeset_bytes > 0, "max_changeset_bytes", "must be more than 0 bytes")?;
        check(!self.response_timeout.is_zero(), "response_timeout", "must be more than 0")?;
        let name_fits = |name: &String| (1..=128).contains(&name.len());
        check(
            self.snapshot_factor.is_finite() && self.snapshot_factor >= 0.0,
            "snapshot_factor",
            "is how many times the weight of the last snapshot, or 0 for never",
        )?;
        check(
            self.stream.as_ref().is_none_or(name_fits),
            "stream",
            "a name has from 1 to 128 bytes",
        )?;
        check(
            self.durability != Durability::BeforeCommit || self.engine == Engine::Preupdate,
            "durability",
            "BeforeCommit needs to see a transaction before it commits: set Config::engine to \
             Engine::Preupdate, or choose Background",
        )?;
        let in_memory = self.durability == Durability::Memory;
        check(
            !(in_memory && self.outbox_path.is_some()),
            "outbox_path",
            "an outbox in memory has no path: leave it out, or choose another durability",
        )
    }
}

fn set<T>(setting: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *setting = value;
    }
}

#[cfg(all(feature = "http", feature = "hyper"))]
fn http_client(config: &mut Config, text: Lookup<'_>) -> Result<(), Error> {
    let clients = [("ureq", HttpClient::Ureq), ("hyper", HttpClient::Hyper)];
    set(&mut config.http_client, one_of("SYNDDB_HTTP_CLIENT", text, &clients)?);
    Ok(())
}

/// There is no choice, and none is needed where it is what is there.
#[cfg(not(all(feature = "http", feature = "hyper")))]
fn http_client(_: &mut Config, text: Lookup<'_>) -> Result<(), Error> {
    let setting = "SYNDDB_HTTP_CLIENT";
    let is_there = [("ureq", cfg!(feature = "http")), ("hyper", cfg!(feature = "hyper"))];
    match one_of(setting, text, &is_there)? {
        Some(false) => {
            let problem = "names a client that this program was built without: enable the feature \
                           `http` for ureq, `hyper` for hyper"
                .into();
            Err(Error::Config { setting, problem })
        }
        Some(true) | None => Ok(()),
    }
}

type Lookup<'a> = &'a dyn Fn(&'static str) -> Result<Option<String>, Error>;

#[cfg(feature = "tls")]
fn tls(config: &mut Config, text: Lookup<'_>) -> Result<(), Error> {
    use synddb_tls::{ClientTls, Identity, Pem, Pin, Roots};
    let file = |name| Ok::<_, Error>(text(name)?.map(|path| Pem::File(path.into())));
    let mut tls = ClientTls {
        roots: file("SYNDDB_TLS_CA")?.map(Roots::Pem),
        server_name: text("SYNDDB_TLS_SERVER_NAME")?,
        ..Default::default()
    };
    if let Some(pins) = text("SYNDDB_TLS_PINS")? {
        let setting = "SYNDDB_TLS_PINS";
        let pins = pins.split(',').map(str::parse).collect::<Result<Vec<Pin>, _>>();
        tls.pins = pins.map_err(|error| Error::Config { setting, problem: error.to_string() })?;
    }
    tls.identity = match (file("SYNDDB_TLS_CERT")?, file("SYNDDB_TLS_KEY")?) {
        (None, None) => None,
        (Some(certificates), Some(key)) => Some(Identity { certificates, key }),
        (Some(_), None) | (None, Some(_)) => {
            let problem =
                "a certificate and its key go together: set SYNDDB_TLS_KEY too, or neither";
            return Err(Error::Config { setting: "SYNDDB_TLS_CERT", problem: problem.into() });
        }
    };
    let ClientTls { roots, pins, identity, server_name, .. } = &tls;
    if roots.is_some() || !pins.is_empty() || identity.is_some() || server_name.is_some() {
        config.tls = Some(tls);
    }
    Ok(())
}

#[cfg(not(feature = "tls"))]
fn tls(_: &mut Config, text: Lookup<'_>) -> Result<(), Error> {
    let names = [
        "SYNDDB_TLS_CA",
        "SYNDDB_TLS_PINS",
        "SYNDDB_TLS_CERT",
        "SYNDDB_TLS_KEY",
        "SYNDDB_TLS_SERVER_NAME",
    ];
    for setting in names {
        if text(setting)?.is_some() {
            let problem = "needs the feature `tls`, which this program was built without".into();
            return Err(Error::Config { setting, problem });
        }
    }
    Ok(())
}

fn number<T: FromStr>(name: &'static str, text: Lookup<'_>) -> Result<Option<T>, Error> {
    let Some(value) = text(name)? else { return Ok(None) };
    match value.trim().parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => {
            let problem = format!("{value:?} is not a number that fits");
            Err(Error::Config { setting: name, problem })
        }
    }
}

fn one_of<T: Copy>(
    name: &'static str,
    text: Lookup<'_>,
    choices: &[(&str, T)],
) -> Result<Option<T>, Error> {
    let Some(value) = text(name)? else { return Ok(None) };
    let chosen = choices.iter().find(|(word, _)| value.trim().eq_ignore_ascii_case(word));
    match chosen {
        Some((_, choice)) => Ok(Some(*choice)),
        None => {
            let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
            let problem = format!("{value:?} is none of: {}", words.join(", "));
            Err(Error::Config { setting: name, problem })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(variables: &[(&str, &str)]) -> Result<Config, Error> {
        Config::from_variables(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            Ok(found.map(|(_, value)| (*value).to_owned()))
        })
    }

    fn complaint(result: Result<(), Error>) -> &'static str {
        match result {
            Err(Error::Config { setting, .. }) => setting,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_environment_changes_the_defaults() {
        let config = from(&[
            ("SYNDDB_SEQUENCER_URL", "http://sequencer:8433"),
            ("SYNDDB_PUSH_INTERVAL_MS", "250"),
            ("SYNDDB_ON_DIVERGENCE", "Halt"),
            ("SYNDDB_STREAM", "orders"),
            ("SYNDDB_SNAPSHOT_FACTOR", "2.5"),
        ])
        .unwrap();
        assert_eq!(config.sequencer_url, "http://sequencer:8433");
        assert_eq!(config.push_interval, Duration::from_millis(250));
        assert_eq!(config.on_divergence, OnDivergence::Halt);
        assert_eq!(config.stream.as_deref(), Some("orders"));
        assert_eq!(config.snapshot_factor, 2.5);
        assert_eq!(config.buffer_size, Config::default().buffer_size);
    }

    #[test]
    fn a_variable_that_cannot_be_understood_is_named() {
        let asked = [("SYNDDB_MAX_RETRIES", "-1"), ("SYNDDB_DURABILITY", "disk")];
        for (name, value) in asked {
            assert_eq!(complaint(from(&[(name, value)]).map(drop)), name);
        }
    }

    #[test]
    fn the_http_client_is_chosen_or_refused() {
        for (name, is_there) in
            [("ureq", cfg!(feature = "http")), ("Hyper", cfg!(feature = "hyper"))]
        {
            let chosen = from(&[("SYNDDB_HTTP_CLIENT", name)]);
            if is_there {
                let _config = chosen.unwrap();
                #[cfg(all(feature = "http", feature = "hyper"))]
                assert_eq!(_config.http_client == HttpClient::Hyper, name == "Hyper");
            } else {
                assert_eq!(complaint(chosen.map(drop)), "SYNDDB_HTTP_CLIENT");
            }
        }
        let unknown = from(&[("SYNDDB_HTTP_CLIENT", "curl")]);
        assert_eq!(complaint(unknown.map(drop)), "SYNDDB_HTTP_CLIENT");
    }

    #[test]
    fn tls_is_set_by_the_environment_or_refused() {
        let pin = format!("sha256:{}", "ab".repeat(32));
        let pins = format!("{pin},{pin}");
        let given = from(&[("SYNDDB_TLS_PINS", &pins), ("SYNDDB_TLS_SERVER_NAME", "sequencer")]);
        #[cfg(feature = "tls")]
        {
            let tls = given.unwrap().tls.unwrap();
            assert_eq!(tls.pins, [pin.parse().unwrap(); 2]);
            assert_eq!(tls.server_name.as_deref(), Some("sequencer"));
            assert!(from(&[]).unwrap().tls.is_none());
            for (name, value) in [("SYNDDB_TLS_PINS", "x"), ("SYNDDB_TLS_CERT", "/x")] {
                assert_eq!(complaint(from(&[(name, value)]).map(drop)), name);
            }
        }
        #[cfg(not(feature = "tls"))]
        assert_eq!(complaint(given.map(drop)), "SYNDDB_TLS_PINS");
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let config = Config { buffer_size: 0, ..Default::default() };
        assert_eq!(complaint(config.validate()), "buffer_size");
        let config = Config { stream: Some(String::new()), ..Default::default() };
        assert_eq!(complaint(config.validate()), "stream");
        for factor in [-1.0, f64::NAN, f64::INFINITY] {
            let config = Config { snapshot_factor: factor, ..Default::default() };
            assert_eq!(complaint(config.validate()), "snapshot_factor");
        }
        let config = Config {
            durability: Durability::Memory,
            outbox_path: Some("outbox".into()),
            ..Default::default()
        };
        assert_eq!(complaint(config.validate()), "outbox_path");
        let config = Config { durability: Durability::BeforeCommit, ..Default::default() };
        assert_eq!(complaint(config.validate()), "durability");
        Config { engine: Engine::Preupdate, ..config }.validate().unwrap();
        Config::default().validate().unwrap();
    }
}
