//! Where a stream socket is.

use core::{fmt, str::FromStr};
use std::path::{Path, PathBuf};

/// The CID that stands for every one of this machine's, to listen on.
pub const CID_ANY: u32 = u32::MAX;
/// The CID of this machine, seen from itself.
pub const CID_LOCAL: u32 = 1;
/// The CID of the host, seen from a VM.
pub const CID_HOST: u32 = 2;

/// Address of a stream socket, to dial or to listen on; see the crate's documentation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// AF_VSOCK: `vsock://CID:PORT`.
    Vsock {
        /// The machine.
        cid: u32,
        /// Its port; 0 to listen on any free one.
        port: u32,
    },
    /// A Unix socket: `unix:/path`.
    Unix {
        /// The socket.
        path: PathBuf,
    },
    /// The Unix sockets of a VMM: `vsock+unix:/path:PORT`.
    VsockUnix {
        /// What the VMM was told as the path of its vsock.
        path: PathBuf,
        /// The port inside the VM, or the one that the VM dials.
        port: u32,
    },
}

impl Address {
    /// Whether everything that comes or goes there stays on this machine, outside of its VMs.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Unix { .. } | Self::Vsock { cid: CID_LOCAL, .. })
    }

    /// Takes TLS out of the scheme of an address: `vsock+tls://`, `unix+tls:`, `vsock+unix+tls:`.
    /// The address without it; `None` where it is not there.
    pub fn without_tls(text: &str) -> Option<String> {
        let (scheme, rest) = text.split_once(':')?;
        let at = scheme.len().checked_sub(4)?;
        let (scheme, tls) = scheme.split_at_checked(at)?;
        tls.eq_ignore_ascii_case("+tls").then(|| format!("{scheme}:{rest}"))
    }

    /// The address with TLS in its scheme.
    pub fn with_tls(&self) -> String {
        self.to_string().replacen(':', "+tls:", 1)
    }

    /// The Unix socket to listen on, where it is one.
    pub fn listening_path(&self) -> Option<PathBuf> {
        match self {
            Self::Vsock { .. } => None,
            Self::Unix { path } => Some(path.clone()),
            Self::VsockUnix { path, port } => {
                let mut name = path.clone().into_os_string();
                name.push(format!("_{port}"));
                Some(name.into())
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock { cid: CID_ANY, port } => write!(f, "vsock://any:{port}"),
            Self::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}"),
            Self::Unix { path } => write!(f, "unix:{}", path.display()),
            Self::VsockUnix { path, port } => write!(f, "vsock+unix:{}:{port}", path.display()),
        }
    }
}

/// Why a text is no [`Address`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidAddress {
    text: String,
    problem: &'static str,
}

impl InvalidAddress {
    /// The forms that there are, for people.
    pub const FORMS: &str = "vsock://CID:PORT (CID: a number, host, local, or any to listen), \
                             unix:/path, or vsock+unix:/path:PORT; with TLS, vsock+tls:// and so \
                             on";
}

impl fmt::Display for InvalidAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}; write {}", self.text, self.problem, Self::FORMS)
    }
}

impl core::error::Error for InvalidAddress {}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let (scheme, rest) = text.split_once(':').unwrap_or_default();
        let local = rest.strip_prefix("//").unwrap_or(rest);
        match scheme.to_ascii_lowercase().as_str() {
            "vsock" => rest.strip_prefix("//").ok_or("has no // behind the scheme").and_then(vsock),
            "unix" => path(local).map(|path| Self::Unix { path: path.into() }),
            "vsock+unix" => vsock_unix(local),
            _ => Err("is no address of a stream socket"),
        }
        .map_err(|problem| InvalidAddress { text: text.to_owned(), problem })
    }
}

fn vsock(rest: &str) -> Result<Address, &'static str> {
    let (cid, port) = rest.trim_end_matches('/').split_once(':').ok_or("has no port")?;
    let cid = match cid.to_ascii_lowercase().as_str() {
        "any" => CID_ANY,
        "local" => CID_LOCAL,
        "host" => CID_HOST,
        cid => number(cid).ok_or("has a CID that is neither a number nor any, local or host")?,
    };
    Ok(Address::Vsock { cid, port: number(port).ok_or("has a port that is no number")? })
}

