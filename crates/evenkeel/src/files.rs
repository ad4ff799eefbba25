//! Reading the resource files that people name: a file, a folder, or stdin. What stands in them is `manifest`'s to judge.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
};

use evenkeel_model::{
    Definition, ResourceName,
    limits::MAX_FILE,
    manifest::{self, File, ManifestErrors},
};

/// Why there are no resources.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    #[error("{path}: {source}; name a file or folder that exists and can be read")]
    Read { path: String, source: std::io::Error },
    #[error("{path}: has no file that ends in .yaml, .yml or .json")]
    Nothing { path: String },
    #[error(transparent)]
    Manifest(#[from] ManifestErrors),
}

impl FilesError {
    /// One line for each thing that is wrong.
    pub(crate) fn lines(&self) -> Vec<String> {
        match self {
            Self::Manifest(ManifestErrors(errors)) => errors.iter().map(ToString::to_string).collect(),
            other => vec![other.to_string()],
        }
    }
}

/// The resources of a file, of all files of a folder in the order of their names, or of stdin (`-`).
pub(crate) fn read_resources(path: &Path) -> Result<BTreeMap<ResourceName, Definition>, FilesError> {
    let mut contents = Vec::new();
    for file in files(path)? {
        let label = if is_stdin(&file) { "stdin".to_owned() } else { file.display().to_string() };
        let bytes = read(&file).map_err(|source| FilesError::Read { path: label.clone(), source })?;
        contents.push((label, bytes));
    }
    Ok(manifest::read(contents.iter().map(|(label, bytes)| File { label, bytes }))?)
}

/// The resources of a file that a master is to follow: one file, and no folder.
pub(crate) fn read_source(path: &Path) -> Result<BTreeMap<ResourceName, Definition>, String> {
    if is_stdin(path) || path.is_dir() {
        return Err(format!("{}: is no file; name one, which is read again and again", path.display()));
    }
    read_resources(path).map_err(|e| e.to_string())
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn files(path: &Path) -> Result<Vec<PathBuf>, FilesError> {
    if is_stdin(path) || !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let label = path.display().to_string();
    let fail = |source| FilesError::Read { path: label.clone(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let ending = path.extension().and_then(|e| e.to_str());
        if matches!(ending, Some("yaml" | "yml" | "json")) && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    if found.is_empty() { Err(FilesError::Nothing { path: label }) } else { Ok(found) }
}

/// At most one byte more than is allowed: enough to see that it is too much, even of a pipe without end.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let limit = MAX_FILE as u64 + 1;
    let mut bytes = Vec::new();
    if is_stdin(path) {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes)?;
    } else {
        std::fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_follows_a_file_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a.yaml");
        std::fs::write(&file, "{name: a}").expect("written");
        assert_eq!(read_source(&file).map(|found| found.len()), Ok(1));
        for other in [folder.path(), Path::new("-")] {
            assert!(read_source(other).expect_err("refused").contains("is no file"), "{}", other.display());
        }
        assert_eq!(read_resources(folder.path()).expect("a folder of files").len(), 1);
    }
}
