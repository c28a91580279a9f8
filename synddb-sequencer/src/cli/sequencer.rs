use std::{
    io::{self, Write},
    path::PathBuf,
};

use synddb_sequencer::{Config, ListenAddress, Rate, Server, access::Access};

use super::{
    Failure,
    signals::{Signal, Signals},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to listen; may be given several times.
    ///
    /// http://HOST:PORT (port 0: any free one); vsock://CID:PORT (CID: any, local, or a number);
    /// unix:/path; vsock+unix:/path:PORT for what a VM sends whose VMM has its vsock at /path. With
    /// TLS: https://, vsock+tls://, unix+tls:, vsock+unix+tls:. HTTP over these sockets:
    /// http+unix:/path, https+vsock://CID:PORT and so on. A Unix socket gets the permissions that the
    /// umask leaves.
    #[arg(long, value_name = "ADDRESS", default_value = "http://127.0.0.1:8433")]
    listen: Vec<ListenAddress>,
    /// Where to keep the log.
    #[arg(long)]
    data: PathBuf,
    /// The file that says who may do what, in TOML; by default everybody may do everything.
    ///
    /// Principals by the hash of a token or the key of a client certificate, and the streams that
    /// they may create, append to and read: `[[principal]]` with `name`, `tokens_sha256`, `keys`,
    /// `create`, `append`, `read`. Without rules a client whose key TLS asks for owns the streams that it
    /// creates. Who is not in it may do nothing. It is read again when it changes,
    /// and at SIGHUP.
    #[arg(long, value_name = "FILE")]
    access: Option<PathBuf>,
    /// Listen where others than this machine come although nobody's access is checked, or tokens
    /// would travel in the clear.
    #[arg(long)]
    insecure: bool,
    /// Connections at a time, for each address.
    #[arg(long, value_name = "COUNT", default_value_t = 256)]
    max_connections: usize,
    /// Bytes in a second that one principal may send, or that may come for one stream where there is
    /// no --access; 0 for no limit. Who sends more is asked to wait.
    #[arg(long, value_name = "BYTES", default_value_t = Rate::default().bytes_per_second)]
    max_rate: u64,
    #[cfg(feature = "tls")]
    #[command(flatten)]
    tls: TlsArgs,
}

#[cfg(feature = "tls")]
#[derive(clap::Args)]
#[command(next_help_heading = "TLS, for addresses with it; files are read again when they change")]
struct TlsArgs {
    /// The certificate, and those between it and a root. `synddb keygen` makes one.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its private key.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Let in only clients whose certificate ends at a root in this file.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Let in only clients that have this key, sha256:…; may be given several times.
    #[arg(long, value_name = "PIN", requires = "tls_cert")]
    tls_client_pin: Vec<synddb_sequencer::synddb_tls::Pin>,
}

#[cfg(feature = "tls")]
impl TlsArgs {
    fn settings(self) -> Option<synddb_sequencer::synddb_tls::ServerTls> {
        use synddb_sequencer::synddb_tls::{Clients, Identity, Pem, ServerTls};
        let (certificate, key) = self.tls_cert.zip(self.tls_key)?;
        let identity = Identity { certificates: Pem::File(certificate), key: Pem::File(key) };
        let (roots, pins) = (self.tls_client_ca.map(Pem::File), self.tls_client_pin);
        let clients = match roots.is_some() || !pins.is_empty() {
            true => Clients::Known { roots, pins },
            false => Clients::Anyone,
        };
        Some(ServerTls { clients, ..ServerTls::new(identity) })
    }
}

impl Args {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let [first, others @ ..] = &self.listen[..] else {
            return Err(Failure::Message("--listen: no address".into()));
        };
        let mut config = Config::new(first.clone(), self.data);
        config.listen.extend_from_slice(others);
        config.insecure = self.insecure;
        config.max_connections = self.max_connections;
        let rate = Rate { bytes_per_second: self.max_rate, burst: self.max_rate };
        config.rate = (self.max_rate > 0).then_some(rate);
        if let Some(file) = self.access {
            let access = Access::from_file(file).map_err(|error| format!("--access {error}"))?;
            config.access = Some(access);
        }
        #[cfg(feature = "tls")]
        {
            config.tls = self.tls.settings();
        }
        let failed = |error: io::Error| format!("cannot listen to signals: {error}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(failed)?;
        let signals = runtime.block_on(async { Signals::listen()?.with_reload() });
        let mut signals = signals.map_err(failed)?;
        let server = Server::start(config)?;
        // A sequencer serves whether or not anybody reads this.
        for address in server.addresses() {
            let _ = writeln!(io::stdout(), "listening on {address}");
        }
        while runtime.block_on(signals.next()) == Signal::Reload {
            server.reload();
        }
        server.shutdown();
        Ok(())
    }
}
