//! The asynchronous client.

use std::{mem, time::Duration};

use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::{Body, Bytes, Incoming},
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, USER_AGENT},
};
use synddb_core::{
    http::{AsyncHttpExchange, HttpRequest, HttpResponse},
    transport::TransportErrorKind,
};

use crate::{
    HyperError,
    connection::{Connection, NotAnswered, Tls},
    error::Failed,
    target::Target,
};

/// Limits of a [`HyperClient`], and what it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HyperConfig {
    /// How long a connection may take to be there: finding the host, TCP, TLS.
    pub connect_timeout: Duration,
    /// How long a whole request may take, connecting and reading the response included.
    pub timeout: Duration,
    /// The version of HTTP.
    pub version: Version,
}

impl Default for HyperConfig {
    /// 10 seconds to connect, 30 for a whole request.
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(30),
            version: Version::default(),
        }
    }
}

/// Which HTTP to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// Over TLS HTTP/2 where the server has it, which ALPN tells; else HTTP/1.1.
    #[default]
    Negotiated,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only: in the clear with prior knowledge, without asking.
    Http2,
}

/// Posts over one connection, which is kept open between requests. For use inside a tokio runtime
/// with its I/O and time enabled.
///
/// A future that is dropped ends its connection.
#[derive(Debug)]
pub struct HyperClient {
    target: Target,
    config: HyperConfig,
    tls: Tls,
    connection: Option<Connection>,
    /// Room for a body.
    spare: Vec<u8>,
}

impl HyperClient {
    /// A client of the sequencer at `base_url`; the forms are in the [crate's documentation](crate).
    /// Nothing is sent yet.
    ///
    /// # Errors
    /// An address that cannot be used, or not by this build.
    pub fn new(base_url: &str, config: HyperConfig) -> Result<Self, HyperError> {
        let target = Target::new(base_url)?;
        #[cfg(feature = "tls")]
        if target.has_tls {
            let tls = synddb_tls::ClientTls::default().connector().map_err(HyperError::Tls)?;
            return Self::over_tls(target, config, tls);
        }
        Ok(Self { target, config, tls: Tls::default(), connection: None, spare: Vec::new() })
    }

