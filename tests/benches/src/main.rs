//! What synddb costs, each figure against a floor measured in the same run.
//!
//! ```text
//! bench [--quick] [--json] [capture | content | latency | durability | throughput | bulk | outage |
//!       restore | transports]…
//! ```
//!
//! Machines are noisy, so read the ratio first: a round of ours and a round of the floor alternate,
//! and medians are compared. The floor is what nobody could avoid, told on each table. The sequencer
//! runs in a process of its own on the same machine: ours pays for both sides.

mod allocations;
mod bulk;
mod capture;
mod content;
mod durability;
mod latency;
mod measure;
mod outage;
mod restore;
mod server;
mod table;
mod throughput;
mod transports;

use std::{error::Error, process::ExitCode};

use crate::table::Table;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Scale {
    /// A run that only shows that everything works.
    quick: bool,
}

impl Scale {
    fn pick(self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }
}

type Bench = fn(Scale) -> Result<Table>;

const BENCHES: &[(&str, Bench)] = &[
    ("capture", capture::run),
    ("content", content::run),
    ("latency", latency::run),
    ("durability", durability::run),
    ("throughput", throughput::run),
    ("bulk", bulk::run),
    ("outage", outage::run),
    ("restore", restore::run),
    ("transports", transports::run),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(outcome) = server::serve_if_asked(&args) {
        return outcome;
    }
    match benches(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn benches(args: &[String]) -> Result<()> {
    let flag = |name: &str| args.iter().any(|arg| arg == name);
    let (scale, json) = (Scale { quick: flag("--quick") }, flag("--json"));
    let wanted: Vec<_> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    if let Some(unknown) =
        wanted.iter().find(|name| BENCHES.iter().all(|(known, _)| *known != name.as_str()))
    {
        let known: Vec<_> = BENCHES.iter().map(|(name, _)| *name).collect();
        return Err(format!("there is no bench `{unknown}`; there are {}", known.join(", ")).into());
    }
    for (name, bench) in BENCHES {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted.as_str() == *name) {
            let table = bench(scale)?;
            if json {
                println!("{}", table.json(name));
            } else {
                println!("{}", table.text(name));
            }
        }
    }
    Ok(())
}
