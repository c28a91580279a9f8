//! Bodies of requests in CBOR, and what the answers in JSON say.
//!
//! ```text
//!  POST /changesets  { batch_id: text, changesets: [{ data: bytes, sequence, timestamp }],
//!                      attestation_token: text, where there is one }
//!  POST /snapshots   { snapshot: { data: bytes, timestamp, sequence }, message_id: text,
//!                      attestation_token: text, where there is one }
//!  201               { sequence, timestamp, message_hash, signature, signer, batch_warning? }
//!  GET /status       { current_sequence, signer_address, signer_pubkey }
//! ```
//!
//! Numbers are u64; timestamps are seconds since 1970.

use core::convert::Infallible;

use minicbor::{
    Encoder,
    encode::{Error, Write},
};
use serde::Deserialize;

use crate::Signed;

/// Content type of bodies.
pub(crate) const CONTENT_TYPE: &str = "application/cbor";

type Encoded = Result<(), Error<Infallible>>;

/// Most bytes that the head of any value takes.
const HEAD: usize = 9;

/// Changesets for one request.
#[derive(Debug)]
pub(crate) struct Batch {
    /// The array's items.
    items: Vec<u8>,
    count: u64,
    /// Bytes around the items, at the most.
    around: usize,
}

impl Batch {
    /// An empty one, whose request will have this id and token.
    pub(crate) fn new(batch_id_len: usize, token: &str) -> Self {
        let around = "batch_idchangesetsattestation_token".len() + 7 * HEAD + batch_id_len;
        Self { items: Vec::new(), count: 0, around: around + token.len() }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Bytes that a changeset may have for the request to stay within `limit`.
    pub(crate) fn room(&self, limit: usize) -> usize {
        const AROUND: usize = "datasequencetimestamp".len() + 7 * HEAD;
        limit.saturating_sub(self.around + self.items.len() + AROUND)
    }

    pub(crate) fn push(&mut self, data: &[u8], sequence: u64, timestamp: u64) {
        let encoded = (|| -> Encoded {
            let mut to = Encoder::new(&mut self.items);
            to.map(3)?.str("data")?.bytes(data)?;
            to.str("sequence")?.u64(sequence)?.str("timestamp")?.u64(timestamp)?;
            Ok(())
        })();
        grown(encoded);
        self.count += 1;
    }

    /// The body.
    pub(crate) fn finish(self, batch_id: &str, token: &str) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.around + self.items.len());
        let encoded = (|| -> Encoded {
            let mut to = Encoder::new(&mut body);
            to.map(if token.is_empty() { 2 } else { 3 })?;
            to.str("batch_id")?.str(batch_id)?.str("changesets")?.array(self.count)?;
            to.writer_mut().write_all(&self.items).map_err(Error::write)?;
            put_token(&mut to, token)
        })();
        grown(encoded);
        body
    }
}

/// The bytes of a snapshot for a request, and what surrounds them.
pub(crate) fn snapshot(
    data: &[u8],
    timestamp: u64,
    sequence: u64,
    message_id: &str,
    token: &str,
) -> Vec<u8> {
    let mut body = Vec::with_capacity(data.len() + snapshot_overhead(message_id, token.len()));
    let encoded = (|| -> Encoded {
        let mut to = Encoder::new(&mut body);
        to.map(if token.is_empty() { 2 } else { 3 })?;
        to.str("snapshot")?.map(3)?.str("data")?.bytes(data)?;
        to.str("timestamp")?.u64(timestamp)?.str("sequence")?.u64(sequence)?;
        to.str("message_id")?.str(message_id)?;
        put_token(&mut to, token)
    })();
    grown(encoded);
    body
}

/// Bytes around a snapshot's data, at the most.
pub(crate) fn snapshot_overhead(message_id: &str, token_len: usize) -> usize {
    "snapshotdatatimestampsequencemessage_idattestation_token".len()
        + 12 * HEAD
        + message_id.len()
        + token_len
}

fn put_token(to: &mut Encoder<&mut Vec<u8>>, token: &str) -> Encoded {
    if !token.is_empty() {
        to.str("attestation_token")?.str(token)?;
    }
    Ok(())
}

fn grown(encoded: Encoded) {
    // A `Vec` takes everything.
    debug_assert!(encoded.is_ok());
}

