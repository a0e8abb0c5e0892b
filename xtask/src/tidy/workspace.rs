//! What `cargo metadata` says about packages, reduced to what the checks use.
//!
//! Cargo resolves inheritance, renames and target tables for us; reading manifests by hand would not.

use serde_json::Value;

use crate::Stop;

/// Packages of one `cargo metadata` call.
#[derive(Debug, Default)]
pub struct Workspace {
    pub packages: Vec<Package>,
}

/// One package.
#[derive(Debug, Default, Clone)]
pub struct Package {
    pub name: String,
    /// Directory of the manifest below the workspace root; empty for a third-party package.
    pub dir: String,
    /// SPDX expression, if the manifest has one.
    pub licence: Option<String>,
    /// From a registry or git, not from this workspace.
    pub third_party: bool,
    pub dependencies: Vec<Dependency>,
}

/// One line of a manifest's dependency tables.
#[derive(Debug, Clone)]
pub struct Dependency {
    /// The package's name, also when the manifest renames it.
    pub name: String,
    /// From `[dev-dependencies]`.
    pub dev: bool,
}

impl Workspace {
    /// Reads the JSON document.
    ///
    /// # Errors
    /// If it is not the format that cargo documents as version 1.
    pub fn parse(json: &str) -> Result<Workspace, Stop> {
        let unexpected = |what: &str| {
            Stop::new(format!("cargo metadata has no {what}"), "check that cargo is at least the rust-version")
        };
        let root: Value = serde_json::from_str(json)
            .map_err(|error| Stop::new(format!("cargo metadata is not JSON ({error})"), "run it by hand"))?;
        let root_dir =
            root.get("workspace_root").and_then(Value::as_str).ok_or_else(|| unexpected("workspace_root"))?;
        let listed = root.get("packages").and_then(Value::as_array).ok_or_else(|| unexpected("packages"))?;
        let packages = listed.iter().filter_map(|package| Package::parse(package, root_dir)).collect();
        Ok(Workspace { packages })
    }

    pub fn find(&self, name: &str) -> Option<&Package> {
        self.packages.iter().find(|package| package.name == name)
    }
}

impl Package {
    fn parse(value: &Value, root_dir: &str) -> Option<Package> {
        let text = |key: &str| value.get(key).and_then(Value::as_str);
        let manifest = text("manifest_path")?;
        let dir = manifest.strip_prefix(root_dir).and_then(|rest| rest.strip_suffix("/Cargo.toml")).unwrap_or_default();
        let dependencies = value.get("dependencies").and_then(Value::as_array).into_iter().flatten();
        Some(Package {
            name: text("name")?.to_string(),
            dir: dir.trim_start_matches('/').to_string(),
            licence: text("license").map(String::from),
            third_party: text("source").is_some(),
            dependencies: dependencies
                .filter_map(|dependency| {
                    Some(Dependency {
                        name: dependency.get("name")?.as_str()?.to_string(),
                        dev: dependency.get("kind").and_then(Value::as_str) == Some("dev"),
                    })
                })
                .collect(),
        })
    }

    /// Path of a file of this package, relative to the workspace root.
    pub fn path(&self, file: &str) -> String {
        format!("{}/{file}", self.dir)
    }

    /// Whether `path` (relative to the workspace root) belongs to this package and not to one nested in it.
    pub fn owns(&self, path: &str, workspace: &Workspace) -> bool {
        let inside = |package: &Package| {
            path.strip_prefix(package.dir.as_str()).is_some_and(|rest| rest.starts_with('/')) && !package.dir.is_empty()
        };
        inside(self) && !workspace.packages.iter().any(|other| other.dir.len() > self.dir.len() && inside(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"workspace_root": "/w", "packages": [
        {"name": "a", "manifest_path": "/w/a/Cargo.toml", "license": "Apache-2.0", "source": null,
         "dependencies": [{"name": "b", "kind": null}, {"name": "c", "kind": "dev"}]},
        {"name": "n", "manifest_path": "/w/a/nested/Cargo.toml", "source": null, "dependencies": []},
        {"name": "x", "manifest_path": "/r/x/Cargo.toml", "source": "registry", "dependencies": []}]}"#;

    #[test]
    fn reads_packages_and_kinds() {
        let workspace = Workspace::parse(JSON).unwrap();
        let a = workspace.find("a").unwrap();
        assert_eq!((a.dir.as_str(), a.third_party, a.licence.as_deref()), ("a", false, Some("Apache-2.0")));
        let kinds: Vec<_> = a.dependencies.iter().map(|d| (d.name.as_str(), d.dev)).collect();
        assert_eq!(kinds, [("b", false), ("c", true)]);
        assert!(workspace.find("x").unwrap().third_party);
    }

    #[test]
    fn a_nested_package_owns_its_files() {
        let workspace = Workspace::parse(JSON).unwrap();
        let (a, n) = (workspace.find("a").unwrap(), workspace.find("n").unwrap());
        assert!(a.owns("a/src/lib.rs", &workspace));
        assert!(!a.owns("a/nested/src/lib.rs", &workspace));
        assert!(n.owns("a/nested/src/lib.rs", &workspace));
        assert!(!a.owns("ab/src/lib.rs", &workspace));
    }

    #[test]
    fn something_else_is_an_error() {
        assert!(Workspace::parse("{}").is_err());
        assert!(Workspace::parse("no").is_err());
    }
}
