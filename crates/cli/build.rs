//! Hands arguments on to the linker of the program, for `scripts/build-gpu.sh` alone: as flags of the compiler they would
//! have every dependency built again.

fn main() {
    println!("cargo::rerun-if-env-changed=FIRESIGHT_LINK_ARGS");
    for argument in std::env::var("FIRESIGHT_LINK_ARGS").unwrap_or_default().split_whitespace() {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
