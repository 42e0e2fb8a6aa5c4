//! The public keys of an identity provider: fetched at the start, again from time to time, and when a token names one
//! that is not there. While they can't be fetched, those from before stay.

use crate::commands::http::plainly;
use anyhow::{Context, ensure};
use fanfare::{
    Algorithm,
    auth::{KeySource, Keys},
};
use reqwest::{Client, redirect::Policy};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How long one fetch may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often they are fetched because a token names an unknown key: tokens are made up faster than that.
const AT_MOST_EVERY: Duration = Duration::from_secs(10);

/// How long to wait after a failure: at first, and at most.
const SOON: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(60);

/// The largest set, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// Fetches the keys once, and goes on doing so in the background.
pub(super) async fn follow(
    url: &str,
    algorithm: Algorithm,
    refresh: Duration,
    source: KeySource,
) -> anyhow::Result<()> {
    let client = client()?;
    let mut follower = Follower { client, url: url.to_owned(), algorithm, refresh, source, pause: SOON, down: false };
    let next = follower.attempt().await;
    tokio::spawn(async move { follower.run(next).await });
    Ok(())
}

/// Fetches the keys once. Returns how many there are.
pub(crate) async fn try_fetch(url: &str, algorithm: Algorithm) -> anyhow::Result<usize> {
    Ok(fetch(&client()?, url, algorithm).await?.len())
}

fn client() -> anyhow::Result<Client> {
    let client = Client::builder()
        .timeout(PATIENCE)
        .redirect(Policy::limited(3))
        .user_agent(concat!("fanfare/", env!("CARGO_PKG_VERSION")));
    client.build().context("no connections can be made to jwks_url")
}

async fn fetch(client: &Client, url: &str, algorithm: Algorithm) -> anyhow::Result<Keys> {
    let mut answer = client.get(url).send().await.map_err(plainly)?;
    ensure!(answer.status().is_success(), "the answer was {}", answer.status());
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(plainly)? {
        body.extend_from_slice(&part);
        ensure!(body.len() <= MAX_BYTES, "the answer has more than {MAX_BYTES} bytes");
    }
    let text = String::from_utf8(body).context("the answer is no text")?;
    Ok(Keys::from_text(algorithm, &text)?)
}

struct Follower {
    client: Client,
    url: String,
    algorithm: Algorithm,
    refresh: Duration,
    source: KeySource,
    /// How long to wait after the next failure.
    pause: Duration,
    down: bool,
}

impl Follower {
    async fn run(&mut self, mut next: Instant) {
        loop {
            let last = Instant::now();
            loop {
                tokio::select! {
                    () = sleep_until(next) => break,
                    () = self.source.wanted() => {
                        if last.elapsed() >= AT_MOST_EVERY {
                            break;
                        }
                        self.source.keep();
                    }
                }
            }
            next = self.attempt().await;
        }
    }

    /// Fetches the keys. Returns when to do so again.
    async fn attempt(&mut self) -> Instant {
        let now = Instant::now();
        match fetch(&self.client, &self.url, self.algorithm).await {
            Ok(keys) => {
                if std::mem::take(&mut self.down) {
                    tracing::info!(keys = keys.len(), "the keys can be fetched again");
                }
                self.source.renew(keys);
                self.pause = SOON;
                now + self.refresh
            }
            Err(error) => {
                // Once is enough: it may go on for a while.
                if !std::mem::replace(&mut self.down, true) {
                    tracing::error!(
                        "the keys at {} (jwks_url) can't be fetched: {error:#}; those from before stay, and tokens that name \
                         others are told to come back",
                        self.url
                    );
                }
                self.source.fail();
                let pause = self.pause;
                self.pause = (pause * 2).min(LATER);
                now + pause
            }
        }
    }
}
