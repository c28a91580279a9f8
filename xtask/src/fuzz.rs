//! `cargo xtask fuzz`: LLVM's fuzzer over everything that reads bytes of others, with stable Rust.

use std::fs;
use std::path::PathBuf;

use crate::failure::Failure;
use crate::prereqs;
use crate::process;

/// What it needs.
pub(crate) const NEEDS: &[&str] = &["cc", "c++", "libclang"];

/// What bytes go to; `tests/fuzz/src/main.rs` has the same names.
const TARGETS: [&str; 5] = ["frames", "changeset", "entries", "bodies", "outbox"];

/// What `cargo fuzz` passes, less the sanitizers, which need another compiler.
const RUSTFLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

/// With it what is compiled for this machine, build scripts, is told from what is fuzzed.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

const HELP: &str = "\
Usage: cargo xtask fuzz [--seconds N] [--keep] [TARGET…]

--seconds N  for each target; 10 if not given
--keep       add what reached something new to tests/fuzz/corpus
TARGET       frames, changeset, entries, bodies, outbox; all if none is named

A finding is written to target/fuzz/findings; to repeat it:
SYNDDB_FUZZ_TARGET=TARGET target/fuzz/x86_64-unknown-linux-gnu/release/fuzz FILE";

/// `cargo xtask fuzz [--seconds N] [--keep] [TARGET…]`.
pub(crate) fn fuzz(args: &[String]) -> Result<(), Failure> {
    let Some(wish) = Wish::parse(args)? else {
        println!("{HELP}");
        return Ok(());
    };
    prereqs::ensure(NEEDS.iter().copied())?;
    let target_dir = target_dir();
    let mut build = process::cargo();
    build
        .args(["build", "--release", "--target", TRIPLE, "--manifest-path"])
        .arg(process::root().join("tests/fuzz/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_dir)
        .env("RUSTFLAGS", RUSTFLAGS);
    process::run(build)?;
    let binary = target_dir.join(TRIPLE).join("release/fuzz");
    for target in &wish.targets {
        let kept = process::root().join("tests/fuzz/corpus").join(target);
        let found = target_dir.join("corpus").join(target);
        let findings = target_dir.join("findings");
        for dir in [&kept, &found, &findings] {
            fs::create_dir_all(dir)
                .map_err(|error| Failure::File(dir.display().to_string(), error))?;
        }
        println!("fuzz: {target}, {} s", wish.seconds);
        let mut run = std::process::Command::new(&binary);
        run.env("SYNDDB_FUZZ_TARGET", target)
            .args([&found, &kept])
            .arg(format!("-max_total_time={}", wish.seconds))
            .arg(format!("-artifact_prefix={}/{target}-", findings.display()))
            .args(["-timeout=20", "-rss_limit_mb=2048", "-max_len=4096", "-verbosity=0"])
            .args(["-print_final_stats=1"]);
        process::run(run)?;
        if wish.keep {
            let mut merge = std::process::Command::new(&binary);
            merge.env("SYNDDB_FUZZ_TARGET", target).args(["-merge=1", "-verbosity=0"]);
            merge.args([&kept, &found]);
            process::run(merge)?;
        }
    }
    Ok(())
}

fn target_dir() -> PathBuf {
    process::root().join("target/fuzz")
}

#[derive(Debug, PartialEq, Eq)]
struct Wish {
    seconds: u32,
    keep: bool,
    targets: Vec<&'static str>,
}

impl Wish {
    /// `None` where help is asked for.
    fn parse(args: &[String]) -> Result<Option<Self>, Failure> {
        let mut wish = Self { seconds: 10, keep: false, targets: Vec::new() };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let target = TARGETS.iter().find(|target| *target == arg);
            match (arg.as_str(), target) {
                ("--help" | "-h", _) => return Ok(None),
                ("--keep", _) => wish.keep = true,
                ("--seconds", _) => {
                    wish.seconds = args
                        .next()
                        .and_then(|seconds| seconds.parse().ok())
                        .filter(|seconds| *seconds > 0)
                        .ok_or_else(|| {
                            Failure::Usage(format!("`--seconds` needs a number from 1\n\n{HELP}"))
                        })?;
                }
                (_, Some(target)) => wish.targets.push(target),
                _ => return Err(Failure::Usage(format!("fuzz does not know `{arg}`\n\n{HELP}"))),
            }
        }
        if wish.targets.is_empty() {
            wish.targets = TARGETS.to_vec();
        }
        Ok(Some(wish))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Wish>, Failure> {
        Wish::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn targets_and_seconds_are_chosen() {
        let wish = parse("--seconds 3 outbox --keep").unwrap().unwrap();
        assert_eq!(wish, Wish { seconds: 3, keep: true, targets: vec!["outbox"] });
        assert_eq!(parse("").unwrap().unwrap().targets, TARGETS);
        assert_eq!(parse("--help").unwrap(), None);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for line in ["--seconds", "--seconds 0", "--seconds soon", "inbox", "-x"] {
            assert!(matches!(parse(line), Err(Failure::Usage(_))), "{line}");
        }
    }

    #[test]
    fn every_target_has_a_corpus_that_is_kept() {
        for target in TARGETS {
            let corpus = process::root().join("tests/fuzz/corpus").join(target);
            assert!(
                fs::read_dir(&corpus).is_ok_and(|mut files| files.next().is_some()),
                "{target}"
            );
        }
    }
}
