//! Who lets whom in, and what each side is told.
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use rustls::{ServerConnection, StreamOwned, server::ResolvesServerCert, sign::CertifiedKey};
use synddb_tls::{
    Acceptor, Attestation, ClientTls, Clients, Failure, Identity, Peer, Pem, Pin, Roots, ServerTls,
    TlsError, failure_of, rustls,
};

/// A certificate authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        // A root is found by its name.
        let name = Pin::of_public_key(key.public_key_raw()).to_string();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    fn roots(&self) -> Pem {
        Pem::Text(self.0.pem())
    }

    fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        identity(certificate.pem(), key.serialize_pem())
    }

    fn server(&self) -> Identity {
        self.issue("localhost", |_| {})
    }

    fn client(&self) -> Identity {
        self.issue("client", |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })
    }
}

fn identity(certificate: String, key: String) -> Identity {
    Identity { certificates: Pem::Text(certificate), key: Pem::Text(key) }
}

fn self_signed() -> Identity {
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    identity(pair.cert.pem(), pair.signing_key.serialize_pem())
}

fn expired(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2021, 1, 1);
}

fn not_yet_valid(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2090, 1, 1);
    params.not_after = date_time_ymd(2091, 1, 1);
}

/// What became of a connection over which each side sends five bytes: the client's view and the
/// server's.
fn meet(client: &ClientTls, server: &ServerTls) -> (io::Result<()>, io::Result<()>) {
    meet_by(client, &server.acceptor().unwrap())
}

fn meet_by(client: &ClientTls, acceptor: &Acceptor) -> (io::Result<()>, io::Result<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let connector = client.connector().unwrap();
    thread::scope(|scope| {
        let server = scope.spawn(|| serve(acceptor, listener.accept().unwrap().0));
        let client = || {
            let mut stream = connector.connect(TcpStream::connect(addr)?, "localhost")?;
            stream.write_all(b"hello")?;
            stream.flush()?;
            stream.read_exact(&mut [0; 5])
        };
        let client = client();
        (client, server.join().unwrap())
    })
}

fn serve(acceptor: &Acceptor, socket: TcpStream) -> io::Result<()> {
    let connection = ServerConnection::new(acceptor.config()).unwrap();
    let mut stream = StreamOwned::new(connection, socket);
    while stream.conn.is_handshaking() {
        if let Err(error) = stream.conn.complete_io(&mut stream.sock) {
            // Closing with bytes unread would take back the alert.
            let _ = stream.sock.shutdown(std::net::Shutdown::Write);
            let _ = io::copy(&mut stream.sock, &mut io::sink());
            return Err(error);
        }
    }
    acceptor.attest(&Peer::of(&stream.conn).unwrap())?;
    stream.read_exact(&mut [0; 5])?;
    stream.write_all(b"world")?;
    stream.conn.send_close_notify();
    stream.flush()
}

#[track_caller]
fn let_in((client, server): (io::Result<()>, io::Result<()>)) {
    client.unwrap();
    server.unwrap();
}

#[track_caller]
fn failure(result: io::Result<()>) -> Failure {
    let error = result.expect_err("it should have failed");
    failure_of(&error).unwrap_or_else(|| panic!("{error:?}"))
}

