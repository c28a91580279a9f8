//! Integration tests, simulation and crash tests of synddb; see `tests/`.
