//! Generates the types and the encoded descriptors. Needs `protoc` and its include files, which `make` installs.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let descriptors = PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.bin");
    println!("cargo:rerun-if-changed={}", root.display());
    let files = [
        "crawler.proto",
        "evenkeel/v1/resource.proto",
        "evenkeel/v1/source.proto",
        "evenkeel/v1/task.proto",
        "evenkeel/v1/master.proto",
        "evenkeel/v1/worker.proto",
    ];
    // The generated file keeps the HTTP options only here: prost drops them from the Rust types.
    tonic_prost_build::configure().file_descriptor_set_path(descriptors).compile_protos(&files.map(|f| root.join(f)), &[root])?;
    Ok(())
}