#[track_caller]
fn untrusted(result: io::Result<()>, why: &str) {
    match failure(result) {
        Failure::Untrusted(said) => assert!(said.contains(why), "no {why:?} in: {said}"),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(result: io::Result<()>, why: &str) {
    match failure(result) {
        Failure::Refused(said) => assert!(said.contains(why), "no {why:?} in: {said}"),
        other => panic!("{other:?}"),
    }
}

fn by_roots(authority: &Authority) -> ClientTls {
    ClientTls { roots: Some(Roots::Pem(authority.roots())), ..Default::default() }
}

#[test]
fn roots_let_in_who_ends_at_them() {
    let authority = Authority::new();
    let server = ServerTls::new(authority.server());
    let_in(meet(&by_roots(&authority), &server));
    let by_name = ClientTls { server_name: Some("localhost".into()), ..by_roots(&authority) };
    let_in(meet(&by_name, &server));

    let (client, server_says) = meet(&by_roots(&Authority::new()), &server);
    untrusted(client, "no root that is trusted here");
    refused(server_says, "trusts nobody");
    untrusted(meet(&ClientTls::default(), &server).0, "no root that is trusted here");
}

#[test]
fn who_signed_its_own_certificate_is_its_root() {
    let identity = self_signed();
    let roots = Some(Roots::Pem(identity.certificates.clone()));
    let_in(meet(&ClientTls { roots, ..Default::default() }, &ServerTls::new(identity)));
}

#[test]
fn a_certificate_has_to_be_of_today_and_for_the_server() {
    let authority = Authority::new();
    let client = by_roots(&authority);
    let meet = |name, change: fn(&mut CertificateParams)| {
        meet(&client, &ServerTls::new(authority.issue(name, change)))
    };
    let (client_says, server_says) = meet("localhost", expired);
    untrusted(client_says, "its certificate expired");
    refused(server_says, "expired");
    untrusted(meet("localhost", not_yet_valid).0, "are both clocks right?");
    untrusted(meet("elsewhere", |_| {}).0, "not for localhost, but for DnsName(\"elsewhere\")");
    untrusted(
        meet("localhost", |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })
        .0,
        "another purpose",
    );
}

#[test]
fn a_pin_is_about_the_key_alone() {
    let authority = Authority::new();
    for identity in [
        self_signed(),
        authority.server(),
        authority.issue("elsewhere", |_| {}),
        authority.issue("localhost", expired),
    ] {
        let client = ClientTls::pinned([Pin([0; 32]), identity.pin().unwrap()]);
        let_in(meet(&client, &ServerTls::new(identity)));
    }
    let identity = self_signed();
    let (client, server) =
        meet(&ClientTls::pinned([Pin([0; 32])]), &ServerTls::new(identity.clone()));
    untrusted(client, &format!("its key is {}, which is not pinned", identity.pin().unwrap()));
    refused(server, "does not accept this side's certificate");
}

#[test]
fn roots_and_pins_both_have_to_hold() {
    let authority = Authority::new();
    let identity = authority.server();
    let client = |pin| ClientTls { pins: vec![pin], ..by_roots(&authority) };
    let_in(meet(&client(identity.pin().unwrap()), &ServerTls::new(identity.clone())));
    untrusted(meet(&client(Pin([0; 32])), &ServerTls::new(identity)).0, "not pinned");
    let other = self_signed();
    let client = client(other.pin().unwrap());
    untrusted(meet(&client, &ServerTls::new(other)).0, "no root");
}

/// Shows one certificate and signs with the key of another.
#[derive(Debug)]
struct Impostor(Arc<CertifiedKey>);

impl ResolvesServerCert for Impostor {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[test]
fn who_shows_a_pinned_certificate_has_to_have_its_key() {
    let certified = || {
        let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(pair.signing_key.serialize_der().into());
        (pair.cert.der().clone(), rustls::crypto::ring::sign::any_supported_type(&key).unwrap())
    };
    let (pinned, _) = certified();
    let (_, other_key) = certified();
    let pin = Pin::of_certificate(&pinned).unwrap();
    let impostor = Impostor(Arc::new(CertifiedKey::new(vec![pinned], other_key)));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(impostor));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let mut connection = ServerConnection::new(Arc::new(config)).unwrap();
        let mut socket = listener.accept().unwrap().0;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(())
    });
    let connector = ClientTls::pinned([pin]).connector().unwrap();
    let client = connector.connect(TcpStream::connect(addr).unwrap(), "localhost").map(drop);
    untrusted(client, "lacks the private key");
    refused(server.join().unwrap(), "proof of its private key wrong");
}