/// What a 201 says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Answer {
    pub(crate) sequence: u64,
    #[serde(default)]
    pub(crate) timestamp: u64,
    #[serde(default)]
    message_hash: String,
    #[serde(default)]
    signature: String,
    #[serde(default)]
    signer: String,
    /// The message is numbered and signed, and something went wrong with keeping it.
    #[serde(default)]
    pub(crate) batch_warning: Option<String>,
}

impl Answer {
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }

    pub(crate) fn signed(&self) -> Signed {
        Signed {
            sequence: self.sequence,
            message_hash: self.message_hash.clone(),
            signature: self.signature.clone(),
            signer: self.signer.clone(),
        }
    }
}

/// What `GET /status` says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Status {
    pub(crate) current_sequence: u64,
    #[serde(default)]
    pub(crate) signer_address: String,
}

impl Status {
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }
}

#[cfg(test)]
mod tests {
    use minicbor::{Decoder, data::Type};

    use super::*;

    #[test]
    fn bodies_are_what_is_expected_and_no_longer_than_foretold() {
        for token in ["", "a.token"] {
            for sizes in [vec![], vec![0], vec![23, 24, 300], vec![70_000, 1]] {
                let mut batch = Batch::new("the-id".len(), token);
                for (at, size) in sizes.iter().enumerate() {
                    let room = batch.room(1 << 20);
                    batch.push(&vec![7; *size], u64::MAX - at as u64, 1 << 40);
                    assert!(batch.room(1 << 20) + size <= room, "room is not given twice");
                }
                let spent = (1 << 20) - batch.room(1 << 20);
                let body = batch.finish("the-id", token);
                assert!(body.len() <= spent, "{} {spent}", body.len());
                let mut read = Decoder::new(&body);
                let fields = if token.is_empty() { 2 } else { 3 };
                assert_eq!(read.map().unwrap(), Some(fields));
                assert_eq!(read.str().unwrap(), "batch_id");
                assert_eq!(read.str().unwrap(), "the-id");
                assert_eq!(read.str().unwrap(), "changesets");
                assert_eq!(read.array().unwrap(), Some(sizes.len() as u64));
                for (at, size) in sizes.iter().enumerate() {
                    assert_eq!(read.map().unwrap(), Some(3));
                    assert_eq!(read.str().unwrap(), "data");
                    assert_eq!(read.datatype().unwrap(), Type::Bytes);
                    assert_eq!(read.bytes().unwrap(), vec![7; *size]);
                    assert_eq!(read.str().unwrap(), "sequence");
                    assert_eq!(read.u64().unwrap(), u64::MAX - at as u64);
                    assert_eq!(read.str().unwrap(), "timestamp");
                    assert_eq!(read.u64().unwrap(), 1 << 40);
                }
                if !token.is_empty() {
                    assert_eq!(read.str().unwrap(), "attestation_token");
                    assert_eq!(read.str().unwrap(), token);
                }
                assert_eq!(read.position(), body.len());
            }
            let body = snapshot(&[1; 5000], 7, 8, "the-id", token);
            assert!(body.len() <= 5000 + snapshot_overhead("the-id", token.len()));
            let mut read = Decoder::new(&body);
            read.map().unwrap();
            assert_eq!(read.str().unwrap(), "snapshot");
            assert_eq!(read.map().unwrap(), Some(3));
            assert_eq!(read.str().unwrap(), "data");
            assert_eq!(read.bytes().unwrap(), [1; 5000]);
        }
    }

    #[test]
    fn golden_bytes_of_a_small_batch() {
        let mut batch = Batch::new(1, "");
        batch.push(&[0xAA], 3, 1000);
        let expected = b"\xa2\x68batch_id\x61b\x6achangesets\x81\xa3\x64data\x41\xaa\x68sequence\x03\x69timestamp\x19\x03\xe8";
        assert_eq!(batch.finish("b", ""), expected);
    }

    #[test]
    fn answers_are_read_or_not() {
        let answer = Answer::read(
            br#"{"sequence":5,"timestamp":1,"message_hash":"0x1","signature":"0x2","signer":"0x3","new":1}"#,
        )
        .unwrap();
        assert_eq!((answer.sequence, answer.signed().signer.as_str()), (5, "0x3"));
        assert_eq!(answer.batch_warning, None);
        for odd in ["", "{}", "<html>", r#"{"sequence":-1}"#] {
            assert_eq!(Answer::read(odd.as_bytes()), None, "{odd}");
            assert_eq!(Status::read(odd.as_bytes()), None, "{odd}");
        }
        assert_eq!(Status::read(br#"{"current_sequence":9}"#).unwrap().current_sequence, 9);
    }
}
