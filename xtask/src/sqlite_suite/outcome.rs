//! What came of one run of a script.

use std::collections::BTreeMap;

/// How a run ended, by its own account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// To its end.
    Ended {
        /// Tests that ran.
        tests: u64,
        /// Those that failed, by name; a script that stopped with an error is one of its own.
        failed: Vec<String>,
    },
    /// Not finished in its time.
    TimedOut,
    /// It ended without the count of its tests: a crash, an assertion, an error in the script.
    Died {
        /// The last thing it said.
        last: String,
    },
}

impl Outcome {
    /// Reads what `testfixture` printed. `code` is the exit status, 124 that of a timeout.
    pub(super) fn read(printed: &str, code: Option<i32>) -> Outcome {
        if matches!(code, Some(124 | 137)) {
            return Outcome::TimedOut;
        }
        let count = printed.lines().rev().find_map(|line| {
            let (errors, rest) = line.split_once(" errors out of ")?;
            let tests = rest.split_whitespace().next()?.parse().ok()?;
            Some((errors.trim().parse::<u64>().ok()?, tests))
        });
        let Some((errors, tests)) = count else {
            let last = printed.lines().rev().find(|line| !line.trim().is_empty());
            return Outcome::Died { last: last.unwrap_or("nothing printed").trim().to_owned() };
        };
        let named = printed.lines().filter_map(|line| {
            line.strip_prefix("!Failures on these tests:").map(str::split_whitespace)
        });
        let mut failed: Vec<String> = named.flatten().map(str::to_owned).collect();
        // SQLite's memory that was not freed, or a failure without a name.
        if failed.is_empty() && errors > 0 {
            failed.push("unnamed".into());
        }
        if let Some(leak) = printed.lines().find(|line| {
            line.starts_with("Unfreed memory:") || line.contains("files were left open")
        }) {
            failed.push(leak.split(':').next().unwrap_or(leak).replace(' ', "-"));
        }
        failed.sort();
        failed.dedup();
        Outcome::Ended { tests, failed }
    }
}

/// What the replay of a run's log found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Replayed {
    pub(super) counts: BTreeMap<String, u64>,
    /// Replicas that differ from their source.
    pub(super) different: Vec<String>,
    /// What `PRAGMA integrity_check` said.
    pub(super) complaints: Vec<String>,
    /// Why there was a loss, no engine or no comparison: how often, and the words.
    pub(super) reasons: Vec<(u64, String)>,
}

impl Replayed {
    pub(super) fn read(printed: &str) -> Replayed {
        let mut replayed = Replayed::default();
        for line in printed.lines() {
            let Some((name, rest)) = line.split_once(' ') else { continue };
            match name {
                "different" => replayed.different.push(rest.to_owned()),
                "complaint" => replayed.complaints.push(rest.to_owned()),
                "why" => {
                    let Some((count, reason)) = rest.split_once(' ') else { continue };
                    replayed.reasons.push((count.parse().unwrap_or(1), reason.to_owned()));
                }
                name => {
                    replayed.counts.insert(name.to_owned(), rest.parse().unwrap_or(0));
                }
            }
        }
        replayed
    }

    pub(super) fn count(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }
}
