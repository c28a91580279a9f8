//! `cargo xtask demo`, `bench`, `sim`, `crash` and `large`: build in release mode and become the program.

use std::process::Command;

use crate::failure::Failure;
use crate::prereqs::{self, SQLITE};
use crate::process;

/// `cargo xtask demo`.
pub(crate) fn demo(args: &[String]) -> Result<(), Failure> {
    if !args.is_empty() {
        return Err(Failure::Usage("Usage: cargo xtask demo".into()));
    }
    prereqs::ensure(SQLITE.iter().copied())?;
    // The demo starts the other programs from where it is itself.
    let mut build = cargo("build");
    build.args(["--package", "synddb-sequencer", "--package", "synddb-examples", "--bins"]);
    process::run(build)?;
    let mut command = cargo("run");
    command.args(["--quiet", "--package", "synddb-examples", "--bin", "demo"]);
    process::become_command(command)
}

/// `cargo xtask bench [--quick] [--json] [NAME…]`.
pub(crate) fn bench(args: &[String]) -> Result<(), Failure> {
    prereqs::ensure(SQLITE.iter().copied())?;
    let mut command = cargo("run");
    command.args(["--quiet", "--package", "synddb-benches", "--bin", "bench", "--"]).args(args);
    process::become_command(command)
}

/// `cargo xtask sim [--seeds N] [--seed S] [--sabotage NAME]`.
pub(crate) fn sim(args: &[String]) -> Result<(), Failure> {
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        println!("{SIM_HELP}");
        return Ok(());
    }
    let variables = sim_variables(args)?;
    prereqs::ensure(SQLITE.iter().copied())?;
    let mut command = cargo("test");
    command.args([
        "--package",
        "synddb-tests",
        "--test",
        "simulation",
        "--",
        "--nocapture",
        "--test-threads=1",
    ]);
    process::become_command({
        command.envs(variables);
        command
    })
}

const SIM_HELP: &str = "\
Usage: cargo xtask sim [--seeds N] [--seed S] [--sabotage NAME]

--seeds N        run N seeds
--seed S         start with seed S; a failure prints the seed that replays it
--sabotage NAME  break something on purpose, to see that the simulation notices";

/// `cargo xtask crash [--kills N] [--seed S]`.
pub(crate) fn crash(args: &[String]) -> Result<(), Failure> {
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        println!("{CRASH_HELP}");
        return Ok(());
    }
    let options = [("--kills", "SYNDDB_KILLS", true), ("--seed", "SYNDDB_SEED", true)];
    let variables = variables("crash", args, &options, CRASH_HELP)?;
    prereqs::ensure(SQLITE.iter().copied())?;
    let mut command = cargo("test");
    command.args(["--package", "synddb-tests", "--test", "crash", "--", "--nocapture"]);
    command.args(["--test-threads=1", "every_kill_point"]).envs(variables);
    process::become_command(command)
}

const CRASH_HELP: &str = "\
Usage: cargo xtask crash [--kills N] [--seed S]

--kills N  over all engines, durabilities and journals; each kill point of each is hit at least once
--seed S   what is random follows from it, but for the moments";

/// `cargo xtask large`.
pub(crate) fn large(args: &[String]) -> Result<(), Failure> {
    if !args.is_empty() {
        return Err(Failure::Usage("Usage: cargo xtask large".into()));
    }
    prereqs::ensure(SQLITE.iter().copied())?;
    // Each in a process of its own: its peak of memory is measured.
    for scenario in LARGE {
        let mut command = cargo("test");
        command.args(["--quiet", "--package", "synddb-tests", "--test", "large", "--"]);
        command.args(["--ignored", "--nocapture", "--exact", scenario]);
        println!("large: {scenario}");
        process::run(command)?;
    }
    Ok(())
}

/// The tests of `tests/tests/large.rs` that run by command.
const LARGE: [&str; 5] = [
    "a_transaction_of_a_million_rows",
    "a_transaction_of_a_million_rows_by_the_preupdate_engine",
    "a_thousand_tables",
    "a_table_of_500_megabytes_in_a_snapshot",
    "an_outage_of_a_gigabyte",
];

fn cargo(subcommand: &str) -> Command {
    let mut command = process::cargo();
    command
        .args([subcommand, "--release", "--manifest-path"])
        .arg(process::root().join("Cargo.toml"));
    command
}

fn sim_variables(args: &[String]) -> Result<Vec<(&'static str, String)>, Failure> {
    let options = [
        ("--seeds", "SYNDDB_SIM_SEEDS", true),
        ("--seed", "SYNDDB_SIM_SEED", true),
        ("--sabotage", "SYNDDB_SIM_SABOTAGE", false),
    ];
    variables("sim", args, &options, SIM_HELP)
}

/// Options as environment variables: flag, variable, and whether its value is a number.
fn variables(
    command: &str,
    args: &[String],
    options: &[(&str, &'static str, bool)],
    help: &str,
) -> Result<Vec<(&'static str, String)>, Failure> {
    let mut variables = Vec::new();
    let mut args = args.iter();
    while let Some(flag) = args.next() {
        let Some((_, name, number)) = options.iter().find(|(known, ..)| known == flag) else {
            return Err(Failure::Usage(format!("{command} has no option `{flag}`\n\n{help}")));
        };
        let value = args
            .next()
            .filter(|value| !number || value.parse::<u64>().is_ok())
            .ok_or_else(|| Failure::Usage(format!("`{flag}` needs a value\n\n{help}")))?;
        variables.push((*name, value.clone()));
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(line: &str) -> Result<Vec<(&'static str, String)>, Failure> {
        sim_variables(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn sim_options_become_variables() {
        assert_eq!(
            variables("--seeds 20 --seed 7 --sabotage lost-ack").unwrap(),
            [
                ("SYNDDB_SIM_SEEDS", "20".to_owned()),
                ("SYNDDB_SIM_SEED", "7".to_owned()),
                ("SYNDDB_SIM_SABOTAGE", "lost-ack".to_owned()),
            ]
        );
        assert_eq!(variables("").unwrap(), []);
    }

    #[test]
    fn every_large_test_is_run() {
        let tests = std::fs::read_to_string(process::root().join("tests/tests/large.rs")).unwrap();
        assert_eq!(tests.matches("#[ignore").count(), LARGE.len());
        for name in LARGE {
            assert!(tests.contains(&format!("fn {name}()")), "{name}");
        }
    }

    #[test]
    fn sim_refuses_what_it_does_not_know() {
        for line in ["--seeds", "--seeds many", "--seed -1", "--sabotage", "--faster", "7"] {
            assert!(matches!(variables(line), Err(Failure::Usage(_))), "{line}");
        }
    }
}
