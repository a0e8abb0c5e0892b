//! Who we are and where the stores are: what the environment and a profile of the AWS tools say, and what the caller says over it.

use std::{collections::BTreeMap, ffi::OsString};

use object_store::{
    aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredential, Checksum},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
};
use url::{Host, Url};

use crate::address::Scheme;

/// Settings by their names, those of the environment included. Later ones win over earlier ones.
///
/// Names are those of the environment: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`,
/// `AWS_ENDPOINT_URL_S3`, `AWS_WEB_IDENTITY_TOKEN_FILE`, `AWS_ROLE_ARN`, `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` and so on;
/// `GOOGLE_…`, `AZURE_STORAGE_…`; `AIS_ENDPOINT`, `AIS_AUTHN_TOKEN`. Where nothing of S3's is said, the instance's metadata service is asked.
#[derive(Clone, Default)]
pub struct Settings {
    values: BTreeMap<String, String>,
    profile: Profile,
}

/// What a profile is to the keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Profile {
    /// Nothing.
    #[default]
    Silent,
    /// They are its.
    Keys,
    /// It names a way to keys that is not built.
    Unbuilt(String),
}

/// Who has the keys of S3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeysFrom {
    /// They are said, or whom to ask is.
    Named,
    /// The instance's metadata service, if there is one.
    Instance,
    /// Nobody: the instance is not to be asked.
    Nobody,
}

impl std::fmt::Debug for Settings {
    /// Names only: values are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

/// Beginnings of names that mean something here.
const FAMILIES: [&str; 4] = ["AWS_", "GOOGLE_", "AZURE_", "AIS_"];

impl Settings {
    /// Those of an environment; names of other things are left out, and values that are no text, which none of these may be: a warning
    /// names them. One that is empty says nothing.
    pub fn from_environment(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut values = BTreeMap::new();
        for (name, value) in variables {
            let Some(name) = name.to_str().filter(|name| FAMILIES.iter().any(|family| name.starts_with(family))) else {
                continue;
            };
            match value.into_string() {
                Ok(value) if value.is_empty() => {}
                Ok(value) => drop(values.insert(name.to_owned(), value)),
                Err(_) => tracing::warn!(name, "a variable of object stores is left out: its value is not UTF-8"),
            }
        }
        Self { values, profile: Profile::Silent }
    }

    /// Sets one.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.values.insert(name.to_owned(), value.into());
    }

    /// What tells places at one host and port apart: the path of S3's endpoint, the names and values that say where others are.
    pub(super) fn below(&self, scheme: Scheme) -> String {
        if scheme == Scheme::S3 {
            let path = self.s3_endpoint().and_then(|endpoint| Some(Url::parse(endpoint).ok()?.path().to_owned()));
            return path.unwrap_or_default().trim_end_matches('/').to_owned();
        }
        let family = if scheme == Scheme::Azure { "AZURE_" } else { "GOOGLE_" };
        let is_place = |name: &str| {
            name.starts_with(family) && (name.contains("ENDPOINT") || name == "AZURE_STORAGE_ACCOUNT_NAME")
        };
        let places = self.values.iter().filter(|(name, _)| is_place(name));
        places.map(|(name, value)| format!("\n{name}={value}")).collect()
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
        if !SOURCES.iter().any(|name| self.values.contains_key(*name)) {
            self.profile = self.add_keys(profile, &sections);
        }
        let has_region = self.values.contains_key("AWS_DEFAULT_REGION");
        for (variable, value) in sections.iter().flat_map(|(section, text)| named(&PLACES, text, section)) {
            if variable != "AWS_REGION" || !has_region {
                self.values.entry(variable.to_owned()).or_insert_with(|| value.to_owned());
            }
        }
    }

