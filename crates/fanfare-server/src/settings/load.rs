//! Merges the sources into [`Settings`]. Every error names the place, the problem and the accepted values.

use super::{
    error::{Origin, SettingsError, bad_value, unknown},
    sources::{Entry, Sources},
    table::{Setting, Settings, TABLE, conflict},
};

/// Settings, and the origin of each.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) settings: Settings,
    /// In the order of [`TABLE`].
    pub(crate) origins: Vec<Origin>,
    /// Warnings about entries that were ignored, as sentences.
    pub(crate) notes: Vec<String>,
}

impl Loaded {
    /// The settings that differ from their defaults, each with its origin. Contains no values.
    pub(crate) fn taken(&self) -> String {
        let set = TABLE.iter().zip(&self.origins).filter(|(_, origin)| **origin != Origin::Default);
        set.map(|(setting, origin)| format!("{} ({origin})", setting.key)).collect::<Vec<_>>().join(", ")
    }
}

/// Merges the sources. Parses every value, also those that a stronger source overrides.
pub(crate) fn load(sources: &Sources) -> Result<Loaded, SettingsError> {
    let mut settings = Settings::default();
    let mut origins = vec![Origin::Default; TABLE.len()];
    for entry in sources.entries()? {
        let index = TABLE.iter().position(|setting| setting.key == entry.key);
        let index = index.ok_or_else(|| unknown(&entry.key, &entry.origin))?;
        apply(&mut settings, &TABLE[index], &entry)?;
        origins[index] = entry.origin;
    }
    let rate = TABLE.iter().zip(&origins).find(|(setting, _)| setting.key == "connects_per_second_per_address");
    if settings.hub.compat && matches!(rate, Some((_, Origin::Default))) {
        settings.hub.connects_per_second_per_address = 0;
    }
    match conflict(&settings) {
        None => Ok(Loaded { settings, origins, notes: sources.notes() }),
        Some((key, text)) => {
            let origin = TABLE.iter().zip(origins).find(|(setting, _)| setting.key == key);
            Err(SettingsError::Conflict { origin: origin.map_or(Origin::Default, |(_, origin)| origin), text })
        }
    }
}

