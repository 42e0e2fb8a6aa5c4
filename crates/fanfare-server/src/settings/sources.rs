//! The sources of settings: flags, the environment, `.env` and a TOML file. Knows texts and their places, and not what
//! they mean.

use super::{
    dotenv::{self, Dotenv},
    error::{Origin, SettingsError},
    table::{Setting, TABLE},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use toml::de::{DeTable, DeValue};

/// The prefix of the environment name of every setting.
pub(crate) const PREFIX: &str = "FANFARE_";

/// Environment names with the prefix that are read by commands and are not settings.
const OTHER_NAMES: &[&str] = &[CONFIG_NAME, "FANFARE_TOKEN", "FANFARE_URL"];
const CONFIG_NAME: &str = "FANFARE_CONFIG";
/// The application's own database, in a shared environment or `.env`. The name is too common to be read as a setting.
const APPLICATION_DATABASE: &str = "DATABASE_URL";
const DEFAULT_FILE: &str = "fanfare.toml";

/// The text of a setting in one source.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) text: String,
    pub(crate) origin: Origin,
}

/// All sources, unparsed.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// Flags by key.
    pub(crate) flags: Vec<(&'static Setting, String)>,
    pub(crate) environment: Vec<(String, String)>,
    /// Path and text of the file.
    pub(crate) dotenv: Option<(PathBuf, String)>,
    pub(crate) toml: Option<(PathBuf, String)>,
}

impl Sources {
    /// Reads the environment and the files. `config` is the file that a flag names.
    pub(crate) fn read(flags: Vec<(&'static Setting, String)>, config: Option<&Path>) -> Result<Self, SettingsError> {
        let environment = environment()?;
        let dotenv = read_dotenv(Path::new(".env"))?;
        let named = config.map(Path::to_owned).or_else(|| named_in_environment(&environment, dotenv.as_ref()));
        let toml = match named {
            Some(path) => Some((path.clone(), read(&path)?)),
            None => read_if_there(Path::new(DEFAULT_FILE))?,
        };
        Ok(Self { flags, environment, dotenv, toml })
    }

    /// All entries in ascending precedence: the last entry of a setting applies.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>, SettingsError> {
        let mut entries = Vec::new();
        if let Some((path, text)) = &self.toml {
            entries.extend(toml_entries(path, text)?);
        }
        if let Some((path, text)) = &self.dotenv {
            entries.extend(named_entries(dotenv_pairs(path, text)));
        }
        let environment = self.environment.iter();
        entries.extend(named_entries(
            environment.map(|(name, text)| (name.clone(), text.clone(), Origin::Environment(name.clone()))),
        ));
        entries.extend(self.flags.iter().map(|(setting, text)| Entry {
            key: setting.key.to_owned(),
            text: text.clone(),
            origin: Origin::Flag(format!("--{}", setting.flag())),
        }));
        Ok(entries)
    }

    /// Warnings about lines and variables that are ignored although they may be meant for the hub.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let dotenv = self.dotenv.as_ref().map(|(path, text)| (path, dotenv::parse(text, |_| None)));
        if let Some((path, Dotenv { skipped, .. })) = &dotenv {
            let note = |line| format!("{}:{line} is not of the form NAME=value and is ignored", path.display());
            notes.extend(skipped.iter().map(note));
        }
        let in_file = dotenv.iter().flat_map(|(path, dotenv)| dotenv.variables.iter().map(move |set| (path, set)));
        let application = in_file.filter(|(_, set)| set.name == APPLICATION_DATABASE);
        let places = application.map(|(path, set)| format!("{}:{}", path.display(), set.line));
        let environment = self.environment.iter().filter(|(name, _)| name == APPLICATION_DATABASE);
        let place = environment.map(|_| "the environment".to_owned()).chain(places).next();
        let ours = |name: &String| *name == format!("{PREFIX}{APPLICATION_DATABASE}");
        let asked = self.environment.iter().any(|(name, _)| ours(name))
            || dotenv.iter().any(|(_, dotenv)| dotenv.variables.iter().any(|set| ours(&set.name)));
        notes.extend(place.filter(|_| !asked).map(|place| {
            format!(
                "{APPLICATION_DATABASE} in {place} belongs to the application and is ignored; to keep accounts in \
                 that database, set FANFARE_{APPLICATION_DATABASE}"
            )
        }));
        notes
    }
}

/// The environment variables that concern the hub.
fn environment() -> Result<Vec<(String, String)>, SettingsError> {
    let ours = std::env::vars_os().filter_map(|(name, text)| Some((name.into_string().ok()?, text)));
    let ours = ours.filter(|(name, _)| name.starts_with(PREFIX) || is_alias(name) || name == APPLICATION_DATABASE);
    ours.map(|(name, text)| match text.into_string() {
        Ok(text) => Ok((name, text)),
        Err(_) => Err(SettingsError::NotUnicode(name)),
    })
    .collect()
}

