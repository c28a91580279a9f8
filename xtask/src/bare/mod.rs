//! `cargo xtask bare`: the core on machines without an operating system.
//!
//! ```text
//!  targets   compiled for every target in [`TARGETS`], without and with an allocator
//!  tests     the core's own, with 32 and 64 bits, without allocator, with it, with std
//!  sizes     what a sender takes of a Cortex-M, against the table in the documentation
//!  machines  a Cortex-M and a virtual machine without an operating system, against a sequencer
//! ```

mod elf;
pub(crate) mod toolchain;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::Failure;
use crate::prereqs;
use crate::process;
use crate::vm;
use elf::Elf;

/// Prerequisites of the command.
pub(crate) const NEEDS: &[&str] =
    &["cc", "libclang", "bare-rustc", "libc-32", "qemu-system-arm", "qemu-system-x86", "vm-vsock"];

/// What the core has to compile for. The first ones have no atomic operations beyond loads and
/// stores, or none at all.
const TARGETS: &[&str] = &[
    "thumbv6m-none-eabi",
    "riscv32imc-unknown-none-elf",
    "thumbv7m-none-eabi",
    "thumbv7em-none-eabihf",
    "riscv32imac-unknown-none-elf",
    "aarch64-unknown-none",
    "x86_64-unknown-none",
    "wasm32-unknown-unknown",
];
const CORTEX_M: &str = "thumbv7m-none-eabi";
const GUEST: &str = "x86_64-unknown-none";
const HOST_32: &str = "i686-unknown-linux-gnu";

/// By how much of itself a figure of flash may differ from the documented one: compilers differ.
const TOLERANCE_PERCENT: u64 = 10;

const HELP: &str = "\
Usage: cargo xtask bare [PART…]

Parts, all of them by default:
targets   compile the core for targets without an operating system
tests     run its own tests, with 32 and 64 bits
sizes     print what a sender takes of a Cortex-M, and compare with synddb-core/SIZES.md
machines  run the examples cortex-m and bare-guest under QEMU against a sequencer";

type Part = fn() -> Result<(), Failure>;

const PARTS: &[(&str, Part)] =
    &[("targets", targets), ("tests", tests), ("sizes", sizes), ("machines", machines)];

/// `cargo xtask bare [PART…]`.
pub(crate) fn bare(args: &[String]) -> Result<(), Failure> {
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        println!("{HELP}");
        return Ok(());
    }
    if let Some(arg) = args.iter().find(|arg| PARTS.iter().all(|(name, _)| name != arg)) {
        return Err(Failure::Usage(format!("bare has no part `{arg}`\n\n{HELP}")));
    }
    prereqs::ensure(NEEDS.iter().copied())?;
    for (name, part) in PARTS {
        if args.is_empty() || args.iter().any(|arg| arg == name) {
            part()?;
        }
    }
    Ok(())
}

fn targets() -> Result<(), Failure> {
    for features in ["", "alloc"] {
        let mut check = debian_cargo("check")?;
        check.args(["--quiet", "--package", "synddb-core", "-Zbuild-std=core,alloc"]);
        check.args(["--features", features]);
        TARGETS.iter().for_each(|target| {
            check.args(["--target", target]);
        });
        process::run(check)?;
        let features = if features.is_empty() { "no allocator" } else { "allocator" };
        println!("compiles with {features}: {}", TARGETS.join(", "));
    }
    Ok(())
}

fn tests() -> Result<(), Failure> {
    let test = |mut cargo: Command, features: &str| {
        cargo.args(["--quiet", "--package", "synddb-core", "--lib", "--test", "sizes"]);
        cargo.args(["--features", features]);
        process::run(cargo)
    };
    for features in ["", "alloc", "std"] {
        println!("tests with 64 bits and features [{features}]");
        let mut cargo = process::cargo();
        cargo.current_dir(process::root()).arg("test");
        test(cargo, features)?;
    }
    for features in ["", "alloc"] {
        println!("tests with 32 bits and features [{features}]");
        let mut cargo = debian_cargo("test")?;
        cargo.args(["--target", HOST_32, "-Zbuild-std=std,test"]);
        // The linker of the target's own kind.
        cargo.env_remove("CARGO_TARGET_I686_UNKNOWN_LINUX_GNU_LINKER");
        test(cargo, features)?;
    }
    Ok(())
}

