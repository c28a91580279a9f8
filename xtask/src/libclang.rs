//! Finding libclang where bindgen will look for it.
//!
//! The same places as the crate `clang-sys` searches: `LIBCLANG_PATH` alone if it is set, else the
//! directory `llvm-config` names, the library path, and the system's library directories.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::process;

/// Whether bindgen will find a libclang it can use.
pub(crate) fn found() -> bool {
    if let Some(path) = env::var_os("LIBCLANG_PATH") {
        let path = PathBuf::from(path);
        return path.is_file() || libraries(&path).next().is_some();
    }
    let headers_elsewhere =
        process::find_program("clang").is_some() || cfg!(not(target_os = "linux"));
    directories()
        .iter()
        .flat_map(|directory| libraries(directory))
        .any(|library| headers_elsewhere || has_compiler_headers(&library))
}

/// The directories to search.
fn directories() -> Vec<PathBuf> {
    let mut directories = Vec::new();
    let llvm_config = env::var("LLVM_CONFIG_PATH").unwrap_or_else(|_| "llvm-config".into());
    if let Some(prefix) = process::output(&llvm_config, &["--prefix"]) {
        directories.extend(["lib", "lib64", "bin"].map(|name| Path::new(&prefix).join(name)));
    }
    for variable in ["LD_LIBRARY_PATH", "LIBRARY_PATH"] {
        directories.extend(env::split_paths(&env::var_os(variable).unwrap_or_default()));
    }
    if cfg!(target_os = "macos") {
        let developer = process::output("xcode-select", &["--print-path"]).unwrap_or_default();
        let toolchain = "Toolchains/XcodeDefault.xctoolchain/usr/lib";
        directories.push(Path::new(&developer).join(toolchain));
        directories.push("/Library/Developer/CommandLineTools/usr/lib".into());
        directories.push("/opt/homebrew/opt/llvm/lib".into());
        directories.push("/usr/local/opt/llvm/lib".into());
    }
    // Debian keeps it in /usr/lib/llvm-14/lib and /usr/lib/x86_64-linux-gnu, Fedora in /usr/lib64.
    for base in ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64"].map(PathBuf::from)
    {
        directories.extend(entries(&base).map(|directory| directory.join("lib")));
        directories.extend(entries(&base));
        directories.push(base);
    }
    directories
}

/// The libclang libraries in a directory, such as `libclang.so`, `libclang-14.so.1`.
fn libraries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    entries(directory).filter(|file| file.file_name().is_some_and(is_libclang) && file.is_file())
}

fn is_libclang(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    // libclang-cpp is the C++ library, and of no use to bindgen.
    let versioned = name.starts_with("libclang-") && !name.starts_with("libclang-cpp");
    (name.starts_with("libclang.") || versioned)
        && (name.ends_with(".so")
            || name.contains(".so.")
            || name.ends_with(".dylib")
            || name.ends_with(".dll"))
}

/// Whether the compiler's own headers (`stdarg.h`, which sqlite3.h includes) lie beside the library.
/// Debian's bare `libclang1` brings none, and bindgen would then fail on the first `#include`.
fn has_compiler_headers(library: &Path) -> bool {
    let library = fs::canonicalize(library).unwrap_or_else(|_| library.to_owned());
    let beside = library.parent().map(|directory| directory.join("clang"));
    beside
        .into_iter()
        .chain(["/usr/lib/clang".into()])
        .flat_map(|resources| entries(&resources).collect::<Vec<_>>())
        .any(|version| version.join("include/stdarg.h").is_file())
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_c_interface_counts_as_libclang() {
        for name in ["libclang.so", "libclang-14.so.1", "libclang.so.18", "libclang.dylib"] {
            assert!(is_libclang(name.as_ref()), "{name}");
        }
        for name in ["libclang-cpp.so.14", "libclangAST.a", "libclang.a", "libc.so", "clang"] {
            assert!(!is_libclang(name.as_ref()), "{name}");
        }
    }
}