    /// Takes the keys of a profile, in the order of the AWS tools: a role goes before keys.
    fn add_keys(&mut self, profile: &str, sections: &[(&str, &str)]) -> Profile {
        let names = |wanted: &'static [&'static str]| {
            let of =
                move |(section, text): &(&str, &str)| entries_of(text, section).any(|(name, _)| wanted.contains(&name));
            sections.iter().any(of)
        };
        let unbuilt =
            |how: &str| Profile::Unbuilt(format!("the profile {profile} has its keys by {how}, which is not built"));
        let identity: Vec<_> = sections.iter().flat_map(|(section, text)| named(&IDENTITY, text, section)).collect();
        let is_named = |wanted: &str| identity.iter().any(|(variable, _)| *variable == wanted);
        let taken = if is_named("AWS_WEB_IDENTITY_TOKEN_FILE") && is_named("AWS_ROLE_ARN") {
            identity
        } else if is_named("AWS_ROLE_ARN") {
            return unbuilt("another's role (role_arn)");
        } else if names(&["sso_session", "sso_start_url"]) {
            return unbuilt("a single sign-on (sso_session)");
        } else {
            let of_each = sections.iter().map(|(section, text)| named(&KEYS, text, section).collect::<Vec<_>>());
            let first = of_each.into_iter().find(|keys| keys.iter().any(|(variable, _)| SOURCES.contains(variable)));
            match first {
                Some(keys) => keys,
                None if names(&["credential_process"]) => return unbuilt("a program (credential_process)"),
                None => return Profile::Silent,
            }
        };
        KEYS.iter().for_each(|(_, variable)| drop(self.values.remove(*variable)));
        self.values.extend(taken.into_iter().map(|(variable, value)| (variable.to_owned(), value.to_owned())));
        Profile::Keys
    }

    /// The keys that it says, if it says all of them.
    pub(super) fn keys(&self) -> Option<AwsCredential> {
        let text = |name| self.get(name).map(str::to_owned);
        let (key_id, secret_key) = (text("AWS_ACCESS_KEY_ID")?, text("AWS_SECRET_ACCESS_KEY")?);
        Some(AwsCredential { key_id, secret_key, token: text("AWS_SESSION_TOKEN") })
    }

    /// Those of a profile's files, which may change.
    pub(super) fn profile_keys(&self) -> Option<AwsCredential> {
        self.keys().filter(|_| self.profile == Profile::Keys)
    }

    /// Who has the keys of S3, where they are not said.
    pub(super) fn keys_from(&self) -> KeysFrom {
        if SOURCES.iter().any(|name| self.values.contains_key(*name)) {
            KeysFrom::Named
        } else if self.is_on("AWS_EC2_METADATA_DISABLED") {
            KeysFrom::Nobody
        } else {
            KeysFrom::Instance
        }
    }

    fn is_on(&self, name: &str) -> bool {
        let value = self.get(name).unwrap_or_default().to_ascii_lowercase();
        matches!(value.as_str(), "1" | "true" | "on" | "yes" | "y")
    }

    fn family<'a>(&'a self, family: &'a str) -> impl Iterator<Item = (String, &'a str)> {
        let of_it = self.values.iter().filter(move |(name, _)| name.starts_with(family));
        of_it.map(|(name, value)| (name.to_ascii_lowercase(), value.as_str()))
    }

    fn s3_endpoint(&self) -> Option<&str> {
        ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"].into_iter().find_map(|name| self.get(name))
    }

    /// Whether S3 is asked without TLS.
    pub(super) fn is_s3_plain(&self) -> bool {
        self.s3_endpoint().is_some_and(|endpoint| endpoint.starts_with("http://"))
    }

    /// What makes the bucket's client.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn s3(&self, builder: AmazonS3Builder, bucket: &str) -> Result<AmazonS3Builder, String> {
        if let Profile::Unbuilt(text) = &self.profile
            && !self.is_on("AWS_SKIP_SIGNATURE")
        {
            return Err(text.clone());
        }
        // One DELETE an object: the answer to many names may name others.
        let mut builder = builder.with_bucket_name(bucket).with_disable_bulk_delete(true);
        for (name, value) in self.family("AWS_") {
            // AWS_PROFILE and the like are no settings of a bucket; "none" is our word for no checksums.
            if let Ok(key) = name.parse::<AmazonS3ConfigKey>()
                && (name.as_str(), value) != ("aws_checksum_algorithm", "none")
            {
                builder = builder.with_config(key, value);
            }
        }
        let region = self.get("AWS_REGION").or_else(|| self.get("AWS_DEFAULT_REGION")).unwrap_or_default();
        if !region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
            return Err(format!("the region {region:?} is the name of none"));
        }
        if let Some(endpoint) = self.s3_endpoint() {
            let style = if self.is_on("AWS_VIRTUAL_HOSTED_STYLE_REQUEST") { Style::VirtualHost } else { Style::Path };
            let endpoint = endpoint_of(endpoint, bucket, style)?;
            // Whoever writes http means it.
            builder = builder.with_endpoint(endpoint).with_allow_http(self.is_s3_plain());
        }
        if self.get("AWS_CHECKSUM_ALGORITHM").is_none() {
            builder = builder.with_checksum_algorithm(Checksum::CRC64NVME);
        }
        Ok(builder)
    }

    /// Where AIStore is, as `http(s)://HOST:PORT`, and the token that opens it.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn ais(&self) -> Result<(String, Option<&str>), String> {
        let Some(endpoint) = self.get("AIS_ENDPOINT") else {
            return Err("nobody says where AIStore is: set AIS_ENDPOINT or ais_endpoint to http://HOST:PORT".to_owned());
        };
        Ok((endpoint_of(endpoint, "", Style::Path)?, self.get("AIS_AUTHN_TOKEN")))
    }

    /// What makes the client of a directory behind Alluxio's proxy: `HOST:PORT/DIRECTORY`. The name of the user stands where S3 has that of a
    /// key; no secret is looked at, so that none is sent.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn alluxio(&self, builder: AmazonS3Builder, at: &str) -> Result<AmazonS3Builder, String> {
        let Some(user) = self.get("ALLUXIO_USER") else {
            return Err("nobody says who asks Alluxio: set alluxio_user to the name of its user".to_owned());
        };
        if !user.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte)) {
            return Err(format!("Alluxio's user {user:?} has characters that its proxy does not read in a name"));
        }
        let (host, directory) = at.split_once('/').unwrap_or((at, ""));
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
        let port = if has_port { String::new() } else { format!(":{ALLUXIO_PORT}") };
        let endpoint = endpoint_of(&format!("http://{host}{port}{ALLUXIO_PATH}"), "", Style::Path)?;
        let builder = builder.with_bucket_name(directory).with_endpoint(endpoint).with_allow_http(true);
        // Its proxy looks at no checksum of what it is sent.
        let builder = builder.with_disable_bulk_delete(true).with_unsigned_payload(true).with_region("us-east-1");
        Ok(builder.with_access_key_id(user).with_secret_access_key("none"))
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

