//! How the shared library is linked.
#![forbid(unsafe_code)]

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The name that programs written for cuFile ask the loader for.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcufile.so.0");
    // Threads of an engine run code of the library: dlclose must leave it where it is.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    // Libraries below have C functions of their own (crc-fast's, which `object_store` asks for); programs see ours alone.
    println!("cargo::rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
}
