//! `fanfare user`: manages accounts.

use super::print_database;
use crate::{
    accounts::{Role, Store, User, check_password, email, hash},
    settings::Settings,
    terminal,
    util::{UsageError, columns, date, print, print_json, print_status, unix_secs},
};
use anyhow::Context;
use clap::ArgMatches;
use serde_json::json;
use std::io::{IsTerminal, stdin};

pub(crate) async fn run(matches: &ArgMatches, settings: &Settings) -> anyhow::Result<()> {
    let store = Store::new(settings.database_url.clone());
    let (name, matches) = matches.subcommand().unwrap_or(("list", matches));
    run_in(name, matches, &store)
        .await
        .with_context(|| format!("in the database {}", settings.database_url.absolute()))?;
    print_database(settings);
    Ok(())
}

async fn run_in(name: &str, matches: &ArgMatches, store: &Store) -> anyhow::Result<()> {
    match name {
        "add" => add(matches, store).await,
        "list" => list(matches, store).await,
        "passwd" => {
            let user = known(matches, store).await?;
            let password = hash(&password(matches, &user.email)?)?;
            change(store, &User { password, ..user }, "has a new password").await
        }
        "set" => set(matches, store).await,
        "disable" => {
            let user = known(matches, store).await?;
            change(store, &User { disabled: true, ..user }, "is disabled").await
        }
        "enable" => {
            let user = known(matches, store).await?;
            change(store, &User { disabled: false, ..user }, "can log in again").await
        }
        _ => remove(matches, store).await,
    }
}

async fn add(matches: &ArgMatches, store: &Store) -> anyhow::Result<()> {
    let email = address(matches)?;
    let user = User {
        password: hash(&password(matches, &email)?)?,
        role: role(matches).unwrap_or(Role::Viewer),
        topics: super::patterns(matches)?,
        disabled: false,
        created_at: unix_secs(),
        email,
    };
    if !store.add_user(&user).await? {
        anyhow::bail!("a user {} already exists; `fanfare user set` changes it", user.email);
    }
    print_status(&format!("{} can log in, with the role {}", user.email, user.role));
    Ok(())
}

async fn set(matches: &ArgMatches, store: &Store) -> anyhow::Result<()> {
    let mut user = known(matches, store).await?;
    user.role = role(matches).unwrap_or(user.role);
    if matches.contains_id("topics") {
        user.topics = super::patterns(matches)?;
    }
    let done = format!("now has the role {}, from the next login on", user.role);
    change(store, &user, &done).await
}

/// Changes a user. Revokes the tokens issued so far and closes the user's connections, so that earlier rights end.
async fn change(store: &Store, user: &User, done: &str) -> anyhow::Result<()> {
    anyhow::ensure!(store.change_user(user, unix_secs() + 1).await?, "the user {} no longer exists", user.email);
    print_status(&format!("{} {done}; earlier tokens are revoked within a second", user.email));
    Ok(())
}

async fn remove(matches: &ArgMatches, store: &Store) -> anyhow::Result<()> {
    let user = known(matches, store).await?;
    store.remove_user(&user.email, unix_secs() + 1).await?;
    print_status(&format!("{} is removed; earlier tokens are revoked within a second", user.email));
    Ok(())
}

async fn list(matches: &ArgMatches, store: &Store) -> anyhow::Result<()> {
    let users = store.users().await?;
    if matches.get_flag("json") {
        let users: Vec<_> = users
            .iter()
            .map(|user| {
                json!({
                    "email": user.email,
                    "role": user.role.name(),
                    "topics": user.topics,
                    "disabled": user.disabled,
                    "created_at": date(user.created_at),
                })
            })
            .collect();
        return print_json(&format!("{}\n", serde_json::to_string_pretty(&users)?));
    }
    if users.is_empty() {
        print_status("there are no users; `fanfare user add EMAIL` adds one");
        return Ok(());
    }
    let head = ["EMAIL", "ROLE", "STATE", "SINCE", "TOPICS"].map(str::to_owned);
    let rows = users.into_iter().map(|user| {
        let state = if user.disabled { "disabled" } else { "active" };
        let (role, since) = (user.role.to_string(), date(user.created_at));
        let foreign = |text: &str| terminal::line(text).into_owned();
        [foreign(&user.email), role, state.to_owned(), since, foreign(&user.topics.join(", "))]
    });
    print(&columns([head].into_iter().chain(rows)))
}

fn address(matches: &ArgMatches) -> Result<String, UsageError> {
    let text = matches.get_one::<String>("email").map(String::as_str).unwrap_or_default();
    email(text).ok_or_else(|| UsageError(format!("{text:?} is not a valid e-mail address")))
}

async fn known(matches: &ArgMatches, store: &Store) -> anyhow::Result<User> {
    let email = address(matches)?;
    let user = store.user(&email).await?;
    user.ok_or_else(|| anyhow::anyhow!("unknown user {email}; `fanfare user list` lists all users"))
}

fn role(matches: &ArgMatches) -> Option<Role> {
    matches.get_one::<String>("role").and_then(|role| role.parse().ok())
}

/// The password: read from standard input, or prompted for twice.
fn password(matches: &ArgMatches, email: &str) -> anyhow::Result<String> {
    let password = if matches.get_flag("password-stdin") {
        let mut line = String::new();
        stdin().read_line(&mut line)?;
        line.trim_end_matches(['\r', '\n']).to_owned()
    } else {
        if !stdin().is_terminal() {
            return Err(
                UsageError("cannot prompt for a password without a terminal: use --password-stdin".to_owned()).into()
            );
        }
        let first = rpassword::prompt_password(format!("Password for {email}: "))?;
        if rpassword::prompt_password("Repeat the password: ")? != first {
            return Err(UsageError("the passwords do not match".to_owned()).into());
        }
        first
    };
    check_password(&password, email).map_err(UsageError)?;
    Ok(password)
}
