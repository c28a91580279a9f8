//! One request with ureq.

use std::{io::Read, thread, time::Duration};

use synddb_core::http::{HttpExchange, HttpRequest, HttpResponse};
use ureq::{
    Agent,
    http::{Uri, header},
    unversioned::transport::{Connector, DefaultConnector},
};

use crate::{UreqError, resolve::KeptAddresses};

/// Limits of an [`UreqExchange`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UreqConfig {
    /// How long a connection may take to be there: finding the host, TCP, TLS.
    pub connect_timeout: Duration,
    /// How long a whole request may take, connecting and reading the response included.
    pub timeout: Duration,
}

impl Default for UreqConfig {
    /// 10 seconds to connect, 30 for a whole request.
    fn default() -> Self {
        Self { connect_timeout: Duration::from_secs(10), timeout: Duration::from_secs(30) }
    }
}

/// Posts with a ureq agent that keeps its connection open between requests.
#[derive(Debug)]
pub struct UreqExchange {
    agent: Agent,
    addresses: KeptAddresses,
    /// Without a slash at its end.
    base_url: String,
}

impl UreqExchange {
    /// An exchange with the sequencer at `base_url`: `http` or `https`, a host, and where needed a
    /// port and a path that everything is below. Nothing is sent yet.
    ///
    /// # Errors
    /// [`InvalidUrl`](UreqError::InvalidUrl), and [`NoTls`](UreqError::NoTls) for an https address
    /// without the feature `tls`.
    pub fn new(base_url: &str, config: UreqConfig) -> Result<Self, UreqError> {
        #[cfg(feature = "tls")]
        if check_url(base_url)? {
            let tls = synddb_tls::ClientTls::default().connector().map_err(UreqError::Tls)?;
            return Self::with_tls(base_url, config, tls);
        }
        check_url(base_url)?;
        Ok(Self::over(base_url, config, DefaultConnector::default()))
    }

    /// As [`new`](Self::new), with settings for TLS of one's own: for https only. A proxy that is
    /// itself an https address has to satisfy them too.
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`NotHttps`](UreqError::NotHttps).
    #[cfg(feature = "tls")]
    pub fn with_tls(
        base_url: &str,
        config: UreqConfig,
        tls: synddb_tls::Connector,
    ) -> Result<Self, UreqError> {
        use ureq::unversioned::transport::{ConnectProxyConnector, TcpConnector};
        if !check_url(base_url)? {
            return Err(UreqError::NotHttps);
        }
        let connector =
            ().chain(ConnectProxyConnector::default())
                .chain(TcpConnector::default())
                .chain(crate::tls::TlsConnector(tls));
        Ok(Self::over(base_url, config, connector))
    }

    fn over(base_url: &str, config: UreqConfig, connector: impl Connector) -> Self {
        let addresses = KeptAddresses::default();
        let agent = Agent::with_parts(settings(config), connector, addresses.clone());
        Self { agent, addresses, base_url: without_slash(base_url) }
    }

    fn failed(&self, error: ureq::Error) -> UreqError {
        self.addresses.forget();
        UreqError::from_ureq(&self.base_url, error)
    }
}

fn settings(config: UreqConfig) -> ureq::config::Config {
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("synddb/", env!("CARGO_PKG_VERSION")))
        .max_idle_connections(1)
        .max_idle_connections_per_host(1)
        .timeout_global(Some(config.timeout))
        .timeout_resolve(Some(config.connect_timeout))
        .timeout_connect(Some(config.connect_timeout))
        .build()
}

fn without_slash(url: &str) -> String {
    url.trim_end_matches('/').to_owned()
}

impl HttpExchange for UreqExchange {
    type Error = UreqError;

    fn post(
        &mut self,
        request: HttpRequest<'_>,
        response: &mut Vec<u8>,
        limit: usize,
    ) -> Result<HttpResponse, UreqError> {
        response.clear();
        let HttpRequest { path, content_type, token, body } = request;
        let mut post = self
            .agent
            .post(format!("{}{path}", self.base_url))
            .header(header::CONTENT_TYPE, content_type)
            .header(header::ACCEPT, content_type);
        if !token.is_empty() {
            post = post.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let mut answer = post.send(body).map_err(|error| self.failed(error))?;
        let said = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let outcome = HttpResponse::new(
            answer.status().as_u16(),
            said(header::CONTENT_TYPE),
            said(header::RETRY_AFTER),
        );
        // Reading to the end, and not just to the last frame, lets the connection be used again.
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        answer
            .body_mut()
            .as_reader()
            .take(limit)
            .read_to_end(response)
            .map_err(|error| self.failed(error.into()))?;
        Ok(outcome)
    }

    fn idle(&mut self, timeout: Duration) {
        thread::sleep(timeout);
    }
}

/// Whether a usable address is https.
fn check_url(url: &str) -> Result<bool, UreqError> {
    let invalid = |why| Err(UreqError::InvalidUrl { why });
    let Ok(uri) = url.parse::<Uri>() else {
        return invalid("it is not an address");
    };
    let Some(authority) = uri.authority().filter(|authority| !authority.host().is_empty()) else {
        return invalid("it names no host");
    };
    if authority.as_str().contains('@') {
        return invalid("it contains a user name or password");
    }
    if uri.query().is_some() {
        return invalid("it contains a query");
    }
    match uri.scheme_str() {
        Some("http") => Ok(false),
        Some("https") if cfg!(feature = "tls") => Ok(true),
        Some("https") => Err(UreqError::NoTls),
        _ => invalid("it begins with neither http:// nor https://"),
    }
}
