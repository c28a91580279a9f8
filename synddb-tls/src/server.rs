use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    ServerConfig,
    pki_types::CertificateDer,
    server::{NoClientAuth, danger::ClientCertVerifier},
};

use crate::{
    Attestation, Failure, Identity, Peer, Pem, Pin, TlsError, pem::Loaded, provider, refused,
    verify::ClientCheck,
};

/// The server's side: who one is, and whom to let in.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// What this side shows.
    pub identity: Identity,
    /// Which clients are let in.
    pub clients: Clients,
    /// Asked at each connection. Default: nobody.
    pub attestation: Option<Attestation>,
}

/// Which clients are let in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Clients {
    /// Everybody: nobody is asked for a certificate.
    #[default]
    Anyone,
    /// Those whose certificate ends at one of the roots, and whose key is one of the pins. An empty
    /// part of the two does not count; one of them has to be there.
    Known {
        /// Where their certificates have to end.
        roots: Option<Pem>,
        /// The keys of which they have to have one.
        pins: Vec<Pin>,
    },
    /// Everybody. Who shows a certificate has proved to have its key, whoever signed it, and is
    /// known by that key to those who decide what it may do. By itself this keeps nobody out.
    AnyKey,
}

impl ServerTls {
    /// Lets everybody in.
    pub fn new(identity: Identity) -> Self {
        Self { identity, clients: Clients::Anyone, attestation: None }
    }

    /// Reads and checks everything.
    ///
    /// # Errors
    /// Whatever cannot be honoured.
    pub fn acceptor(&self) -> Result<Acceptor, TlsError> {
        if let Clients::Known { roots: None, pins } = &self.clients
            && pins.is_empty()
        {
            return Err(TlsError::Contradiction(
                "known clients are asked for, and neither roots nor pins say who is known",
            ));
        }
        let material = Material::read(self)?;
        let config = self.build(&material)?;
        let current = Mutex::new((material, config));
        Ok(Acceptor(Arc::new(Shared { settings: self.clone(), current })))
    }

    fn build(&self, material: &Material) -> Result<Arc<ServerConfig>, TlsError> {
        let check: Arc<dyn ClientCertVerifier> = match &self.clients {
            Clients::Anyone => Arc::new(NoClientAuth),
            Clients::AnyKey => Arc::new(ClientCheck::new(None, None, false)?),
            Clients::Known { pins, .. } => {
                let pins = (!pins.is_empty()).then(|| pins.clone());
                Arc::new(ClientCheck::new(material.client_roots.clone(), pins, true)?)
            }
        };
        let Loaded { chain, key } = &material.identity;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(refused)?
            .with_client_cert_verifier(check)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(refused)?;
        // Who resumes proves nothing anew: a client that was let in once could come for ever.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Arc::new(config))
    }
}

/// What the settings' files hold at the moment.
#[derive(PartialEq, Eq)]
struct Material {
    identity: Loaded,
    client_roots: Option<Vec<CertificateDer<'static>>>,
}

impl Material {
    fn read(settings: &ServerTls) -> Result<Self, TlsError> {
        let client_roots = match &settings.clients {
            Clients::Known { roots: Some(roots), .. } => Some(roots.certificates()?),
            _ => None,
        };
        Ok(Self { identity: settings.identity.load()?, client_roots })
    }
}

/// Gives each connection the configuration of the moment. Clones share it.
#[derive(Clone)]
pub struct Acceptor(Arc<Shared>);

struct Shared {
    settings: ServerTls,
    current: Mutex<(Material, Arc<ServerConfig>)>,
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Acceptor").field(&self.0.settings).finish()
    }
}

impl Acceptor {
    /// The configuration for the next connection.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current().1)
    }

    /// Reads the files again. Connections that are open stay as they are; new ones get what is
    /// there now. Whether that is something else than before.
    ///
    /// # Errors
    /// The files cannot be used; what was read before stays.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let settings = &self.0.settings;
        let material = Material::read(settings)?;
        let mut current = self.current();
        if current.0 == material {
            return Ok(false);
        }
        let config = settings.build(&material)?;
        *current = (material, config);
        Ok(true)
    }

    /// Has the client at the other end of a connection attested, where the settings say so; for
    /// after the handshake and before anything else. It may block.
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

    /// Whether it lets in nobody but those it knows, by their certificate or their attestation.
    pub fn is_strict(&self) -> bool {
        let settings = &self.0.settings;
        matches!(settings.clients, Clients::Known { .. }) || settings.attestation.is_some()
    }

    fn current(&self) -> std::sync::MutexGuard<'_, (Material, Arc<ServerConfig>)> {
        self.0.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
