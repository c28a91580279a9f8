//! How a command reaches a sequencer: TLS and a token.

use std::{path::PathBuf, time::Duration};

#[cfg(feature = "tls")]
use synddb_sequencer::synddb_tls::{ClientTls, Connector, Identity, Pem, Pin, Roots};

/// What is shown to a sequencer, and which is believed.
#[derive(clap::Args)]
pub(crate) struct LinkArgs {
    /// The file of the token to show: `Authorization: Bearer`.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[cfg(feature = "tls")]
    #[command(flatten)]
    tls: TlsArgs,
}

#[cfg(feature = "tls")]
#[derive(clap::Args)]
#[command(next_help_heading = "TLS")]
struct TlsArgs {
    /// The file of the roots that the sequencer's certificate may end at; by default those of
    /// Mozilla, unless its key is pinned.
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// The sequencer's key, sha256:…; may be given several times.
    #[arg(long, value_name = "PIN")]
    tls_pin: Vec<Pin>,
    /// The client's certificate.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its private key.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The name that the sequencer's certificate is for, where that is not the host's.
    #[arg(long, value_name = "NAME")]
    tls_server_name: Option<String>,
}

/// How a sequencer is asked.
pub(crate) struct Link {
    pub(crate) timeout: Duration,
    /// Empty where there is none.
    pub(crate) token: String,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<Connector>,
}

impl LinkArgs {
    /// For an address with TLS or without.
    pub(crate) fn link(self, has_tls: bool, timeout: Duration) -> Result<Link, String> {
        let token = match self.token_file {
            None => String::new(),
            Some(path) => std::fs::read_to_string(&path)
                .map_err(|error| format!("--token-file {}: {error}", path.display()))?
                .trim()
                .to_owned(),
        };
        #[cfg(feature = "tls")]
        let tls = self.tls.connector(has_tls)?;
        #[cfg(not(feature = "tls"))]
        if has_tls {
            return Err("https needs TLS, which this program was built without".into());
        }
        Ok(Link {
            timeout,
            token,
            #[cfg(feature = "tls")]
            tls,
        })
    }
}

#[cfg(feature = "tls")]
impl TlsArgs {
    fn connector(self, has_tls: bool) -> Result<Option<Connector>, String> {
        let Self { tls_ca, tls_pin, tls_cert, tls_key, tls_server_name } = self;
        let is_given = tls_ca.is_some()
            || !tls_pin.is_empty()
            || tls_cert.is_some()
            || tls_server_name.is_some();
        if !has_tls {
            let problem = "settings for TLS are given, and the address is http: write https://";
            return if is_given { Err(problem.into()) } else { Ok(None) };
        }
        let identity = tls_cert.zip(tls_key).map(|(certificate, key)| Identity {
            certificates: Pem::File(certificate),
            key: Pem::File(key),
        });
        let tls = ClientTls {
            roots: tls_ca.map(|path| Roots::Pem(Pem::File(path))),
            pins: tls_pin,
            identity,
            server_name: tls_server_name,
            ..Default::default()
        };
        tls.connector().map(Some).map_err(|error| error.to_string())
    }
}
