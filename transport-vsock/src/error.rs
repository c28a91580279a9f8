//! Why nobody can be reached, and what to do about it.

use core::fmt;
use std::io;

use synddb_core::transport::{TransportError, TransportErrorKind};

use crate::Address;

/// "No such device": `std` has no name for it. The same number on every Linux.
const ENODEV: i32 = 19;
/// "Address family not supported", on Linux but for MIPS and SPARC.
const EAFNOSUPPORT: i32 = 97;

/// Error of a [`Dialer`](crate::Dialer).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DialError {
    /// The address is one to listen on: `any`, or port 0.
    OnlyToListenOn {
        /// The address.
        address: Address,
    },
    /// The operating system refused; the table in the crate's documentation tells what to do.
    Refused {
        /// The address.
        address: Address,
        /// The error's number, where it has one.
        code: Option<i32>,
        /// What kind of error it is.
        kind: io::ErrorKind,
        /// What the operating system said.
        text: String,
    },
    /// The VMM closed the connection instead of answering `CONNECT`.
    NobodyInVm {
        /// The address.
        address: Address,
    },
    /// What has the socket answers `CONNECT` in another way than a VMM, or not at all.
    NotAVmm {
        /// The address.
        address: Address,
        /// Whether it did not answer in time.
        silent: bool,
    },
    /// The TLS handshake failed.
    #[cfg(feature = "tls")]
    Tls {
        /// The address.
        address: Address,
        /// What is wrong.
        failure: synddb_tls::Failure,
    },
}

/// What a handshake ended with that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handshake {
    Closed,
    Silence,
    NotAVmm,
}

impl DialError {
    pub(crate) fn connect(address: &Address, error: &io::Error) -> Self {
        Self::Refused {
            address: address.clone(),
            code: error.raw_os_error(),
            kind: error.kind(),
            text: error.to_string(),
        }
    }

    pub(crate) fn handshake(address: &Address, outcome: Handshake) -> Self {
        let address = address.clone();
        match outcome {
            Handshake::Closed => Self::NobodyInVm { address },
            Handshake::Silence => Self::NotAVmm { address, silent: true },
            Handshake::NotAVmm => Self::NotAVmm { address, silent: false },
        }
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnlyToListenOn { address } => {
                write!(f, "{address} is an address to listen on: name the machine and its port")
            }
            Self::Refused { address, code, kind, text } => {
                write!(f, "{address}: {text}")?;
                match explain(address, *code, *kind) {
                    Some(advice) => write!(f, ": {advice}"),
                    None => Ok(()),
                }
            }
            #[cfg(feature = "tls")]
            Self::Tls { address, failure } => write!(f, "{}: {failure}", address.with_tls()),
            Self::NobodyInVm { address } => write!(
                f,
                "{address}: the VMM closed the connection: nobody listens on that port inside the \
                 VM, or the VM does not run yet"
            ),
            Self::NotAVmm { address, silent: true } => {
                write!(f, "{address}: the VMM did not answer in time: does the VM hang?")
            }
            Self::NotAVmm { address, silent: false } => write!(
                f,
                "{address}: what answers is not a VMM with vsock; where the sequencer itself has \
                 the socket, write unix:/path"
            ),
        }
    }
}

impl core::error::Error for DialError {}

impl TransportError for DialError {
    fn kind(&self) -> TransportErrorKind {
        match self {
            Self::OnlyToListenOn { .. } => TransportErrorKind::Misconfigured,
            #[cfg(feature = "tls")]
            Self::Tls { failure, .. } => failure.kind(),
            Self::NobodyInVm { .. } => TransportErrorKind::Unreachable,
            Self::NotAVmm { silent: true, .. } => TransportErrorKind::TimedOut,
            Self::NotAVmm { silent: false, .. } => TransportErrorKind::NotASequencer,
            Self::Refused { kind, .. } => match kind {
                io::ErrorKind::PermissionDenied
                | io::ErrorKind::InvalidInput
                | io::ErrorKind::Unsupported => TransportErrorKind::Misconfigured,
                io::ErrorKind::WouldBlock => TransportErrorKind::Busy,
                _ => TransportErrorKind::Unreachable,
            },
        }
    }
}

