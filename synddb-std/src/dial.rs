//! From a sequencer's address to a transport.

use crate::{Config, Error};

/// The transport for an address.
pub(crate) enum Dialed {
    #[cfg(feature = "http")]
    Http(synddb_core::http::HttpFrames<synddb_transport_ureq::UreqExchange>),
    #[cfg(feature = "hyper")]
    Hyper(Box<HyperFrames>),
    #[cfg(feature = "vsock")]
    Stream(Box<synddb_transport_vsock::VsockTransport>),
    #[cfg(all(feature = "vsock", feature = "tls"))]
    StreamTls(Box<synddb_transport_vsock::VsockTlsTransport>),
}

#[cfg(feature = "hyper")]
pub(crate) type HyperFrames =
    synddb_core::http::AsyncHttpFrames<synddb_transport_hyper::HyperClient>;

/// As [`dial`], by hyper or not at all.
#[cfg(feature = "hyper")]
pub(crate) fn dial_by_hyper(config: &Config) -> Result<HyperFrames, Error> {
    let config = Config {
        #[cfg(feature = "http")]
        http_client: crate::HttpClient::Hyper,
        ..config.clone()
    };
    match dial(&config)? {
        Dialed::Hyper(frames) => Ok(*frames),
        #[cfg(any(feature = "http", feature = "vsock"))]
        _ => Err(bad_url(format!(
            "{:?} is an address that the link's future does not speak to: write http:// or https://, \
             or behind one of them the socket, such as http+unix:/run/synddb.sock; or leave the link \
             on its thread",
            config.sequencer_url
        ))),
    }
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
    if let Some((http @ ("http" | "https"), socket)) = scheme.split_once('+') {
        check_tls(config, http == "https")?;
        return dial_http_socket(config, url, socket);
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
             vsock+unix, the latter three with +tls or without, or behind http+ or https+"
        ))),
    }
}

#[cfg(feature = "http")]
fn dial_http(config: &Config, url: &str) -> Result<Dialed, Error> {
    #[cfg(feature = "hyper")]
    if config.http_client == crate::HttpClient::Hyper {
        return dial_hyper(config, url);
    }
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

#[cfg(all(feature = "hyper", not(feature = "http")))]
fn dial_http(config: &Config, url: &str) -> Result<Dialed, Error> {
    dial_hyper(config, url)
}

#[cfg(not(any(feature = "http", feature = "hyper")))]
fn dial_http(_: &Config, url: &str) -> Result<Dialed, Error> {
    Err(bad_url(format!(
        "{url:?} needs the feature `http` or `hyper`, which this program was built without"
    )))
}

#[cfg(feature = "hyper")]
fn dial_hyper(config: &Config, url: &str) -> Result<Dialed, Error> {
    #[cfg(feature = "tls")]
    use synddb_transport_hyper::HyperError;
    use synddb_transport_hyper::{HyperClient, HyperConfig};
    let timeout = config.response_timeout;
    let limits = HyperConfig { connect_timeout: timeout, timeout, ..Default::default() };
    let client = || {
        #[cfg(feature = "tls")]
        if let Some(tls) = &config.tls {
            return HyperClient::with_tls(url, limits, tls.connector().map_err(HyperError::Tls)?);
        }
        HyperClient::new(url, limits)
    };
    let client = client().map_err(|error| match error {
        #[cfg(feature = "tls")]
        HyperError::Tls(error) => bad_tls(error),
        error => bad_url(error.to_string()),
    })?;
    Ok(Dialed::Hyper(Box::new(HyperFrames::new(client))))
}

#[cfg(all(feature = "hyper", feature = "vsock"))]
fn dial_http_socket(config: &Config, url: &str, socket: &str) -> Result<Dialed, Error> {
    let rest = url.split_once(':').map(|(_, rest)| rest).unwrap_or_default();
    let address: synddb_transport_vsock::Address = format!("{socket}:{rest}")
        .parse()
        .map_err(|error: synddb_transport_vsock::InvalidAddress| bad_url(error.to_string()))?;
    let in_the_clear = url.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("http+"));
    if in_the_clear && config.token_provider.is_some() && !address.is_local() {
        return Err(token_in_the_clear(&address, &format!("https+{address}")));
    }
    dial_hyper(config, url)
}

#[cfg(not(all(feature = "hyper", feature = "vsock")))]
fn dial_http_socket(_: &Config, url: &str, _: &str) -> Result<Dialed, Error> {
    Err(bad_url(format!(
        "{url:?} needs the features `hyper` and `vsock`, which this program was built without"
    )))
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
        return Err(token_in_the_clear(&address, &address.with_tls()));
    }
    Ok(Dialed::Stream(Box::new(synddb_transport_vsock::transport_with(address, timeouts))))
}

#[cfg(feature = "vsock")]
fn token_in_the_clear(address: &synddb_transport_vsock::Address, instead: &str) -> Error {
    Error::Config {
        setting: "token_provider",
        problem: format!(
            "a token would travel in the clear to {address}, past the host: write {instead}, or \
             leave it out"
        ),
    }
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

#[cfg(all(feature = "tls", any(feature = "http", feature = "hyper", feature = "vsock")))]
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
        for url in [
            "",
            "sequencer:8433",
            "ftp://sequencer",
            "http://",
            "vsock://3",
            "unix:x",
            "http+unix:x",
            "http+tcp://host",
            "https+vsock://3",
            "http+unix+tls:/run/synddb.sock",
        ] {
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
            #[cfg(feature = "hyper")]
            {
                assert_eq!(with("http+unix:/run/synddb.sock", pinned()), Some("tls"));
                assert_eq!(with("https+unix:/run/synddb.sock", pinned()), None);
                assert_eq!(with("https+unix:/run/synddb.sock", ClientTls::default()), Some("tls"));
            }
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
            #[cfg(all(feature = "vsock", feature = "hyper"))]
            ("http+unix:/run/synddb.sock", true),
            #[cfg(all(feature = "vsock", feature = "hyper"))]
            ("HTTP+vsock://host:8433", false),
            #[cfg(all(feature = "vsock", feature = "hyper", feature = "tls"))]
            ("https+vsock://host:8433", true),
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
