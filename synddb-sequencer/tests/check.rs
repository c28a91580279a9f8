//! `synddb check` against what may be at an address.
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener},
    process::{Command, Output},
    thread,
};

use synddb_sequencer::{Config, Server};

/// The least of an existing sequencer: its status, and what it says of bodies.
fn existing(limit: usize, token: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut sequence = 7;
        for stream in listener.incoming().flatten() {
            let mut stream = BufReader::new(stream);
            let (mut head, mut len) = (String::new(), 0);
            while stream.read_line(&mut head).unwrap() > 2 {
                let line = head.lines().last().unwrap().to_ascii_lowercase();
                if let Some(text) = line.strip_prefix("content-length:") {
                    len = text.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; len];
            if stream.read_exact(&mut body).is_err() {
                continue;
            }
            let is_batch = String::from_utf8_lossy(&body).contains("changesets");
            let (status, text) = if head.starts_with("GET /status ") {
                (200, format!("{{\"current_sequence\":{sequence},\"signer_address\":\"0x1\"}}"))
            } else if len > limit {
                (400, "length limit exceeded".to_owned())
            } else if !is_batch {
                (400, "bad CBOR".to_owned())
            } else if !String::from_utf8_lossy(&body).contains(token) {
                (401, "{\"error\":\"bad token\"}".to_owned())
            } else {
                sequence += 1;
                (201, format!("{{\"sequence\":{sequence}}}"))
            };
            let date = "Date: Tue, 01 Jan 2030 00:00:00 GMT";
            let _ = write!(
                stream.get_mut(),
                "HTTP/1.1 {status} X\r\n{date}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                text.len()
            );
        }
    });
    address
}

fn check(arguments: &[&str]) -> (bool, String) {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_synddb")).arg("check").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    (status.success(), text)
}

#[test]
fn an_existing_sequencer_is_told_with_its_limits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let database = path.to_str().unwrap();
    let db = rusqlite::Connection::open(&path).unwrap();
    db.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (zeroblob(400000))").unwrap();
    let token = dir.path().join("token");
    let token_file = token.to_str().unwrap();
    std::fs::write(&token, "a-good-token").unwrap();

    let url = format!("synddb+http://{}", existing(2_097_152, "a-good-token"));
    let (fine, text) = check(&[&url, "--database", database, "--token-file", token_file]);
    assert!(fine, "{text}");
    for told in ["CBOR", "2097152 bytes", "accepted", "s ahead", "round trip", "fits"] {
        assert!(text.contains(told), "{told}: {text}");
    }
    std::fs::write(&token, "a-bad-token").unwrap();
    let (fine, text) = check(&[&url, "--token-file", token_file]);
    assert!(!fine && text.contains("refused: 401"), "{text}");

    let url = format!("http://{}", existing(300_000, ""));
    let (fine, text) = check(&[&url, "--database", database]);
    assert!(!fine && text.contains("a snapshot may have"), "{text}");
    assert!(text.contains("body limit  from 299") || text.contains("to 300"), "{text}");
}

#[test]
fn a_sequencer_of_ours_is_told_from_one() {
    let dir = tempfile::tempdir().unwrap();
    let address: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let server = Server::start(Config::new(address.into(), dir.path().join("log"))).unwrap();
    let url = format!("http://{}", server.addr());
    let (fine, text) = check(&[&url]);
    assert!(fine && text.contains("synddb's own frames"), "{text}");
    let (fine, text) = check(&[&format!("synddb+{url}")]);
    assert!(!fine && text.contains("without `synddb+`"), "{text}");
}
