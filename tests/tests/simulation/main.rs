//! A seeded simulation of `Sender` and `Receiver`: one application, perhaps a copy of it, one
//! sequencer, and a link that drops, repeats, delays, damages and breaks. Both sides crash.
//!
//! Time is virtual; a seed gives the same run every time.
//!
//! * `SYNDDB_SIM_SEEDS=N` runs N seeds, `SYNDDB_SIM_SEED=S` begins with S;
//! * `SYNDDB_SIM_TRACE=1` prints every frame that arrives;
//! * `SYNDDB_SIM_SABOTAGE=NAME` breaks a promise on purpose: the run must then fail.
//!
//! The application writes transactions with savepoints into a database of eight rows; what it
//! captures waits in a bounded queue for a bounded outbox, on a disk that is slow, full, or freezes at
//! a sync. Each run knows only some of the faults: with all of them nothing gets far.
//!
//! What is checked: everything that the sender takes as acknowledged is durable at the sequencer
//! at that very moment, and what `push()` would be answered for can be restored; the log of every
//! epoch is a snapshot and the commits right after it, each once, in order, of one application only,
//! and the rows after each are those that the application had; queue and outbox keep their limits;
//! and once the faults end everything arrives.

use std::sync::atomic::{AtomicU64, Ordering};

mod app;
mod disk;
mod rows;
mod sabotage;
mod sequencer;
mod world;

use sabotage::Sabotage;
use world::{Side, World};

const DEFAULT_SEEDS: u64 = 3000;

#[test]
fn promises_hold_for_every_seed() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = number("SYNDDB_SIM_SEEDS").unwrap_or(DEFAULT_SEEDS);
    let first = number("SYNDDB_SIM_SEED").unwrap_or(1);
    let sabotage = std::env::var("SYNDDB_SIM_SABOTAGE").ok().map(|name| {
        Sabotage::named(&name)
            .unwrap_or_else(|| panic!("no sabotage `{name}`; there are: {}", Sabotage::names()))
    });
    let next = AtomicU64::new(first);
    let work = || {
        let mut totals = world::Totals::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + seeds {
                return Ok(totals);
            }
            match World::new(seed, sabotage).run() {
                Ok(run) => totals += run,
                Err(broken) => return Err(format!("seed {seed}: {broken}")),
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut totals = world::Totals::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            match thread.join() {
                Ok(Ok(part)) => totals += part,
                Ok(Err(broken)) => panic!("{broken}"),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    println!("{seeds} seeds from {first}, {} checks of the log:", totals.checks());
    for (what, count) in totals.faults() {
        println!("  {count:>9} × {what}");
    }
    // A simulation in which nothing goes wrong proves nothing, and few seeds tell little.
    if seeds >= 1000 && sabotage.is_none() {
        for (what, count) in totals.faults() {
            let told = told(what).unwrap_or_else(|| panic!("FAULTS.md does not tell of {what}"));
            let expected = told as f64 / TOLD_SEEDS as f64 * seeds as f64;
            assert!(
                (expected / 2.0..=expected * 2.0).contains(&(count as f64)),
                "{what} happened {count} times; by FAULTS.md it is {expected:.0}"
            );
        }
    }
}

/// How many seeds FAULTS.md counts.
const TOLD_SEEDS: u64 = 30_000;

/// The number beside something in FAULTS.md.
fn told(what: &str) -> Option<u64> {
    let table = include_str!("../../FAULTS.md");
    let row = table.lines().find_map(|line| line.strip_prefix(&format!("| {what} | ")))?;
    row.trim_end_matches(" |").parse().ok()
}

#[test]
fn every_sabotage_is_found() {
    for (sabotage, within) in Sabotage::all() {
        // A trimmed entry that is asked for again panics in the simulated outbox: found as well.
        let fails = |seed: &u64| {
            std::panic::catch_unwind(|| World::new(*seed, Some(sabotage)).run().is_err())
                .unwrap_or(true)
        };
        let found = (1..=within).find(fails);
        let seed = found.unwrap_or_else(|| panic!("{sabotage:?} is not found in {within} seeds"));
        println!("{sabotage:?}: found at seed {seed}");
        assert_eq!(told(sabotage.name()), Some(within), "in FAULTS.md");
    }
}

/// Whatever the disk has taken at its Nth sync is enough, for every N.
#[test]
fn a_disk_may_freeze_at_any_sync() {
    let mut runs = 0;
    for seed in 1..=5 {
        let undisturbed = World::small(seed, None).run().unwrap();
        for (side, syncs) in [Side::App, Side::Sequencer].into_iter().zip(undisturbed.syncs()) {
            assert!(syncs > 20, "seed {seed}: only {syncs} syncs at {side:?}");
            for (at, reaches) in (1..=syncs).flat_map(|at| [(at, false), (at, true)]) {
                runs += 1;
                let run = World::small(seed, Some((side, at, reaches))).run();
                run.unwrap_or_else(|broken| {
                    panic!("seed {seed}, {side:?} frozen at sync {at}, reached {reaches}: {broken}")
                });
            }
        }
    }
    println!("a disk froze in {runs} runs, each at another sync");
}

#[test]
fn a_seed_replays() {
    for seed in 1..20 {
        let run = || format!("{:?}", World::new(seed, None).run());
        assert_eq!(run(), run());
    }
}
