//! `fanfare tail`: prints events as they arrive. It reconnects, and resumes from its cursor.

use crate::{
    access::Access,
    settings::Settings,
    terminal,
    util::{UsageError, print, print_json, print_status},
};
use anyhow::Context;
use clap::ArgMatches;
use fanfare::auth::Claims;
use fanfare_client::{Cursor, Event, Gap, Listener, Notification, Options, Problem, Refused, State, Token};
use serde_json::value::RawValue;
use std::{borrow::Cow, future::ready};

/// The requested events, and how many of them are still to be printed.
struct Tail {
    listener: Listener,
    /// Whether the token is signed with the secret of these settings.
    signed: bool,
    types: Vec<String>,
    pretty: bool,
    remaining: Option<u64>,
}

pub(super) async fn run(matches: &ArgMatches, settings: &Settings) -> anyhow::Result<()> {
    let mut tail = Tail::new(matches, settings)?;
    tokio::select! {
        result = tail.follow() => result?,
        // SIGINT is the normal way to stop it.
        result = tokio::signal::ctrl_c() => result?,
    }
    tail.listener.close().await;
    Ok(())
}

impl Tail {
    fn new(matches: &ArgMatches, settings: &Settings) -> anyhow::Result<Self> {
        let url = matches.get_one::<String>("url").map_or("", String::as_str);
        let all = vec!["*".to_owned()];
        let claims = Claims { sub: "fanfare tail".to_owned(), topics: all, ..Claims::default() };
        let access = Access::new(matches, settings, claims)?;
        let signed = matches!(access, Access::Signed(_));
        let token = match access {
            Access::Given(token) => Token::from(token),
            Access::Signed(_) => Token::asked(move |_| ready(access.token().map_err(Into::into))),
        };
        let cursor = Cursor { connection_id: None, last_event_id: matches.get_one::<String>("since").cloned() };
        let options = Options::new(url, token).topics(super::texts(matches, "topics")).cursor(cursor);
        Ok(Self {
            listener: options.listen().map_err(|refused| UsageError(format!("--url: {refused}")))?,
            signed,
            types: super::texts(matches, "type"),
            pretty: matches.get_flag("pretty"),
            remaining: matches.get_one("count").copied(),
        })
    }

    /// Prints events until the requested number is reached or the hub rejects the client.
    async fn follow(&mut self) -> anyhow::Result<()> {
        while self.remaining != Some(0) {
            match self.listener.next().await.map_err(|refused| self.refused(refused))? {
                Notification::Event(event) => self.event(&event)?,
                Notification::Gap(missing) => print_status(&gap(&missing)),
                Notification::Problem(Problem { error, message, .. }) => print_status(&format!("{error}: {message}")),
                Notification::State(state) => print_status(&describe(&state)),
                _ => {}
            }
        }
        Ok(())
    }

    fn event(&mut self, event: &Event) -> anyhow::Result<()> {
        if !self.types.is_empty() && !self.types.iter().any(|kind| kind == event.event_type()) {
            return Ok(());
        }
        if self.pretty {
            let data: Box<RawValue> = event.data().context("an event has no data")?;
            let (at, kind) = (terminal::line(event.timestamp()), terminal::line(event.event_type()));
            print(&format!("{at}  {kind}  {}\n", terminal::json(&one_line(data.get()))))?;
        } else {
            print_json(&format!("{}\n", one_line(event.json())))?;
        }
        self.remaining = self.remaining.map(|remaining| remaining.saturating_sub(1));
        Ok(())
    }

    fn refused(&self, refused: Refused) -> anyhow::Error {
        let wrong_secret = self.signed && refused.code == Some(1008);
        let error = anyhow::Error::new(refused);
        if wrong_secret { anyhow::anyhow!("{error}; does SECRET_KEY differ from the hub's secret?") } else { error }
    }
}

/// Replaces line breaks, which JSON has only between tokens.
fn one_line(json: &str) -> Cow<'_, str> {
    if json.contains(['\n', '\r']) { json.replace(['\n', '\r'], " ").into() } else { json.into() }
}

/// Describes the state of the connection.
fn describe(state: &State) -> String {
    match state {
        State::Live { connection_id, resumed: true, replayed } => {
            format!("connected as {connection_id}, resumed: {replayed} retained events follow")
        }
        State::Live { connection_id, .. } => format!("connected as {connection_id}"),
        State::Connecting { reason, retry_in } | State::Resuming { reason, retry_in } => {
            format!("{reason}; reconnecting in {:.1} s", retry_in.as_secs_f64())
        }
        _ => "the connection is in an unknown state".to_owned(),
    }
}

fn gap(Gap { reason, missed }: &Gap) -> String {
    let missed = missed.map_or_else(|| "events".to_owned(), |missed| format!("{missed} events"));
    let why = match &**reason {
        "expired" => "the hub has evicted them",
        "reset" => "the hub's log was reset",
        _ => "unknown reason",
    };
    format!("gap: {missed} may be missing here: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn gaps_and_states_are_described() {
        let missing = Gap { reason: "expired".to_owned(), missed: Some(3) };
        assert!(gap(&missing).contains("3 events may be missing"));
        let state =
            State::Resuming { reason: "the connection ended".to_owned(), retry_in: Duration::from_millis(1_230) };
        assert_eq!(describe(&state), "the connection ended; reconnecting in 1.2 s");
        assert_eq!(one_line("{\n \"a\":\r\n1}"), "{  \"a\":  1}");
    }
}