#[test]
fn known_clients_are_those_of_the_roots_and_the_pins() {
    let authority = Authority::new();
    let (known, stranger) = (authority.client(), Authority::new().client());
    let server = |roots: Option<Pem>, pins: &[&Identity]| ServerTls {
        clients: Clients::Known {
            roots,
            pins: pins.iter().map(|identity| identity.pin().unwrap()).collect(),
        },
        ..ServerTls::new(authority.server())
    };
    let client = |identity: Option<&Identity>| ClientTls {
        identity: identity.cloned(),
        ..by_roots(&authority)
    };
    let by_ca = server(Some(authority.roots()), &[]);
    let_in(meet(&client(Some(&known)), &by_ca));
    let (client_says, server_says) = meet(&client(None), &by_ca);
    refused(client_says, "wants a client certificate");
    untrusted(server_says, "showed no certificate");
    let (client_says, server_says) = meet(&client(Some(&stranger)), &by_ca);
    refused(client_says, "trusts nobody who signed");
    untrusted(server_says, "no root");
    let late = authority.issue("client", expired);
    refused(meet(&client(Some(&late)), &by_ca).0, "certificate has expired");

    let by_pin = server(None, &[&stranger]);
    let_in(meet(&client(Some(&stranger)), &by_pin));
    let (client_says, server_says) = meet(&client(Some(&known)), &by_pin);
    refused(client_says, "is its key pinned there?");
    untrusted(server_says, "not pinned");
    refused(meet(&client(None), &by_pin).0, "wants a client certificate");

    let by_both = server(Some(authority.roots()), &[&known]);
    let_in(meet(&client(Some(&known)), &by_both));
    refused(meet(&client(Some(&authority.client())), &by_both).0, "pinned");

    let nobody = ServerTls {
        clients: Clients::Known { roots: None, pins: Vec::new() },
        ..ServerTls::new(authority.server())
    };
    assert!(matches!(nobody.acceptor(), Err(TlsError::Contradiction(_))));
}

#[test]
fn attestation_sees_the_key_and_the_connection() {
    let authority = Authority::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = |side: &'static str| {
        let seen = Arc::clone(&seen);
        Some(Attestation::new(move |peer| {
            seen.lock().unwrap().push((side, peer.pin(), peer.exporter));
            Ok(())
        }))
    };
    let identity = self_signed();
    let server = ServerTls {
        clients: Clients::AnyKey,
        attestation: note("server"),
        ..ServerTls::new(authority.server())
    };
    let client = ClientTls {
        identity: Some(identity.clone()),
        attestation: note("client"),
        ..by_roots(&authority)
    };
    for _ in 0..2 {
        let_in(meet(&client, &server));
    }
    let mut seen = std::mem::take(&mut *seen.lock().unwrap());
    seen.sort_by_key(|(side, _, exporter)| (*exporter, *side));
    let [(_, of_server, first), (_, of_client, same), (.., second), _] = seen[..] else {
        panic!("{seen:?}")
    };
    assert_eq!(first, same, "both sides see the same bytes");
    assert_ne!(first, second, "each connection has bytes of its own");
    assert_eq!(of_server, Some(server.identity.pin().unwrap()));
    assert_eq!(of_client, Some(identity.pin().unwrap()));

    let never = || Some(Attestation::new(|_| Err("measured something else".into())));
    let strict = ClientTls { attestation: never(), ..client.clone() };
    untrusted(meet(&strict, &server).0, "measured something else");
    let strict = ServerTls { attestation: never(), ..server };
    untrusted(meet(&client, &strict).1, "measured something else");
}

fn write(dir: &Path, identity: &Identity) -> Identity {
    let text = |pem: &Pem| match pem {
        Pem::Text(text) => text.clone(),
        Pem::File(_) => unreachable!(),
    };
    std::fs::write(dir.join("crt"), text(&identity.certificates)).unwrap();
    std::fs::write(dir.join("key"), text(&identity.key)).unwrap();
    Identity { certificates: Pem::File(dir.join("crt")), key: Pem::File(dir.join("key")) }
}

#[test]
fn files_are_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (self_signed(), self_signed());
    let server = ServerTls::new(write(dir.path(), &first));
    let acceptor = server.acceptor().unwrap();
    let meets = |identity: &Identity| {
        meet_by(&ClientTls::pinned([identity.pin().unwrap()]), &acceptor).0.is_ok()
    };
    assert!(meets(&first));
    assert_eq!(acceptor.reload(), Ok(false));
    write(dir.path(), &second);
    assert!(meets(&first), "nobody asked for it yet");
    assert_eq!(acceptor.reload(), Ok(true));
    assert!(meets(&second) && !meets(&first));

    // Half of a renewal.
    let Pem::Text(certificate) = &first.certificates else { unreachable!() };
    std::fs::write(dir.path().join("crt"), certificate).unwrap();
    assert!(matches!(acceptor.reload(), Err(TlsError::KeyMismatch { .. })));
    assert!(meets(&second), "what was there before goes on");
    std::fs::remove_file(dir.path().join("crt")).unwrap();
    assert!(matches!(acceptor.reload(), Err(TlsError::Read { .. })));
    assert!(meets(&second));
}

