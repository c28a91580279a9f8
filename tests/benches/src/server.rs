//! The other side, in a process of its own: a sequencer, or the least that could be one.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitCode, Stdio},
};

use synddb_sequencer::{Address, Config, Server};

use crate::Result;

const SEQUENCER: &str = "serve-sequencer";
const FLOOR: &str = "serve-floor";

/// A child process that serves until it is dropped.
pub(crate) struct Remote {
    child: Child,
    // Its end tells the child to stop.
    _stdin: Option<ChildStdin>,
    pub(crate) url: String,
    /// The sequencer's Unix socket.
    pub(crate) socket_url: String,
}

impl Remote {
    /// A sequencer with its log in `dir`, at `address` where one is given.
    pub(crate) fn sequencer(dir: &Path, address: Option<&str>) -> Result<Self> {
        Self::start(SEQUENCER, dir, address.unwrap_or("127.0.0.1:0"))
    }

    /// Appends each request's body to a file, syncs it, and answers with an empty 200.
    pub(crate) fn floor(dir: &Path) -> Result<Self> {
        Self::start(FLOOR, dir, "127.0.0.1:0")
    }

    fn start(what: &str, dir: &Path, address: &str) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([what.as_ref(), dir.as_os_str(), address.as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
        let url = format!("http://{}", line.trim());
        let socket_url = format!("unix:{}", socket(dir).display());
        Ok(Self { child, _stdin: stdin, url, socket_url })
    }

    pub(crate) fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In the child process: serves, and says how it ended.
pub(crate) fn serve_if_asked(args: &[String]) -> Option<ExitCode> {
    let [what, dir, address] = args else { return None };
    let outcome = match what.as_str() {
        SEQUENCER => serve_sequencer(dir.as_ref(), address),
        FLOOR => serve_floor(dir.as_ref(), address),
        _ => return None,
    };
    Some(match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{what}: {error}");
            ExitCode::FAILURE
        }
    })
}

fn serve_sequencer(dir: &Path, address: &str) -> Result<()> {
    let mut config = Config::new(address.parse()?, dir.to_owned());
    config.listen.push(Address::Unix { path: socket(dir) }.into());
    let server = Server::start(config)?;
    announce(server.addr())?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    server.shutdown();
    Ok(())
}

/// Beside the log, whose folder may not be there yet.
fn socket(dir: &Path) -> PathBuf {
    dir.with_extension("sock")
}

fn serve_floor(dir: &Path, address: &str) -> Result<()> {
    let listener = TcpListener::bind(address)?;
    announce(listener.local_addr()?)?;
    let mut file = File::create(dir.join("floor"))?;
    for connection in listener.incoming() {
        let connection = connection?;
        connection.set_nodelay(true)?;
        answer_all(connection, &mut file)?;
    }
    Ok(())
}

fn announce(address: SocketAddr) -> Result<()> {
    println!("{address}");
    std::io::stdout().flush()?;
    Ok(())
}

fn answer_all(mut connection: TcpStream, file: &mut File) -> Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        file.write_all(&body)?;
        file.sync_data()?;
        connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
    }
}
