//! What is wrong with settings. Every error names the place, the problem and the accepted values.

use super::table::{Setting, TABLE};
use std::{fmt, io, path::PathBuf};

/// The place of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Default,
    Flag(String),
    Environment(String),
    /// A line of `.env` or of the TOML file.
    File {
        path: PathBuf,
        line: usize,
        name: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::File { path, line, name } => write!(f, "{}:{line} {name}", path.display()),
        }
    }
}

/// Settings that were rejected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("{origin}: unknown setting {key:?}{}; `fanfare settings` lists all settings", did_you_mean(*nearest))]
    Unknown { origin: Origin, key: String, nearest: Option<&'static str> },
    #[error("{origin}: {key}: {value} is not a valid value; expected {expected}")]
    BadValue { origin: Origin, key: &'static str, value: String, expected: String },
    #[error("{origin}: {text}")]
    Conflict { origin: Origin, text: String },
    #[error("{setting}: {place}{error}")]
    Key { setting: &'static str, place: String, error: String },
    #[error("{} can't be read: {error}; fix the file or its permissions, or name another one", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{}{}: {message}", path.display(), line.map(|line| format!(":{line}")).unwrap_or_default())]
    Malformed { path: PathBuf, line: Option<usize>, message: String },
    #[error("environment {0}: the value is not valid UTF-8")]
    NotUnicode(String),
}

pub(super) fn bad_value(setting: &'static Setting, text: &str, origin: &Origin) -> SettingsError {
    let value = match text {
        "" => "the empty text".to_owned(),
        // A malformed URL may contain its password anywhere.
        text if setting.hidden || (takes_url(setting) && text.contains('@')) => "the configured text".to_owned(),
        text => format!("{text:?}"),
    };
    SettingsError::BadValue { origin: origin.clone(), key: setting.key, value, expected: (setting.expected)() }
}

fn takes_url(setting: &Setting) -> bool {
    (setting.expected)().contains("://")
}

pub(super) fn unknown(key: &str, origin: &Origin) -> SettingsError {
    SettingsError::Unknown { origin: origin.clone(), key: key.to_owned(), nearest: nearest(key) }
}

impl SettingsError {
    /// An error in a file or key that a setting names. The message does not repeat its content.
    pub(crate) fn key(setting: &'static str, place: impl fmt::Display, error: impl fmt::Display) -> Self {
        let place = place.to_string();
        let place = if place.is_empty() { place } else { place + ": " };
        Self::Key { setting, place, error: error.to_string() }
    }

    /// The error for a TOML value that is neither text nor number.
    pub(super) fn unknown_or_bad(key: &str, type_name: &str, origin: &Origin) -> Self {
        match TABLE.iter().find(|setting| setting.key == key) {
            None => unknown(key, origin),
            Some(setting) => Self::BadValue {
                origin: origin.clone(),
                key: setting.key,
                value: format!("a value of type {type_name}"),
                expected: (setting.expected)(),
            },
        }
    }
}

/// The setting whose key is most similar to `key`, if any is similar enough.
fn nearest(key: &str) -> Option<&'static str> {
    let key = key.to_lowercase().replace('-', "_");
    let alike = TABLE.iter().map(|setting| (strsim::jaro_winkler(&key, setting.key), setting.key));
    alike.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(likeness, _)| *likeness > 0.8).map(|(_, key)| key)
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|key| format!(" (did you mean {key}?)")).unwrap_or_default()
}
