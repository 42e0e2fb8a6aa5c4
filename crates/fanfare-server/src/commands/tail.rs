//! `fanfare tail`: prints events as they come. It reconnects, and goes on where it was.

use super::{Usage, access::Access, print, print_json, say};
use crate::{settings::Settings, terminal};
use anyhow::Context;
use clap::ArgMatches;
use fanfare::auth::Claims;
use fanfare_client::{Cursor, Event, Gap, Listener, Notification, Options, Problem, Refused, State, Token};
use serde_json::value::RawValue;
use std::{borrow::Cow, future::ready};

/// What was asked for, and how much of it is still to come.
struct Tail {
    listener: Listener,
    /// The token is made here, with the secret of these settings.
    made: bool,
    types: Vec<String>,
    pretty: bool,
    remaining: Option<u64>,
}

pub(super) async fn run(matches: &ArgMatches, settings: &Settings) -> anyhow::Result<()> {
    let mut tail = Tail::new(matches, settings)?;
    tokio::select! {
        result = tail.follow() => result?,
        // Asked to end, it has done what it should.
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
        let made = matches!(access, Access::Made(_));
        let token = match access {
            Access::Given(token) => Token::from(token),
            Access::Made(_) => Token::asked(move |_| ready(access.token().map_err(Into::into))),
        };
        let cursor = Cursor { connection_id: None, last_event_id: matches.get_one::<String>("since").cloned() };
        let options = Options::new(url, token).topics(super::texts(matches, "topics")).cursor(cursor);
        Ok(Self {
            listener: options.listen().map_err(|refused| Usage(format!("--url: {refused}")))?,
            made,
            types: super::texts(matches, "type"),
            pretty: matches.get_flag("pretty"),
            remaining: matches.get_one("count").copied(),
        })
    }

    /// Prints until all that was asked for is printed, or the hub doesn't want it.
    async fn follow(&mut self) -> anyhow::Result<()> {
        while self.remaining != Some(0) {
            match self.listener.next().await.map_err(|refused| self.refused(refused))? {
                Notification::Event(event) => self.event(&event)?,
                Notification::Gap(missing) => say(&gap(&missing)),
                Notification::Problem(Problem { error, message, .. }) => say(&format!("{error}: {message}")),
                Notification::State(state) => say(&standing(&state)),
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
        let doubted = self.made && refused.code == Some(1008);
        let error = anyhow::Error::new(refused);
        if doubted { anyhow::anyhow!("{error}; is this the hub's secret?") } else { error }
    }
}

/// JSON has line breaks between its parts only, never in them.
fn one_line(json: &str) -> Cow<'_, str> {
    if json.contains(['\n', '\r']) { json.replace(['\n', '\r'], " ").into() } else { json.into() }
}

/// How the connection stands, in words.
fn standing(state: &State) -> String {
    match state {
        State::Live { connection_id, resumed: true, replayed } => {
            format!("connected as {connection_id}, going on where it was: {replayed} held events follow")
        }
        State::Live { connection_id, .. } => format!("connected as {connection_id}"),
        State::Connecting { reason, retry_in } | State::Resuming { reason, retry_in } => {
            format!("{reason}; connecting again in {:.1} s", retry_in.as_secs_f64())
        }
        _ => "the connection is in a state of a newer hub".to_owned(),
    }
}

fn gap(Gap { reason, missed }: &Gap) -> String {
    let missed = missed.map_or_else(|| "events".to_owned(), |missed| format!("{missed} events"));
    let why = match &**reason {
        "expired" => "they are older than what the hub holds",
        "reset" => "the hub's log is a new one",
        _ => "the hub does not say why",
    };
    format!("gap: {missed} may be missing here, for {why}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_said_of_gaps_and_states_helps() {
        let missing = Gap { reason: "expired".to_owned(), missed: Some(3) };
        assert!(gap(&missing).contains("3 events may be missing"));
        let state =
            State::Resuming { reason: "the connection ended".to_owned(), retry_in: Duration::from_millis(1_230) };
        assert_eq!(standing(&state), "the connection ended; connecting again in 1.2 s");
        assert_eq!(one_line("{\n \"a\":\r\n1}"), "{  \"a\":  1}");
    }
}
