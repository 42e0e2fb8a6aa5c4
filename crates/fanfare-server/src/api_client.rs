//! An HTTP/1.1 client for the commands. Knows requests, and not what they mean.

use crate::{access::checked, util::UsageError};
use anyhow::Context;
use fanfare_client::scheme_mismatch;
use hyper::{StatusCode, Uri, body::Bytes, header::CONTENT_TYPE};
use reqwest::{Client, RequestBuilder, Response, redirect::Policy};
use std::{fmt, time::Duration};
use tokio::{net::TcpStream, time::timeout};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_RESPONSE_BYTES: usize = 16 << 20;

/// The URL of a hub, and an HTTP client for it.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    client: Client,
    tls: bool,
    authority: String,
    address: (String, u16),
    /// The path prefix of the hub, without a trailing slash.
    base: String,
}

#[derive(Debug)]
pub(crate) struct HubResponse {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

impl Server {
    /// Parses the URL of a hub, or of its WebSocket endpoint.
    pub(crate) fn parse(url: &str) -> Result<Self, UsageError> {
        // The text before an @ may be a password, even in a URL without a scheme.
        let shown = if url.contains('@') { "the given text".to_owned() } else { format!("{url:?}") };
        let wrong = |why: &str| UsageError(format!("--url: {shown} is not a valid URL: {why}"));
        let uri: Uri = url.trim().parse().map_err(|_| wrong("it cannot be parsed"))?;
        let tls = match uri.scheme_str() {
            Some("http" | "ws") => false,
            Some("https" | "wss") => true,
            _ => return Err(wrong("it must begin with http://, https://, ws:// or wss://")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("it has no host"))?;
        if let Err(error) = reqwest::Url::parse(url.trim()) {
            return Err(wrong(&error.to_string()));
        }
        // IPv6 addresses have brackets in a URL, and none in a socket address.
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let path = uri.path().trim_end_matches('/');
        let client = Client::builder()
            .timeout(REQUEST_TIMEOUT)
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
        let stream = timeout(REQUEST_TIMEOUT, connecting).await.context("no response in time")??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Posts JSON. After an error it is unknown whether the request arrived.
    pub(crate) async fn post(&self, path: &str, token: &str, json: String) -> anyhow::Result<HubResponse> {
        let request = self.client.post(self.url(path)).bearer_auth(checked(token)?);
        self.send(request.header(CONTENT_TYPE, "application/json").body(json)).await
    }

    /// Sends a GET request, with a token if the route requires one.
    pub(crate) async fn get(&self, path: &str, token: Option<&str>) -> anyhow::Result<HubResponse> {
        let request = self.client.get(self.url(path));
        self.send(match token {
            Some(token) => request.bearer_auth(checked(token)?),
            None => request,
        })
        .await
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<HubResponse> {
        match request.send().await {
            Ok(response) => read(response).await,
            Err(error) => Err(self.explain(error).await),
        }
    }

    /// The cause of a failed request. It is a `Usage` if the URL has the wrong scheme, because a retry would fail too.
    async fn explain(&self, error: reqwest::Error) -> anyhow::Error {
        let there = self.tls || !(error.is_connect() || error.is_timeout());
        if there
            && let Ok(url) = self.url("/").parse()
            && let Some(why) = scheme_mismatch(&url, &error).await
        {
            return UsageError(why).into();
        }
        root_cause(error)
    }

    fn url(&self, path: &str) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}{path}", self.authority, self.base)
    }
}

async fn read(mut response: Response) -> anyhow::Result<HubResponse> {
    let (status, mut body) = (response.status(), Vec::new());
    while let Some(part) = response.chunk().await.map_err(root_cause)? {
        body.extend_from_slice(&part);
        anyhow::ensure!(body.len() <= MAX_RESPONSE_BYTES, "the response is too large");
    }
    Ok(HubResponse { status, body: body.into() })
}

/// The innermost cause of an error, which is more specific than the layers around it.
#[expect(clippy::needless_pass_by_value, reason = "used in map_err")]
pub(crate) fn root_cause(error: reqwest::Error) -> anyhow::Error {
    if error.is_timeout() {
        return anyhow::anyhow!("no response in time");
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
    fn urls_of_the_hub_and_of_its_endpoint_are_accepted() {
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
    fn other_urls_are_rejected() {
        for (url, says) in [
            ("ftp://host", "must begin with http://"),
            ("host:8000", "must begin with http://"),
            ("http://", "cannot be parsed"),
            ("", "cannot be parsed"),
            ("u:hush@host", "the given text is not a valid URL"),
            ("ftp://u:hush@host", "the given text is not a valid URL"),
            ("http://u:hush/hush@host", "the given text is not a valid URL: invalid port"),
        ] {
            let error = Server::parse(url).expect_err(url).to_string();
            assert!(error.contains(says), "{url}: {error}");
        }
    }
}