#[test]
fn a_client_reads_its_certificate_at_each_connection() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (self_signed(), self_signed());
    let server_identity = self_signed();
    let client = ClientTls {
        identity: Some(write(dir.path(), &first)),
        ..ClientTls::pinned([server_identity.pin().unwrap()])
    };
    let connector = client.connector().unwrap();
    let shown = || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let server =
            ServerTls { clients: Clients::AnyKey, ..ServerTls::new(server_identity.clone()) };
        let acceptor = server.acceptor().unwrap();
        let server = thread::spawn(move || {
            let mut connection = ServerConnection::new(acceptor.config()).unwrap();
            let mut socket = listener.accept().unwrap().0;
            while connection.is_handshaking() {
                connection.complete_io(&mut socket).unwrap();
            }
            Peer::of(&connection).unwrap().pin()
        });
        let socket = TcpStream::connect(addr).unwrap();
        let stream = connector.connect(socket, "localhost");
        if stream.is_err() {
            return stream.map(|_| None);
        }
        Ok(server.join().unwrap())
    };
    assert_eq!(shown().unwrap(), Some(first.pin().unwrap()));
    write(dir.path(), &second);
    assert_eq!(shown().unwrap(), Some(second.pin().unwrap()));
    std::fs::write(dir.path().join("key"), "").unwrap();
    assert!(matches!(failure(shown().map(drop)), Failure::Misconfigured(_)));
}

#[test]
fn who_does_not_speak_tls_is_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let mut socket = listener.accept().unwrap().0;
        socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        io::copy(&mut socket, &mut io::sink()).unwrap();
    });
    let connector = ClientTls::default().connector().unwrap();
    let answer = connector.connect(TcpStream::connect(addr).unwrap(), "localhost");
    assert_eq!(failure(answer.map(drop)), Failure::NotTls);
    server.join().unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let client = thread::spawn(move || {
        let mut socket = TcpStream::connect(addr).unwrap();
        socket.write_all(b"POST /v1/frames HTTP/1.1\r\n\r\n").unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = io::copy(&mut socket, &mut io::sink());
    });
    let acceptor = ServerTls::new(self_signed()).acceptor().unwrap();
    let served = serve(&acceptor, listener.accept().unwrap().0);
    assert_eq!(failure(served), Failure::NotTls);
    client.join().unwrap();
}

#[test]
fn what_cannot_be_honoured_is_an_error_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let good = self_signed();
    let with = |certificates: Pem, key: Pem| {
        let identity = Some(Identity { certificates, key });
        ClientTls { identity, ..Default::default() }.connector().unwrap_err()
    };
    let text = |text: &str| Pem::Text(text.into());
    let missing = Pem::File(dir.path().join("none"));
    assert!(matches!(with(missing, good.key.clone()), TlsError::Read { .. }));
    assert!(matches!(with(text(""), good.key.clone()), TlsError::NoCertificate { .. }));
    assert!(matches!(with(good.certificates.clone(), text("x")), TlsError::NoKey { .. }));
    assert!(matches!(
        with(good.certificates.clone(), self_signed().key),
        TlsError::KeyMismatch { .. }
    ));
    let roots = Some(Roots::Pem(text("nothing")));
    let client = ClientTls { roots, ..Default::default() };
    assert!(matches!(client.connector(), Err(TlsError::NoCertificate { .. })));
    let client = ClientTls { server_name: Some("a b".into()), ..Default::default() };
    assert!(matches!(client.connector(), Err(TlsError::InvalidName(_))));

    // An address without a host.
    assert_eq!(ClientTls::default().connector().unwrap().without_host(), Err(TlsError::NoName));
    let pinned = ClientTls::pinned([good.pin().unwrap()]).connector().unwrap();
    assert_eq!(pinned.without_host(), Ok(()));
}

#[test]
fn keys_are_not_shown() {
    let identity = self_signed();
    let Pem::Text(key) = &identity.key else { unreachable!() };
    let secret = key.lines().nth(1).unwrap().to_owned();
    let client = ClientTls { identity: Some(identity.clone()), ..Default::default() };
    let shown = [
        format!("{client:?}"),
        format!("{:?}", client.connector().unwrap()),
        format!("{:?}", ServerTls::new(identity).acceptor().unwrap()),
    ];
    assert!(shown.iter().all(|shown| !shown.contains(&secret)));
}
