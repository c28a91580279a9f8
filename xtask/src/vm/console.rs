//! A program that runs, what it is waited for to say, and the transcript of what all of them said.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::Failure;

/// How long anything may take that is waited for. The machines are emulated and the host may be busy.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// What several programs said, in the order in which they did.
#[derive(Clone)]
pub(super) struct Transcript {
    since: Instant,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Transcript {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), lines: Arc::default() }
    }

    fn note(&self, who: &str, line: &str) {
        let at = self.since.elapsed().as_secs_f64();
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push(format!("[{at:>6.2}] {who:<12} {line}"));
    }
}

impl fmt::Display for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.lock().unwrap_or_else(PoisonError::into_inner).join("\n"))
    }
}

/// A program that is killed when this is dropped, or before.
pub(super) struct Console {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    transcript: Transcript,
}

impl Console {
    /// Starts a program that ends with this one, however this one ends. Of the command its
    /// program, arguments and variables count.
    pub(super) fn start(
        name: &str,
        command: &Command,
        transcript: &Transcript,
    ) -> Result<Self, Failure> {
        let mut bound = Command::new("setpriv");
        bound.args(["--pdeathsig", "KILL"]).arg(command.get_program()).args(command.get_args());
        bound.envs(command.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
        bound.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = bound.spawn().map_err(|error| Failure::Start("setpriv".into(), error))?;
        transcript.note(name, "* starts");
        let (tell, lines) = mpsc::channel();
        let outputs: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|output| Box::new(output) as _),
            child.stderr.take().map(|output| Box::new(output) as _),
        ];
        for output in outputs.into_iter().flatten() {
            let (name, tell, transcript) = (name.to_owned(), tell.clone(), transcript.clone());
            // Until there are no more lines. Somebody may have lost interest before that.
            thread::spawn(move || {
                for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                    transcript.note(&name, &line);
                    let _ = tell.send(line);
                }
            });
        }
        let input = child.stdin.take();
        Ok(Self { name: name.to_owned(), child, input, lines, transcript: transcript.clone() })
    }

    /// Waits for a line that holds `text`; returns what follows the text in it.
    pub(super) fn wait_for(&mut self, text: &str) -> Result<String, Failure> {
        let found = self.wait_until(|line| Some(line.split_once(text)?.1.to_owned()));
        found.map_err(|why| self.failure(&format!("{why} before it said `{text}`")))
    }

    /// Waits for a line about commits, and returns how many there are, once there are so many.
    pub(super) fn wait_for_commits(&mut self, many: u64) -> Result<u64, Failure> {
        let found = self.wait_until(|line| {
            let (number, _) = line.split_once("committed ")?.1.split_once(',')?;
            number.parse().ok().filter(|number| *number >= many)
        });
        found.map_err(|why| self.failure(&format!("{why} before it had {many} commits")))
    }

    /// Types a line.
    pub(super) fn say(&mut self, line: &str) -> Result<(), Failure> {
        let input = self.input.as_mut().ok_or(std::io::ErrorKind::BrokenPipe.into());
        let typed = input.and_then(|input| writeln!(input, "{line}"));
        typed.map_err(|error| self.failure(&format!("took no line ({error})")))
    }

    /// Waits for its end, which has to be a good one.
    pub(super) fn end(mut self) -> Result<(), Failure> {
        match self.wait_until(|_| None::<()>) {
            Err(ENDED) => {}
            Ok(()) | Err(_) => return Err(self.failure("did not end")),
        }
        let status = self.child.wait().map_err(|error| Failure::Start("wait".into(), error))?;
        if status.success() { Ok(()) } else { Err(self.failure(&format!("ended with {status}"))) }
    }

    /// Kills it, as if its power was cut.
    pub(super) fn kill(mut self) {
        self.transcript.note(&self.name, "* is killed");
        self.end_by_force();
    }

    pub(super) fn failure(&self, what: &str) -> Failure {
        Failure::Check(format!("{}: {what}", self.name))
    }

    /// Reads lines until one gives what is looked for; the error tells why there will be none.
    fn wait_until<T>(
        &mut self,
        mut wanted: impl FnMut(&str) -> Option<T>,
    ) -> Result<T, &'static str> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    if let Some(found) = wanted(&line) {
                        return Ok(found);
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Err("it was waited for too long"),
                Err(RecvTimeoutError::Disconnected) => return Err(ENDED),
            }
        }
    }

    fn end_by_force(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const ENDED: &str = "it ended";

impl Drop for Console {
    fn drop(&mut self) {
        self.end_by_force();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> (Console, Transcript) {
        let transcript = Transcript::new();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        (Console::start("shell", &command, &transcript).unwrap(), transcript)
    }

    #[test]
    fn lines_are_waited_for_in_their_order() {
        let (mut shell, transcript) = shell(
            "echo one 1; echo committed 20, committed; echo committed 40,; read x; echo $x >&2",
        );
        assert_eq!(shell.wait_for("one").unwrap(), " 1");
        assert_eq!(shell.wait_for_commits(30).unwrap(), 40);
        shell.say("typed").unwrap();
        shell.wait_for("typed").unwrap();
        shell.end().unwrap();
        let text = transcript.to_string();
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(text.ends_with("shell        typed"), "{text}");
    }

    #[test]
    fn who_ends_too_early_or_badly_is_told() {
        let failure = shell("echo hello").0.wait_for("bye").unwrap_err().to_string();
        assert_eq!(failure, "shell: it ended before it said `bye`");
        let failure = shell("exit 3").0.end().unwrap_err().to_string();
        assert_eq!(failure, "shell: ended with exit status: 3");
    }
}
