//! Where a sequencer listens.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener, ToSocketAddrs},
    os::fd::AsFd,
    str::FromStr,
};

use synddb_transport_vsock::{Address, InvalidAddress, Listener};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest},
    net::{TcpStream, UnixStream},
};

/// An address to listen on: of HTTP, or of a stream socket, which frames come over back to back; in
/// the clear or with TLS. HTTP is served over TCP and over stream sockets, in its versions 1.1 and 2.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// `http://HOST:PORT`, or `HOST:PORT` alone; port 0 for any free one.
    Http(SocketAddr),
    /// `https://HOST:PORT`.
    Https(SocketAddr),
    /// `vsock://CID:PORT`, `unix:/path` or `vsock+unix:/path:PORT`.
    Stream(Address),
    /// `vsock+tls://CID:PORT`, `unix+tls:/path` or `vsock+unix+tls:/path:PORT`.
    StreamTls(Address),
    /// `http+vsock://CID:PORT`, `http+unix:/path` or `http+vsock+unix:/path:PORT`.
    HttpStream(Address),
    /// `https+vsock://CID:PORT`, `https+unix:/path` or `https+vsock+unix:/path:PORT`.
    HttpsStream(Address),
}

impl ListenAddress {
    /// Whether only this machine reaches it, without its VMs.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Http(address) | Self::Https(address) => address.ip().is_loopback(),
            Self::Stream(address)
            | Self::StreamTls(address)
            | Self::HttpStream(address)
            | Self::HttpsStream(address) => address.is_local(),
        }
    }

    /// Whether HTTP is spoken there.
    pub fn is_http(&self) -> bool {
        !matches!(self, Self::Stream(_) | Self::StreamTls(_))
    }

    /// Whether TLS is spoken there.
    pub fn has_tls(&self) -> bool {
        matches!(self, Self::Https(_) | Self::StreamTls(_) | Self::HttpsStream(_))
    }
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Http(address)
    }
}

impl From<Address> for ListenAddress {
    fn from(address: Address) -> Self {
        Self::Stream(address)
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(address) => write!(f, "http://{address}"),
            Self::Https(address) => write!(f, "https://{address}"),
            Self::Stream(address) => address.fmt(f),
            Self::StreamTls(address) => f.write_str(&address.with_tls()),
            Self::HttpStream(address) => write!(f, "http+{address}"),
            Self::HttpsStream(address) => write!(f, "https+{address}"),
        }
    }
}

/// Why a text is no [`ListenAddress`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidListenAddress {
    /// It is of none of the forms that there are.
    NoForm(String),
    /// The address of a stream socket that is not one.
    Stream(InvalidAddress),
    /// The host of an `http` address has no address.
    Host {
        /// The address.
        text: String,
        /// What the operating system said.
        problem: String,
    },
}

impl fmt::Display for InvalidListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoForm(text) => write!(
                f,
                "{text:?} is no address to listen on; write http://HOST:PORT, https://HOST:PORT, {}; \
                 HTTP over these, http+unix:/path, https+vsock:// and so on",
                InvalidAddress::FORMS
            ),
            Self::Stream(error) => error.fmt(f),
            Self::Host { text, problem } => {
                write!(f, "{text:?} cannot be listened on: {problem}; write http://HOST:PORT")
            }
        }
    }
}

impl std::error::Error for InvalidListenAddress {}

impl FromStr for ListenAddress {
    type Err = InvalidListenAddress;

    fn from_str(text: &str) -> Result<Self, InvalidListenAddress> {
        if let Some(text) = Address::without_tls(text) {
            return text.parse().map(Self::StreamTls).map_err(InvalidListenAddress::Stream);
        }
        let scheme = text.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
        let over_stream = |prefix: &str| text[prefix.len()..].parse();
        match scheme.as_deref() {
            Some("vsock" | "unix" | "vsock+unix") => {
                text.parse().map(Self::Stream).map_err(InvalidListenAddress::Stream)
            }
            Some(scheme) if scheme.starts_with("http+") => {
                over_stream("http+").map(Self::HttpStream).map_err(InvalidListenAddress::Stream)
            }
            Some(scheme) if scheme.starts_with("https+") => {
                over_stream("https+").map(Self::HttpsStream).map_err(InvalidListenAddress::Stream)
            }
            Some("http") if text[4..].starts_with("://") => {
                resolve(text, &text[7..]).map(Self::Http)
            }
            Some("https") if text[5..].starts_with("://") => {
                resolve(text, &text[8..]).map(Self::Https)
            }
            Some(_) if !text.contains('/') => resolve(text, text).map(Self::Http),
            _ => Err(InvalidListenAddress::NoForm(text.to_owned())),
        }
    }
}

fn resolve(text: &str, authority: &str) -> Result<SocketAddr, InvalidListenAddress> {
    let host = |problem| InvalidListenAddress::Host { text: text.to_owned(), problem };
    let mut addresses = authority
        .trim_end_matches('/')
        .to_socket_addrs()
        .map_err(|error| host(error.to_string()))?;
    addresses.next().ok_or_else(|| host("the host has no address".to_owned()))
}

