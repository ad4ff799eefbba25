//! The catalog: what a name without a kind means on this worker.
//!
//! The wheel: beside worker::driver. Read once, at the start. A name that it does not know is of the registry's default kind. What a spec
//! may say is not known here: the driver of its kind knows.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use evenkeel_model::{Assignment, ResourceName, Spec};
use serde::{Deserialize, Deserializer, de};

use super::Registry;

/// What a name means.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    kind: String,
    #[serde(default, deserialize_with = "judged")]
    spec: Spec,
}

/// A person writes it here, so it is judged as in a resource.
fn judged<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Spec, D::Error> {
    Spec::from_value(serde_json::Value::deserialize(deserializer)?).map_err(de::Error::custom)
}

/// Names and what they mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog(BTreeMap<ResourceName, Entry>);

/// What is wrong with a catalog.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// It cannot be read.
    #[error("--catalog {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It does not say what a catalog says.
    #[error("--catalog {}: {reason}; it is a map from names to {{kind, spec}}, as YAML or JSON", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What and where.
        reason: String,
    },
    /// A kind that no driver of this worker has.
    #[error("--catalog {}: {name} is of kind {kind:?}; this worker has the drivers {known}", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// The entry.
        name: ResourceName,
        /// Its kind.
        kind: String,
        /// What there is.
        known: String,
    },
}

impl Catalog {
    /// Reads a file, and asks the drivers of this worker whether they take what it says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(path: &Path, registry: &Registry) -> Result<Self, CatalogError> {
        let path = path.to_owned();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) => return Err(CatalogError::File { path, source }),
        };
        let entries =
            if text.trim().is_empty() { Ok(BTreeMap::new()) } else { serde_saphyr::from_str::<BTreeMap<ResourceName, Entry>>(&text) };
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => return Err(CatalogError::Content { path, reason: first_line(&error.to_string()) }),
        };
        for (name, entry) in &entries {
            let Some(driver) = registry.get(&entry.kind) else {
                return Err(CatalogError::Kind { path, name: name.clone(), kind: entry.kind.clone(), known: registry.kinds().join(", ") });
            };
            if let Err(error) = driver.grace(&entry.spec) {
                return Err(CatalogError::Content { path, reason: format!("{name}: {error}") });
            }
        }
        Ok(Self(entries))
    }

    /// The kind and the spec that an assignment comes to.
    #[must_use]
    pub fn resolve(&self, name: &ResourceName, assignment: &Assignment) -> (String, Spec) {
        if !assignment.kind.is_empty() {
            return (assignment.kind.clone(), assignment.spec.clone());
        }
        match self.0.get(name) {
            Some(entry) => (entry.kind.clone(), entry.spec.clone()),
            None => (Registry::DEFAULT_KIND.to_owned(), assignment.spec.clone()),
        }
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use evenkeel_model::{DriverTraits, Hash, Phase};
    use serde_json::json;

    use super::*;
    use crate::driver::{Answer, Driver, Handle, Noop, Observer, SpecError, Survivor, Work};

    /// It takes no spec that has a field of this name.
    struct Picky;

    impl Driver for Picky {
        fn kind(&self) -> &str {
            "picky"
        }
        fn traits(&self) -> DriverTraits {
            DriverTraits::default()
        }
        fn grace(&self, spec: &Spec) -> Result<Duration, SpecError> {
            let wrong = spec.as_str().contains("wrong").then(|| SpecError("spec.wrong: unknown field; use right".to_owned()));
            wrong.map_or(Ok(Duration::ZERO), Err)
        }
        fn start(&self, _: Work, observer: Observer) -> Result<Box<dyn Handle>, (SpecError, Observer)> {
            Err((SpecError(String::new()), observer))
        }
        fn survivors(&self) -> Answer<'_, Vec<Survivor>> {
            Box::pin(async { Ok(Vec::new()) })
        }
        fn end<'a>(&'a self, _: &'a Survivor) -> Answer<'a, ()> {
            Box::pin(async { Ok(()) })
        }
    }

    fn registry() -> Registry {
        Registry::default().with(Arc::new(Noop)).expect("noop").with(Arc::new(Picky)).expect("picky")
    }

    fn read(text: &str) -> Result<Catalog, String> {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), text).expect("write");
        Catalog::read(file.path(), &registry()).map_err(|e| e.to_string().replace(&file.path().display().to_string(), "FILE"))
    }

    fn resolve(catalog: &Catalog, name: &str, kind: &str) -> (String, String) {
        let assignment = Assignment {
            kind: kind.to_owned(),
            spec: Spec::default(),
            require: evenkeel_model::Selector::EMPTY,
            hash: Hash::default(),
            holds: evenkeel_model::Holds::Strict,
            phase: Phase::Run,
        };
        let (kind, spec) = catalog.resolve(&ResourceName::new(name).expect("name"), &assignment);
        (kind, spec.as_str().to_owned())
    }

    #[test]
    fn a_name_without_a_kind_means_what_the_catalog_says() {
        let yaml = "a:\n  kind: picky\n  spec:\n    command: [sleep, '1']\nb: {kind: noop}\n";
        let json = json!({"a": {"kind": "picky", "spec": {"command": ["sleep", "1"]}}, "b": {"kind": "noop"}}).to_string();
        assert_eq!(read(yaml), read(&json));
        let catalog = read(yaml).expect("catalog");
        assert_eq!(resolve(&catalog, "a", ""), ("picky".into(), r#"{"command":["sleep","1"]}"#.into()));
        assert_eq!(resolve(&catalog, "unknown", ""), ("noop".into(), String::new()));
        assert_eq!(resolve(&catalog, "a", "noop"), ("noop".into(), String::new()), "its own kind counts");
        assert_eq!(read(""), Ok(Catalog::default()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("a: {kind: docker}", "--catalog FILE: a is of kind \"docker\"; this worker has the drivers noop, picky"),
            ("a: {kind: picky, spec: {wrong: 1}}", "--catalog FILE: a: spec.wrong: unknown field; use right; it is a map"),
            ("a: {kind: noop, sepc: {}}", "unknown field `sepc`"),
            ("a: 3", "--catalog FILE: "),
            ("a: {kind: noop, spec: {n: 9007199254740993}}", "cannot be held exactly by every client"),
            ("a b: {kind: noop}", "has ' ' at position 2"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(expected), "{error}");
        }
        let missing = Catalog::read(Path::new("/none/x.yaml"), &registry()).expect_err("missing").to_string();
        assert!(missing.starts_with("--catalog /none/x.yaml: No such file"), "{missing}");
    }
}
