//! What the integration tests share; the tests are in `tests/`.

pub mod certs;
pub mod log;
pub mod proxy;
pub mod relay;
pub mod scenarios;
pub mod standin;
pub mod world;