/// A socket that is listened on, before there is a runtime.
#[derive(Debug)]
pub(crate) enum Bound {
    Tcp(TcpListener),
    Stream(Listener),
}

impl Bound {
    /// Listens; tells what is wrong where that cannot be.
    pub(crate) fn new(address: &ListenAddress) -> Result<Self, String> {
        let failed = |error: io::Error| error.to_string();
        match address {
            ListenAddress::Http(address) | ListenAddress::Https(address) => {
                let listener = TcpListener::bind(address).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                Ok(Self::Tcp(listener))
            }
            ListenAddress::Stream(address)
            | ListenAddress::StreamTls(address)
            | ListenAddress::HttpStream(address)
            | ListenAddress::HttpsStream(address) => {
                let listener = Listener::bind(address).map_err(|error| error.problem)?;
                listener.set_nonblocking(true).map_err(failed)?;
                Ok(Self::Stream(listener))
            }
        }
    }

    /// Where it listens that was to listen on `asked`, with the port that was free.
    pub(crate) fn address(&self, asked: &ListenAddress) -> io::Result<ListenAddress> {
        Ok(match self {
            Self::Tcp(listener) => {
                let kind = if asked.has_tls() { ListenAddress::Https } else { ListenAddress::Http };
                kind(listener.local_addr()?)
            }
            Self::Stream(listener) => {
                let kind = match (asked.is_http(), asked.has_tls()) {
                    (false, false) => ListenAddress::Stream,
                    (false, true) => ListenAddress::StreamTls,
                    (true, false) => ListenAddress::HttpStream,
                    (true, true) => ListenAddress::HttpsStream,
                };
                kind(listener.address().clone())
            }
        })
    }
}

/// A listener in a runtime.
pub(crate) trait Accept: Sync {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for tokio::net::TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        Ok(Self::accept(self).await?.0)
    }
}

/// A listener for stream sockets in a runtime.
pub(crate) struct StreamListener {
    listener: Listener,
    /// The same socket, for the runtime to watch: it has no type for listeners of any family, and
    /// this one watches whatever it is given.
    watched: UnixStream,
}

impl StreamListener {
    pub(crate) fn new(listener: Listener) -> io::Result<Self> {
        let same = listener.as_fd().try_clone_to_owned()?;
        Ok(Self { listener, watched: UnixStream::from_std(same.into())? })
    }
}

impl Accept for StreamListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            self.watched.readable().await?;
            match self.watched.try_io(Interest::READABLE, || self.listener.accept()) {
                Ok(stream) => {
                    stream.set_nonblocking(true)?;
                    // Of any family: reading and writing are the same.
                    return UnixStream::from_std(stream);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_people_write_them() {
        for (text, written) in [
            ("http://127.0.0.1:8433", "http://127.0.0.1:8433"),
            ("HTTP://127.0.0.1:8433/", "http://127.0.0.1:8433"),
            ("http://[::1]:0", "http://[::1]:0"),
            ("127.0.0.1:8433", "http://127.0.0.1:8433"),
            ("[::1]:8433", "http://[::1]:8433"),
            ("vsock://any:8433", "vsock://any:8433"),
            ("unix:///run/synddb.sock", "unix:/run/synddb.sock"),
            ("vsock+unix:/vm.sock:8433", "vsock+unix:/vm.sock:8433"),
            ("https://127.0.0.1:8433", "https://127.0.0.1:8433"),
            ("vsock+tls://any:8433", "vsock+tls://any:8433"),
            ("unix+tls:///run/x", "unix+tls:/run/x"),
            ("http+unix:///run/x", "http+unix:/run/x"),
            ("HTTPS+vsock://any:8433", "https+vsock://any:8433"),
            ("http+vsock+unix:/vm.sock:1", "http+vsock+unix:/vm.sock:1"),
        ] {
            let address: ListenAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), written, "{text}");
        }
        for text in [
            "",
            "8433",
            "http:",
            "http://",
            "http:/x",
            "tcp://127.0.0.1:1",
            "/run/x",
            "unix:x",
            "http+unix:x",
            "https+tcp://x",
        ] {
            let error = text.parse::<ListenAddress>().unwrap_err().to_string();
            assert!(error.contains("write "), "{text}: {error}");
        }
    }

    #[test]
    fn vms_and_networks_are_not_local() {
        let is_local = |text: &str| text.parse::<ListenAddress>().unwrap().is_local();
        for text in ["http://[::1]:1", "127.0.0.2:1", "unix:/x", "vsock://local:1", "http+unix:/x"]
        {
            assert!(is_local(text), "{text}");
        }
        for text in
            ["0.0.0.0:1", "vsock://any:1", "vsock://2:1", "vsock+unix:/x:1", "https+vsock://2:1"]
        {
            assert!(!is_local(text), "{text}");
        }
    }
}
