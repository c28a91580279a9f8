//! Hostile bytes for whatever reads bytes of others. `cargo xtask fuzz` builds and runs it;
//! `SYNDDB_FUZZ_TARGET` chooses what they go to. A panic anywhere, in any thread, is a finding, and so
//! is a check that fails.
#![no_main]

mod bodies;
mod decode;
mod outbox;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<fn(&[u8])> =
    LazyLock::new(|| match std::env::var("SYNDDB_FUZZ_TARGET").as_deref() {
        Ok("frames") => decode::frames,
        Ok("changeset") => decode::changeset,
        Ok("entries") => decode::entries,
        Ok("bodies") => bodies::post,
        Ok("outbox") => outbox::attach,
        other => panic!("SYNDDB_FUZZ_TARGET={other:?}: run it by `cargo xtask fuzz`"),
    });

fuzz_target!(|data: &[u8]| TARGET(data));
