//! The one list of what has to be on the machine, and how it gets there.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::failure::Failure;
use crate::{bare::toolchain, libclang, process, vm};

/// Something that has to be on the machine.
pub(crate) struct Prereq {
    /// The name by which suites and commands ask for it.
    pub(crate) name: &'static str,
    /// What it is needed for.
    why: &'static str,
    found: fn() -> bool,
    install: Install,
}

enum Install {
    /// Debian and Ubuntu packages; on other systems, a package that `elsewhere` describes.
    Apt { packages: &'static str, elsewhere: &'static str },
    /// Arguments for cargo.
    Cargo(&'static str),
    /// A component of the Rust toolchain.
    Rustup(&'static str),
    /// By this program; `how` tells people.
    Own { install: fn() -> Result<(), Failure>, how: &'static str },
}

/// Every prerequisite. The cargo tools are pinned, so that a new release breaks nobody's build.
pub(crate) const PREREQS: &[Prereq] = &[
    Prereq {
        name: "cc",
        why: "a C compiler, for SQLite",
        found: || process::find_program(&env::var("CC").unwrap_or_else(|_| "cc".into())).is_some(),
        install: Install::Apt { packages: "gcc libc6-dev", elsewhere: "gcc or clang" },
    },
    Prereq {
        name: "libclang",
        why: "bindgen loads it to generate the bindings of SQLite's session extension",
        found: libclang::found,
        install: Install::Apt {
            packages: "libclang-dev",
            elsewhere: "clang-devel (Fedora), clang (Arch), clang-dev (Alpine), llvm (Homebrew); \
                        LIBCLANG_PATH, if set, must name its directory",
        },
    },
    Prereq {
        name: "c++",
        why: "a C++ compiler, for LLVM's fuzzer",
        found: || {
            process::find_program(&env::var("CXX").unwrap_or_else(|_| "c++".into())).is_some()
        },
        install: Install::Apt { packages: "g++", elsewhere: "g++ or clang" },
    },
    Prereq {
        name: "valgrind",
        why: "watches what capture's unsafe code does to memory",
        found: || process::find_program("valgrind").is_some(),
        install: Install::Apt { packages: "valgrind", elsewhere: "valgrind" },
    },
    Prereq {
        name: "sqlite-source",
        why: "apt-get unpacks the source package of sqlite3 with it",
        found: || {
            process::find_program("dpkg-source").is_some()
                && Path::new("/usr/share/keyrings/debian-archive-keyring.gpg").is_file()
        },
        install: Install::Apt {
            packages: "dpkg-dev debian-archive-keyring",
            elsewhere: "Debian or Ubuntu is needed for `cargo xtask sqlite-suite`",
        },
    },
    Prereq {
        name: "testfixture",
        why: "SQLite's test program is built with make, and is a Tcl interpreter",
        found: || {
            process::find_program("make").is_some()
                && process::find_program("tclsh").is_some()
                && Path::new("/usr/include/tcl/tcl.h").is_file()
                && Path::new("/usr/include/zlib.h").is_file()
        },
        install: Install::Apt {
            packages: "make tcl tcl-dev zlib1g-dev",
            elsewhere: "Debian or Ubuntu is needed for `cargo xtask sqlite-suite`",
        },
    },
    Prereq {
        name: "rustfmt",
        why: "checks the formatting",
        found: || process::find_program("cargo-fmt").is_some() && runs("fmt"),
        install: Install::Rustup("rustfmt"),
    },
    Prereq {
        name: "clippy",
        why: "checks the lints",
        found: || process::find_program("cargo-clippy").is_some() && runs("clippy"),
        install: Install::Rustup("clippy"),
    },
    Prereq {
        name: "cargo-deny",
        why: "checks licences, sources and bans of the dependencies",
        found: || process::find_program("cargo-deny").is_some(),
        install: Install::Cargo("install --locked cargo-deny@0.20.2"),
    },
    Prereq {
        name: "cargo-hack",
        why: "builds the combinations of features",
        found: || process::find_program("cargo-hack").is_some(),
        install: Install::Cargo("install --locked cargo-hack@0.6.46"),
    },
    Prereq {
        name: "bare-rustc",
        why: "a compiler with the sources of its library, for targets without an operating system",
        found: toolchain::found,
        install: Install::Own {
            install: toolchain::install,
            how: "cargo xtask bare, on Debian: unpacks rustc-web and rust-web-src into ~/.cache/synddb",
        },
    },
    Prereq {
        name: "libc-32",
        why: "runs the core's tests with 32 bits",
        found: || std::path::Path::new("/usr/lib32/crt1.o").is_file(),
        install: Install::Apt {
            packages: "gcc-multilib",
            elsewhere: "the C library for i686, with /usr/lib32/crt1.o",
        },
    },
    Prereq {
        name: "qemu-system-arm",
        why: "runs a Cortex-M without hardware",
        found: || process::find_program("qemu-system-arm").is_some(),
        install: Install::Apt { packages: "qemu-system-arm", elsewhere: "QEMU for Arm" },
    },
    Prereq {
        name: "qemu-system-x86",
        why: "runs virtual machines",
        found: || process::find_program("qemu-system-x86_64").is_some(),
        install: Install::Apt { packages: "qemu-system-x86", elsewhere: "QEMU for x86-64" },
    },
    Prereq {
        name: "busybox",
        why: "is what a virtual machine has beside our programs",
        found: || process::find_program("busybox").is_some(),
        install: Install::Apt { packages: "busybox-static", elsewhere: "busybox" },
    },
    Prereq {
        name: "e2fsprogs",
        why: "makes the disks of virtual machines, and reads them",
        found: vm::has_disk_tools,
        install: Install::Apt { packages: "e2fsprogs", elsewhere: "e2fsprogs" },
    },
    Prereq {
        name: "setpriv",
        why: "ends virtual machines with the command that started them",
        found: || process::find_program("setpriv").is_some(),
        install: Install::Apt { packages: "util-linux", elsewhere: "util-linux" },
    },
    Prereq {
        name: "vm-kernel",
        why: "a kernel for virtual machines",
        found: vm::kernel::found,
        install: Install::Own {
            install: vm::kernel::install,
            how: "cargo xtask vm, on Debian: unpacks linux-image-cloud-amd64 into target/vm",
        },
    },
    Prereq {
        name: "vm-vsock",
        why: "connects virtual machines with each other and the host by vsock",
        found: vm::device::found,
        install: Install::Own {
            install: vm::device::install,
            how: "cargo xtask vm: builds vhost-device-vsock, with repairs, in target/vm",
        },
    },
];

/// What every package that contains SQLite needs to compile.
pub(crate) const SQLITE: &[&str] = &["cc", "libclang"];

/// What SQLite's own test scripts need.
pub(crate) const SQLITE_SUITE: &[&str] = &["cc", "libclang", "sqlite-source", "testfixture"];

/// `cargo xtask setup`.
pub(crate) fn setup(args: &[String]) -> Result<(), Failure> {
    if let Some(arg) = args.first() {
        return Err(Failure::Usage(format!("setup takes no arguments, not `{arg}`")));
    }
    ensure(PREREQS.iter().map(|prereq| prereq.name))?;
    for prereq in PREREQS {
        println!("{:<15} found ({})", prereq.name, prereq.why);
    }
    Ok(())
}

/// Makes sure that the named prerequisites are on the machine: says which are missing and why they
/// are needed, and installs them. Silent if none is missing.
///
/// # Errors
/// [`Failure::Prerequisites`] with the commands to run, where this program may not install or an
/// installation did not help.
pub(crate) fn ensure<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<(), Failure> {
    let names: Vec<&str> = names.into_iter().collect();
    let missing = || -> Vec<&'static Prereq> {
        PREREQS.iter().filter(|prereq| names.contains(&prereq.name) && !(prereq.found)()).collect()
    };
    let before = missing();
    if before.is_empty() {
        return Ok(());
    }
    for prereq in &before {
        eprintln!("xtask: missing: {} ({})", prereq.name, prereq.why);
    }
    install(&before);
    let after = missing();
    if after.is_empty() { Ok(()) } else { Err(Failure::Prerequisites(instructions(&after))) }
}

/// Installs as much as this program may. What went wrong shows in what is missing afterwards.
fn install(missing: &[&Prereq]) {
    let packages = apt_packages(missing);
    if !packages.is_empty() {
        match Privilege::of_this_process() {
            _ if process::find_program("apt-get").is_none() => {}
            Privilege::None => {}
            privilege => {
                // A stale mirror list is no reason to give up: the packages may be known already.
                attempt(privilege.apt_get(&["update"]));
                let install = ["install", "--yes", "--no-install-recommends"];
                attempt(privilege.apt_get(&[&install, &packages[..]].concat()));
            }
        }
    }
    for prereq in missing {
        match prereq.install {
            Install::Apt { .. } => {}
            Install::Cargo(args) => attempt({
                let mut command = process::cargo();
                command.args(args.split(' '));
                command
            }),
            Install::Rustup(component) => attempt({
                let mut command = Command::new("rustup");
                command.args(["component", "add", component]);
                command
            }),
            Install::Own { install, .. } => {
                if let Err(failure) = install() {
                    eprintln!("xtask: {failure}");
                }
            }
        }
    }
}

fn attempt(mut command: Command) {
    command.stdin(Stdio::null());
    if let Err(failure) = process::run(command) {
        eprintln!("xtask: {failure}");
    }
}

/// How this process may install packages.
enum Privilege {
    Root,
    /// `sudo` works without asking for a password.
    Sudo,
    None,
}

impl Privilege {
    fn of_this_process() -> Self {
        if process::output("id", &["-u"]).as_deref() == Some("0") {
            Self::Root
        } else if process::succeeds("sudo", &["-n", "true"]) {
            Self::Sudo
        } else {
            Self::None
        }
    }

    fn apt_get(&self, args: &[&str]) -> Command {
        let mut command = match self {
            Self::Sudo => {
                let mut sudo = Command::new("sudo");
                sudo.args(["-n", "env"]);
                sudo
            }
            Self::Root | Self::None => Command::new("env"),
        };
        // Another apt-get may be at work, on fresh cloud machines usually is.
        let lock = "DPkg::Lock::Timeout=120";
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-o", lock]).args(args);
        command
    }
}

/// What to do by hand.
fn instructions(missing: &[&Prereq]) -> String {
    let names: Vec<&str> = missing.iter().map(|prereq| prereq.name).collect();
    let mut text = format!("prerequisites are missing: {}. Install with\n", names.join(", "));
    let packages = apt_packages(missing);
    if !packages.is_empty() {
        text += "  sudo apt-get update && sudo apt-get install --yes --no-install-recommends ";
        text += &packages.join(" ");
        text += "\n";
    }
    for prereq in missing {
        text += &match prereq.install {
            Install::Apt { elsewhere, .. } => {
                format!("  # {} on other systems: {elsewhere}\n", prereq.name)
            }
            Install::Cargo(args) => format!("  cargo {args}\n"),
            Install::Rustup(component) => format!("  rustup component add {component}\n"),
            Install::Own { how, .. } => format!("  {how}\n"),
        };
    }
    text += "and run the command again.";
    text
}

fn apt_packages(missing: &[&Prereq]) -> Vec<&'static str> {
    let packages = missing.iter().filter_map(|prereq| match prereq.install {
        Install::Apt { packages, .. } => Some(packages),
        Install::Cargo(_) | Install::Rustup(_) | Install::Own { .. } => None,
    });
    packages.flat_map(str::split_whitespace).collect()
}

/// Whether a rustup proxy has the tool behind it: proxies exist for components that are not installed.
fn runs(subcommand: &str) -> bool {
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    process::succeeds(&cargo, &[subcommand, "--version"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        for (i, prereq) in PREREQS.iter().enumerate() {
            assert!(PREREQS[..i].iter().all(|earlier| earlier.name != prereq.name));
        }
    }

    #[test]
    fn instructions_name_every_missing_one_and_one_apt_command_for_all() {
        let all: Vec<&Prereq> = PREREQS.iter().collect();
        let text = instructions(&all);
        assert_eq!(text.matches("apt-get install").count(), 1);
        for prereq in PREREQS {
            assert!(text.contains(prereq.name), "{}", prereq.name);
        }
        assert!(text.contains("gcc libc6-dev libclang-dev"));
    }

    #[test]
    fn instructions_for_a_cargo_tool_do_not_mention_apt() {
        let deny: Vec<&Prereq> = PREREQS.iter().filter(|p| p.name == "cargo-deny").collect();
        assert!(!instructions(&deny).contains("apt-get"));
    }
}
