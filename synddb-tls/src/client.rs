use std::{
    fmt, io,
    io::{Read, Write},
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{ClientConfig, ClientConnection, client::Resumption, pki_types::ServerName};

use crate::{
    Attestation, ClientStream, Failure, Identity, Peer, Pin, Roots, TlsError, failure_of,
    pem::Loaded,
    provider, refused,
    stream::told,
    verify::{LoadedRoots, ServerCheck},
};

/// The client's side: whom to believe, and who one is.
///
/// The default believes servers whose certificate ends at a root of Mozilla's, and shows none.
#[derive(Debug, Clone, Default)]
pub struct ClientTls {
    /// Where the server's certificate has to end. Default: at a root of Mozilla's; where there are
    /// `pins`, anywhere.
    pub roots: Option<Roots>,
    /// Keys of which the server has to have one; see the [crate's documentation](crate). Default:
    /// any.
    pub pins: Vec<Pin>,
    /// What this side shows where the server asks for a certificate. Files are read again at each
    /// connection. Default: nothing.
    pub identity: Option<Identity>,
    /// The name that the certificate has to be for. Default: the host of the address; addresses
    /// without one (vsock, unix sockets) need it where roots count.
    pub server_name: Option<String>,
    /// Asked at each connection. Default: nobody.
    pub attestation: Option<Attestation>,
}

impl ClientTls {
    /// Believes servers that have one of these keys, whatever their certificate says.
    pub fn pinned(pins: impl IntoIterator<Item = Pin>) -> Self {
        Self { pins: pins.into_iter().collect(), ..Self::default() }
    }

    /// Reads and checks everything.
    ///
    /// # Errors
    /// Whatever cannot be honoured.
    pub fn connector(&self) -> Result<Connector, TlsError> {
        let name = self.server_name.as_deref().map(server_name).transpose()?;
        let material = Material::read(self)?;
        let config = self.build(&material)?;
        Ok(Connector(Arc::new(Shared {
            settings: self.clone(),
            name,
            current: Mutex::new((material, config)),
        })))
    }

    fn build(&self, material: &Material) -> Result<Arc<ClientConfig>, TlsError> {
        let check = ServerCheck::new(material.roots.clone(), &self.pins)?;
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(refused)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(check));
        let mut config = match &material.identity {
            None => builder.with_no_client_auth(),
            Some(Loaded { chain, key }) => {
                builder.with_client_auth_cert(chain.clone(), key.clone_key()).map_err(refused)?
            }
        };
        // Who resumes proves nothing anew: a certificate that has expired since would go on.
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    ServerName::try_from(bare.to_owned()).map_err(|_| TlsError::InvalidName(name.to_owned()))
}

/// What the settings' files hold at the moment.
#[derive(PartialEq, Eq)]
struct Material {
    roots: LoadedRoots,
    identity: Option<Loaded>,
}

impl Material {
    fn read(settings: &ClientTls) -> Result<Self, TlsError> {
        let roots = match &settings.roots {
            Some(roots) => Some(roots.load()?),
            None if settings.pins.is_empty() => Some(None),
            None => None,
        };
        Ok(Self { roots, identity: settings.identity.as_ref().map(Identity::load).transpose()? })
    }
}

/// Makes TLS connections out of byte streams. Clones share what was read.
#[derive(Clone)]
pub struct Connector(Arc<Shared>);

struct Shared {
    settings: ClientTls,
    name: Option<ServerName<'static>>,
    current: Mutex<(Material, Arc<ClientConfig>)>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connector").field(&self.0.settings).finish()
    }
}

impl Connector {
    /// Makes sure that connections to an address without a host name can be checked.
    ///
    /// # Errors
    /// [`NoName`](TlsError::NoName).
    pub fn without_host(&self) -> Result<(), TlsError> {
        self.name_for("").map(drop)
    }

    /// Does the handshake over `stream`, and has the server attested. `host` is the host of the
    /// address, empty where it has none. Time limits are the stream's.
    ///
    /// # Errors
    /// The stream's; [`failure_of`](crate::failure_of) tells what is wrong with the other side or the
    /// settings.
    pub fn connect<S: Read + Write>(
        &self,
        mut stream: S,
        host: &str,
    ) -> io::Result<ClientStream<S>> {
        let connection = self.handshake(&mut stream, host)?;
        Ok(ClientStream::new(connection, stream))
    }

    /// As [`connect`](Self::connect), for those who go on over the stream in another way.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn handshake<S: Read + Write>(
        &self,
        stream: &mut S,
        host: &str,
    ) -> io::Result<ClientConnection> {
        let misconfigured = |error: TlsError| Failure::Misconfigured(error.to_string());
        let config = self.config().map_err(misconfigured)?;
        let name = self.name_for(host).map_err(misconfigured)?;
        let mut connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            match connection.complete_io(stream).map_err(told) {
                Ok((0, 0)) => return Err(Failure::HungUp.into()),
                Ok(_) => {}
                Err(error) => {
                    say_why(&mut connection, stream);
                    return Err(match error.kind() {
                        _ if failure_of(&error).is_some() => error,
                        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                            Failure::HungUp.into()
                        }
                        _ => error,
                    });
                }
            }
        }
        let peer = Peer::of(&connection)
            .ok_or_else(|| Failure::Other("there is nothing to attest".into()))?;
        if let Err(failure) = self.attest(&peer) {
            connection.send_close_notify();
            say_why(&mut connection, stream);
            return Err(failure.into());
        }
        Ok(connection)
    }

    /// Has the server attested, where the settings say so: for those who do the handshake by
    /// themselves, after it and before anything else. It may block.
    ///
    /// # Errors
    /// It is refused.
    pub fn attest(&self, peer: &Peer) -> Result<(), Failure> {
        match &self.0.settings.attestation {
            None => Ok(()),
            Some(attestation) => attestation
                .check(peer)
                .map_err(|why| Failure::Untrusted(format!("its attestation: {why}"))),
        }
    }

    /// The configuration for the next connection: of the files as they are now.
    ///
    /// # Errors
    /// The files cannot be used any more.
    pub fn config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let Shared { settings, current, .. } = &*self.0;
        let material = Material::read(settings)?;
        let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.0 != material {
            let config = settings.build(&material)?;
            *current = (material, config);
        }
        Ok(Arc::clone(&current.1))
    }

    /// The name to ask the server for.
    ///
    /// # Errors
    /// [`NoName`](TlsError::NoName), [`InvalidName`](TlsError::InvalidName).
    pub fn name_for(&self, host: &str) -> Result<ServerName<'static>, TlsError> {
        let settings = &self.0.settings;
        if let Some(name) = &self.0.name {
            return Ok(name.clone());
        }
        if !host.is_empty() {
            return server_name(host);
        }
        if settings.roots.is_some() || settings.pins.is_empty() {
            return Err(TlsError::NoName);
        }
        // Compared with nothing; and an address is not sent, as a name would be.
        server_name("0.0.0.0")
    }
}

/// Sends the alert that says to the other side what is wrong with it.
pub(crate) fn say_why<S: Read + Write>(connection: &mut ClientConnection, stream: &mut S) {
    // It may be gone.
    while connection.wants_write() && connection.write_tls(stream).is_ok_and(|count| count > 0) {}
    let _ = stream.flush();
}
