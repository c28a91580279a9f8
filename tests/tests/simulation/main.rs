//! A seeded simulation of `Sender` and `Receiver`: one application, perhaps a copy of it, one
//! sequencer, and a link that drops, repeats, delays, damages and breaks. Both sides crash.
//!
//! Time is virtual; a seed gives the same run every time.
//!
//! * `SYNDDB_SIM_SEEDS=N` runs N seeds, `SYNDDB_SIM_SEED=S` begins with S;
//! * `SYNDDB_SIM_TRACE=1` prints every frame that arrives;
//! * `SYNDDB_SIM_SABOTAGE=NAME` breaks a promise on purpose: the run must then fail.
//!
//! What is checked: everything that the sender takes as acknowledged is durable at the sequencer
//! at that very moment; the log of every epoch is a snapshot and the commits right after it, each
//! once, in order, of one application only; and once the faults end everything arrives.

mod app;
mod sequencer;
mod world;

use world::{Sabotage, World};

const DEFAULT_SEEDS: u64 = 3000;
/// Within how many seeds each sabotage is found.
const SABOTAGE_SEEDS: u64 = 200;

#[test]
fn promises_hold_for_every_seed() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = number("SYNDDB_SIM_SEEDS").unwrap_or(DEFAULT_SEEDS);
    let first = number("SYNDDB_SIM_SEED").unwrap_or(1);
    let sabotage = std::env::var("SYNDDB_SIM_SABOTAGE").ok().map(|name| {
        Sabotage::named(&name)
            .unwrap_or_else(|| panic!("no sabotage `{name}`; there are: {}", Sabotage::names()))
    });
    let mut totals = world::Totals::default();
    for seed in first..first + seeds {
        match World::new(seed, sabotage).run() {
            Ok(run) => totals += run,
            Err(broken) => panic!("seed {seed}: {broken}"),
        }
    }
    println!("{seeds} seeds from {first}: {totals:?}");
    // A simulation in which nothing goes wrong proves nothing.
    if seeds >= 1000 {
        for (what, count) in totals.faults() {
            assert!(count > seeds / 20, "{what} happened only {count} times");
        }
    }
}

#[test]
fn every_sabotage_is_found() {
    for sabotage in Sabotage::ALL {
        // A trimmed entry that is asked for again panics in the simulated outbox: found as well.
        let fails = |seed: &u64| {
            std::panic::catch_unwind(|| World::new(*seed, Some(sabotage)).run().is_err())
                .unwrap_or(true)
        };
        let found = (1..=SABOTAGE_SEEDS).find(fails);
        let seed =
            found.unwrap_or_else(|| panic!("{sabotage:?} is not found in {SABOTAGE_SEEDS} seeds"));
        println!("{sabotage:?}: found at seed {seed}");
    }
}

#[test]
fn a_seed_replays() {
    for seed in 1..20 {
        let run = || format!("{:?}", World::new(seed, None).run());
        assert_eq!(run(), run());
    }
}
