//! `fanfare health`: reports as its exit status whether a hub accepts clients.

use crate::{api_client::Server, util::print};
use anyhow::bail;
use clap::ArgMatches;

pub(super) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let url = matches.get_one::<String>("url").map_or("", String::as_str);
    let server = Server::parse(url)?;
    match server.get("/health/ready", None).await {
        Ok(response) if response.status.is_success() => print("ready\n"),
        Ok(response) => bail!("{server} is not ready: {} {}", response.status, String::from_utf8_lossy(&response.body)),
        Err(error) => bail!("failed to reach {server}: {error}"),
    }
}
