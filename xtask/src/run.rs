//! `cargo xtask demo`, `bench` and `sim`: build in release mode and become the program.

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

fn cargo(subcommand: &str) -> Command {
    let mut command = process::cargo();
    command
        .args([subcommand, "--release", "--manifest-path"])
        .arg(process::root().join("Cargo.toml"));
    command
}

fn sim_variables(args: &[String]) -> Result<Vec<(&'static str, String)>, Failure> {
    let mut variables = Vec::new();
    let mut args = args.iter();
    while let Some(flag) = args.next() {
        let (name, number) = match flag.as_str() {
            "--seeds" => ("SYNDDB_SIM_SEEDS", true),
            "--seed" => ("SYNDDB_SIM_SEED", true),
            "--sabotage" => ("SYNDDB_SIM_SABOTAGE", false),
            _ => return Err(Failure::Usage(format!("sim has no option `{flag}`\n\n{SIM_HELP}"))),
        };
        let value = args
            .next()
            .filter(|value| !number || value.parse::<u64>().is_ok())
            .ok_or_else(|| Failure::Usage(format!("`{flag}` needs a value\n\n{SIM_HELP}")))?;
        variables.push((name, value.clone()));
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
    fn sim_refuses_what_it_does_not_know() {
        for line in ["--seeds", "--seeds many", "--seed -1", "--sabotage", "--faster", "7"] {
            assert!(matches!(variables(line), Err(Failure::Usage(_))), "{line}");
        }
    }
}
