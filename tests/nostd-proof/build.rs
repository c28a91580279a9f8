//! Link options of the binary: no C runtime, no libc, nothing to load when it starts.

fn main() {
    for option in ["-nostartfiles", "-nostdlib", "-static", "-no-pie"] {
        println!("cargo:rustc-link-arg-bins={option}");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
