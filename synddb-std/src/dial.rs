//! From a sequencer's address to a transport.

use crate::{Config, Error};

/// The transport for an address.
pub(crate) enum Dialed {
    #[cfg(feature = "http")]
    Http(synddb_core::http::HttpFrames<synddb_transport_ureq::UreqExchange>),
    #[cfg(feature = "vsock")]
    Stream(Box<synddb_transport_vsock::VsockTransport>),
}

/// Picks the transport by the address's scheme. Nothing is sent yet.
pub(crate) fn dial(config: &Config) -> Result<Dialed, Error> {
    let url = config.sequencer_url.as_str();
    if url.is_empty() {
        return Err(bad_url(
            "is empty: set it to the sequencer's address, such as \
                            http://sequencer:8433"
                .into(),
        ));
    }
    let scheme = url.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
    let scheme = scheme.as_deref().unwrap_or_default();
    if matches!(scheme, "vsock" | "unix" | "vsock+unix") {
        return dial_stream(config, url);
    }
    let Some((_, rest)) = url.split_once("://") else {
        return Err(bad_url(format!(
            "{url:?} has no scheme: an address looks like http://sequencer:8433"
        )));
    };
    if scheme == "http" && config.token_provider.is_some() && !is_loopback(rest) {
        return Err(Error::Config {
            setting: "token_provider",
            problem: format!(
                "a token would travel in the clear to {rest:?}: use https, or leave it out"
            ),
        });
    }
    match scheme {
        #[cfg(feature = "http")]
        "http" | "https" => {
            use synddb_transport_ureq::{UreqConfig, UreqExchange};
            let timeout = config.response_timeout;
            let limits = UreqConfig { connect_timeout: timeout, timeout };
            let exchange =
                UreqExchange::new(url, limits).map_err(|error| bad_url(error.to_string()))?;
            Ok(Dialed::Http(synddb_core::http::HttpFrames::new(exchange)))
        }
        #[cfg(not(feature = "http"))]
        "http" | "https" => Err(bad_url(format!(
            "{url:?} needs the feature `http`, which this program was built without"
        ))),
        _ => Err(bad_url(format!(
            "{url:?} has a scheme that no transport here handles: http, https, vsock, unix or \
             vsock+unix"
        ))),
    }
}

#[cfg(feature = "vsock")]
fn dial_stream(config: &Config, url: &str) -> Result<Dialed, Error> {
    use synddb_transport_vsock::{Address, Timeouts};
    let address: Address = url
        .parse()
        .map_err(|error: synddb_transport_vsock::InvalidAddress| bad_url(error.to_string()))?;
    if config.token_provider.is_some() && !address.is_local() {
        return Err(Error::Config {
            setting: "token_provider",
            problem: format!(
                "a token would travel in the clear to {address}, past the host: use a link with TLS, \
                 or leave it out"
            ),
        });
    }
    let timeout = config.response_timeout;
    let timeouts = Timeouts { connect: timeout, write: timeout };
    Ok(Dialed::Stream(Box::new(synddb_transport_vsock::transport_with(address, timeouts))))
}

#[cfg(not(feature = "vsock"))]
fn dial_stream(_: &Config, url: &str) -> Result<Dialed, Error> {
    Err(bad_url(format!("{url:?} needs the feature `vsock`, which this program was built without")))
}

fn bad_url(problem: String) -> Error {
    Error::Config { setting: "sequencer_url", problem }
}

/// Whether what follows the scheme names this machine.
fn is_loopback(rest: &str) -> bool {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    let address = host.parse::<std::net::IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TokenProvider;

    fn complaint(config: &Config) -> Option<&'static str> {
        match dial(config) {
            Err(Error::Config { setting, .. }) => Some(setting),
            _ => None,
        }
    }

    #[test]
    fn an_address_without_a_transport_is_refused() {
        for url in ["", "sequencer:8433", "ftp://sequencer", "http://", "vsock://3", "unix:x"] {
            let config = Config { sequencer_url: url.into(), ..Default::default() };
            assert_eq!(complaint(&config), Some("sequencer_url"), "{url}");
        }
    }

    #[test]
    fn a_token_does_not_travel_in_the_clear() {
        for (url, fine) in [
            ("http://sequencer:8433", false),
            ("http://127.0.0.1.evil.example", false),
            ("http://127.0.0.1:8433", true),
            ("http://[::1]:8433/below", true),
            ("HTTP://LOCALHOST", true),
            #[cfg(feature = "vsock")]
            ("unix:/run/synddb.sock", true),
            #[cfg(feature = "vsock")]
            ("vsock://local:8433", true),
            #[cfg(feature = "vsock")]
            ("vsock://host:8433", false),
            #[cfg(feature = "vsock")]
            ("vsock+unix:/vm.sock:8433", false),
        ] {
            let config = Config {
                sequencer_url: url.into(),
                token_provider: Some(TokenProvider::fixed("secret")),
                ..Default::default()
            };
            let refused = complaint(&config) == Some("token_provider");
            assert_eq!(refused, !fine, "{url}");
        }
    }
}
