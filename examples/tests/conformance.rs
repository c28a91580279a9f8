//! The examples' transports do what a transport has to do.
#![allow(clippy::unwrap_used)] // helpers of tests may panic, as tests may

#[path = "../channel_transport.rs"]
#[allow(dead_code, missing_docs, unreachable_pub)] // an example's `main` and what it needs
mod channel_transport;
#[path = "../custom_transport.rs"]
#[allow(dead_code, missing_docs, unreachable_pub)] // the same
mod custom_transport;

use std::{io::ErrorKind, net::TcpListener, sync::mpsc::channel};

use synddb_core::http::HttpFrames;
use synddb_transport_conformance::{LIMIT, Messages, Protocol, check};

#[test]
fn over_attohttpc() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    check(
        Protocol::Http,
        move || listener.accept().map(|(socket, _)| socket),
        || HttpFrames::new(custom_transport::Exchange { url: url.clone(), timeout: LIMIT }),
    );
}

#[test]
fn through_a_channel() {
    let (listener, connections) = channel::<channel_transport::End>();
    check(
        Protocol::Stream,
        move || match connections.recv() {
            Ok((to, from)) => Ok(Messages::new(to, from)),
            Err(_) => Err(ErrorKind::BrokenPipe.into()),
        },
        || channel_transport::ChannelTransport { listener: listener.clone(), connection: None },
    );
}