/// The port of Alluxio's proxy (`alluxio.proxy.web.port`), and where S3 is spoken there.
const ALLUXIO_PORT: u16 = 39999;
const ALLUXIO_PATH: &str = "/api/v1/s3";

/// Where a bucket's name stands in the URLs of its objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Path,
    /// It is the first part of the host's name.
    VirtualHost,
}

/// An endpoint as the library wants it, which puts the bucket into a path but not into a host.
fn endpoint_of(text: &str, bucket: &str, style: Style) -> Result<String, String> {
    let wrong = |why: &str| format!("the endpoint {text:?} {why}; write https://HOST:PORT");
    let mut url = Url::parse(text).map_err(|error| wrong(&format!("is no URL: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("is neither http nor https"));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("has more than a host, a port and a path"));
    }
    if style == Style::VirtualHost {
        let Some(Host::Domain(host)) = url.host() else {
            return Err(wrong("has an IP address, before which no bucket's name can stand"));
        };
        let host = format!("{bucket}.{host}");
        url.set_host(Some(&host)).map_err(|error| wrong(&format!("makes no host with {bucket}: {error}")))?;
    }
    let made = url.as_str().trim_end_matches('/').to_owned();
    // What sends requests has a narrower notion of them.
    made.parse::<http::Uri>().map_err(|error| wrong(&format!("is no URL: {error}")))?;
    Ok(made)
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
/// A web identity of a profile, likewise.
const IDENTITY: [(&str, &str); 3] = [
    ("web_identity_token_file", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    ("role_arn", "AWS_ROLE_ARN"),
    ("role_session_name", "AWS_ROLE_SESSION_NAME"),
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
    fn a_region_of_the_environment_wins_by_either_name() {
        let mut settings = of(&[("AWS_DEFAULT_REGION", "mine")]);
        settings.add_profile("other", CREDENTIALS, CONFIG);
        assert_eq!((settings.get("AWS_REGION"), settings.get("AWS_DEFAULT_REGION")), (None, Some("mine")));
    }

    #[test]
    fn what_is_empty_says_nothing() {
        let settings = of(&[("AWS_SESSION_TOKEN", ""), ("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "S")]);
        assert_eq!(settings.keys().map(|keys| keys.token), Some(None));
    }

    #[test]
    fn ways_to_keys_that_are_not_built_are_told() {
        let told = |credentials: &str, config: &str| {
            let mut settings = Settings::default();
            settings.add_profile("a", credentials, config);
            settings.s3(AmazonS3Builder::new(), "b").map(drop)
        };
        let keys = "[a]\naws_access_key_id = A\naws_secret_access_key = S\n";
        assert_eq!(told(keys, ""), Ok(()));
        for (credentials, config, word) in [
            (keys, "[profile a]\nrole_arn = r\nsource_profile = a\n", "role_arn"),
            ("", "[profile a]\nsso_session = s\n", "sso_session"),
            ("", "[profile a]\ncredential_process = /bin/x\n", "credential_process"),
        ] {
            let text = told(credentials, config).unwrap_err();
            assert!(text.contains(word), "{text}");
        }
        assert_eq!(told(keys, "[profile a]\ncredential_process = /bin/x\n"), Ok(()));
        let mut identity = Settings::default();
        identity.add_profile("a", keys, "[profile a]\nrole_arn = r\nweb_identity_token_file = /t\n");
        assert_eq!((identity.get("AWS_ROLE_ARN"), identity.get("AWS_ACCESS_KEY_ID")), (Some("r"), None));
    }

    #[test]
    fn each_bucket_has_its_host_where_the_style_says_so() {
        let made = |text, bucket, style| endpoint_of(text, bucket, style);
        let ok = |text: &str| Ok(text.to_owned());
        assert_eq!(made("https://h:9/", "a", Style::VirtualHost), ok("https://a.h:9"));
        assert_eq!(made("https://h:9/", "b", Style::VirtualHost), ok("https://b.h:9"));
        assert_eq!(made("http://127.0.0.1:9", "a", Style::Path), ok("http://127.0.0.1:9"));
        assert_eq!(made("https://h/s3", "h", Style::VirtualHost), ok("https://h.h/s3"));
        let settings = of(&[("AWS_ENDPOINT_URL_S3", "https://h:9"), ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")]);
        let builder = settings.s3(AmazonS3Builder::new(), "a").unwrap();
        assert_eq!(builder.get_config_value(&AmazonS3ConfigKey::Endpoint).as_deref(), Some("https://a.h:9"));
        made("http://127.0.0.1:9", "a", Style::VirtualHost).unwrap_err();
    }

    #[test]
    fn endpoints_and_regions_that_are_none_are_told() {
        for text in ["minio:9000", "localhost", "ftp://h", "https://", "https://u:p@h", "https://h/?a=b", "http://h o/"]
        {
            let settings = of(&[("AWS_ENDPOINT_URL", text)]);
            let error = settings.s3(AmazonS3Builder::new(), "a").unwrap_err();
            assert!(error.contains(text), "{error}");
        }
        let error = of(&[("AWS_REGION", "eu west")]).s3(AmazonS3Builder::new(), "a").unwrap_err();
        assert!(error.contains("eu west"), "{error}");
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(format!("{:?}", of(&[("AWS_SECRET_ACCESS_KEY", "S")])), "{\"AWS_SECRET_ACCESS_KEY\"}");
    }
}