fn vsock_unix(rest: &str) -> Result<Address, &'static str> {
    let (before, port) = rest.rsplit_once(':').ok_or("has no port behind the path")?;
    let port = number(port).ok_or("has a port that is no number")?;
    if port == 0 {
        return Err("has port 0, which a VM cannot dial");
    }
    path(before).map(|path| Address::VsockUnix { path: path.into(), port })
}

fn path(text: &str) -> Result<&Path, &'static str> {
    match text {
        "" => Err("has no path"),
        // What `unix://run/synddb.sock` would mean nobody can know.
        _ if !text.starts_with('/') => Err("has a path that does not begin with /"),
        _ => Ok(Path::new(text)),
    }
}

/// All ones is the wildcard of CIDs and ports.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_written() {
        let path = PathBuf::from("/run/synddb.sock");
        for (text, address, written) in [
            ("vsock://3:8433", Address::Vsock { cid: 3, port: 8433 }, "vsock://3:8433"),
            ("VSOCK://host:1/", Address::Vsock { cid: 2, port: 1 }, "vsock://2:1"),
            ("vsock://local:0", Address::Vsock { cid: 1, port: 0 }, "vsock://1:0"),
            ("vsock://any:8433", Address::Vsock { cid: CID_ANY, port: 8433 }, "vsock://any:8433"),
            (
                "unix:/run/synddb.sock",
                Address::Unix { path: path.clone() },
                "unix:/run/synddb.sock",
            ),
            (
                "unix:///run/synddb.sock",
                Address::Unix { path: path.clone() },
                "unix:/run/synddb.sock",
            ),
            (
                "vsock+unix:///run/synddb.sock:8433",
                Address::VsockUnix { path: path.clone(), port: 8433 },
                "vsock+unix:/run/synddb.sock:8433",
            ),
            (
                "vsock+unix:/a:b:7",
                Address::VsockUnix { path: "/a:b".into(), port: 7 },
                "vsock+unix:/a:b:7",
            ),
        ] {
            let read: Address = text.parse().unwrap();
            assert_eq!(read, address, "{text}");
            assert_eq!(read.to_string(), written, "{text}");
            assert_eq!(written.parse::<Address>().unwrap(), address, "{text}");
        }
    }

    #[test]
    fn what_is_none_is_told_the_forms() {
        for text in [
            "",
            "8433",
            "vsock:3:8433",
            "vsock://3",
            "vsock://x:8433",
            "vsock://3:x",
            "vsock://3:+1",
            "vsock://3:4294967295",
            "vsock://4294967295:1",
            "vsock://-1:8433",
            "unix:",
            "unix://",
            "unix:run/synddb.sock",
            "unix://run/synddb.sock",
            "vsock+unix:/path",
            "vsock+unix:/path:0",
            "vsock+unix::8433",
            "tcp://host:1",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
            assert!(error.contains(InvalidAddress::FORMS), "{error}");
        }
    }

    #[test]
    fn tls_is_part_of_the_scheme() {
        for (text, without, with) in [
            ("vsock+tls://host:1", "vsock://host:1", "vsock+tls://2:1"),
            ("UNIX+TLS:/x:y+tls", "UNIX:/x:y+tls", "unix+tls:/x:y+tls"),
            ("vsock+unix+tls:/x:1", "vsock+unix:/x:1", "vsock+unix+tls:/x:1"),
        ] {
            let stripped = Address::without_tls(text).unwrap();
            assert_eq!(stripped, without);
            assert_eq!(stripped.parse::<Address>().unwrap().with_tls(), with);
        }
        for text in ["", "tls", "+tls", "unix:/x+tls:", "vsock://host:1", "tls://x", "é+tl:"] {
            assert_eq!(Address::without_tls(text), None, "{text}");
        }
    }

    #[test]
    fn a_vm_is_not_this_machine() {
        let is_local = |text: &str| text.parse::<Address>().unwrap().is_local();
        assert!(is_local("unix:/x") && is_local("vsock://local:1"));
        for text in ["vsock://any:1", "vsock://host:1", "vsock://3:1", "vsock+unix:/x:1"] {
            assert!(!is_local(text), "{text}");
        }
    }
}