/// What an error means here, and what to do.
pub(crate) fn explain(
    address: &Address,
    code: Option<i32>,
    kind: io::ErrorKind,
) -> Option<&'static str> {
    let is_vsock = matches!(address, Address::Vsock { .. });
    Some(match (is_vsock, code, kind) {
        (true, Some(ENODEV), _) => {
            "this machine has no way to that CID: a VM needs a vsock device, a host the module \
             vhost_vsock, and CID 1 the module vsock_loopback"
        }
        (true, Some(EAFNOSUPPORT), _) => "this kernel has no vsock: load the module vsock",
        (true, _, io::ErrorKind::ConnectionReset) => {
            "nobody listens on that port of that machine: is the sequencer running there, and on \
             that port?"
        }
        (true, _, io::ErrorKind::TimedOut) => {
            "no machine with that CID answers, or nobody there listens on that port, which some devices \
             (vhost-device-vsock) do not tell apart: is the VM running, is that its CID, and does the \
             sequencer listen on that port?"
        }
        (true, _, io::ErrorKind::AddrInUse) => "something else listens on that port",
        (true, _, io::ErrorKind::AddrNotAvailable)
            if matches!(address, Address::Vsock { cid: 1, .. }) =>
        {
            "CID 1, this machine itself, needs the module vsock_loopback"
        }
        (true, _, io::ErrorKind::AddrNotAvailable) => {
            "that CID is not this machine's: listen on vsock://any:PORT"
        }
        (true, _, io::ErrorKind::PermissionDenied) => {
            "ports below 1024 need the capability CAP_NET_BIND_SERVICE"
        }
        (false, _, io::ErrorKind::NotFound) => {
            "there is no such socket: is the sequencer, or the VM, running, and is that its path?"
        }
        (false, _, io::ErrorKind::ConnectionRefused) => {
            "nobody listens on it: what made the socket is gone, or it is no socket"
        }
        (false, _, io::ErrorKind::PermissionDenied) => {
            "to connect takes the right to write to the socket and to enter the folders above it"
        }
        (false, _, io::ErrorKind::AddrInUse) => "something listens on it, or it is no socket",
        (false, _, io::ErrorKind::WouldBlock) => {
            "too many wait to be taken there: does the sequencer hang, or is it stopped?"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(address: &str, code: i32) -> (TransportErrorKind, String) {
        let error =
            DialError::connect(&address.parse().unwrap(), &io::Error::from_raw_os_error(code));
        (error.kind(), error.to_string())
    }

    /// The numbers are those of Linux on x86-64 and ARM.
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    #[test]
    fn what_the_system_says_is_told_with_what_to_do() {
        use TransportErrorKind::{Busy, Misconfigured, Unreachable};
        let vsock = "vsock://3:8433";
        let unix = "unix:/run/synddb.sock";
        for (address, code, kind, advice) in [
            (vsock, 104, Unreachable, "nobody listens on that port"),
            (vsock, 110, Unreachable, "is that its CID"),
            (vsock, 19, Unreachable, "vhost_vsock"),
            (vsock, 97, Unreachable, "no vsock"),
            (vsock, 13, Misconfigured, "CAP_NET_BIND_SERVICE"),
            (unix, 2, Unreachable, "no such socket"),
            (unix, 111, Unreachable, "nobody listens on it"),
            (unix, 13, Misconfigured, "the right to write"),
            (unix, 11, Busy, "does the sequencer hang"),
            ("vsock+unix:/vm.sock:5", 2, Unreachable, "or the VM, running"),
        ] {
            let (found, text) = told(address, code);
            assert_eq!(found, kind, "{text}");
            assert!(text.starts_with(address) && text.contains(advice), "{text}");
        }
    }
}
