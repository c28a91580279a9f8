//! What each transport brings into an application, as cargo resolves it: none compiles what another
//! needs.
#![allow(clippy::unwrap_used)] // a test may panic where it stands

use std::{collections::BTreeSet, process::Command};

/// The packages that `synddb-client` with these features is compiled with.
fn packages(features: &str) -> BTreeSet<String> {
    packages_of("synddb-client", features)
}

/// The packages that one with these features is compiled with.
fn packages_of(package: &str, features: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "-p", package, "--no-default-features"])
        .args(["--features", features, "-e", "normal", "--prefix", "none", "--format", "{p}"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).unwrap();
    names.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

/// What belongs to HTTP, to asynchronous runtimes, and to TLS.
const HTTP: [&str; 11] = [
    "h2",
    "synddb-transport-hyper",
    "ureq",
    "ureq-proto",
    "http",
    "httparse",
    "hyper",
    "tokio",
    "futures-core",
    "rustls",
    "synddb-transport-ureq",
];
/// What belongs to TLS.
const TLS: [&str; 5] = ["rustls", "ring", "rustls-webpki", "webpki-roots", "synddb-tls"];
/// What belongs to stream sockets.
const SOCKETS: [&str; 2] = ["socket2", "synddb-transport-vsock"];

fn found<'a>(packages: &BTreeSet<String>, among: &[&'a str]) -> Vec<&'a str> {
    among.iter().copied().filter(|name| packages.contains(*name)).collect()
}

#[test]
fn sockets_bring_neither_http_nor_a_runtime() {
    for features in ["vsock", "vsock,bundled"] {
        let packages = packages(features);
        assert_eq!(found(&packages, &HTTP), [""; 0], "{features}");
        assert_eq!(found(&packages, &SOCKETS), SOCKETS, "{features}: it is there at all");
    }
}

#[test]
fn http_brings_no_sockets_and_no_runtime() {
    let packages = packages("http,bundled");
    assert_eq!(found(&packages, &SOCKETS), [""; 0]);
    assert_eq!(found(&packages, &["tokio", "hyper", "futures-core", "rustls"]), [""; 0]);
    assert_eq!(
        found(&packages, &["ureq", "http", "synddb-transport-ureq"]),
        ["ureq", "http", "synddb-transport-ureq"],
        "they are looked for by their right names"
    );
}

#[test]
fn hyper_brings_no_other_client_and_no_sockets() {
    let packages = packages("hyper,bundled");
    let others =
        ["ureq", "ureq-proto", "rustls", "synddb-transport-ureq", "synddb-transport-vsock"];
    assert_eq!(found(&packages, &others), [""; 0]);
    let own = ["hyper", "h2", "tokio", "synddb-transport-hyper"];
    assert_eq!(found(&packages, &own), own, "they are looked for by their right names");
    // With the sockets it dials them.
    let packages = packages_of("synddb-transport-hyper", "vsock");
    assert_eq!(found(&packages, &SOCKETS), SOCKETS);
    assert_eq!(found(&packages, &["ureq", "rustls"]), [""; 0]);
}

#[test]
fn without_a_transport_there_is_none() {
    let packages = packages("bundled");
    assert_eq!(found(&packages, &HTTP), [""; 0]);
    assert_eq!(found(&packages, &SOCKETS), [""; 0]);
}

#[test]
fn tls_comes_by_its_feature_alone_and_without_a_runtime() {
    for transport in ["http", "vsock"] {
        let plain = packages(&format!("{transport},bundled"));
        assert_eq!(found(&plain, &TLS), [""; 0], "{transport}");
        let packages = packages(&format!("{transport},bundled,tls"));
        assert_eq!(found(&packages, &TLS), TLS, "{transport}");
        let others = ["tokio", "hyper", "openssl", "native-tls", "aws-lc-rs", "rcgen"];
        assert_eq!(found(&packages, &others), [""; 0], "{transport}");
    }
    assert_eq!(found(&packages("hyper,bundled"), &TLS), [""; 0]);
    let packages_of_hyper = packages("hyper,bundled,tls");
    assert_eq!(found(&packages_of_hyper, &TLS), TLS);
    assert_eq!(found(&packages_of_hyper, &["ureq", "openssl", "aws-lc-rs", "rcgen"]), [""; 0]);
    assert_eq!(found(&packages("vsock,bundled,tls"), &["ureq", "http"]), [""; 0]);
    assert_eq!(found(&packages("http,bundled,tls"), &SOCKETS), [""; 0]);
}
