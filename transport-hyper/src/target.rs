//! Where requests go.

use hyper::Uri;
#[cfg(feature = "vsock")]
use synddb_transport_vsock::Address;

use crate::HyperError;

/// An address, taken apart.
#[derive(Debug)]
pub(crate) struct Target {
    /// As it was given, without a slash at its end; for people.
    pub(crate) url: String,
    pub(crate) has_tls: bool,
    pub(crate) place: Place,
    /// What goes into `Host`.
    pub(crate) authority: String,
    /// What everything is below; without a slash at its end.
    pub(crate) path: String,
}

/// What is dialled.
#[derive(Debug)]
pub(crate) enum Place {
    Tcp {
        /// Without brackets.
        host: String,
        port: u16,
    },
    #[cfg(feature = "vsock")]
    Socket(Address),
}

impl Target {
    pub(crate) fn new(url: &str) -> Result<Self, HyperError> {
        let (scheme, rest) = url.split_once(':').unwrap_or_default();
        let target = match scheme.to_ascii_lowercase().split_once('+') {
            Some(("http", socket)) => Self::socket(url, false, socket, rest),
            Some(("https", socket)) => Self::socket(url, true, socket, rest),
            _ => Self::tcp(url),
        }?;
        if target.has_tls && !cfg!(feature = "tls") {
            return Err(HyperError::NoTls);
        }
        Ok(target)
    }

    #[cfg(feature = "vsock")]
    fn socket(url: &str, has_tls: bool, scheme: &str, rest: &str) -> Result<Self, HyperError> {
        let address: Address = format!("{scheme}:{rest}").parse().map_err(
            |error: synddb_transport_vsock::InvalidAddress| HyperError::InvalidUrl {
                why: error.to_string(),
            },
        )?;
        Ok(Self {
            url: url.to_owned(),
            has_tls,
            place: Place::Socket(address),
            // HTTP wants a host, and there is none.
            authority: "localhost".into(),
            path: String::new(),
        })
    }

    #[cfg(not(feature = "vsock"))]
    fn socket(_: &str, _: bool, _: &str, _: &str) -> Result<Self, HyperError> {
        Err(HyperError::NoSockets)
    }

    fn tcp(url: &str) -> Result<Self, HyperError> {
        let invalid = |why: &str| Err(HyperError::InvalidUrl { why: why.to_owned() });
        let Ok(uri) = url.parse::<Uri>() else {
            return invalid("it is not an address");
        };
        let Some(authority) = uri.authority().filter(|authority| !authority.host().is_empty())
        else {
            return invalid("it names no host");
        };
        if authority.as_str().contains('@') {
            return invalid("it contains a user name or password");
        }
        if uri.query().is_some() {
            return invalid("it contains a query");
        }
        let has_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return invalid("it begins with neither http:// nor https://"),
        };
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16().unwrap_or(if has_tls { 443 } else { 80 });
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            has_tls,
            place: Place::Tcp { host, port },
            authority: authority.to_string(),
            path: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// The name that a certificate has to be for, unless the settings say another; empty where the
    /// address holds none.
    #[cfg(feature = "tls")]
    pub(crate) fn host(&self) -> &str {
        match &self.place {
            Place::Tcp { host, .. } => host,
            #[cfg(feature = "vsock")]
            Place::Socket(_) => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        for (url, host, port, authority, path) in [
            ("http://sequencer", "sequencer", 80, "sequencer", ""),
            ("HTTP://sequencer:8433/", "sequencer", 8433, "sequencer:8433", ""),
            ("http://[::1]:8433/below/here/", "::1", 8433, "[::1]:8433", "/below/here"),
            #[cfg(feature = "tls")]
            ("https://sequencer", "sequencer", 443, "sequencer", ""),
        ] {
            let target = Target::new(url).unwrap();
            assert!(
                matches!(&target.place, Place::Tcp { host: h, port: p } if h == host && *p == port),
                "{target:?}"
            );
            assert_eq!((target.authority.as_str(), target.path.as_str()), (authority, path));
        }
    }

    #[test]
    fn what_cannot_be_used_is_told_so_without_its_password() {
        for url in ["", "sequencer:8433", "http://", "ftp://host", "http://host?x", "http://a b"] {
            let error = Target::new(url).unwrap_err();
            assert!(matches!(error, HyperError::InvalidUrl { .. }), "{url}: {error}");
        }
        let error = Target::new("http://user:secret@host").unwrap_err().to_string();
        assert!(error.contains("password") && !error.contains("secret"), "{error}");
    }

    #[cfg(feature = "vsock")]
    #[test]
    fn sockets_have_their_own_scheme_behind_http() {
        for (url, place) in [
            ("http+unix:/run/synddb.sock", "unix:/run/synddb.sock"),
            ("http+unix:///run/synddb.sock", "unix:/run/synddb.sock"),
            ("HTTP+vsock://host:8433", "vsock://2:8433"),
            ("http+vsock+unix:/vm.sock:8433", "vsock+unix:/vm.sock:8433"),
        ] {
            let target = Target::new(url).unwrap();
            assert!(
                matches!(&target.place, Place::Socket(a) if a.to_string() == place),
                "{target:?}"
            );
            assert!(!target.has_tls);
        }
        for url in ["http+unix:run", "http+tcp://host:1", "http+unix+tls:/x", "http+vsock://host"] {
            assert!(matches!(Target::new(url), Err(HyperError::InvalidUrl { .. })), "{url}");
        }
        let tls = Target::new("https+unix:/run/synddb.sock");
        assert_eq!(tls.is_ok(), cfg!(feature = "tls"));
    }

    #[cfg(not(feature = "vsock"))]
    #[test]
    fn sockets_need_their_feature() {
        assert_eq!(Target::new("http+unix:/x").unwrap_err(), HyperError::NoSockets);
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn tls_needs_its_feature() {
        assert_eq!(Target::new("https://host").unwrap_err(), HyperError::NoTls);
    }
}
