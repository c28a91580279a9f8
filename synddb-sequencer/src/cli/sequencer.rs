use std::{
    io::{self, Write},
    path::PathBuf,
};

use synddb_sequencer::{Config, ListenAddress, Server};

use super::{Failure, signals::Signals};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to listen; may be given several times.
    ///
    /// http://HOST:PORT (port 0: any free one); vsock://CID:PORT (CID: any, local, or a number);
    /// unix:/path; vsock+unix:/path:PORT for what a VM sends whose VMM has its vsock at /path. A
    /// Unix socket gets the permissions that the umask leaves.
    #[arg(long, value_name = "ADDRESS", default_value = "http://127.0.0.1:8433")]
    listen: Vec<ListenAddress>,
    /// Where to keep the log.
    #[arg(long)]
    data: PathBuf,
    /// Listen where others than this machine come although nobody's access is checked.
    #[arg(long)]
    insecure: bool,
}

impl Args {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let [first, others @ ..] = &self.listen[..] else {
            return Err(Failure::Message("--listen: no address".into()));
        };
        let mut config = Config::new(first.clone(), self.data);
        config.listen.extend_from_slice(others);
        config.insecure = self.insecure;
        let failed = |error: io::Error| format!("cannot listen to signals: {error}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(failed)?;
        let mut signals = runtime.block_on(async { Signals::listen() }).map_err(failed)?;
        let server = Server::start(config)?;
        // A sequencer serves whether or not anybody reads this.
        for address in server.addresses() {
            let _ = writeln!(io::stdout(), "listening on {address}");
        }
        runtime.block_on(signals.next());
        server.shutdown();
        Ok(())
    }
}
