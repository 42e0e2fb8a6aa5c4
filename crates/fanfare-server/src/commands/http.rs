//! One HTTP/1.1 request at a time, for the commands that talk to a hub. Knows requests, and not what they mean.

use super::{Usage, access::checked};
use anyhow::Context;
use fanfare_client::scheme_mismatch;
use hyper::{StatusCode, Uri, body::Bytes, header::CONTENT_TYPE};
use reqwest::{Client, RequestBuilder, Response, redirect::Policy};
use std::{fmt, time::Duration};
use tokio::{net::TcpStream, time::timeout};

const PATIENCE: Duration = Duration::from_secs(10);
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// Where a hub is.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    client: Client,
    tls: bool,
    authority: String,
    address: (String, u16),
    /// What stands before the hub's own paths, without a slash at its end.
    base: String,
}

#[derive(Debug)]
pub(crate) struct HubResponse {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

impl Server {
    /// Reads the URL of a hub, or of its WebSocket endpoint.
    pub(crate) fn parse(url: &str) -> Result<Self, Usage> {
        // What is before an @ could be a password, also where there is no scheme to tell.
        let shown = if url.contains('@') { "what is written there".to_owned() } else { format!("{url:?}") };
        let wrong = |why: &str| Usage(format!("--url can't be {shown}: {why}"));
        let uri: Uri = url.trim().parse().map_err(|_| wrong("it is no URL"))?;
        let tls = match uri.scheme_str() {
            Some("http" | "ws") => false,
            Some("https" | "wss") => true,
            _ => return Err(wrong("it must begin with http://, https://, ws:// or wss://")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("it has no host"))?;
        if let Err(error) = reqwest::Url::parse(url.trim()) {
            return Err(wrong(&error.to_string()));
        }
        // IPv6 addresses stand in brackets in a URL, and without when connecting.
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let path = uri.path().trim_end_matches('/');
        let client = Client::builder()
            .timeout(PATIENCE)
            .redirect(Policy::none())
            .user_agent(concat!("fanfare/", env!("CARGO_PKG_VERSION")));
        Ok(Self {
            client: client.build().map_err(|error| wrong(&error.to_string()))?,
            tls,
            authority: authority.as_str().to_owned(),
            address: (host, authority.port_u16().unwrap_or(if tls { 443 } else { 80 })),
            base: path.strip_suffix("/ws").unwrap_or(path).to_owned(),
        })
    }

    /// The WebSocket endpoint, without a query.
    pub(crate) fn websocket_url(&self) -> String {
        let scheme = if self.tls { "wss" } else { "ws" };
        format!("{scheme}://{}{}/ws", self.authority, self.base)
    }

    pub(crate) async fn connect(&self) -> anyhow::Result<TcpStream> {
        let connecting = TcpStream::connect((self.address.0.as_str(), self.address.1));
        let stream = timeout(PATIENCE, connecting).await.context("it does not answer")??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Posts JSON. An error means that it isn't known whether the request arrived.
    pub(crate) async fn post(&self, path: &str, token: &str, json: String) -> anyhow::Result<HubResponse> {
        let request = self.client.post(self.url(path)).bearer_auth(checked(token)?);
        self.ask(request.header(CONTENT_TYPE, "application/json").body(json)).await
    }

    /// Gets something, with a token if it is not open to everybody.
    pub(crate) async fn get(&self, path: &str, token: Option<&str>) -> anyhow::Result<HubResponse> {
        let request = self.client.get(self.url(path));
        self.ask(match token {
            Some(token) => request.bearer_auth(checked(token)?),
            None => request,
        })
        .await
    }

    async fn ask(&self, request: RequestBuilder) -> anyhow::Result<HubResponse> {
        match request.send().await {
            Ok(answer) => read(answer).await,
            Err(error) => Err(self.explain(error).await),
        }
    }

    /// Why there is no answer. Where the URL's scheme is wrong, another attempt is of no use.
    async fn explain(&self, error: reqwest::Error) -> anyhow::Error {
        let there = self.tls || !(error.is_connect() || error.is_timeout());
        if there
            && let Ok(url) = self.url("/").parse()
            && let Some(why) = scheme_mismatch(&url, &error).await
        {
            return Usage(why).into();
        }
        plainly(error)
    }

    fn url(&self, path: &str) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}{path}", self.authority, self.base)
    }
}

async fn read(mut answer: Response) -> anyhow::Result<HubResponse> {
    let (status, mut body) = (answer.status(), Vec::new());
    while let Some(part) = answer.chunk().await.map_err(plainly)? {
        body.extend_from_slice(&part);
        anyhow::ensure!(body.len() <= MAX_ANSWER_BYTES, "the answer is too large");
    }
    Ok(HubResponse { status, body: body.into() })
}

/// What is at the bottom of an error, which says more to people than the layers above it.
#[expect(clippy::needless_pass_by_value, reason = "it stands where errors are mapped")]
pub(crate) fn plainly(error: reqwest::Error) -> anyhow::Error {
    if error.is_timeout() {
        return anyhow::anyhow!("it does not answer");
    }
    let mut deepest: &dyn std::error::Error = &error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    anyhow::anyhow!("{deepest}")
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.authority.rsplit('@').next().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hub_and_its_endpoint_are_the_same_place() {
        for url in ["http://[::1]:8000/hub/", "ws://[::1]:8000/hub/ws", "http://[::1]:8000/hub"] {
            let server = Server::parse(url).unwrap();
            assert_eq!((&server.address, server.base.as_str()), (&("::1".to_owned(), 8000), "/hub"));
            assert_eq!(server.websocket_url(), "ws://[::1]:8000/hub/ws");
        }
        assert_eq!(Server::parse("http://host").unwrap().address, ("host".to_owned(), 80));
        let tls = Server::parse("https://host/hub").unwrap();
        assert_eq!((tls.websocket_url().as_str(), tls.address.1), ("wss://host/hub/ws", 443));
    }

    #[test]
    fn other_urls_are_refused() {
        for (url, says) in [
            ("ftp://host", "must begin with http://"),
            ("host:8000", "must begin with http://"),
            ("http://", "no URL"),
            ("", "no URL"),
            ("u:hush@host", "can't be what is written there"),
            ("ftp://u:hush@host", "can't be what is written there"),
            ("http://u:hush/hush@host", "can't be what is written there: invalid port"),
        ] {
            let error = Server::parse(url).expect_err(url).to_string();
            assert!(error.contains(says), "{url}: {error}");
        }
    }
}
