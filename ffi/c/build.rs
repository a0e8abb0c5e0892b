//! How the shared library is linked.
#![forbid(unsafe_code)]

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Programs note this name and look for it at run time; it changes when an old program could not run any more.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libstraightway.so.0");
    // Threads of an engine run code of the library: dlclose must leave it where it is.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    // Libraries below have C functions of their own (crc-fast's, which `object_store` asks for); programs see ours alone.
    println!("cargo::rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
}
