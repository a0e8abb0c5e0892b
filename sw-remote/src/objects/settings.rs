//! Who we are and where the stores are: what the environment and a profile of the AWS tools say, and what the caller says over it.

use std::{collections::BTreeMap, ffi::OsString};

use object_store::{
    aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
};

/// Settings by their names, those of the environment included. Later ones win over earlier ones.
///
/// Names are those of the environment: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`,
/// `AWS_ENDPOINT_URL_S3`, `AWS_WEB_IDENTITY_TOKEN_FILE`, `AWS_ROLE_ARN`, `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` and so on;
/// `GOOGLE_…`, `AZURE_STORAGE_…`. Where nothing of S3's is said, the instance's metadata service is asked.
#[derive(Clone, Default)]
pub struct Settings {
    values: BTreeMap<String, String>,
}

impl std::fmt::Debug for Settings {
    /// Names only: values are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

/// Beginnings of names that mean something here.
const FAMILIES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

impl Settings {
    /// Those of an environment; names of other things are left out, and values that are no text, which none of these may be: a warning
    /// names them.
    pub fn from_environment(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut values = BTreeMap::new();
        for (name, value) in variables {
            let Some(name) = name.to_str().filter(|name| FAMILIES.iter().any(|family| name.starts_with(family))) else {
                continue;
            };
            match value.into_string() {
                Ok(value) => drop(values.insert(name.to_owned(), value)),
                Err(_) => tracing::warn!(name, "a variable of object stores is left out: its value is not UTF-8"),
            }
        }
        Self { values }
    }

    /// Sets one.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.values.insert(name.to_owned(), value.into());
    }

    /// What one says.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// What a profile of the AWS tools says, where nothing else says it: `credentials` and `config` are the texts of the files
    /// `~/.aws/credentials` and `~/.aws/config`, `profile` the name of the profile.
    pub fn add_profile(&mut self, profile: &str, credentials: &str, config: &str) {
        let in_config = if profile == "default" { profile.to_owned() } else { format!("profile {profile}") };
        let sections = [(profile, credentials), (in_config.as_str(), config)];
        // One source has all of the keys, or none: a session token of one and a secret of another open nothing.
        let mut has_source = SOURCES.iter().any(|name| self.values.contains_key(*name));
        for (section, text) in sections {
            let keys: Vec<_> = named(&KEYS, text, section).collect();
            if !has_source && keys.iter().any(|(variable, _)| SOURCES.contains(variable)) {
                has_source = true;
                KEYS.iter().for_each(|(_, variable)| drop(self.values.remove(*variable)));
                self.values.extend(keys.into_iter().map(|(variable, value)| (variable.to_owned(), value.to_owned())));
            }
        }
        for (variable, value) in sections.iter().flat_map(|(section, text)| named(&PLACES, text, section)) {
            self.values.entry(variable.to_owned()).or_insert_with(|| value.to_owned());
        }
    }

    fn family<'a>(&'a self, family: &'a str) -> impl Iterator<Item = (String, &'a str)> {
        let of_it = self.values.iter().filter(move |(name, _)| name.starts_with(family));
        of_it.map(|(name, value)| (name.to_ascii_lowercase(), value.as_str()))
    }

    pub(super) fn s3(&self, builder: AmazonS3Builder, bucket: &str) -> AmazonS3Builder {
        let mut builder = builder.with_bucket_name(bucket);
        for (name, value) in self.family("AWS_") {
            // AWS_PROFILE and the like are no settings of a bucket; "none" is our word for no checksums.
            if let Ok(key) = name.parse::<AmazonS3ConfigKey>()
                && (name.as_str(), value) != ("aws_checksum_algorithm", "none")
            {
                builder = builder.with_config(key, value);
            }
        }
        let endpoint = self
            .get("AWS_ENDPOINT_URL_S3")
            .or_else(|| self.get("AWS_ENDPOINT_URL"))
            .or_else(|| self.get("AWS_ENDPOINT"));
        if let Some(endpoint) = endpoint {
            // Whoever writes http means it.
            builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
        }
        if self.get("AWS_CHECKSUM_ALGORITHM").is_none() {
            builder = builder.with_checksum_algorithm(Checksum::CRC64NVME);
        }
        builder
    }

    pub(super) fn gcs(&self, mut builder: GoogleCloudStorageBuilder) -> GoogleCloudStorageBuilder {
        for (name, value) in self.family("GOOGLE_") {
            if let Ok(key) = name.parse::<GoogleConfigKey>() {
                builder = builder.with_config(key, value);
            }
        }
        builder
    }

    pub(super) fn azure(&self, mut builder: MicrosoftAzureBuilder) -> MicrosoftAzureBuilder {
        for (name, value) in self.family("AZURE_") {
            if let Ok(key) = name.parse::<AzureConfigKey>() {
                builder = builder.with_config(key, value);
            }
        }
        builder
    }
}

