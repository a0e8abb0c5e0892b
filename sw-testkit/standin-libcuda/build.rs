//! Gives the shared library the name that the loader looks for, so that a second `dlopen("libcuda.so.1")` in the
//! same process finds the one that is already there, as with the real driver.
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
}
