//! `fanfare log-level`: changes the log level of a running hub, on all nodes.

use crate::{access::Access, api_client::Server, settings::Settings, util::print};
use anyhow::{Context, bail};
use clap::ArgMatches;
use fanfare::auth::Claims;
use serde_json::{Value, json};

pub(super) async fn run(matches: &ArgMatches, settings: &Settings) -> anyhow::Result<()> {
    let text = |name: &str| matches.get_one::<String>(name).map_or("", String::as_str);
    let server = Server::parse(text("url"))?;
    let claims = Claims { sub: "fanfare log-level".to_owned(), admin: true, ..Claims::default() };
    let token = Access::new(matches, settings, claims)?.token()?;
    let body = json!({ "log_level": text("level") }).to_string();
    let response =
        server.post("/log-level", &token, body).await.with_context(|| format!("failed to reach {server}"))?;
    if response.status.is_success() {
        return print(&format!("log_level is now {} on all nodes, until they exit\n", text("level")));
    }
    let body_json: Value = serde_json::from_slice(&response.body).unwrap_or_default();
    bail!(
        "{}",
        body_json["detail"]
            .as_str()
            .map_or_else(|| format!("the hub responded with {}", response.status), str::to_owned)
    )
}
