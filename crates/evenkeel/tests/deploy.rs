//! What stands in deploy/ and in the compose file beside the sources agrees with them. What runs is tried by `make compose-test`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A crate whose manifest is left out breaks the layer of dependencies, and nobody sees it who does not build the image.
#[test]
fn the_image_is_built_from_the_manifest_of_each_crate() {
    let dockerfile = read("deploy/docker/Dockerfile");
    let crates = fs::read_dir(root().join("crates")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    for name in crates {
        let line = format!("COPY crates/{name}/Cargo.toml crates/{name}/");
        assert!(dockerfile.lines().any(|found| found == line), "deploy/docker/Dockerfile lacks: {line}");
    }
}

/// What a source includes from outside of crates/ is there when the image is built.
#[test]
fn the_image_is_built_with_what_sources_include() {
    let (dockerfile, let_through) = (read("deploy/docker/Dockerfile"), read(".dockerignore"));
    let mut found = 0;
    let mut folders = vec![root().join("crates")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.extend((path.file_name().unwrap() != "tests").then_some(path));
                continue;
            }
            let text = fs::read_to_string(&path).unwrap_or_default();
            for include in text.split("include_str!(\"").skip(1) {
                let outside = include.split('"').next().unwrap().trim_start_matches("../");
                let Some((folder, _)) = outside.split_once('/').filter(|_| root().join(outside).exists()) else { continue };
                found += 1;
                assert!(dockerfile.contains(&format!("COPY {folder} {folder}\n")), "{}: {outside} is not copied", path.display());
                assert!(let_through.lines().any(|line| line == format!("!{outside}")), "{}: .dockerignore keeps {outside}", path.display());
            }
        }
    }
    assert!(found > 0, "dev includes its examples");
}

#[test]
fn images_bear_the_version_of_the_sources() {
    let version = env!("CARGO_PKG_VERSION");
    assert!(read("deploy/docker/Dockerfile").contains(&format!("org.opencontainers.image.version=\"{version}\"")));
    let compose = read("docker-compose.yml");
    for role in ["master", "worker"] {
        let image = format!("evenkeel/{role}:");
        let versions: Vec<&str> = compose.split(&image).skip(1).map(|rest| rest.split([' ', '\n']).next().unwrap()).collect();
        assert!(!versions.is_empty());
        assert!(versions.iter().all(|found| found.trim_end_matches('.') == version), "{image} {versions:?}");
    }
}
