//! The `synddb` command.
#![forbid(unsafe_code)]

mod cli;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand};

use cli::Failure;

/// Keeps the changes of SQLite databases, durably and in order.
#[derive(Parser)]
#[command(name = "synddb", version, after_help = EXIT_STATUS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_STATUS: &str = "\
Exit status:
  0  it is done; `status`: the sequencer, or the log, is well
  1  it failed; standard error says why
  2  the command line is not understood";

#[derive(Subcommand)]
enum Command {
    /// Run a sequencer.
    Sequencer(cli::sequencer::Args),
    /// List the streams of a data directory.
    Streams(cli::streams::Args),
    /// Build a database out of the log, as of any entry or moment.
    ///
    /// Works beside a running sequencer. Everything that is read is checked: the snapshot by its
    /// hash, the entries by their chain and content hashes, the database by PRAGMA quick_check and the
    /// hash of all its rows. What does not fit ends it, and leaves nothing.
    Restore(cli::restore::Args),
    /// Check a log, or a database against it.
    ///
    /// Of a log: the chain of every epoch, every snapshot's bytes, and by replaying every epoch from its
    /// earliest snapshot the content hash that each entry tells. Works beside a running sequencer.
    /// What does not fit is told with its stream, epoch and entry, and the exit status is 1.
    Verify(cli::verify::Args),
    /// Remove what no restore needs: what is before a stored snapshot.
    ///
    /// What stays is read and checked first; where that is damaged nothing is removed.
    Prune(cli::prune::Args),
    /// Show entries of the log, and what comes.
    #[command(after_long_help = cli::tail::JSON_HELP)]
    Tail(cli::tail::Args),
    /// Tell how a sequencer is, or a log without one.
    ///
    /// Exit status 0: it answers, and its log can be read. 1: it does not, or nothing answers, or
    /// something else does.
    Status(cli::status::Args),
    /// Make keys and certificates for TLS, for a quick start.
    ///
    /// A pair for the sequencer and one for a client, each signed by itself, and what to set on both
    /// sides so that they know each other by their keys. The certificates do not expire.
    #[cfg(feature = "tls")]
    Keygen(cli::keygen::Args),
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    let result = match Cli::parse().command {
        Command::Sequencer(args) => args.run(),
        Command::Streams(args) => args.run(),
        Command::Restore(args) => args.run(),
        Command::Verify(args) => args.run(),
        Command::Prune(args) => args.run(),
        Command::Tail(args) => args.run(),
        Command::Status(args) => args.run(),
        #[cfg(feature = "tls")]
        Command::Keygen(args) => args.run(),
        Command::Completions { shell } => completions(shell),
    };
    match result {
        Ok(()) | Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(Failure::Message(message)) => {
            // Nobody is left to be told where this fails.
            let _ = writeln!(io::stderr(), "synddb: {}", cli::text::harmless(&message));
            ExitCode::FAILURE
        }
    }
}

fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "synddb", &mut script);
    io::stdout().write_all(&script)?;
    Ok(())
}
