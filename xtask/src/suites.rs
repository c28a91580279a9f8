//! The one table of test suites.

use crate::prereqs::{SQLITE, SQLITE_SUITE};
use crate::{bare, fuzz, vm};

/// A test suite: commands that all have to succeed.
pub(crate) struct Suite {
    /// The name on the command line and in the summary.
    pub(crate) name: &'static str,
    /// How long it may take, in seconds: on two cores, with the dependencies compiled. Taking longer
    /// is a warning, not a failure, since machines differ.
    pub(crate) budget_s: u64,
    /// Names of the prerequisites it needs.
    pub(crate) needs: &'static [&'static str],
    /// What it runs, in order; the first failure ends the suite.
    pub(crate) steps: &'static [Step],
    /// Whether it runs only when asked for by name.
    pub(crate) on_request: bool,
    /// Why it cannot run on this machine, if it cannot.
    pub(crate) skipped: Option<&'static str>,
}

/// One command of a suite, written as one would type it in the workspace root.
pub(crate) enum Step {
    /// Has to succeed.
    Run(&'static str),
    /// Has to fail and to print `because`: shows that the other steps can fail.
    MustFail {
        /// The command.
        command: &'static str,
        /// What it prints.
        because: &'static str,
    },
}

use Step::{MustFail, Run};

/// A cargo command for the package that is no member of the workspace.
macro_rules! nostd_proof {
    ($command:literal, $rest:literal) => {
        concat!(
            "cargo ",
            $command,
            " --quiet --release --manifest-path tests/nostd-proof/Cargo.toml",
            " --target-dir target/nostd-proof",
            $rest
        )
    };
}

/// Every suite, in the order in which they run: quick ones first.
pub(crate) const SUITES: &[Suite] = &[
    suite(
        "fmt",
        10,
        &["rustfmt"],
        &[
            Run("cargo fmt --all --check"),
            Run("cargo fmt --manifest-path tests/nostd-proof/Cargo.toml --check"),
            Run("cargo fmt --manifest-path tests/no-alloc/Cargo.toml --check"),
            Run("cargo fmt --manifest-path examples/cortex-m/Cargo.toml --check"),
            Run("cargo fmt --manifest-path examples/bare-guest/Cargo.toml --check"),
            Run("cargo fmt --manifest-path tests/sqlite-suite/Cargo.toml --check"),
            Run("cargo fmt --manifest-path tests/fuzz/Cargo.toml --check"),
        ],
    ),
    suite(
        "deny",
        20,
        &["cargo-deny"],
        &[Run("cargo deny check --hide-inclusion-graph licenses bans sources")],
    ),
    // The advisory database comes from GitHub, which not every machine can reach.
    suite(
        "advisories",
        60,
        &["cargo-deny"],
        &[Run("cargo deny check --hide-inclusion-graph advisories")],
    )
    .on_request(),
    suite(
        "clippy",
        240,
        &["clippy", "cc", "libclang"],
        &[Run("cargo clippy --workspace --all-targets -- -D warnings")],
    ),
    suite("doc", 90, SQLITE, &[Run("RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps")]),
    suite(
        "features",
        300,
        &["cargo-hack", "clippy", "cc", "libclang"],
        &[
            Run("cargo hack clippy --feature-powerset --depth 2 -p synddb-core \
                 -p synddb-transport-hyper -p synddb-transport-ureq -p synddb-transport-vsock \
                 -p synddb-sequencer --exclude-features kill-points -- -D warnings"),
            Run("cargo hack clippy --feature-powerset --depth 2 --features bundled \
                 --exclude-features default,kill-points -p synddb-std -p synddb-client -- -D warnings"),
            Run("cargo test -p xtask --test dependencies"),
        ],
    ),
    // Links the core without libc; the binary exits with 0 if its self test passed. And the simulation,
    // with the core as it is without an allocator.
    suite(
        "nostd",
        120,
        &["cc", "clippy"],
        &[
            Run(nostd_proof!("clippy", " --features alloc -- -D warnings")),
            Run(nostd_proof!("run", "")),
            Run(nostd_proof!("run", " --features alloc")),
            MustFail { command: nostd_proof!("check", " --features std-leak"), because: "E0152" },
            Run("SYNDDB_SIM_SEEDS=1000 cargo test --quiet --manifest-path tests/no-alloc/Cargo.toml \
                 --target-dir target/no-alloc"),
        ],
    )
    .only_on(cfg!(all(target_arch = "x86_64", target_os = "linux")), "needs x86_64 Linux"),
    suite(
        "unit",
        300,
        SQLITE,
        &[
            Run("cargo test --workspace --lib --bins --no-fail-fast"),
            Run("cargo test -p synddb-tls --tests"),
            Run("cargo test -p synddb-transport-conformance --tests"),
            Run("cargo test -p synddb-std --features cbor,hyper,tls,vsock --lib -- token dial config cbor"),
            Run("cargo test -p synddb-transport-hyper --features tls,vsock --lib"),
            Run("cargo test -p synddb-sequencer --test ingest --test access --test streams \
                 --test restore --test command --test check"),
            Run("cargo test --workspace --doc --no-fail-fast"),
        ],
    ),
    // The simulation is among them: few seeds here, with overflow checks and debug assertions.
    suite(
        "integration",
        420,
        SQLITE,
        &[
            Run("SYNDDB_SIM_SEEDS=200 cargo test -p synddb-tests --no-fail-fast"),
            Run("SYNDDB_TEST_ENGINE=preupdate cargo test -p synddb-tests --test end_to_end \
                 --test bad_days"),
            Run("SYNDDB_TEST_HTTP=hyper cargo test -p synddb-tests --test bad_days --test tls \
                 --test access"),
        ],
    ),
    // Capture inside an SQLite that checks itself, in a target directory of its own: the flag would
    // have all of it compiled anew for the other suites.
    suite(
        "capture",
        420,
        SQLITE,
        &[Run(
            "LIBSQLITE3_FLAGS=-DSQLITE_DEBUG SYNDDB_FUZZ_CASES=1000 cargo test -p synddb-std --lib \
             --target-dir target/sqlite-debug -- capture::tests::preupdate capture::tests::fuzz \
             capture::tests::commits capture::tests::results capture::tests::attach",
        )],
    ),
    // The same engines with valgrind watching: SQLite's code and ours alike. Miri runs no C.
    suite(
        "memcheck",
        900,
        &["cc", "libclang", "valgrind"],
        &[Run(
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=valgrind VALGRIND_OPTS=--error-exitcode=9 \
             cargo test -p synddb-std --lib -- capture::tests::preupdate capture::tests::commits \
             capture::tests::attach snapshot",
        )],
    )
    .on_request()
    .only_on(cfg!(all(target_arch = "x86_64", target_os = "linux")), "needs x86_64 Linux"),
    // Machines without an operating system; most of the time goes into the standard library for
    // their targets, once. By name, until a first run on a fresh machine is known to keep its budget.
    suite("bare", 240, bare::NEEDS, &[Run("cargo xtask bare")])
        .on_request()
        .only_on(cfg!(all(target_arch = "x86_64", target_os = "linux")), "needs x86_64 Linux"),
    // Hostile bytes for every decoder, from the corpora that are kept on. By name, until a first run
    // on a fresh machine is known to keep its budget.
    suite("fuzz", 240, fuzz::NEEDS, &[Run("cargo xtask fuzz --seconds 5")])
        .on_request()
        .only_on(cfg!(all(target_arch = "x86_64", target_os = "linux")), "needs x86_64 Linux"),
    // SQLite's own test scripts with capture attached: a fixed choice of them. The first run fetches
    // SQLite's source and builds its test program.
    suite("sqlite", 360, SQLITE_SUITE, &[Run("cargo xtask sqlite-suite --quick")]),
    // Real processes, killed with -9. Built with optimizations, as by `cargo xtask demo`.
    suite(
        "demo",
        300,
        SQLITE,
        &[
            Run("cargo build --release -p synddb-sequencer -p synddb-examples --bins"),
            Run("cargo run --quiet --release -p synddb-examples --bin quick_start"),
            Run("cargo run --quiet --release -p synddb-examples --bin custom_transport"),
            Run("cargo run --quiet --release -p synddb-examples --bin channel_transport"),
            Run("cargo run --quiet --release -p synddb-examples --bin demo"),
            Run("cargo test --release -p synddb-examples --test interrupted --test conformance"),
        ],
    ),
    // That every benchmark runs.
    suite(
        "benches",
        300,
        SQLITE,
        &[Run("cargo run --quiet --release -p synddb-benches --bin bench -- --quick")],
    ),
    // Emulated machines, which boot twelve times. By name, for the same reason as `bare`.
    suite("vm", 120, vm::NEEDS, &[Run("cargo xtask vm")])
        .on_request()
        .only_on(cfg!(all(target_arch = "x86_64", target_os = "linux")), "needs x86_64 Linux"),
    // Many seeds: as many as SYNDDB_SIM_SEEDS says, or as the test runs by itself.
    suite("sim", 300, SQLITE, &[Run("cargo test -p synddb-tests --release --test simulation")]),
];

const fn suite(
    name: &'static str,
    budget_s: u64,
    needs: &'static [&'static str],
    steps: &'static [Step],
) -> Suite {
    Suite { name, budget_s, needs, steps, on_request: false, skipped: None }
}

impl Suite {
    const fn on_request(mut self) -> Self {
        self.on_request = true;
        self
    }

    const fn only_on(mut self, this_host: bool, needs: &'static str) -> Self {
        if !this_host {
            self.skipped = Some(needs);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prereqs::PREREQS;

    #[test]
    fn names_are_unique_and_are_no_flags() {
        for (i, suite) in SUITES.iter().enumerate() {
            assert!(SUITES[..i].iter().all(|earlier| earlier.name != suite.name), "{}", suite.name);
            assert!(!suite.name.starts_with('-'));
        }
    }

    #[test]
    fn every_suite_runs_something_and_needs_only_what_exists() {
        for suite in SUITES {
            assert!(!suite.steps.is_empty(), "{}", suite.name);
            for need in suite.needs {
                assert!(PREREQS.iter().any(|prereq| prereq.name == *need), "{need}");
            }
        }
    }
}
