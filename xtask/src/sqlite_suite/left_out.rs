//! The scripts, or tests in them, that tell nothing about capture. At most one script in twenty.

/// A script that is left out.
pub(super) struct LeftOut {
    pub(super) script: &'static str,
    /// The tests whose failure does not count, `*` at the end for any rest; all if empty.
    pub(super) tests: &'static [&'static str],
    pub(super) why: &'static str,
}

/// Every one of them.
pub(super) const LEFT_OUT: &[LeftOut] = &[];

/// What `cargo xtask test` runs.
pub(super) const QUICK: &[&str] = &[];
