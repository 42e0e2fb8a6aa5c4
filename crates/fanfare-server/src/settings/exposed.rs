//! Finds credentials on the command line and in files, which other users may be able to read.

use super::{
    error::{Origin, SettingsError},
    kind,
    sources::Sources,
    table::{Setting, TABLE},
};
use crate::terminal::has_credentials;
use std::path::Path;

/// The places of all credentials, including overridden ones.
#[derive(Debug, Default)]
pub(crate) struct Exposed(Vec<(&'static Setting, Origin)>);

impl Exposed {
    pub(crate) fn find(sources: &Sources) -> Result<Self, SettingsError> {
        let entries = sources.entries()?.into_iter();
        let with_setting = entries.filter_map(|entry| {
            let setting = TABLE.iter().find(|setting| setting.key == entry.key)?;
            is_credential(setting, &entry.text).then_some((setting, entry.origin))
        });
        Ok(Self(with_setting.collect()))
    }

    /// A warning for each credential in a flag, because the process list shows flags.
    pub(crate) fn on_command_line(&self) -> impl Iterator<Item = String> {
        self.0.iter().filter(|(_, origin)| matches!(origin, Origin::Flag(_))).map(|(setting, _)| {
            let (flag, variable) = (setting.flag(), setting.alias.map_or_else(|| setting.environment(), str::to_owned));
            let file = if setting.key == "secret_key" { ", or secret_key_file" } else { "" };
            format!(
                "--{flag} on the command line is visible to every user of this machine in the process list; set \
                 {variable} in the environment, or in a file that only the hub can read{file}, instead"
            )
        })
    }

    /// The files that contain credentials, each once, with the keys of the settings.
    pub(crate) fn files(&self) -> Vec<(&Path, Vec<&'static str>)> {
        let mut files: Vec<(&Path, Vec<&'static str>)> = Vec::new();
        for (setting, origin) in &self.0 {
            let Origin::File { path, .. } = origin else { continue };
            match files.iter_mut().find(|(known, _)| known == path) {
                Some((_, keys)) => keys.push(setting.key),
                None => files.push((path, vec![setting.key])),
            }
        }
        files
    }
}

/// Secrets, and URLs with a password.
fn is_credential(setting: &Setting, text: &str) -> bool {
    let secret = setting.hidden && setting.value_name == kind::secret::NAME;
    secret || has_credentials(text) || (text.contains("://") && text.contains("password="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_in_flags_and_files_are_found() {
        let flag = |key: &str, text: &str| {
            let setting = TABLE.iter().find(|setting| setting.key == key).expect("a setting");
            (setting, text.to_owned())
        };
        let sources = Sources {
            flags: vec![
                flag("secret_key", "hush"),
                flag("redis_url", "redis://:pw@h"),
                flag("jwks_url", "https://h/keys"),
                flag("database_url", "sqlite://fanfare.db"),
            ],
            toml: Some(("f.toml".into(), "shards = 2".to_owned())),
            dotenv: Some((
                ".env".into(),
                "SECRET_KEY=hush\nFANFARE_DATABASE_URL=postgres://u:p@h/d\nREDIS_URL=redis://h".to_owned(),
            )),
            ..Sources::default()
        };
        let exposed = Exposed::find(&sources).unwrap();
        let warnings: Vec<_> = exposed.on_command_line().collect();
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("--secret-key ") && warnings[0].contains("SECRET_KEY"), "{warnings:?}");
        assert!(warnings[0].contains("secret_key_file") && warnings[1].contains("REDIS_URL"), "{warnings:?}");
        assert_eq!(exposed.files(), [(Path::new(".env"), vec!["secret_key", "database_url"])]);
    }
}