fn apply(settings: &mut Settings, setting: &'static Setting, entry: &Entry) -> Result<(), SettingsError> {
    (setting.set)(settings, &entry.text).ok_or_else(|| bad_value(setting, &entry.text, &entry.origin))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn setting(key: &str) -> &'static Setting {
        TABLE.iter().find(|setting| setting.key == key).expect("a setting")
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    fn toml(text: &str) -> Sources {
        Sources { toml: Some(("f.toml".into(), text.to_owned())), ..Sources::default() }
    }

    fn dotenv(text: &str) -> Sources {
        Sources { dotenv: Some((".env".into(), text.to_owned())), ..Sources::default() }
    }

    fn environment(names: &[(&str, &str)]) -> Sources {
        Sources { environment: pairs(names), ..Sources::default() }
    }

    #[test]
    fn the_strongest_source_wins() {
        let mut sources = Sources {
            flags: vec![(setting("window_events"), "1".to_owned())],
            environment: pairs(&[("FANFARE_WINDOW_EVENTS", "2"), ("FANFARE_WINDOW_AGE", "2m")]),
            dotenv: Some((".env".into(), "FANFARE_WINDOW_AGE=3m\nFANFARE_SHARDS=3".to_owned())),
            toml: Some(("f.toml".into(), "shards = 4\nmax_connections = 40_000\nwindow_age = \"4m\"".to_owned())),
        };
        let loaded = load(&sources).unwrap();
        let hub = &loaded.settings.hub;
        assert_eq!((hub.window_events, hub.shards, hub.max_connections), (1, 3, 40_000));
        assert_eq!(hub.window_age, Duration::from_secs(120));
        let origin = |key: &str| {
            let index = TABLE.iter().position(|setting| setting.key == key).unwrap();
            loaded.origins[index].to_string()
        };
        assert_eq!(origin("window_events"), "flag --window-events");
        assert_eq!(origin("window_age"), "environment FANFARE_WINDOW_AGE");
        assert_eq!(origin("shards"), ".env:2 FANFARE_SHARDS");
        assert_eq!(origin("max_connections"), "f.toml:2 max_connections");
        assert_eq!(origin("listen"), "default");
        assert!(loaded.taken().starts_with("shards (.env:2 FANFARE_SHARDS), "), "{}", loaded.taken());
        sources.flags.clear();
        assert_eq!(load(&sources).unwrap().settings.hub.window_events, 2);
    }

    #[test]
    fn names_of_the_fastapi_hub_work_and_prefixed_names_override_them() {
        let names = [
            ("SECRET_KEY", "hush"),
            ("ALGORITHM", "HS512"),
            ("ACCESS_TOKEN_EXPIRE_MINUTES", "5"),
            ("REDIS_URL", "redis://h"),
        ];
        let settings = load(&environment(&names)).unwrap().settings;
        assert_eq!(settings.secret_key, Some(crate::settings::kind::Secret::new("hush")));
        assert_eq!((settings.algorithm, settings.access_token_expire_minutes), (fanfare::Algorithm::Hs512, 5));
        assert_eq!(settings.redis_url.map(|url| url.to_string()).as_deref(), Some("redis://h:6379/0"));
        let both = environment(&[("FANFARE_ALGORITHM", "HS384"), ("ALGORITHM", "HS512")]);
        assert_eq!(load(&both).unwrap().settings.algorithm, fanfare::Algorithm::Hs384);
        let weaker = Sources { dotenv: dotenv("FANFARE_ALGORITHM=HS384").dotenv, ..environment(&names) };
        assert_eq!(load(&weaker).unwrap().settings.algorithm, fanfare::Algorithm::Hs512);
    }

    #[test]
    fn compat_lifts_the_connect_rate_unless_it_is_set() {
        let rate = |text: &str| load(&toml(text)).unwrap().settings.hub.connects_per_second_per_address;
        assert_eq!(rate("compat = true"), 0);
        assert_eq!(rate("compat = true\nconnects_per_second_per_address = 50"), 50);
        assert_eq!(rate(""), 100);
    }

    #[test]
    fn variables_of_other_programs_are_ignored() {
        let sources = dotenv("APPLICATION_URL=x\n# comment\nexport FANFARE_SHARDS = 2\nFANFARE_TOKEN=t");
        assert_eq!(load(&sources).unwrap().settings.hub.shards, 2);
    }

    #[test]
    fn an_applications_dotenv_is_no_error_and_secrets_are_read_whole() {
        let sources = dotenv(
            "APP_NAME=My Dashboard\nX=it's\nROOT=C:\\Users\nDEBUG\nmy-var=1\n\
             DATABASE_URL=postgresql+asyncpg://app:pw@db/app\nSECRET_KEY=abc$def\nnot a line\n",
        );
        let settings = load(&sources).unwrap().settings;
        assert_eq!(settings.secret_key, Some(crate::settings::kind::Secret::new("abc$def")));
        assert_eq!(settings.database_url, Settings::default().database_url);
        let notes = sources.notes();
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(notes[0].contains(".env:8"), "{notes:?}");
        assert!(notes[1].contains(".env:6") && notes[1].contains("FANFARE_DATABASE_URL"), "{notes:?}");
        assert!(!notes[1].contains("pw"), "{notes:?}");
        let asked = environment(&[("DATABASE_URL", "postgres://app/app"), ("FANFARE_DATABASE_URL", "none")]);
        assert_eq!(load(&asked).unwrap().settings.database_url, crate::settings::DatabaseUrl::None);
    }

    #[test]
    fn every_error_names_its_place() {
        for (sources, says) in [
            (toml("\n\nheartbeat_intervall = 3"), vec!["f.toml:3", "heartbeat_intervall", "mean heartbeat_interval?"]),
            (toml("max-connections = 3"), vec!["f.toml:1", "did you mean max_connections?"]),
            (toml("zebra = 3"), vec!["unknown setting \"zebra\";", "fanfare settings"]),
            (toml("[server]\nlisten = \"1\""), vec!["f.toml:1", "unknown setting \"server\""]),
            (toml("shards = true"), vec!["f.toml:1", "shards: \"true\" is not a valid value", "whole number"]),
            (
                toml("shards = []"),
                vec!["f.toml:1", "shards: a value of type array is not a valid value", "whole number"],
            ),
            (toml("shards = -1"), vec!["shards: \"-1\" is not a valid value", "0 or more"]),
            (toml("shards = \n"), vec!["f.toml:1"]),
            (toml("shards = 1\nshards = 2"), vec!["f.toml:2", "duplicate"]),
            (toml("window_age = \"soon\""), vec!["\"soon\" is not a valid value", "500ms, 30s"]),
            (toml("window_bytes = \"64 apples\""), vec!["64KiB"]),
            (toml("window_events = 0"), vec!["1 or more"]),
            (toml("listen = \"localhost\""), vec!["127.0.0.1:8000"]),
            (toml("heartbeat_timeout = 5"), vec!["f.toml:1", "(5s) must be longer than heartbeat_interval (30s)"]),
            (dotenv("A=1\nFANFARE_SHARD=2"), vec![".env:2 FANFARE_SHARD", "did you mean shards?"]),
            (dotenv("A=1\nFANFARE_SHARDS=two"), vec![".env:2 FANFARE_SHARDS", "\"two\""]),
            (environment(&[("FANFARE_LISTENN", "x")]), vec!["environment FANFARE_LISTENN", "did you mean listen?"]),
            (environment(&[("ALGORITHM", "none")]), vec!["environment ALGORITHM", "HS256, HS384, HS512"]),
            (
                environment(&[("SECRET_KEY", "")]),
                vec!["secret_key: the empty text is not a valid value", "openssl rand"],
            ),
            (environment(&[("FANFARE_LOG_LEVEL", "loud")]), vec!["log_level", "debug"]),
            (environment(&[("FANFARE_LOG_FORMAT", "xml")]), vec!["text or json"]),
        ] {
            let error = load(&sources).expect_err(says[0]).to_string();
            assert!(says.iter().all(|part| error.contains(part)), "{says:?}: {error}");
        }
    }

    // attack: a secret given in the wrong setting => the error message does not repeat it
    #[test]
    fn an_error_does_not_repeat_a_secret_in_the_wrong_setting() {
        let error = load(&environment(&[("REDIS_URL", "hush")])).expect_err("no URL").to_string();
        assert!(!error.contains("hush") && error.contains("redis://"), "{error}");
        let error = load(&environment(&[("FANFARE_JWKS_URL", "ftp://u:hush@h")])).expect_err("no web URL").to_string();
        assert!(!error.contains("hush") && error.contains("https://"), "{error}");
        let notes = dotenv("hush hush").notes().join("\n");
        assert!(!notes.contains("hush") && notes.contains(".env:1"), "{notes}");
    }
}