fn named_in_environment(environment: &[(String, String)], dotenv: Option<&(PathBuf, String)>) -> Option<PathBuf> {
    let from_process = environment.iter().find(|(name, _)| name == CONFIG_NAME).map(|(_, path)| path.clone());
    let from_dotenv = || {
        let (path, text) = dotenv?;
        dotenv_pairs(path, text).into_iter().rev().find(|(name, ..)| name == CONFIG_NAME).map(|(_, path, _)| path)
    };
    from_process.or_else(from_dotenv).map(PathBuf::from)
}

fn is_alias(name: &str) -> bool {
    TABLE.iter().any(|setting| setting.alias == Some(name))
}

/// The entries among the variables. Names with the prefix come last, because they override those of the FastAPI hub.
fn named_entries(pairs: impl IntoIterator<Item = (String, String, Origin)>) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut prefixed = Vec::new();
    for (name, text, origin) in pairs {
        if let Some(key) = name.strip_prefix(PREFIX) {
            if !OTHER_NAMES.contains(&name.as_str()) {
                prefixed.push(Entry { key: key.to_lowercase(), text, origin });
            }
        } else if let Some(setting) = TABLE.iter().find(|setting| setting.alias == Some(name.as_str())) {
            entries.push(Entry { key: setting.key.to_owned(), text, origin });
        }
    }
    entries.extend(prefixed);
    entries
}

/// All variables that `.env` sets, including those of other programs.
fn dotenv_pairs(path: &Path, text: &str) -> Vec<(String, String, Origin)> {
    let variables = dotenv::parse(text, |name| std::env::var(name).ok()).variables.into_iter();
    let pairs = variables.map(|dotenv::Variable { name, value, line }| {
        (name.clone(), value, Origin::File { path: path.to_owned(), line, name })
    });
    pairs.collect()
}

fn toml_entries(path: &Path, text: &str) -> Result<Vec<Entry>, SettingsError> {
    let table = DeTable::parse(text).map_err(|error| SettingsError::Malformed {
        path: path.to_owned(),
        line: error.span().map(|span| line_at(text, span.start)),
        message: error.message().to_owned(),
    })?;
    let entries = table.get_ref().iter().map(|(key, value)| {
        let (name, line) = (key.get_ref().to_string(), line_at(text, key.span().start));
        let origin = Origin::File { path: path.to_owned(), line, name: name.clone() };
        let Some(text) = plain(value.get_ref()) else {
            return Err(SettingsError::unknown_or_bad(&name, value.get_ref().type_str(), &origin));
        };
        Ok(Entry { key: name, text, origin })
    });
    entries.collect()
}

/// The text of a value that is a string, a number or a switch.
fn plain(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(switch) => Some(switch.to_string()),
        DeValue::Integer(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&byte| byte == b'\n').count() + 1
}

fn read(path: &Path) -> Result<String, SettingsError> {
    fs::read_to_string(path).map_err(|error| SettingsError::Unreadable { path: path.to_owned(), error })
}

/// Reads `.env` if it is a file. A directory of that name is a Python virtual environment. Invalid UTF-8 is replaced,
/// because lines of the application must not prevent the start.
fn read_dotenv(path: &Path) -> Result<Option<(PathBuf, String)>, SettingsError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some((path.to_owned(), decode(&bytes)))),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => Ok(None),
        Err(error) => Err(SettingsError::Unreadable { path: path.to_owned(), error }),
    }
}

/// Decodes UTF-8, or UTF-16 with a byte order mark, which PowerShell's `>` writes.
fn decode(bytes: &[u8]) -> String {
    let utf_16 = |rest: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = rest.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).collect();
        String::from_utf16_lossy(&units)
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => utf_16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf_16(rest, u16::from_be_bytes),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}

fn read_if_there(path: &Path) -> Result<Option<(PathBuf, String)>, SettingsError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some((path.to_owned(), text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(SettingsError::Unreadable { path: path.to_owned(), error }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_utf_16_is_read() {
        let text = "SECRET_KEY=é\r\n";
        let bytes = |mark: &[u8], unit: fn(u16) -> [u8; 2]| {
            [mark, &text.encode_utf16().flat_map(unit).collect::<Vec<_>>()].concat()
        };
        for bytes in [bytes(&[0xff, 0xfe], u16::to_le_bytes), bytes(&[0xfe, 0xff], u16::to_be_bytes), text.into()] {
            assert_eq!(decode(&bytes), text);
        }
    }

    #[test]
    fn a_dotenv_that_is_a_directory_or_not_utf_8_is_no_error() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(".env");
        assert!(read_dotenv(&path).unwrap().is_none());
        fs::create_dir(&path).unwrap();
        assert!(read_dotenv(&path).unwrap().is_none());
        fs::remove_dir(&path).unwrap();
        fs::write(&path, b"NAME=caf\xe9\nFANFARE_SHARDS=2\n").unwrap();
        let dotenv = read_dotenv(&path).unwrap();
        let sources = Sources { dotenv, ..Sources::default() };
        assert_eq!(super::super::load(&sources).unwrap().settings.hub.shards, 2);
    }
}
