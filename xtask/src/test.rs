//! `cargo xtask test`: runs suites one after the other, all of them even if one fails, and ends with
//! a summary of their times against their budgets.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::suites::{SUITES, Step, Suite};
use crate::{prereqs, process};

/// `cargo xtask test [SUITE…] [--list] [--advisories]`.
pub(crate) fn test(args: &[String]) -> Result<(), Failure> {
    match parse(args)? {
        Request::Help => println!(
            "Usage: cargo xtask test [SUITE…] [--list] [--advisories]\n\n\
             --list        print the suites and what they run\n\
             --advisories  also check the dependencies against the RustSec database (from GitHub)\n\n\
             Suites:\n{}",
            list(false)
        ),
        Request::List => println!("{}", list(true)),
        Request::Run(suites) => return run_all(&suites),
    }
    Ok(())
}

enum Request {
    Help,
    List,
    Run(Vec<&'static Suite>),
}

fn parse(args: &[String]) -> Result<Request, Failure> {
    let mut named = Vec::new();
    let mut advisories = false;
    for arg in args {
        match arg.as_str() {
            "--list" => return Ok(Request::List),
            "--help" | "-h" => return Ok(Request::Help),
            "--advisories" => advisories = true,
            name => named.push(find(name)?),
        }
    }
    if named.is_empty() {
        named.extend(SUITES.iter().filter(|suite| !suite.on_request));
    }
    if advisories {
        named.push(find("advisories")?);
    }
    Ok(Request::Run(named))
}

fn find(name: &str) -> Result<&'static Suite, Failure> {
    SUITES.iter().find(|suite| suite.name == name).ok_or_else(|| {
        Failure::Usage(format!(
            "there is no suite or option `{name}`. The suites:\n{}",
            list(false)
        ))
    })
}

fn list(commands: bool) -> String {
    let mut lines = Vec::new();
    for suite in SUITES {
        let note = if suite.on_request { "  (only when named)" } else { "" };
        lines.push(format!("  {:<12} {:>4} s{note}", suite.name, suite.budget_s));
        if commands {
            lines.extend(suite.steps.iter().map(|step| match step {
                Step::Run(command) => format!("      {command}"),
                Step::MustFail { command, because } => {
                    format!("      {command}  (has to fail with {because})")
                }
            }));
        }
    }
    lines.join("\n")
}

fn run_all(suites: &[&'static Suite]) -> Result<(), Failure> {
    let runnable = suites.iter().filter(|suite| suite.skipped.is_none());
    prereqs::ensure(runnable.flat_map(|suite| suite.needs.iter().copied()))?;

    let mut results = Vec::new();
    for suite in suites {
        let start = Instant::now();
        let verdict = run_suite(suite);
        results.push(Finished { suite, took: start.elapsed(), verdict });
    }
    println!("\n{}", summary(&results));

    let failed: Vec<_> = results
        .iter()
        .filter(|finished| finished.verdict == Verdict::Failed)
        .map(|finished| finished.suite.name)
        .collect();
    if failed.is_empty() { Ok(()) } else { Err(Failure::Suites(failed)) }
}

struct Finished {
    suite: &'static Suite,
    took: Duration,
    verdict: Verdict,
}

#[derive(PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
    Skipped(&'static str),
}

fn run_suite(suite: &Suite) -> Verdict {
    if let Some(reason) = suite.skipped {
        println!("\n=== {}: skipped, {reason}", suite.name);
        return Verdict::Skipped(reason);
    }
    for step in suite.steps {
        if let Err(failure) = run_step(suite, step) {
            println!("=== {}: FAILED: {failure}", suite.name);
            return Verdict::Failed;
        }
    }
    Verdict::Passed
}

fn run_step(suite: &Suite, step: &Step) -> Result<(), Failure> {
    let (Step::Run(command) | Step::MustFail { command, .. }) = step;
    println!("\n=== {}: {command}", suite.name);
    // The heading has to come before what the command prints, also into a pipe.
    let _ = io::stdout().flush();
    match step {
        Step::Run(command) => process::run(process::from_line(command)),
        Step::MustFail { command, because } => must_fail(command, because),
    }
}

fn must_fail(command: &str, because: &str) -> Result<(), Failure> {
    let output = process::from_line(command)
        .output()
        .map_err(|error| Failure::Start(command.to_owned(), error))?;
    let printed = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && printed.contains(because) {
        println!("fails with {because}, as it has to");
        return Ok(());
    }
    eprint!("{printed}");
    Err(Failure::Toothless(format!(
        "`{command}` had to fail with {because} and did not: the check it belongs to proves nothing"
    )))
}

fn summary(results: &[Finished]) -> String {
    let mut lines = vec![format!("{:<12} {:>8} {:>8}", "suite", "time", "budget")];
    for Finished { suite, took, verdict } in results {
        let late = took.as_secs() >= suite.budget_s;
        let verdict = match verdict {
            Verdict::Passed => "ok".to_owned(),
            Verdict::Failed => "FAILED".to_owned(),
            Verdict::Skipped(reason) => format!("skipped: {reason}"),
        };
        let time = format!("{:.1} s", took.as_secs_f64());
        let budget = format!("{} s", suite.budget_s);
        lines.push(format!("{:<12} {time:>8} {budget:>8}  {verdict}", suite.name));
        if late {
            lines.push(format!("warning: {} took longer than its budget", suite.name));
        }
    }
    let total: Duration = results.iter().map(|finished| finished.took).sum();
    lines.push(format!("{:<12} {:>8}", "total", format!("{:.1} s", total.as_secs_f64())));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn chosen(line: &str) -> Vec<&'static str> {
        match parse(&args(line)) {
            Ok(Request::Run(suites)) => suites.iter().map(|suite| suite.name).collect(),
            _ => panic!("`{line}` should run suites"),
        }
    }

    #[test]
    fn without_names_all_but_those_on_request_run() {
        let all = chosen("");
        assert!(all.contains(&"unit") && all.contains(&"fmt"));
        assert!(!all.contains(&"advisories"));
        assert_eq!(chosen("--advisories").len(), all.len() + 1);
    }

    #[test]
    fn named_suites_run_in_the_order_given() {
        assert_eq!(chosen("unit fmt"), ["unit", "fmt"]);
        assert_eq!(chosen("deny --advisories"), ["deny", "advisories"]);
    }

    #[test]
    fn an_unknown_suite_is_a_usage_error_that_lists_the_suites() {
        let Err(failure) = parse(&args("fmt nonesuch")) else { panic!("should not parse") };
        assert!(matches!(failure, Failure::Usage(_)));
        for suite in SUITES {
            assert!(failure.to_string().contains(suite.name));
        }
    }

    #[test]
    fn the_summary_warns_about_a_suite_over_its_budget_only() {
        let [quick, slow] = [&SUITES[0], &SUITES[1]];
        let text = summary(&[
            Finished { suite: quick, took: Duration::ZERO, verdict: Verdict::Failed },
            Finished {
                suite: slow,
                took: Duration::from_secs(slow.budget_s),
                verdict: Verdict::Passed,
            },
        ]);
        assert!(text.contains("FAILED"));
        assert!(text.contains(&format!("warning: {} took", slow.name)), "{text}");
        assert!(!text.contains(&format!("warning: {} took", quick.name)), "{text}");
    }

    #[test]
    fn a_step_that_has_to_fail_must_fail_for_the_right_reason() {
        assert!(must_fail("cargo no-such-subcommand", "no-such-subcommand").is_ok());
        assert!(must_fail("cargo no-such-subcommand", "E0152").is_err());
        assert!(must_fail("cargo --version", "").is_err());
    }
}
