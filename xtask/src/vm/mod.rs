//! `cargo xtask vm`: an application and its sequencer in virtual machines with real virtio-vsock.
//!
//! ```text
//!  scenarios   what happens to them
//!  └─ lab       directory, what connects the VMs, comparison
//!     ├─ console    a program and what it says
//!     ├─ machine    a VM and its disk
//!     ├─ initramfs  what a VM boots into; init.sh is its first process
//!     ├─ kernel     Debian's, unpacked once           ─┐
//!     └─ device     vsock between VMs, built once     ─┴─ cache  target/vm
//! ```
//!
//! QEMU emulates the processor, so that neither hardware virtualisation nor a kernel with
//! `vhost_vsock` is needed. A VM that is killed loses what its kernel had not written to its disk.

mod cache;
mod console;
pub(crate) mod device;
mod initramfs;
pub(crate) mod kernel;
mod lab;
mod machine;
mod scenarios;

use std::time::Instant;

use crate::failure::Failure;
use crate::{prereqs, process};
use lab::Lab;
use scenarios::{SCENARIOS, Scenario};

/// Prerequisites of the command.
pub(crate) const NEEDS: &[&str] = &[
    "cc",
    "libclang",
    "qemu-system-x86",
    "busybox",
    "e2fsprogs",
    "setpriv",
    "vm-kernel",
    "vm-vsock",
];

/// `cargo xtask vm [SCENARIO…] [--keep]`.
pub(crate) fn vm(args: &[String]) -> Result<(), Failure> {
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        println!("{}", help());
        return Ok(());
    }
    let (scenarios, keep) = parse(args)?;
    prereqs::ensure(NEEDS.iter().copied())?;
    let mut build = process::cargo();
    build.current_dir(process::root());
    build.args(["build", "--quiet", "--package", "synddb-sequencer", "--package", "synddb-tests"]);
    build.args(["--bin", "synddb", "--bin", "vm-app"]);
    process::run(build)?;
    for scenario in scenarios {
        let start = Instant::now();
        println!("{}: {}", scenario.name, scenario.about);
        let mut lab = Lab::new(scenario.name, keep)?;
        let equal = (scenario.run)(&mut lab).inspect_err(|failure| {
            eprintln!("{}: {failure}. What was said:\n{}", scenario.name, lab.transcript());
        })?;
        println!("{}: equal: {equal} ({:.1} s)", scenario.name, start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Whether the administrator's programs are there that make disks and read them.
pub(crate) fn has_disk_tools() -> bool {
    ["mke2fs", "debugfs"].iter().all(|name| machine::tool(name).is_file())
}

fn parse(args: &[String]) -> Result<(Vec<&'static Scenario>, bool), Failure> {
    let keep = args.iter().any(|arg| arg == "--keep");
    let names = args.iter().filter(|arg| *arg != "--keep");
    let named = names.map(|name| {
        let found = SCENARIOS.iter().find(|scenario| scenario.name == name);
        found.ok_or_else(|| {
            Failure::Usage(format!("vm has no scenario or option `{name}`\n\n{}", help()))
        })
    });
    let mut scenarios = named.collect::<Result<Vec<_>, _>>()?;
    if scenarios.is_empty() {
        scenarios.extend(SCENARIOS);
    }
    Ok((scenarios, keep))
}

fn help() -> String {
    let mut text = "Usage: cargo xtask vm [SCENARIO…] [--keep]\n\n\
                    --keep   keep the VMs' disks and what else was made, and print where\n\n\
                    Scenarios, all of them by default:"
        .to_owned();
    for scenario in SCENARIOS {
        text += &format!("\n  {:<18} {}", scenario.name, scenario.about);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(line: &str) -> Result<(Vec<&'static str>, bool), Failure> {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let (scenarios, keep) = parse(&args)?;
        Ok((scenarios.iter().map(|scenario| scenario.name).collect(), keep))
    }

    #[test]
    fn scenarios_run_as_named_and_all_of_them_unnamed() {
        assert_eq!(chosen("sibling --keep loopback").unwrap(), (vec!["sibling", "loopback"], true));
        let (all, keep) = chosen("").unwrap();
        assert_eq!((all.len(), keep), (SCENARIOS.len(), false));
    }

    #[test]
    fn an_unknown_scenario_is_a_usage_error_that_lists_them() {
        let failure = chosen("loopback --fast").unwrap_err();
        assert!(matches!(failure, Failure::Usage(_)));
        for scenario in SCENARIOS {
            assert!(failure.to_string().contains(scenario.name), "{failure}");
        }
    }

    #[test]
    fn every_need_is_a_prerequisite() {
        for need in NEEDS {
            assert!(prereqs::PREREQS.iter().any(|prereq| prereq.name == *need), "{need}");
        }
    }
}
