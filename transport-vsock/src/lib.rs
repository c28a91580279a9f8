//! Carries synddb frames over stream sockets between machines that share one host: AF_VSOCK, Unix
//! sockets, and the Unix sockets that a VMM maps vsock to. Blocking, without an async runtime.
//!
//! ```text
//!  Sender ── frames ──▶ StreamTransport (synddb-core) ──▶ SocketLink ──▶ socket
//!                                                             ▲
//!                                          Dialer ── connect ─┘ (handshake with the VMM)
//! ```
//!
//! ```
//! use synddb_core::transport::Transport;
//! use synddb_transport_vsock::Address;
//!
//! # fn main() -> Result<(), synddb_transport_vsock::InvalidAddress> {
//! // Nothing is sent before `connect()`.
//! let transport = synddb_transport_vsock::transport("vsock://host:8433".parse()?);
//! assert_eq!(transport.max_in_flight(), 8);
//!
//! let error = "tcp://host:8433".parse::<Address>().unwrap_err();
//! assert!(error.to_string().contains("vsock://CID:PORT"), "it lists the forms there are");
//! # Ok(())
//! # }
//! ```
//!
//! # Addresses
//!
//! | address | dialled | listened on |
//! |---|---|---|
//! | `vsock://CID:PORT` | that machine; `host` is CID 2, `local` is CID 1 | for that CID of ours; `any` for all |
//! | `unix:/path` | the Unix socket there | a Unix socket there |
//! | `vsock+unix:/path:PORT` | the port inside a VM whose VMM has its vsock at `/path`, by `CONNECT PORT` | `/path_PORT`, where the VMM brings what its VM sends to CID 2, that port |
//!
//! `//` before the path is the same: `unix:///run/synddb.sock`. The last form is that of Firecracker
//! and Cloud Hypervisor, which do not use the host's AF_VSOCK; QEMU with `vhost-vsock` does.
//!
//! # Limits
//!
//! | what | limit |
//! |---|---|
//! | connecting | [`Timeouts::connect`]; vsock gives up after 2 seconds by itself |
//! | a frame to be taken | [`Timeouts::write`] for anything at all; that and a second more for each 64 KiB for all of it |
//! | an answer | the Sender's `response_timeout`: [`recv`](synddb_core::transport::Transport::recv) waits as long as it is told |
//! | frames on their way | [`MAX_IN_FLIGHT`], and the bytes that the sequencer gives credit for |
//! | the path of a Unix socket | 107 bytes, of which `_PORT` takes some |
//!
//! # Errors
//!
//! What the operating system says when nobody can be reached, and what to do about it. vsock does
//! not say "refused".
//!
//! | error | over vsock | over a Unix socket |
//! |---|---|---|
//! | `ECONNRESET`, at once | nobody listens on that port of that machine: start the sequencer there | |
//! | `ETIMEDOUT`, after 2 seconds | no machine has that CID, or it does not run: look at the VM's configuration | |
//! | `ENODEV` | this machine has no way to that CID: give the VM a vsock device; on the host load `vhost_vsock`; for CID 1 `vsock_loopback` | |
//! | `EAFNOSUPPORT` | this kernel has no vsock | |
//! | `ENOENT` | | there is no socket: start the sequencer, or the VM; check the path |
//! | `ECONNREFUSED` | | a socket that nobody listens on: what had it is gone; or it is no socket |
//! | `EACCES` | ports below 1024 need a privilege | who connects needs the right to write to the socket and to enter the folders above it |
//! | `EAGAIN` | | too many wait to be taken: the sequencer hangs, or is stopped |
//!
//! Through a VMM's socket, "closed instead of answering CONNECT" means that nobody listens on the
//! port inside the VM.
//!
//! # What it does not do
//!
//! It does not retry (the Sender decides that), and encrypts only with the feature `tls`, by
//! `transport_with_tls`: on a TEE the other end of vsock is the host.
#![forbid(unsafe_code)]

mod address;
mod dial;
mod error;
mod link;
mod listen;
#[cfg(feature = "tls")]
mod tls;

pub use address::{Address, CID_ANY, CID_HOST, CID_LOCAL, InvalidAddress};
pub use dial::{Dialer, Timeouts};
pub use error::DialError;
pub use link::{Socket, SocketLink, time_for};
pub use listen::{ListenError, Listener};
use synddb_core::{transport::StreamTransport, wire::message::MAX_CONTROL_FRAME};
#[cfg(feature = "tls")]
pub use tls::{TlsDialer, TlsSocket, VsockTlsTransport, transport_with_tls};

/// Frames that may be on their way unanswered.
pub const MAX_IN_FLIGHT: usize = 8;

/// A [`Transport`](synddb_core::transport::Transport) over sockets that this crate dials.
pub type VsockTransport = StreamTransport<Dialer, MAX_CONTROL_FRAME>;

/// A transport to `address` with the default limits. Nothing is sent yet.
pub fn transport(address: Address) -> VsockTransport {
    transport_with(address, Timeouts::default())
}

/// A transport to `address` with these limits. Nothing is sent yet.
pub fn transport_with(address: Address, timeouts: Timeouts) -> VsockTransport {
    StreamTransport::new(Dialer::new(address, timeouts), MAX_IN_FLIGHT)
}
