use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};
use synddb_sequencer::synddb_tls::{Identity, Pem, Pin};

use super::Failure;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder to write to; made where there is none. Nothing in it is overwritten.
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// A name or address of the sequencer, for clients that check it: those that have server.crt as
    /// their root instead of its pin. May be given several times.
    #[arg(long = "name", value_name = "NAME", default_values = ["localhost", "127.0.0.1", "::1"])]
    names: Vec<String>,
}

impl Args {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let files = ["server.crt", "server.key", "client.crt", "client.key"];
        let [server_crt, server_key, client_crt, client_key] =
            files.map(|file| self.out.join(file));
        let server =
            Pair::new("synddb sequencer", self.names, ExtendedKeyUsagePurpose::ServerAuth)?;
        let client = Pair::new("synddb client", Vec::new(), ExtendedKeyUsagePurpose::ClientAuth)?;
        fs::create_dir_all(&self.out)
            .map_err(|error| format!("{}: {error}", self.out.display()))?;
        let mut written = Written::default();
        written.write(&server_crt, &server.certificate, false)?;
        written.write(&server_key, &server.key, true)?;
        written.write(&client_crt, &client.certificate, false)?;
        written.write(&client_key, &client.key, true)?;
        written.keep();
        let (server_pin, client_pin) = (server.pin, client.pin);
        let [server_crt, server_key, client_crt, client_key] =
            [server_crt, server_key, client_crt, client_key].map(|path| path.display().to_string());
        io::stdout().write_all(
            format!(
                "\
The pins of the keys in {out}:
  server  {server_pin}
  client  {client_pin}

The sequencer, with server.crt and server.key:
  synddb sequencer --data DIR --listen https://0.0.0.0:8433 \\
      --tls-cert {server_crt} --tls-key {server_key} \\
      --tls-client-pin {client_pin}

The application, with client.crt and client.key, by Config::from_env():
  SYNDDB_SEQUENCER_URL=https://HOST:8433
  SYNDDB_TLS_PINS={server_pin}
  SYNDDB_TLS_CERT={client_crt}
  SYNDDB_TLS_KEY={client_key}

or in its Config:
  tls: Some(ClientTls {{
      pins: vec![\"{server_pin}\".parse()?],
      identity: Some(Identity {{
          certificates: Pem::File({client_crt:?}.into()),
          key: Pem::File({client_key:?}.into()),
      }}),
      ..Default::default()
  }}),

To look whether they meet:
  synddb status https://HOST:8433 --tls-pin {server_pin} \\
      --tls-cert {client_crt} --tls-key {client_key}

The keys (*.key) are secrets: each belongs on its own machine only.
",
                out = self.out.display(),
            )
            .as_bytes(),
        )?;
        Ok(())
    }
}

/// A key, and a certificate that it signed itself.
struct Pair {
    certificate: String,
    key: String,
    pin: Pin,
}

impl Pair {
    fn new(
        name: &str,
        names: Vec<String>,
        purpose: ExtendedKeyUsagePurpose,
    ) -> Result<Self, Failure> {
        let failed = |error: rcgen::Error| format!("no certificate could be made: {error}");
        let mut params = CertificateParams::new(names).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.insert_extended_key_usage(purpose);
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?.pem();
        let key = key.serialize_pem();
        let identity =
            Identity { certificates: Pem::Text(certificate.clone()), key: Pem::Text(key.clone()) };
        let pin = identity.pin().map_err(|error| error.to_string())?;
        Ok(Self { certificate, key, pin })
    }
}

/// Files that were made here, and go again unless all of them could be.
#[derive(Default)]
struct Written(Vec<PathBuf>);

impl Written {
    fn write(&mut self, path: &Path, text: &str, is_secret: bool) -> Result<(), Failure> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => format!(
                "{} is there already and is not overwritten; choose another folder by --out",
                path.display()
            ),
            _ => format!("{}: {error}", path.display()),
        };
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            options.mode(if is_secret { 0o600 } else { 0o644 });
        }
        #[cfg(not(unix))]
        let _ = is_secret;
        let mut file = options.open(path).map_err(failed)?;
        self.0.push(path.to_owned());
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        Ok(())
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        for path in &self.0 {
            // What cannot be removed is told by the error that led here.
            let _ = fs::remove_file(path);
        }
    }
}
