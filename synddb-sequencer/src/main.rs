//! The `synddb` command.
#![forbid(unsafe_code)]

use std::{net::ToSocketAddrs, path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use synddb_sequencer::{
    Config, Server,
    store::{LogStore, SqliteStore},
};

/// Keeps the changes of SQLite databases, durably and in order.
#[derive(Parser)]
#[command(name = "synddb", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a sequencer.
    Sequencer {
        /// Where to listen; port 0 for any free one.
        #[arg(long, default_value = "http://127.0.0.1:8433")]
        listen: String,
        /// Where to keep the log.
        #[arg(long)]
        data: PathBuf,
        /// Listen beyond loopback although nobody's access is checked.
        #[arg(long)]
        insecure: bool,
    },
    /// List the streams of a data directory.
    Streams {
        /// The sequencer's data directory.
        #[arg(long)]
        data: PathBuf,
    },
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let result = match Cli::parse().command {
        Command::Sequencer { listen, data, insecure } => sequencer(&listen, data, insecure),
        Command::Streams { data } => streams(&data),
        Command::Completions { shell } => {
            let mut command = Cli::command();
            clap_complete::generate(shell, &mut command, "synddb", &mut std::io::stdout());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("synddb: {error}");
            ExitCode::FAILURE
        }
    }
}

fn sequencer(
    listen: &str,
    data: PathBuf,
    insecure: bool,
) -> Result<(), Box<dyn std::error::Error>> {
    let authority = listen
        .strip_prefix("http://")
        .ok_or_else(|| format!("--listen {listen}: expected http://HOST:PORT"))?
        .trim_end_matches('/');
    let addr = authority
        .to_socket_addrs()
        .map_err(|error| format!("--listen {listen}: {error}"))?
        .next()
        .ok_or_else(|| format!("--listen {listen}: no such address"))?;
    let mut config = Config::new(addr, data);
    config.insecure = insecure;
    let server = Server::start(config)?;
    println!("listening on http://{}", server.addr());
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(stop_signal())?;
    server.shutdown();
    Ok(())
}

#[cfg(unix)]
async fn stop_signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

#[cfg(not(unix))]
async fn stop_signal() -> std::io::Result<()> {
    tokio::signal::ctrl_c().await
}

fn streams(data: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    for info in SqliteStore::open_read_only(data)?.streams()? {
        let head = info.receiver.head();
        println!(
            "{}\tepoch {}\tnext {}\t{}\t{}",
            info.receiver.stream(),
            head.epoch,
            head.next_seq,
            if head.base_complete { "base complete" } else { "base pending" },
            info.name
        );
    }
    Ok(())
}
