//! The kernel of the VMs: Debian's for clouds, unpacked and not installed.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cache;
use crate::failure::Failure;
use crate::process;

/// Depends on the newest of them.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// The modules that are loaded together, by the name under which `init.sh` loads them. What is built
/// in has no file, and needs none.
const GROUPS: &[(&str, &[&str])] = &[
    ("disk", &["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"]),
    ("vsock", &["vsock", "vmw_vsock_virtio_transport"]),
    ("loopback", &["vsock_loopback"]),
];

/// The kernel itself.
pub(super) fn image() -> PathBuf {
    dir().join("vmlinuz")
}

/// The modules: a directory for each group, in it files whose names are in the order of loading.
pub(super) fn modules() -> PathBuf {
    dir().join("modules")
}

fn dir() -> PathBuf {
    cache::keyed("kernel", GROUPS.iter())
}

/// Whether it is unpacked.
pub(crate) fn found() -> bool {
    image().is_file()
}

/// Downloads the package and takes what is needed out of it.
pub(crate) fn install() -> Result<(), Failure> {
    let work = cache::Work::new("kernel")?;
    let (tree, new) = (work.path("tree"), work.path("new"));
    cache::create_dir(&tree)?;
    // Its user may not write here, and need not.
    let download = ["--quiet=2", "-o", "APT::Sandbox::User=root", "download", &package()?];
    process::run(in_dir("apt-get", &download, &work.path("")))?;
    let file = files(&work.path("")).into_iter().find(|path| extension(path) == "deb");
    let file = file.ok_or_else(|| Failure::Check(format!("apt-get downloaded no {PACKAGE}")))?;
    process::run(in_dir(
        "dpkg-deb",
        &["--extract", &file.to_string_lossy(), "tree"],
        &work.path(""),
    ))?;

    let by_name: HashMap<String, PathBuf> =
        files(&tree).into_iter().filter_map(|path| Some((module_name(&path)?, path))).collect();
    let mut loaded = Vec::new();
    for (group, names) in GROUPS {
        let dir = new.join("modules").join(group);
        cache::create_dir(&dir)?;
        let before = loaded.len();
        for name in *names {
            add(name, &by_name, &mut loaded)?;
        }
        for (number, (name, contents)) in loaded[before..].iter().enumerate() {
            cache::write(&dir.join(format!("{number}-{name}.ko")), contents)?;
        }
    }
    let of_boot = files(&tree.join("boot"));
    let image = of_boot.iter().find(|path| file_name(path).starts_with("vmlinuz-"));
    let image = image.ok_or_else(|| Failure::Check(format!("{PACKAGE} holds no kernel")))?;
    cache::rename(image, &new.join("vmlinuz"))?;
    cache::rename(&new, &dir())
}

fn package() -> Result<String, Failure> {
    let told = process::output("apt-cache", &["depends", PACKAGE]).unwrap_or_default();
    let found = told.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    found.map(str::to_owned).ok_or_else(|| {
        Failure::Prerequisites(format!(
            "the package {PACKAGE} is not known here: it is Debian's, for x86-64; run apt-get update"
        ))
    })
}

fn in_dir(program: &str, args: &[&str], dir: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(dir);
    command
}

/// Adds a module behind those it depends on.
fn add(
    name: &str,
    by_name: &HashMap<String, PathBuf>,
    loaded: &mut Vec<(String, Vec<u8>)>,
) -> Result<(), Failure> {
    let Some(path) = by_name.get(name).filter(|_| loaded.iter().all(|(known, _)| known != name))
    else {
        return Ok(());
    };
    let contents = contents(path)?;
    for needed in dependencies(&contents) {
        add(&needed, by_name, loaded)?;
    }
    loaded.push((name.to_owned(), contents));
    Ok(())
}

/// The names that a module itself says it depends on, in its section `.modinfo`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let Some(at) = module.windows(FIELD.len()).position(|window| window == FIELD) else {
        return Vec::new();
    };
    let value = module[at + FIELD.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value).replace('-', "_");
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn contents(path: &Path) -> Result<Vec<u8>, Failure> {
    if extension(path) == "ko" {
        return cache::read_bytes(path);
    }
    let unpacked = Command::new("busybox").args(["xzcat"]).arg(path).output();
    match unpacked {
        Ok(output) if output.status.success() && extension(path) == "xz" => Ok(output.stdout),
        _ => Err(Failure::Check(format!("{} cannot be unpacked", path.display()))),
    }
}

/// The module's name, of the path of one.
fn module_name(path: &Path) -> Option<String> {
    let (name, rest) = file_name(path).split_once('.')?;
    ["ko", "ko.xz", "ko.zst"].contains(&rest).then(|| name.replace('-', "_"))
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|name| name.to_str()).unwrap_or_default()
}

/// All files below a directory.
pub(super) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_tells_what_it_depends_on() {
        let module = b"ELF\0license=GPL\0depends=a-b,c\0name=d\0";
        assert_eq!(dependencies(module), ["a_b", "c"]);
        assert!(dependencies(b"\0depends=\0").is_empty());
        assert!(dependencies(b"").is_empty());
    }

    #[test]
    fn modules_are_known_by_name_whatever_packs_them() {
        let name = |path: &str| module_name(Path::new(path));
        assert_eq!(name("/lib/a-b.ko").as_deref(), Some("a_b"));
        assert_eq!(name("c.ko.xz").as_deref(), Some("c"));
        assert_eq!(name("modules.order"), None);
    }
}
