//! From a sequencer's address to a transport.

use crate::{Config, Error};

/// The transport for an address.
pub(crate) enum Dialed {
    #[cfg(feature = "http")]
    Http(synddb_core::http::HttpFrames<synddb_transport_ureq::UreqExchange>),
    #[cfg(feature = "vsock")]
    Stream(Box<synddb_transport_vsock::VsockTransport>),
    #[cfg(all(feature = "vsock", feature = "tls"))]
    StreamTls(Box<synddb_transport_vsock::VsockTlsTransport>),
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
    let (plain_scheme, has_tls) = match scheme.strip_suffix("+tls") {
        Some(plain) => (plain, true),
        None => (scheme, scheme == "https"),
    };
    if matches!(plain_scheme, "vsock" | "unix" | "vsock+unix") {
        check_tls(config, has_tls)?;
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
        "http" | "https" => {
            check_tls(config, has_tls)?;
            dial_http(config, url)
        }
        _ => Err(bad_url(format!(
            "{url:?} has a scheme that no transport here handles: http, https, vsock, unix or \
             vsock+unix, the latter three with +tls or without"
        ))),
    }
}

#[cfg(feature = "http")]
fn dial_http(config: &Config, url: &str) -> Result<Dialed, Error> {
    use synddb_transport_ureq::{UreqConfig, UreqExchange};
    let timeout = config.response_timeout;
    let limits = UreqConfig { connect_timeout: timeout, timeout };
    let bad = |error: synddb_transport_ureq::UreqError| bad_url(error.to_string());
    #[cfg(feature = "tls")]
    if config.tls.is_some() {
        let exchange = UreqExchange::with_tls(url, limits, connector(config)?).map_err(bad)?;
        return Ok(Dialed::Http(synddb_core::http::HttpFrames::new(exchange)));
    }
    let exchange = UreqExchange::new(url, limits).map_err(bad)?;
    Ok(Dialed::Http(synddb_core::http::HttpFrames::new(exchange)))
}

#[cfg(not(feature = "http"))]
fn dial_http(_: &Config, url: &str) -> Result<Dialed, Error> {
    Err(bad_url(format!("{url:?} needs the feature `http`, which this program was built without")))
}

#[cfg(feature = "vsock")]
fn dial_stream(config: &Config, url: &str) -> Result<Dialed, Error> {
    use synddb_transport_vsock::{Address, Timeouts};
    let plain = Address::without_tls(url);
    let address: Address = plain
        .as_deref()
        .unwrap_or(url)
        .parse()
        .map_err(|error: synddb_transport_vsock::InvalidAddress| bad_url(error.to_string()))?;
    let timeout = config.response_timeout;
    let timeouts = Timeouts { connect: timeout, write: timeout };
    #[cfg(feature = "tls")]
    if plain.is_some() {
        let tls = connector(config)?;
        let transport = synddb_transport_vsock::transport_with_tls(address, timeouts, tls);
        return transport.map(|transport| Dialed::StreamTls(Box::new(transport))).map_err(bad_tls);
    }
    if config.token_provider.is_some() && !address.is_local() {
        return Err(Error::Config {
            setting: "token_provider",
            problem: format!(
                "a token would travel in the clear to {address}, past the host: write {}, or leave \
                 it out",
                address.with_tls()
            ),
        });
    }
    Ok(Dialed::Stream(Box::new(synddb_transport_vsock::transport_with(address, timeouts))))
}

#[cfg(not(feature = "vsock"))]
fn dial_stream(_: &Config, url: &str) -> Result<Dialed, Error> {
    Err(bad_url(format!("{url:?} needs the feature `vsock`, which this program was built without")))
}

#[cfg(feature = "tls")]
fn check_tls(config: &Config, has_tls: bool) -> Result<(), Error> {
    if config.tls.is_some() && !has_tls {
        let problem = "it is set, and the sequencer's address is without TLS: write https://, \
                       vsock+tls:// or the like, or leave it out";
        return Err(Error::Config { setting: "tls", problem: problem.into() });
    }
    Ok(())
}

#[cfg(not(feature = "tls"))]
fn check_tls(config: &Config, has_tls: bool) -> Result<(), Error> {
    if has_tls {
        let url = &config.sequencer_url;
        return Err(bad_url(format!(
            "{url:?} needs the feature `tls`, which this program was built without"
        )));
    }
    Ok(())
}

#[cfg(all(feature = "tls", any(feature = "http", feature = "vsock")))]
fn connector(config: &Config) -> Result<synddb_tls::Connector, Error> {
    config.tls.clone().unwrap_or_default().connector().map_err(bad_tls)
}

#[cfg(all(feature = "tls", any(feature = "http", feature = "vsock")))]
fn bad_tls(error: synddb_tls::TlsError) -> Error {
    Error::Config { setting: "tls", problem: error.to_string() }
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

    #[cfg(feature = "tls")]
    #[test]
    fn settings_for_tls_are_honoured_or_refused() {
        use synddb_tls::{ClientTls, Pin};
        let with = |url: &str, tls| {
            complaint(&Config { sequencer_url: url.into(), tls: Some(tls), ..Default::default() })
        };
        let pinned = || ClientTls::pinned([Pin([1; 32])]);
        assert_eq!(with("http://sequencer:8433", pinned()), Some("tls"));
        assert_eq!(with("https://sequencer:8433", pinned()), None);
        let named = |name: &str| ClientTls { server_name: Some(name.into()), ..Default::default() };
        assert_eq!(with("https://sequencer:8433", named("a b")), Some("tls"));
        #[cfg(feature = "vsock")]
        {
            assert_eq!(with("unix:/run/synddb.sock", pinned()), Some("tls"));
            assert_eq!(with("unix+tls:/run/synddb.sock", pinned()), None);
            assert_eq!(with("unix+tls:/run/synddb.sock", named("sequencer")), None);
            // Mozilla's roots, and no name to compare a certificate with.
            assert_eq!(with("unix+tls:/run/synddb.sock", ClientTls::default()), Some("tls"));
        }
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn tls_needs_its_feature() {
        for url in ["https://sequencer", "unix+tls:/run/synddb.sock", "vsock+tls://host:1"] {
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
            #[cfg(all(feature = "vsock", feature = "tls"))]
            ("vsock+tls://host:8433", true),
            #[cfg(feature = "tls")]
            ("https://sequencer:8433", true),
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
