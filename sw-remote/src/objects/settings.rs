//! Who we are and where the stores are: what the environment and a profile of the AWS tools say, and what the caller says over it.

use std::collections::BTreeMap;

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
    /// Those of an environment; names of other things are left out.
    pub fn from_environment(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let of_stores = |(name, _): &(String, String)| FAMILIES.iter().any(|family| name.starts_with(family));
        Self { values: variables.into_iter().filter(of_stores).collect() }
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
        // One source has all of the keys, or none: a session token of one and a secret of another open nothing.
        let has_keys =
            ["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"].iter().any(|name| self.values.contains_key(*name));
        let in_config = if profile == "default" { profile.to_owned() } else { format!("profile {profile}") };
        for (section, text) in [(profile, credentials), (&in_config, config)] {
            for (name, value) in entries_of(text, section) {
                let Some((_, variable, is_key)) = PROFILE.iter().find(|(known, ..)| *known == name) else { continue };
                if !(*is_key && has_keys) {
                    self.values.entry((*variable).to_owned()).or_insert_with(|| value.to_owned());
                }
            }
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

/// What is taken of a profile: its name there, that of the environment, and whether it is one of the keys.
const PROFILE: [(&str, &str, bool); 5] = [
    ("aws_access_key_id", "AWS_ACCESS_KEY_ID", true),
    ("aws_secret_access_key", "AWS_SECRET_ACCESS_KEY", true),
    ("aws_session_token", "AWS_SESSION_TOKEN", true),
    ("region", "AWS_REGION", false),
    ("endpoint_url", "AWS_ENDPOINT_URL", false),
];

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
        Settings::from_environment(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
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
    fn secrets_are_not_shown() {
        assert_eq!(format!("{:?}", of(&[("AWS_SECRET_ACCESS_KEY", "S")])), "{\"AWS_SECRET_ACCESS_KEY\"}");
    }
}
