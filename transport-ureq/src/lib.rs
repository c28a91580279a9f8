//! Carries synddb frames over HTTP with [ureq](https://docs.rs/ureq): blocking, without an async
//! runtime.
//!
//! ```text
//!  Sender ── frames ──▶ HttpFrames (synddb-core) ── bodies ──▶ UreqExchange ──▶ POST /v1/frames
//! ```
//!
//! ```
//! use synddb_core::transport::Transport;
//!
//! # fn main() -> Result<(), synddb_transport_ureq::UreqError> {
//! // Nothing is sent before there is a frame to send.
//! let transport = synddb_transport_ureq::connect("http://sequencer.internal:8433")?;
//! assert_eq!(transport.max_in_flight(), 8);
//!
//! // Without the feature `tls` an https address is refused here, and says why.
//! let secure = synddb_transport_ureq::connect("https://sequencer.internal");
//! assert_eq!(secure.is_ok(), cfg!(feature = "tls"));
//! # Ok(())
//! # }
//! ```
//!
//! Connections are kept open between requests. Every step has a time limit. The proxies of
//! `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` are used as ureq reads them.
//!
//! # What it does not do
//!
//! It does not retry (the Sender decides that), follow redirects, or decompress responses.
#![forbid(unsafe_code)]

mod error;
mod exchange;
mod resolve;
#[cfg(feature = "tls")]
mod tls;

pub use error::UreqError;
pub use exchange::{UreqConfig, UreqExchange};
use synddb_core::http::HttpFrames;
#[cfg(feature = "tls")]
pub use synddb_tls;

/// A transport to the sequencer at `url`, such as `https://sequencer.example:8433/synddb`, with
/// the default limits. Nothing is sent yet.
///
/// # Errors
/// See [`UreqExchange::new`].
pub fn connect(url: &str) -> Result<HttpFrames<UreqExchange>, UreqError> {
    Ok(HttpFrames::new(UreqExchange::new(url, UreqConfig::default())?))
}
