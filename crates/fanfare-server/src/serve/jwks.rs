//! The public keys of an identity provider. They are fetched at startup, at an interval, and when a token names an
//! unknown key. If a fetch fails, the current keys remain in use.

use crate::api_client::root_cause;
use anyhow::{Context, ensure};
use fanfare::{
    Algorithm,
    auth::{KeySource, Keys},
};
use reqwest::{
    Client, ClientBuilder, Url,
    redirect::{Attempt, Policy},
};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// The time limit for one fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The shortest interval between fetches for unknown keys, because tokens with invented key IDs can arrive at any rate.
const MIN_INTERVAL: Duration = Duration::from_secs(10);

/// The pause after a failure: at first, and at most.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

const MAX_REDIRECTS: usize = 3;

/// The largest key set, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// Fetches the keys once, and then keeps them current in the background.
pub(super) async fn follow(
    url: &str,
    algorithm: Algorithm,
    refresh: Duration,
    source: KeySource,
) -> anyhow::Result<()> {
    let client = client()?;
    let mut follower =
        Follower { client, url: url.to_owned(), algorithm, refresh, source, pause: MIN_PAUSE, down: false };
    let next = follower.attempt().await;
    tokio::spawn(async move { follower.run(next).await });
    Ok(())
}

/// Fetches the keys once. Returns their number.
pub(crate) async fn try_fetch(url: &str, algorithm: Algorithm) -> anyhow::Result<usize> {
    Ok(fetch(&client()?, url, algorithm).await?.len())
}

fn client() -> anyhow::Result<Client> {
    client_of(Client::builder())
}

fn client_of(builder: ClientBuilder) -> anyhow::Result<Client> {
    let client = builder
        .timeout(FETCH_TIMEOUT)
        .redirect(Policy::custom(redirect))
        .user_agent(concat!("fanfare/", env!("CARGO_PKG_VERSION")));
    client.build().context("failed to create the HTTP client for jwks_url")
}

/// Rejects redirects from https to http: on an unencrypted connection the keys could be replaced in transit.
fn redirect(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error("too many redirects");
    }
    if attempt.previous().last().is_some_and(|from| may_follow(from, attempt.url())) {
        return attempt.follow();
    }
    let to = format!("the response redirects to {}, which is not https", attempt.url().scheme());
    attempt.error(to)
}

fn may_follow(from: &Url, to: &Url) -> bool {
    to.scheme() == "https" || (from.scheme(), to.scheme()) == ("http", "http")
}

async fn fetch(client: &Client, url: &str, algorithm: Algorithm) -> anyhow::Result<Keys> {
    let mut response = client.get(url).send().await.map_err(root_cause)?;
    ensure!(response.status().is_success(), "the response was {}", response.status());
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await.map_err(root_cause)? {
        body.extend_from_slice(&part);
        ensure!(body.len() <= MAX_BYTES, "the response is larger than {MAX_BYTES} bytes");
    }
    let text = String::from_utf8(body).context("the response is not UTF-8 text")?;
    Ok(Keys::from_text(algorithm, &text)?)
}

struct Follower {
    client: Client,
    url: String,
    algorithm: Algorithm,
    refresh: Duration,
    source: KeySource,
    /// The pause after the next failure.
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
                        if last.elapsed() >= MIN_INTERVAL {
                            break;
                        }
                        self.source.keep();
                    }
                }
            }
            next = self.attempt().await;
        }
    }

    /// Fetches the keys. Returns the time of the next attempt.
    async fn attempt(&mut self) -> Instant {
        let now = Instant::now();
        match fetch(&self.client, &self.url, self.algorithm).await {
            Ok(keys) => {
                if std::mem::take(&mut self.down) {
                    tracing::info!(keys = keys.len(), "the keys at jwks_url are available again");
                }
                self.source.renew(keys);
                self.pause = MIN_PAUSE;
                now + self.refresh
            }
            Err(error) => {
                // Logged once, because an outage may last.
                if !std::mem::replace(&mut self.down, true) {
                    tracing::error!(
                        "the keys at {} (jwks_url) can't be fetched: {error:#}; the current keys remain in use, and \
                         tokens that name other keys are rejected with keys_unavailable",
                        self.url
                    );
                }
                self.source.fail();
                let pause = self.pause;
                self.pause = (pause * 2).min(MAX_PAUSE);
                now + pause
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Router, response::Redirect, routing::get};
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };
    use tokio::net::TcpListener;

    #[test]
    fn a_redirect_may_not_leave_tls() {
        for (from, to, follows) in [
            ("https://a/", "https://b/", true),
            ("http://a/", "https://a/", true),
            ("http://a/", "http://b/", true),
            ("https://a/", "http://a/", false),
            ("https://a/", "ftp://a/", false),
            ("http://a/", "file:///etc/passwd", false),
            ("https://a/", "data:application/json,{}", false),
        ] {
            assert_eq!(may_follow(&from.parse().unwrap(), &to.parse().unwrap()), follows, "{from} {to}");
        }
    }

    /// A TLS server that redirects every request to `to`.
    async fn redirecting_with_tls(to: String) -> String {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = tokio_rustls::rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = tokio_rustls::rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}/jwks.json", listener.local_addr().unwrap().port());
        tokio::spawn(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut request = [0; 2_048];
                let _ = stream.read(&mut request).await;
                let response =
                    format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                let _ = stream.write_all(response.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        url
    }

    // attack: a JWKS URL over https that redirects to http, where anybody on the way can serve keys => not followed
    #[tokio::test]
    async fn keys_over_https_are_not_fetched_without_tls() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plain = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new()
            .route("/again", get(|| async { Redirect::to("/keys") }))
            .route("/round", get(|| async { Redirect::to("/round") }))
            .route("/keys", get(async move || count.fetch_add(1, Ordering::Relaxed).to_string()));
        tokio::spawn(async move { axum::serve(listener, app).await });
        let client = client_of(Client::builder().danger_accept_invalid_certs(true)).unwrap();
        let fetch = async |url: &str| format!("{:#}", super::fetch(&client, url, Algorithm::Es256).await.unwrap_err());

        let error = fetch(&redirecting_with_tls(format!("{plain}/keys")).await).await;
        assert!(error.contains("redirects to http, which is not https"), "{error}");
        assert_eq!(asked.load(Ordering::Relaxed), 0);
        fetch(&format!("{plain}/again")).await;
        assert_eq!(asked.load(Ordering::Relaxed), 1, "a redirect from http to http is followed");
        let error = fetch(&format!("{plain}/round")).await;
        assert!(error.contains("too many redirects"), "{error}");
    }
}