/// What makes a source of keys one: without it, the rest of them opens nothing.
const SOURCES: [&str; 4] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];
/// Keys of a profile: the name there, and that of the environment.
const KEYS: [(&str, &str); 3] = [
    ("aws_access_key_id", "AWS_ACCESS_KEY_ID"),
    ("aws_secret_access_key", "AWS_SECRET_ACCESS_KEY"),
    ("aws_session_token", "AWS_SESSION_TOKEN"),
];
/// What else is taken of a profile.
const PLACES: [(&str, &str); 2] = [("region", "AWS_REGION"), ("endpoint_url", "AWS_ENDPOINT_URL")];

/// The entries of a section that have a name among these, by the environment's names.
fn named<'a>(
    names: &'a [(&'static str, &'static str)],
    text: &'a str,
    section: &'a str,
) -> impl Iterator<Item = (&'static str, &'a str)> {
    entries_of(text, section).filter_map(|(name, value)| {
        names.iter().find(|(known, _)| *known == name).map(|(_, variable)| (*variable, value))
    })
}

/// The entries of a section, as the AWS tools write them: `name = value`, no quotes, comments with `#` or `;`. Lines that begin with a
/// blank belong to the entry above them.
fn entries_of<'a>(text: &'a str, section: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let mut inside = false;
    text.lines().filter_map(move |line| {
        if line.starts_with([' ', '\t', '#', ';']) {
            return None;
        }
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = name.trim() == section;
            return None;
        }
        let (name, value) = line.split_once('=')?;
        inside.then_some((name.trim(), value.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "[default]\naws_access_key_id = A1\naws_secret_access_key=S1 # x\n\n[other]\naws_access_key_id=A2\n \
                               aws_secret_access_key=indented\naws_secret_access_key = S2\naws_session_token = T2\n";
    const CONFIG: &str = "[default]\nregion = eu-1\ns3 =\n  max_concurrent_requests = 20\n[profile other]\nregion=eu-2\nendpoint_url = http://h\n";

    fn of(pairs: &[(&str, &str)]) -> Settings {
        Settings::from_environment(pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())))
    }

    #[test]
    fn what_is_no_text_is_left_out() {
        use std::os::unix::ffi::OsStringExt;
        let odd = || OsString::from_vec(vec![b'A', 0xff]);
        let settings = Settings::from_environment([
            ("AWS_REGION".into(), odd()),
            (odd(), "value".into()),
            ("AWS_ACCESS_KEY_ID".into(), "A".into()),
        ]);
        assert_eq!(settings.values.into_keys().collect::<Vec<_>>(), ["AWS_ACCESS_KEY_ID"]);
    }

    #[test]
    fn a_profile_says_what_nothing_else_says() {
        let mut settings = Settings::default();
        settings.add_profile("other", CREDENTIALS, CONFIG);
        let said: Vec<&str> = settings.values.values().map(String::as_str).collect();
        assert_eq!(said, ["A2", "http://h", "eu-2", "S2", "T2"]);
        let mut settings = of(&[("AWS_REGION", "mine"), ("PATH", "/bin")]);
        settings.add_profile("default", CREDENTIALS, CONFIG);
        assert_eq!(settings.get("AWS_REGION"), Some("mine"));
        assert_eq!(settings.get("AWS_ACCESS_KEY_ID"), Some("A1"));
        assert_eq!(settings.get("PATH"), None);
    }

    #[test]
    fn keys_come_from_one_source() {
        let mut settings = of(&[("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "S")]);
        settings.add_profile("other", CREDENTIALS, CONFIG);
        assert_eq!(settings.get("AWS_SESSION_TOKEN"), None);
        assert_eq!(settings.get("AWS_REGION"), Some("eu-2"));
    }

    #[test]
    fn keys_come_from_one_file_and_replace_what_is_left_of_others() {
        // A secret and a token of nobody's, the keys in one file, and a token in the other.
        let mut settings = of(&[("AWS_SECRET_ACCESS_KEY", "old"), ("AWS_SESSION_TOKEN", "old")]);
        let credentials = "[a]\naws_access_key_id = A\naws_secret_access_key = S\n";
        settings.add_profile("a", credentials, "[profile a]\naws_session_token = T\naws_access_key_id = B\n");
        let keys = |settings: &Settings| KEYS.map(|(_, name)| settings.get(name).map(str::to_owned));
        assert_eq!(keys(&settings), [Some("A".to_owned()), Some("S".to_owned()), None]);
        // Those of the config file, where the other has half of them.
        let mut settings = Settings::default();
        let config = "[profile a]\naws_access_key_id = B\naws_secret_access_key = S\n";
        settings.add_profile("a", "[a]\naws_session_token = T\n", config);
        assert_eq!(keys(&settings), [Some("B".to_owned()), Some("S".to_owned()), None]);
        // A container's go before a file's.
        let mut settings = of(&[("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/a")]);
        settings.add_profile("a", credentials, "");
        assert_eq!(keys(&settings), [None, None, None]);
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(format!("{:?}", of(&[("AWS_SECRET_ACCESS_KEY", "S")])), "{\"AWS_SECRET_ACCESS_KEY\"}");
    }
}
