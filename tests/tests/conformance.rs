//! What every transport has to do, over each of them. One more is one more test here.
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

use std::{
    io::{self, Read, Write},
    net::TcpListener,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::Arc,
};

use synddb_client::tls::ClientTls;
use synddb_core::http::HttpFrames;
use synddb_sequencer::synddb_tls::{
    Connector, ServerTls,
    rustls::{ServerConfig, ServerConnection, StreamOwned},
};
use synddb_tests::certs::Pair;
use synddb_transport_conformance::{LIMIT, Protocol, check};
use synddb_transport_hyper::{HyperClient, HyperConfig, HyperExchange};
use synddb_transport_ureq::{UreqConfig, UreqExchange};
use synddb_transport_vsock::{
    Address, Dialer, Listener, Timeouts, transport_with, transport_with_tls,
};
use tempfile::TempDir;

const TIMEOUTS: Timeouts = Timeouts { connect: LIMIT, write: LIMIT };
const LIMITS: UreqConfig = UreqConfig { connect_timeout: LIMIT, timeout: LIMIT };
const PORT: u32 = 8433;
/// This machine.
const LOCAL: u32 = 1;

#[test]
fn ureq() {
    let (listener, address) = tcp();
    check(
        Protocol::Http,
        move || listener.accept().map(|(socket, _)| socket),
        || HttpFrames::new(UreqExchange::new(&format!("http://{address}"), LIMITS).unwrap()),
    );
}

#[test]
fn ureq_with_tls() {
    let (listener, address) = tcp();
    let (server, client) = tls();
    check(
        Protocol::Http,
        move || listener.accept().and_then(|(socket, _)| over_tls(&server, socket)),
        || {
            let url = format!("https://{address}");
            HttpFrames::new(UreqExchange::with_tls(&url, LIMITS, client.clone()).unwrap())
        },
    );
}

fn hyper_config() -> HyperConfig {
    HyperConfig { connect_timeout: LIMIT, timeout: LIMIT, ..Default::default() }
}

#[test]
fn hyper() {
    let (listener, address) = tcp();
    check(
        Protocol::Http,
        move || listener.accept().map(|(socket, _)| socket),
        || {
            let client = HyperClient::new(&format!("http://{address}"), hyper_config()).unwrap();
            HttpFrames::new(HyperExchange::new(client).unwrap())
        },
    );
}

#[test]
fn hyper_with_tls() {
    let (listener, address) = tcp();
    let (server, client) = tls();
    check(
        Protocol::Http,
        move || listener.accept().and_then(|(socket, _)| over_tls(&server, socket)),
        || {
            let url = format!("https://{address}");
            let client = HyperClient::with_tls(&url, hyper_config(), client.clone()).unwrap();
            HttpFrames::new(HyperExchange::new(client).unwrap())
        },
    );
}

/// Where this machine can talk to itself over AF_VSOCK; `cargo xtask vm` does it anywhere.
#[test]
fn vsock() {
    let (listener, port) = match vsock_to_itself() {
        Ok(listening) => listening,
        Err(why) => return println!("AF_VSOCK is not tried here: {why}"),
    };
    check(
        Protocol::Stream,
        move || listener.accept(),
        || transport_with(Address::Vsock { cid: LOCAL, port }, TIMEOUTS),
    );
}

#[test]
fn vsock_with_tls() {
    let (listener, port) = match vsock_to_itself() {
        Ok(listening) => listening,
        Err(why) => return println!("AF_VSOCK with TLS is not tried here: {why}"),
    };
    let (server, client) = tls();
    check(
        Protocol::Stream,
        move || listener.accept().and_then(|socket| over_tls(&server, socket)),
        || {
            let address = Address::Vsock { cid: LOCAL, port };
            transport_with_tls(address, TIMEOUTS, client.clone()).unwrap()
        },
    );
}

/// A listener that this machine reaches, or why there is none. To listen alone takes no way to itself.
fn vsock_to_itself() -> Result<(Listener, u32), String> {
    let any_port = Address::Vsock { cid: LOCAL, port: 0 };
    let listener = Listener::bind(&any_port).map_err(|error| error.to_string())?;
    let &Address::Vsock { port, .. } = listener.address() else { unreachable!() };
    let address = Address::Vsock { cid: LOCAL, port };
    let reached = Dialer::new(address, TIMEOUTS).connect().map_err(|error| error.to_string())?;
    drop((reached, listener.accept().unwrap()));
    Ok((listener, port))
}

#[test]
fn unix() {
    let (_dir, path, listener) = socket();
    check(
        Protocol::Stream,
        move || listener.accept().map(|(socket, _)| socket),
        || transport_with(Address::Unix { path: path.clone() }, TIMEOUTS),
    );
}

#[test]
fn unix_with_tls() {
    let (_dir, path, listener) = socket();
    let (server, client) = tls();
    check(
        Protocol::Stream,
        move || listener.accept().and_then(|(socket, _)| over_tls(&server, socket)),
        || {
            let address = Address::Unix { path: path.clone() };
            transport_with_tls(address, TIMEOUTS, client.clone()).unwrap()
        },
    );
}

#[test]
fn vsock_through_a_vmm() {
    let (_dir, path, listener) = socket();
    check(
        Protocol::Stream,
        move || listener.accept().and_then(|(socket, _)| as_a_vmm(socket)),
        || transport_with(Address::VsockUnix { path: path.clone(), port: PORT }, TIMEOUTS),
    );
}

#[test]
fn vsock_through_a_vmm_with_tls() {
    let (_dir, path, listener) = socket();
    let (server, client) = tls();
    check(
        Protocol::Stream,
        move || {
            let socket = as_a_vmm(listener.accept()?.0)?;
            over_tls(&server, socket)
        },
        || {
            let address = Address::VsockUnix { path: path.clone(), port: PORT };
            transport_with_tls(address, TIMEOUTS, client.clone()).unwrap()
        },
    );
}

fn tcp() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

fn socket() -> (TempDir, PathBuf, UnixListener) {
    let dir = tempfile::tempdir().unwrap();
    let path: &Path = &dir.path().join("socket");
    let listener = UnixListener::bind(path).unwrap();
    (dir, path.to_owned(), listener)
}

/// A server's key, and a client that pins it.
fn tls() -> (Arc<ServerConfig>, Connector) {
    let server = Pair::self_signed();
    let client = ClientTls::pinned([server.pin()]).connector().unwrap();
    (ServerTls::new(server.identity()).acceptor().unwrap().config(), client)
}

/// The handshake is done with the first bytes that are read.
fn over_tls<S: Read + Write>(
    server: &Arc<ServerConfig>,
    socket: S,
) -> io::Result<StreamOwned<ServerConnection, S>> {
    let connection = ServerConnection::new(Arc::clone(server)).map_err(io::Error::other)?;
    Ok(StreamOwned::new(connection, socket))
}

/// Answers the request for a port inside the VM.
fn as_a_vmm(mut socket: UnixStream) -> io::Result<UnixStream> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        socket.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    assert_eq!(line, format!("CONNECT {PORT}\n").into_bytes());
    socket.write_all(b"OK 1024\n")?;
    Ok(socket)
}