fn sizes() -> Result<(), Failure> {
    let elf = Elf::read(&build_cortex_m()?.with_file_name("minimal"))?;
    let laid_out = elf.words(".synddb_sizes")?;
    let flash = elf.size(&[".vector_table", ".text", ".rodata", ".data"]);
    let memory = elf.size(&[".data", ".bss"]);
    let path = process::root().join("synddb-core/SIZES.md");
    let text = fs::read_to_string(&path)
        .map_err(|error| Failure::File(path.display().to_string(), error))?;
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("| "))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    println!("\n{:<52} {:>12} {:>10}", "bytes of memory", "Cortex-M", "told");
    let mut right = true;
    let types = rows.iter().filter(|row| row[0].starts_with('`'));
    for (row, size) in types.zip(&laid_out) {
        println!("{:<52} {size:>12} {:>10}", row[0], row[1]);
        right &= row[1].parse() == Ok(*size);
    }
    println!("{:<52}", "the minimal sender");
    for (name, size) in [("flash", flash), ("memory beside the stack", memory)] {
        let row = rows.iter().find(|row| row[0] == name);
        let told = row.and_then(|row| row[1].parse::<u64>().ok()).unwrap_or(0);
        println!("{name:<52} {size:>12} {told:>10}");
        right &= size.abs_diff(told) * 100 <= told * TOLERANCE_PERCENT;
    }
    if right {
        return Ok(());
    }
    Err(Failure::Check(
        "the sizes are not those in synddb-core/SIZES.md: correct what grew, or the table".into(),
    ))
}

fn machines() -> Result<(), Failure> {
    let cortex_m = build_cortex_m()?;
    let guest = build_guest()?;
    let mut check = process::cargo();
    check.current_dir(process::root());
    check.args(["run", "--quiet", "--package", "synddb-tests", "--bin", "bare-machines", "--"]);
    check.arg(cortex_m).arg(guest).arg(vm::device::program());
    process::run(check)
}

fn build_cortex_m() -> Result<PathBuf, Failure> {
    let mut build = debian_cargo("build")?;
    build.args(["--quiet", "--release", "-Zbuild-std=core", "--target", CORTEX_M]);
    build.current_dir(process::root().join("examples/cortex-m"));
    process::run(build)?;
    Ok(target_dir().join(CORTEX_M).join("release/cortex-m-example"))
}

fn build_guest() -> Result<PathBuf, Failure> {
    let mut build = debian_cargo("build")?;
    build.args(["--quiet", "--release", "--target", GUEST]);
    build.args(["-Zbuild-std=core,alloc", "-Zbuild-std-features=compiler-builtins-mem"]);
    build.env(
        "CARGO_TARGET_X86_64_UNKNOWN_NONE_RUSTFLAGS",
        "-Crelocation-model=static -Ccode-model=small",
    );
    build.current_dir(process::root().join("examples/bare-guest"));
    process::run(build)?;
    Ok(target_dir().join(GUEST).join("release/bare-guest-example"))
}

/// Cargo with Debian's compiler, which may build the standard library from its sources.
fn debian_cargo(command: &str) -> Result<Command, Failure> {
    let mut cargo = process::cargo();
    cargo.current_dir(process::root());
    cargo.arg(command).arg("--target-dir").arg(target_dir());
    // A stable compiler takes -Z options so.
    cargo.env("RUSTC", toolchain::rustc()).env("RUSTC_BOOTSTRAP", "1");
    let linker = linker()?;
    for target in [CORTEX_M, GUEST] {
        let name = target.to_uppercase().replace('-', "_");
        cargo.env(format!("CARGO_TARGET_{name}_LINKER"), &linker);
    }
    Ok(cargo)
}

/// Apart from what other compilers made.
fn target_dir() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    process::root().join(target.unwrap_or_else(|| "target".into())).join("bare")
}

/// Debian's compiler comes without a linker for these targets: the one beside our own, or LLVM's.
fn linker() -> Result<PathBuf, Failure> {
    let ours = process::output("rustc", &["--print", "target-libdir"]);
    let ours = ours.map(|dir| Path::new(&dir).with_file_name("bin").join("rust-lld"));
    ours.filter(|path| path.is_file()).or_else(|| process::find_program("ld.lld")).ok_or_else(|| {
        Failure::Prerequisites(
            "a linker for targets without an operating system is missing: use a toolchain of rustup, \
             or install lld"
                .into(),
        )
    })
}
