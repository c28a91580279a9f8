//! The line that shows how things stand.

use std::{
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use crate::{Result, pause, process::Book};

/// How often the line is shown on a terminal, and elsewhere.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

pub(crate) struct Live {
    began: Instant,
    shown: Option<Instant>,
    in_place: bool,
}

impl Live {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), shown: None, in_place: io::stdout().is_terminal() }
    }

    /// Shows the line again and again until `until`.
    pub(crate) fn show_until(&mut self, book: &Book, until: Instant) -> Result<()> {
        let interval = if self.in_place { INTERVALS.0 } else { INTERVALS.1 };
        while Instant::now() < until {
            if self.shown.is_none_or(|shown| shown.elapsed() >= interval) {
                self.shown = Some(Instant::now());
                self.show(book);
            }
            pause()?;
        }
        Ok(())
    }

    fn show(&self, book: &Book) {
        let line = book.line();
        let text = format!(
            "{:5.1} s  commits {:>7}  acknowledged {:>7}  lag {:>5} ms  link {}",
            self.began.elapsed().as_secs_f64(),
            line.commits,
            line.acknowledged(),
            line.lag_ms,
            line.link.name(),
        );
        let (before, after) = if self.in_place { ("\r\x1b[K", "") } else { ("", "\n") };
        print!("{before}{text}{after}");
        // A closed terminal shows nothing, and that is no failure.
        let _ = io::stdout().flush();
    }

    /// A line of its own, above the live one.
    pub(crate) fn say(&self, text: &str) {
        let before = if self.in_place { "\r\x1b[K" } else { "" };
        println!("{before}{text}");
    }
}
