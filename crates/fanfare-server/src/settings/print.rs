//! The settings as a table for people, as JSON for programs, and as Markdown for the documentation.

use super::{load::Loaded, table::TABLE};
use crate::commands::columns;
use serde::Serialize;
use std::fmt::Write as _;

#[derive(Serialize)]
struct Row {
    key: &'static str,
    value: String,
    default: String,
    from: String,
    environment: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reference_name: Option<&'static str>,
    help: &'static str,
}

fn rows(loaded: &Loaded) -> impl Iterator<Item = Row> {
    TABLE.iter().zip(&loaded.origins).map(|(setting, origin)| Row {
        key: setting.key,
        value: (setting.show)(&loaded.settings),
        default: setting.default_text(),
        from: origin.to_string(),
        environment: setting.environment(),
        reference_name: setting.alias,
        help: setting.help,
    })
}

/// Columns as wide as they need to be.
pub(crate) fn table(loaded: &Loaded) -> String {
    let head = ["SETTING", "VALUE", "DEFAULT", "FROM", "ENVIRONMENT"].map(str::to_owned);
    let mut lines = vec![head];
    lines.extend(rows(loaded).map(|row| {
        let names = row.reference_name.map_or(row.environment.clone(), |name| format!("{} or {name}", row.environment));
        [row.key.to_owned(), row.value, row.default, row.from, names]
    }));
    columns(lines.into_iter())
}

/// An array of objects.
pub(crate) fn json(loaded: &Loaded) -> serde_json::Result<String> {
    serde_json::to_string_pretty(&rows(loaded).collect::<Vec<_>>()).map(|json| json + "\n")
}

/// What `docs/settings.md` says: the table, without the values of here and now.
pub(crate) fn markdown() -> String {
    let mut text = MARKDOWN_HEAD.to_owned();
    for setting in TABLE {
        let alias = setting.alias.map(|alias| format!(" or `{alias}`")).unwrap_or_default();
        // Writing to a string can't fail.
        let _ = writeln!(
            text,
            "| `{}` | {} | `{}`{alias} | {} |",
            setting.key,
            setting.default_text(),
            setting.environment(),
            setting.help
        );
    }
    text
}

const MARKDOWN_HEAD: &str = "\
# Settings

<!-- Made by `fanfare settings --markdown`; a test holds the two together. -->

A setting is taken from the first of these places that has it:

1. a flag of `fanfare serve`: its key with dashes, such as `--window-age 2h`
2. the environment: `FANFARE_` and the key in capitals, such as `FANFARE_WINDOW_AGE=2h`
3. `.env` in the working directory, with the same names, read as python-dotenv reads it: a `$` stands for itself, `${NAME}` for a variable; names that
   are not the hub's do not count, and lines that can't be read are skipped with a warning
4. a TOML file, with the keys as they are, such as `window_age = \"2h\"`: the one that `--config` names, or else
   `FANFARE_CONFIG`, or else `fanfare.toml` in the working directory if it is there
5. its default

Durations are written as `500ms`, `30s`, `5m`, `1h` or a number of seconds, sizes as `64KiB`, `64MB` or a number of bytes.
A key that doesn't exist and a value that can't be are errors: nothing starts, and the message names the place.
An application's `DATABASE_URL` is never used: accounts are kept in its database only with `FANFARE_DATABASE_URL`. The start logs which settings were taken from where.
`fanfare settings` shows every value and where it came from; secrets are never shown.

| Setting | Default | Environment | What it sets |
|---|---|---|---|
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Sources, load};

    fn loaded() -> Loaded {
        let environment = [("SECRET_KEY", "hush"), ("FANFARE_WINDOW_AGE", "2h")];
        let environment = environment.map(|(name, text)| (name.to_owned(), text.to_owned())).to_vec();
        load(&Sources { environment, ..Sources::default() }).unwrap()
    }

    #[test]
    fn the_table_shows_values_and_origins_and_no_secret() {
        let text = table(&loaded());
        assert_eq!(text.lines().count(), TABLE.len() + 1);
        let line = |key: &str| text.lines().find(|line| line.starts_with(key)).unwrap().to_owned();
        let cells = line("window_age").split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(cells, ["window_age", "2h", "1h", "environment", "FANFARE_WINDOW_AGE", "FANFARE_WINDOW_AGE"]);
        assert!(line("secret_key").contains("  set  ") && !text.contains("hush"), "{text}");
    }

    // attack: `fanfare settings` read over a shoulder or in a bug report => shows no password of a URL
    #[test]
    fn urls_are_shown_without_passwords() {
        let urls = [
            ("SECRET_KEY", "hush"),
            ("ALGORITHM", "RS256"),
            ("FANFARE_JWKS_URL", "https://u:hush@idp/keys"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:hush@collector:4318"),
            ("FANFARE_DATABASE_URL", "postgres://u:hush@h/d?password=hush"),
            ("REDIS_URL", "redis+sentinel://u:hush@a:1,b:2/hub"),
        ];
        let environment = urls.map(|(name, text)| (name.to_owned(), text.to_owned())).to_vec();
        let loaded = load(&Sources { environment, ..Sources::default() }).unwrap();
        for text in [table(&loaded), json(&loaded).unwrap()] {
            assert!(!text.contains("hush") && text.contains("https://***@idp/keys"), "{text}");
            assert!(
                text.contains("http://***@collector:4318") && text.contains("redis+sentinel://***@a:1,b:2"),
                "{text}"
            );
        }
    }

    #[test]
    fn json_has_every_setting() {
        let rows: Vec<serde_json::Value> = serde_json::from_str(&json(&loaded()).unwrap()).unwrap();
        assert_eq!(rows.len(), TABLE.len());
        let secret = rows.iter().find(|row| row["reference_name"] == "SECRET_KEY").unwrap();
        assert_eq!((secret["key"].as_str(), secret["value"].as_str()), (Some("secret_key"), Some("set")));
    }

    #[test]
    fn the_documentation_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/settings.md");
        let there = std::fs::read_to_string(path).unwrap_or_default();
        assert!(there == markdown(), "write it anew: cargo run -- settings --markdown > docs/settings.md");
    }
}
