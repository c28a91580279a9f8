//! Addresses of the sequencer's name, kept for a while.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ureq::{
    Error,
    config::Config,
    http::{Uri, uri::Scheme},
    unversioned::{
        resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver},
        transport::NextTimeout,
    },
};

/// How long a name's addresses are used for new connections without asking again.
const KEPT_FOR: Duration = Duration::from_secs(10);

/// ureq asks for addresses at every request, those over a connection that is open too, and each
/// question costs a thread. This one answers from what it knows; after a failure it knows nothing.
#[derive(Clone, Default)]
pub(crate) struct KeptAddresses {
    asks: Arc<DefaultResolver>,
    known: Arc<Mutex<Option<Known>>>,
}

struct Known {
    since: Instant,
    addresses: Vec<SocketAddr>,
}

impl KeptAddresses {
    pub(crate) fn forget(&self) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn filled(&self, addresses: impl IntoIterator<Item = SocketAddr>) -> ResolvedSocketAddrs {
        let mut resolved = self.empty();
        for address in addresses {
            resolved.push(address);
        }
        resolved
    }
}

impl fmt::Debug for KeptAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeptAddresses")
    }
}

impl Resolver for KeptAddresses {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        if let Some(address) = literal(uri) {
            return Ok(self.filled([address]));
        }
        // An agent has one address to post to.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Known { since, addresses }) = &*known
            && since.elapsed() < KEPT_FOR
        {
            return Ok(self.filled(addresses.iter().copied()));
        }
        let resolved = self.asks.resolve(uri, config, timeout)?;
        let addresses = resolved.iter().copied().collect();
        *known = Some(Known { since: Instant::now(), addresses });
        Ok(resolved)
    }
}

/// The address that stands in the place of a name.
fn literal(uri: &Uri) -> Option<SocketAddr> {
    let authority = uri.authority()?;
    let default = if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let host: IpAddr = host.parse().ok()?;
    Some(SocketAddr::new(host, authority.port_u16().unwrap_or(default)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_no_question() {
        let address = |uri: &str| literal(&uri.parse().unwrap()).map(|address| address.to_string());
        assert_eq!(address("http://127.0.0.1:8433/v1").as_deref(), Some("127.0.0.1:8433"));
        assert_eq!(address("https://127.0.0.1").as_deref(), Some("127.0.0.1:443"));
        assert_eq!(address("http://[::1]").as_deref(), Some("[::1]:80"));
        assert_eq!(address("http://localhost:8433"), None);
    }
}
