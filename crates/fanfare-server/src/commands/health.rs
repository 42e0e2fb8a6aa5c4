//! `fanfare health`: whether a hub takes clients, as an exit status.

use super::{http::Server, print};
use anyhow::bail;
use clap::ArgMatches;

pub(super) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let url = matches.get_one::<String>("url").map_or("", String::as_str);
    let server = Server::parse(url)?;
    match server.get("/health/ready", None).await {
        Ok(answer) if answer.status.is_success() => print("ready\n"),
        Ok(answer) => bail!("{server} takes no clients: {} {}", answer.status, String::from_utf8_lossy(&answer.body)),
        Err(error) => bail!("{server} can't be reached: {error}"),
    }
}
