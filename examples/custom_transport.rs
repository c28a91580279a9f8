//! A transport over an HTTP client that synddb has never heard of: attohttpc.
//!
//! Whoever has an HTTP client implements one method, `HttpExchange::post`. What is posted, in which
//! order and what an answer means is the core's `HttpFrames`.

use std::{error::Error, fmt, io::Read, ops::ControlFlow, thread, time::Duration};

use attohttpc::{ErrorKind, Method, RequestBuilder, header};
use synddb_client::{
    Config, SyndDB,
    rusqlite::Connection,
    transport::{TransportError, TransportErrorKind},
};
use synddb_core::http::{HttpExchange, HttpFrames, HttpRequest, HttpResponse};
use synddb_sequencer::{
    Server,
    replica::{Restore, differences},
    store::SqliteStore,
};

/// Posts to the sequencer at `url`, each time over a connection of its own.
pub struct Exchange {
    /// Where the sequencer is, without a slash at the end.
    pub url: String,
    /// How long a request may take.
    pub timeout: Duration,
}

impl HttpExchange for Exchange {
    type Error = ExchangeError;

    fn post(
        &mut self,
        request: HttpRequest<'_>,
        response: &mut Vec<u8>,
        limit: usize,
    ) -> Result<HttpResponse, ExchangeError> {
        let mut post =
            RequestBuilder::try_new(Method::POST, format!("{}{}", self.url, request.path))?
                .header(header::CONTENT_TYPE, request.content_type)
                .header(header::ACCEPT, request.content_type)
                // A redirect is a wrong address, and every status is a response.
                .follow_redirects(false)
                .timeout(self.timeout);
        if !request.token.is_empty() {
            post = post.bearer_auth(request.token);
        }
        let (status, headers, body) = post.bytes(request.body).send()?.split();
        response.clear();
        body.take(limit as u64).read_to_end(response).map_err(attohttpc::Error::from)?;
        let said = |name| headers.get(name).and_then(|value| value.to_str().ok());
        // attohttpc takes a body that is cut short for a whole one.
        let announced = said(header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
        if announced.is_some_and(|length: usize| response.len() < length.min(limit)) {
            let cut = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(attohttpc::Error::from(cut).into());
        }
        let (kind, wait) = (said(header::CONTENT_TYPE), said(header::RETRY_AFTER));
        Ok(HttpResponse::new(status.as_u16(), kind, wait))
    }

    fn idle(&mut self, timeout: Duration) {
        thread::sleep(timeout);
    }
}

/// What attohttpc says, told apart by what to do about it.
#[derive(Debug)]
pub struct ExchangeError(attohttpc::Error);

impl TransportError for ExchangeError {
    fn kind(&self) -> TransportErrorKind {
        match self.0.kind() {
            ErrorKind::Io(error) => error.kind().into(),
            ErrorKind::InvalidResponse(_) => TransportErrorKind::NotASequencer,
            ErrorKind::InvalidBaseUrl | ErrorKind::InvalidUrlHost | ErrorKind::TlsDisabled => {
                TransportErrorKind::Misconfigured
            }
            _ => TransportErrorKind::Other,
        }
    }
}

impl From<attohttpc::Error> for ExchangeError {
    fn from(error: attohttpc::Error) -> Self {
        Self(error)
    }
}

impl fmt::Display for ExchangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Ships a few commits over it, and compares.
pub fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("log");
    let server = Server::start(synddb_sequencer::Config::new("127.0.0.1:0".parse()?, log.clone()))?;
    let url = format!("http://{}", server.addr());
    let transport = HttpFrames::new(Exchange { url, timeout: Duration::from_secs(30) });

    // A transport of one's own is attached to a connection; the address in the settings is not used.
    let app: &'static Connection =
        Box::leak(Box::new(Connection::open(dir.path().join("app.db"))?));
    app.pragma_update(None, "journal_mode", "WAL")?;
    let synddb = SyndDB::attach_with_transport(app, transport, Config::default())?;
    app.execute_batch(
        "CREATE TABLE trades(id INTEGER PRIMARY KEY, amount INTEGER);
         INSERT INTO trades VALUES (1, 100), (2, 200);
         UPDATE trades SET amount = 300 WHERE id = 2;",
    )?;
    let receipt = synddb.push()?;

    let replica = dir.path().join("replica.db");
    Restore::new(&SqliteStore::open_read_only(&log)?, receipt.stream)
        .run(&replica, |_| ControlFlow::Continue(()))?;
    let found = differences(app, &Connection::open(&replica)?)?;
    assert!(found.is_empty(), "{found:#?}");
    println!("over attohttpc: the replica equals the database, as of commit {}", receipt.commit);
    assert!(synddb.shutdown()?.left.is_none(), "it was pushed");
    Ok(())
}
