//! The vsock device of the VMs: a program, since not every kernel has `vhost_vsock`, and that one
//! connects no VM with another.
//!
//! `vhost-device-vsock` does both, but what its 0.3.0 passes from one VM to another it may cut
//! (<https://github.com/rust-vmm/vhost-device/issues/384>). Its sources come from the registry, the
//! two places are mended, and the result is built once.

use std::fs;
use std::path::{Path, PathBuf};

use super::cache;
use crate::failure::Failure;
use crate::process;

const VERSION: &str = "0.3.0";

/// A place in the sources, from the first text up to the second, and what goes there instead.
struct Repair {
    file: &'static str,
    from: &'static str,
    to: &'static str,
    instead: &'static str,
}

const REPAIRS: &[Repair] = &[
    // A packet larger than the receiver's buffer was cut, and the rest of it lost.
    Repair {
        file: "src/thread_backend.rs",
        from: "        let raw_vsock_pkt = self\n",
        to: "        Ok(())\n",
        instead: "\
        let mut queue = self.raw_pkts_queue.write().unwrap();
        let mut raw = queue.pop_front().ok_or(Error::EmptyRawPktsQueue)?;
        pkt.set_header_from_raw(&raw.header).unwrap();
        if !raw.data.is_empty() {
            let room = pkt.data_slice().ok_or(Error::PktBufMissing)?;
            let taken = room.len().min(raw.data.len());
            room.copy_from(&raw.data[..taken]);
            if taken < raw.data.len() {
                raw.data.drain(..taken);
                queue.push_front(raw);
            }
            pkt.set_len(taken as u32);
        }

",
    },
    // A packet for a VM that has not booted yet, or is about to, ended the device's thread.
    Repair {
        file: "src/vhu_vsock.rs",
        from: "                thread.process_raw_pkts(vring_rx, evt_idx)?;\n",
        to: "                return Ok(());\n",
        instead: "\
                match thread.process_raw_pkts(vring_rx, evt_idx) {
                    Err(Error::NoMemoryConfigured | Error::IterateQueue) => {}
                    result => result?,
                }
",
    },
];

/// The program, with its version and its repairs in its name.
pub(crate) fn program() -> PathBuf {
    let key = REPAIRS.iter().map(|repair| [repair.file, repair.from, repair.to, repair.instead]);
    cache::keyed(&format!("vhost-device-vsock-{VERSION}"), key)
}

/// Whether it is built.
pub(crate) fn found() -> bool {
    program().is_file()
}

/// Downloads its sources, mends and builds them.
pub(crate) fn install() -> Result<(), Failure> {
    let work = cache::Work::new("device")?;
    let sources = work.path("sources");
    copy(&download(&work.path("asks"))?, &sources)?;
    for repair in REPAIRS {
        apply(repair, &sources)?;
    }
    // It is in no workspace, also not in the one around it.
    let manifest = sources.join("Cargo.toml");
    let text = cache::read(&manifest)? + "\n[workspace]\n";
    cache::write(&manifest, text)?;
    let target = work.path("target");
    let mut build = process::cargo();
    build.args(["build", "--quiet", "--release", "--locked"]);
    // Nobody waits for this program, but for the compiler.
    build.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
    build.arg("--target-dir").arg(&target).arg("--manifest-path").arg(&manifest);
    process::run(build)?;
    cache::rename(&target.join("release/vhost-device-vsock"), &program())
}

/// Has cargo download the sources, for a package that says it depends on them; returns where they are.
fn download(asks: &Path) -> Result<PathBuf, Failure> {
    cache::create_dir(&asks.join("src"))?;
    cache::write(&asks.join("src/lib.rs"), "")?;
    let manifest = format!(
        "[package]\nname = \"asks\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n\
         [dependencies]\nvhost-device-vsock = \"={VERSION}\"\n"
    );
    cache::write(&asks.join("Cargo.toml"), manifest)?;
    let mut fetch = process::cargo();
    // It warns that the package is no library.
    fetch.args(["fetch", "--quiet"]).current_dir(asks);
    process::run(fetch)?;
    let registries = process::cargo_home().map(|home| home.join("registry/src"));
    let registries = registries.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
    let mut places =
        registries.map(|registry| registry.path().join(format!("vhost-device-vsock-{VERSION}")));
    places.find(|place| place.is_dir()).ok_or_else(|| {
        Failure::Check(format!("cargo fetched vhost-device-vsock {VERSION}, and it is nowhere"))
    })
}

fn apply(repair: &Repair, sources: &Path) -> Result<(), Failure> {
    let path = sources.join(repair.file);
    let text = cache::read(&path)?;
    let mended = replaced(&text, repair).ok_or_else(|| {
        Failure::Check(format!("{} of vhost-device-vsock {VERSION} is another", repair.file))
    })?;
    cache::write(&path, mended)
}

fn replaced(text: &str, repair: &Repair) -> Option<String> {
    let (before, rest) = text.split_once(repair.from)?;
    let after = &rest[rest.find(repair.to)?..];
    (!after.contains(repair.from)).then(|| [before, repair.instead, after].concat())
}

/// Copies a directory.
fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    let failed = |error| Failure::Start(format!("copy {}", from.display()), error);
    cache::create_dir(to)?;
    for entry in fs::read_dir(from).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() {
            copy(&path, &to.join(name))?;
        } else {
            fs::copy(&path, to.join(name)).map_err(failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repair_fits_once_or_not_at_all() {
        let repair = Repair { file: "", from: "from ", to: "to", instead: "instead " };
        assert_eq!(replaced("a from b to c", &repair).as_deref(), Some("a instead to c"));
        for other in ["a to b", "a from b", "a from b to from c"] {
            assert_eq!(replaced(other, &repair), None, "{other}");
        }
    }
}
