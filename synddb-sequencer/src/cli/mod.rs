//! The commands, one module each, and what they share.

#[cfg(feature = "tls")]
pub(crate) mod keygen;
pub(crate) mod prune;
pub(crate) mod restore;
pub(crate) mod sequencer;
pub(crate) mod status;
pub(crate) mod streams;
pub(crate) mod tail;
pub(crate) mod verify;

mod fetch;
mod link;
mod signals;
pub(crate) mod text;

use std::{io, path::Path};

use synddb_core::StreamId;
use synddb_sequencer::{
    StartError,
    replica::RestoreError,
    store::{LogStore, SqliteStore, StoreError, StreamInfo},
};

/// Why a command ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nobody reads the output any more, as behind `| head`: no error.
    OutputClosed,
    /// What to tell.
    Message(String),
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::Message(message)
    }
}

/// Of the output: other files are told with their names.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Message(format!("the output cannot be written: {error}")),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Message(error.to_string())
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::Message(error.to_string())
    }
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Self {
        Self::Message(error.to_string())
    }
}

/// The stream with this identifier or name; the only one where none is wanted.
fn choose_stream(
    store: &SqliteStore,
    data: &Path,
    wanted: Option<&str>,
) -> Result<StreamInfo, Failure> {
    let mut streams = store.streams()?;
    if streams.is_empty() {
        return Err(Failure::Message(format!(
            "{} has no streams yet: no sender has connected",
            data.display()
        )));
    }
    let listed = list(&streams);
    let Some(wanted) = wanted else {
        return match streams.len() {
            1 => Ok(streams.remove(0)),
            _ => Err(format!("there are several streams; choose one by --stream:{listed}").into()),
        };
    };
    let is = |id: StreamId| move |info: &&StreamInfo| info.receiver.stream() == id;
    let by_id = wanted.parse().ok().and_then(|id| streams.iter().find(is(id)));
    // The identifier of a named stream comes from its name; others may call themselves the same.
    let by_name = || streams.iter().find(is(StreamId::from_name(wanted)));
    if let Some(info) = by_id.or_else(by_name) {
        return Ok(info.clone());
    }
    streams.retain(|info| info.name == wanted);
    match streams.len() {
        0 => Err(format!("there is no stream {wanted}; there are:{listed}").into()),
        1 => Ok(streams.remove(0)),
        _ => {
            let same = list(&streams);
            Err(format!("several streams have the name {wanted}; choose by identifier:{same}")
                .into())
        }
    }
}

fn list(streams: &[StreamInfo]) -> String {
    let lines = streams.iter().map(|info| {
        let (stream, name) = (info.receiver.stream(), text::name(&info.name));
        format!("\n  {stream}  {name}").trim_end().to_owned()
    });
    lines.collect()
}
