//! What the integration tests share; the tests are in `tests/`.

pub mod proxy;
pub mod relay;
pub mod scenarios;
pub mod world;