    /// As [`new`](Self::new), with settings for TLS of one's own: for addresses with it only.
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`NotHttps`](HyperError::NotHttps).
    #[cfg(feature = "tls")]
    pub fn with_tls(
        base_url: &str,
        config: HyperConfig,
        tls: synddb_tls::Connector,
    ) -> Result<Self, HyperError> {
        let target = Target::new(base_url)?;
        if !target.has_tls {
            return Err(HyperError::NotHttps);
        }
        Self::over_tls(target, config, tls)
    }

    #[cfg(feature = "tls")]
    fn over_tls(
        target: Target,
        config: HyperConfig,
        tls: synddb_tls::Connector,
    ) -> Result<Self, HyperError> {
        tls.name_for(target.host()).map_err(HyperError::Tls)?;
        Ok(Self { target, config, tls: Some(tls), connection: None, spare: Vec::new() })
    }

    /// The version that is spoken over the connection that is kept; `None` where there is none.
    pub fn open_version(&self) -> Option<Version> {
        self.connection.as_ref().map(|connection| match connection.is_http2() {
            true => Version::Http2,
            false => Version::Http1,
        })
    }

    /// Posts `request` and waits for the response, within the time limits. The response's body is
    /// written over what `response` held, up to `limit` bytes; more of it is not read. Every status
    /// is a response.
    ///
    /// # Errors
    /// There was no response, or its body ended before its announced length.
    pub async fn post(
        &mut self,
        request: HttpRequest<'_>,
        response: &mut Vec<u8>,
        limit: usize,
    ) -> Result<HttpResponse, HyperError> {
        response.clear();
        let timeout = self.config.timeout;
        let posted = tokio::time::timeout(timeout, self.exchange(request, response, limit)).await;
        let posted = posted.unwrap_or_else(|_| {
            let text = format!("no response within {} s", timeout.as_secs_f32());
            Err(Failed::new(TransportErrorKind::TimedOut, text))
        });
        posted.map_err(|failed| failed.at(&self.target.url))
    }

    async fn exchange(
        &mut self,
        request: HttpRequest<'_>,
        body: &mut Vec<u8>,
        limit: usize,
    ) -> Result<HttpResponse, Failed> {
        let mut room = mem::take(&mut self.spare);
        room.clear();
        room.extend_from_slice(request.body);
        let bytes = Bytes::from(room);
        let outcome = self.exchange_bytes(&request, bytes.clone(), body, limit).await;
        if bytes.is_unique() {
            self.spare = bytes.into();
        }
        outcome
    }

    async fn exchange_bytes(
        &mut self,
        request: &HttpRequest<'_>,
        bytes: Bytes,
        body: &mut Vec<u8>,
        limit: usize,
    ) -> Result<HttpResponse, Failed> {
        // Put back at the end: what is given up in the middle is not used again.
        if let Some(mut kept) = self.connection.take()
            && kept.is_usable().await
        {
            let request = self.request(&kept, request, bytes.clone())?;
            match kept.send(request).await {
                Ok(response) => return self.read(kept, response, body, limit).await,
                Err(NotAnswered::Failed(failed)) => return Err(failed),
                // The server had ended it, as it may: that is no failed request.
                Err(NotAnswered::Unsent(_)) => {}
            }
        }
        let HyperConfig { connect_timeout, version, .. } = self.config;
        let mut connection =
            Connection::open(&self.target, &self.tls, version, connect_timeout).await?;
        let request = self.request(&connection, request, bytes)?;
        match connection.send(request).await {
            Ok(response) => self.read(connection, response, body, limit).await,
            Err(NotAnswered::Unsent(failed) | NotAnswered::Failed(failed)) => Err(failed),
        }
    }

    fn request(
        &self,
        connection: &Connection,
        request: &HttpRequest<'_>,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Failed> {
        let misconfigured = |what: &str| Failed::new(TransportErrorKind::Misconfigured, what);
        let HttpRequest { path, content_type, token, .. } = request;
        let Target { has_tls, authority, path: base, .. } = &self.target;
        let post = if connection.is_http2() {
            let scheme = if *has_tls { "https" } else { "http" };
            Request::post(format!("{scheme}://{authority}{base}{path}"))
        } else {
            Request::post(format!("{base}{path}")).header(HOST, authority)
        };
        let mut post = post
            .header(USER_AGENT, concat!("synddb/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, *content_type)
            .header(ACCEPT, *content_type);
        if !token.is_empty() {
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| misconfigured("the token holds what no header can"))?;
            value.set_sensitive(true);
            post = post.header(AUTHORIZATION, value);
        }
        post.body(Full::new(body)).map_err(|error| misconfigured(&error.to_string()))
    }

    async fn read(
        &mut self,
        mut connection: Connection,
        response: Response<Incoming>,
        body: &mut Vec<u8>,
        limit: usize,
    ) -> Result<HttpResponse, Failed> {
        let (head, mut incoming) = response.into_parts();
        let said = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
        let outcome =
            HttpResponse::new(head.status.as_u16(), said(CONTENT_TYPE), said(RETRY_AFTER));
        // To the end, and not just to the last frame: only then can the connection be used again.
        while body.len() < limit {
            let Some(frame) = incoming.frame().await else { break };
            let frame = match frame {
                Ok(frame) => frame,
                Err(error) => return Err(connection.failed(error).await),
            };
            if let Ok(data) = frame.into_data() {
                let room = data.len().min(limit - body.len());
                body.extend_from_slice(&data[..room]);
                if room < data.len() {
                    return Ok(outcome);
                }
            }
        }
        if incoming.is_end_stream() {
            self.connection = Some(connection);
        }
        Ok(outcome)
    }
}

impl AsyncHttpExchange for HyperClient {
    type Error = HyperError;

    // Not an `async fn`, so that the future can be sent to another thread.
    fn post(
        &mut self,
        request: HttpRequest<'_>,
        response: &mut Vec<u8>,
        limit: usize,
    ) -> impl Future<Output = Result<HttpResponse, HyperError>> {
        Self::post(self, request, response, limit)
    }
}
