//! Developer commands: `cargo xtask demo | test | bench | sim | crash | fuzz | large | bare | vm | setup`.
//!
//! ```text
//! main      the commands and their help
//! ├─ setup    install what is missing        ─┐
//! ├─ run      demo, bench, sim, crash, large  ├─ prereqs   the one list of prerequisites
//! ├─ fuzz     LLVM's fuzzer                   │
//! ├─ bare     targets without an OS           │
//! ├─ vm       virtual machines and vsock      │
//! └─ test     run suites, print the summary  ─┘  └─ libclang  how that one is found
//!    └─ suites   the one table of suites
//! ```
//!
//! A new prerequisite is an entry in [`prereqs`], a new suite an entry in [`suites`], a new command
//! an entry in [`COMMANDS`]. The crate has no dependencies, so that a fresh checkout can say what it
//! needs before anything else compiles.
#![forbid(unsafe_code)]

use std::process::ExitCode;

mod bare;
mod failure;
mod fuzz;
mod libclang;
mod prereqs;
mod process;
mod run;
mod sqlite_suite;
mod suites;
mod test;
mod vm;

use failure::Failure;

struct Command {
    name: &'static str,
    args: &'static str,
    about: &'static str,
    run: fn(&[String]) -> Result<(), Failure>,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "test",
        args: "[SUITE…] [--list] [--advisories]",
        about: "run the named test suites, or all of them",
        run: test::test,
    },
    Command {
        name: "demo",
        args: "",
        about: "an order book, its sequencer, three kills with -9, and the comparison at the end",
        run: run::demo,
    },
    Command {
        name: "bench",
        args: "[--quick] [--json] [NAME…]",
        about: "measure, each figure against a floor of the same run",
        run: run::bench,
    },
    Command {
        name: "sim",
        args: "[--seeds N] [--seed S] [--sabotage NAME]",
        about: "run the simulation: N seeds, starting with S, with a promise broken on purpose",
        run: run::sim,
    },
    Command {
        name: "crash",
        args: "[--kills N] [--seed S]",
        about: "application and sequencer killed with -9, at each kill point and at random moments",
        run: run::crash,
    },
    Command {
        name: "fuzz",
        args: "[--seconds N] [--keep] [TARGET…]",
        about: "hostile bytes for every decoder, guided by what they reach",
        run: fuzz::fuzz,
    },
    Command {
        name: "large",
        args: "",
        about: "large transactions, tables, snapshots and outages, with their peaks of memory",
        run: run::large,
    },
    Command {
        name: "bare",
        args: "[PART…]",
        about: "the core on machines without an operating system: targets, tests, sizes, machines",
        run: bare::bare,
    },
    Command {
        name: "vm",
        args: "[SCENARIO…] [--keep]",
        about: "application and sequencer in virtual machines that talk over virtio-vsock",
        run: vm::vm,
    },
    Command {
        name: "sqlite-suite",
        args: "[--all | --veryquick | --quick] [--jobs N] [NAME…]",
        about: "SQLite's own test scripts with capture attached to every connection",
        run: sqlite_suite::sqlite_suite,
    },
    Command {
        name: "setup",
        args: "",
        about: "install every prerequisite of the commands above, and do nothing else",
        run: prereqs::setup,
    },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            failure.exit_code()
        }
    }
}

fn dispatch(args: &[String]) -> Result<(), Failure> {
    let Some((name, rest)) = args.split_first() else {
        return Err(Failure::Usage(format!("which command?\n\n{}", help())));
    };
    if ["help", "--help", "-h"].contains(&name.as_str()) {
        println!("{}", help());
        return Ok(());
    }
    match COMMANDS.iter().find(|command| command.name == name) {
        Some(command) => (command.run)(rest),
        None => Err(Failure::Usage(format!("there is no command `{name}`\n\n{}", help()))),
    }
}

fn help() -> String {
    let mut text = String::from("Usage: cargo xtask COMMAND\n\nCommands:\n");
    for command in COMMANDS {
        let usage = format!("{} {}", command.name, command.args);
        text += &format!("  {}\n      {}\n", usage.trim_end(), command.about);
    }
    text += "\nEach command first installs the prerequisites it lacks (apt-get, cargo install), or says\n\
             which command installs them.\n\n\
             Exit status: 0 success, 1 something failed, 2 wrong usage, 3 a prerequisite is missing;\n\
             demo, bench, sim and crash end with the status of the program they run.";
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_command_is_a_usage_error_that_lists_the_commands() {
        let failure = dispatch(&["frobnicate".into()]).unwrap_err();
        assert!(matches!(failure, Failure::Usage(_)));
        for command in COMMANDS {
            assert!(failure.to_string().contains(command.name), "{failure}");
        }
    }

    #[test]
    fn no_command_is_a_usage_error_and_help_is_not() {
        assert!(matches!(dispatch(&[]), Err(Failure::Usage(_))));
        for word in ["help", "--help", "-h"] {
            assert!(dispatch(&[word.into()]).is_ok());
        }
    }
}
