use std::{
    io::{self, Write},
    net::ToSocketAddrs,
    path::PathBuf,
};

use synddb_sequencer::{Config, Server};

use super::{Failure, signals::Signals};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to listen; port 0 for any free one.
    #[arg(long, default_value = "http://127.0.0.1:8433")]
    listen: String,
    /// Where to keep the log.
    #[arg(long)]
    data: PathBuf,
    /// Listen beyond loopback although nobody's access is checked.
    #[arg(long)]
    insecure: bool,
}

impl Args {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let listen = &self.listen;
        let authority = listen
            .strip_prefix("http://")
            .ok_or_else(|| format!("--listen {listen}: expected http://HOST:PORT"))?
            .trim_end_matches('/');
        let addr = authority
            .to_socket_addrs()
            .map_err(|error| format!("--listen {listen}: {error}"))?
            .next()
            .ok_or_else(|| format!("--listen {listen}: no such address"))?;
        let mut config = Config::new(addr, self.data);
        config.insecure = self.insecure;
        let failed = |error: io::Error| format!("cannot listen to signals: {error}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(failed)?;
        let mut signals = runtime.block_on(async { Signals::listen() }).map_err(failed)?;
        let server = Server::start(config)?;
        // A sequencer serves whether or not anybody reads this.
        let _ = writeln!(io::stdout(), "listening on http://{}", server.addr());
        runtime.block_on(signals.next());
        server.shutdown();
        Ok(())
    }
}
