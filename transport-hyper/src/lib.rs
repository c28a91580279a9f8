//! Carries synddb frames over HTTP/1.1 and HTTP/2 with [hyper](https://docs.rs/hyper), in a
//! [tokio](https://docs.rs/tokio) runtime: over TCP, TLS, vsock and Unix sockets.
//!
//! ```text
//!  Sender ── frames ──▶ HttpFrames (synddb-core) ── bodies ──▶ HyperExchange, blocking
//!                                                                    │
//!  a task of yours ── bodies ───────────────────────────────▶ HyperClient ──▶ POST /v1/frames
//! ```
//!
//! ```
//! use synddb_core::transport::Transport;
//!
//! # fn main() -> Result<(), synddb_transport_hyper::HyperError> {
//! // Nothing is sent before there is a frame to send.
//! let transport = synddb_transport_hyper::connect("http://sequencer.internal:8433")?;
//! assert_eq!(transport.max_in_flight(), 8);
//!
//! // Without the features `tls` and `vsock` such addresses are refused here, and say why.
//! let secure = synddb_transport_hyper::connect("https://sequencer.internal");
//! assert_eq!(secure.is_ok(), cfg!(feature = "tls"));
//! let socket = synddb_transport_hyper::connect("http+unix:/run/synddb.sock");
//! assert_eq!(socket.is_ok(), cfg!(feature = "vsock"));
//! # Ok(())
//! # }
//! ```
//!
//! # Addresses
//!
//! | address | the way there | feature |
//! |---|---|---|
//! | `http://HOST:PORT/PATH` | TCP | |
//! | `http+unix:/path` | a Unix socket | `vsock` |
//! | `http+vsock://CID:PORT` | AF_VSOCK | `vsock` |
//! | `http+vsock+unix:/path:PORT` | the Unix socket of a VMM | `vsock` |
//! | the same with `https` | TLS over it | `tls` |
//!
//! # Versions
//!
//! Over TLS the server chooses by ALPN, HTTP/2 where it has it. In the clear HTTP/1.1 is spoken,
//! unless [`Version::Http2`] says that the server knows the other. As frames go in one request at
//! a time, HTTP/2 is no faster here; it is for what stands between and speaks nothing else.
//!
//! Connections are kept open between requests. Every step has a time limit. The head of a response
//! may have 64 KiB.
//!
//! # What it does not do
//!
//! It does not retry (the Sender decides that; a request that a closed connection took nothing of
//! goes over a new one), follow redirects, decompress responses, or use proxies: those of the
//! environment are ignored.
#![forbid(unsafe_code)]

mod client;
mod connection;
mod error;
mod exchange;
mod target;
mod watched;

pub use client::{HyperClient, HyperConfig, Version};
pub use error::HyperError;
pub use exchange::HyperExchange;
use synddb_core::http::HttpFrames;
#[cfg(feature = "tls")]
pub use synddb_tls;

/// A transport to the sequencer at `url`, such as `https://sequencer.example:8433/synddb`, with
/// the default limits and a runtime of its own. Nothing is sent yet.
///
/// # Errors
/// See [`HyperClient::new`] and [`HyperExchange::new`].
pub fn connect(url: &str) -> Result<HttpFrames<HyperExchange>, HyperError> {
    let client = HyperClient::new(url, HyperConfig::default())?;
    Ok(HttpFrames::new(HyperExchange::new(client)?))
}
