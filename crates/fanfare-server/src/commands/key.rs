//! `fanfare key`: manages access keys, which programs use instead of tokens. They are valid until they are revoked.

use super::print_database;
use crate::{
    accounts::{Key, Store},
    settings::Settings,
    terminal,
    util::{UsageError, columns, date, print, print_json, print_status, unix_secs},
};
use clap::ArgMatches;
use fanfare::auth::AccessKeys;
use serde_json::json;

/// The longest name, in bytes.
const MAX_NAME_BYTES: usize = 64;

pub(crate) async fn run(matches: &ArgMatches, settings: &Settings) -> anyhow::Result<()> {
    let store = Store::new(settings.database_url.clone());
    let (command, matches) = matches.subcommand().unwrap_or(("list", matches));
    match command {
        "add" => {
            add(matches, &store).await?;
            print_database(settings);
            Ok(())
        }
        "list" => {
            list(matches, &store).await?;
            print_database(settings);
            Ok(())
        }
        _ => {
            let name = name(matches)?;
            anyhow::ensure!(
                store.remove_key(&name).await?,
                "unknown key {name} in {}; `fanfare key list` lists all keys",
                settings.database_url.absolute()
            );
            print_status(&format!("{name} is revoked on all nodes within a second"));
            print_database(settings);
            Ok(())
        }
    }
}

async fn add(matches: &ArgMatches, store: &Store) -> anyhow::Result<()> {
    let (generated, name) = (AccessKeys::generate()?, name(matches)?);
    let key = Key { name, digest: generated.digest, admin: matches.get_flag("admin"), created_at: unix_secs() };
    anyhow::ensure!(store.add_key(&key).await?, "a key {} already exists; revoke it, or choose another name", key.name);
    print_status("the key is not stored and not shown again; it allows publishing until it is revoked");
    print(&format!("{}\n", generated.text))
}

async fn list(matches: &ArgMatches, store: &Store) -> anyhow::Result<()> {
    let keys = store.keys().await?;
    let rights = |key: &Key| if key.admin { "admin" } else { "publish" };
    if matches.get_flag("json") {
        let keys: Vec<_> = keys
            .iter()
            .map(|key| json!({ "name": key.name, "rights": rights(key), "created_at": date(key.created_at) }))
            .collect();
        return print_json(&format!("{}\n", serde_json::to_string_pretty(&keys)?));
    }
    if keys.is_empty() {
        print_status("there are no access keys; `fanfare key add NAME` creates one");
        return Ok(());
    }
    let head = ["NAME", "RIGHTS", "SINCE"].map(str::to_owned);
    let rows =
        keys.iter().map(|key| [terminal::line(&key.name).into_owned(), rights(key).to_owned(), date(key.created_at)]);
    print(&columns([head].into_iter().chain(rows)))
}

fn name(matches: &ArgMatches) -> Result<String, UsageError> {
    let name = matches.get_one::<String>("name").map(|name| name.trim()).unwrap_or_default();
    let invalid = |c: char| !c.is_ascii_alphanumeric() && !"_-.:".contains(c);
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains(invalid) {
        return Err(UsageError(format!(
            "{name:?} is not a valid key name; expected 1 to 64 letters, digits, _, -, . and :"
        )));
    }
    Ok(name.to_owned())
}
