//! One HTTP/1.1 request at a time, for the commands that talk to a hub. Knows requests, and not what they mean.

use super::Usage;
use anyhow::Context;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode, Uri,
    body::Bytes,
    client::conn::http1,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use std::{fmt, time::Duration};
use tokio::{net::TcpStream, time::timeout};

const PATIENCE: Duration = Duration::from_secs(10);
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// Where a hub is.
#[derive(Debug, Clone)]
pub(super) struct Server {
    authority: String,
    address: (String, u16),
    /// What stands before the hub's own paths, without a slash at its end.
    base: String,
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl Server {
    /// Reads the URL of a hub, or of its WebSocket endpoint.
    pub(super) fn parse(url: &str) -> Result<Self, Usage> {
        let wrong = |why: &str| Usage(format!("--url can't be {url:?}: {why}"));
        let uri: Uri = url.trim().parse().map_err(|_| wrong("it is no URL"))?;
        match uri.scheme_str() {
            Some("http" | "ws") => {}
            Some("https" | "wss") => {
                return Err(wrong("this version speaks no TLS; use the hub's own address behind the proxy"));
            }
            _ => return Err(wrong("it must begin with http:// or ws://")),
        }
        let authority = uri.authority().ok_or_else(|| wrong("it has no host"))?;
        // IPv6 addresses stand in brackets in a URL, and without when connecting.
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let path = uri.path().trim_end_matches('/');
        Ok(Self {
            authority: authority.as_str().to_owned(),
            address: (host, authority.port_u16().unwrap_or(80)),
            base: path.strip_suffix("/ws").unwrap_or(path).to_owned(),
        })
    }

    /// The WebSocket endpoint, without a query.
    pub(super) fn websocket_url(&self) -> String {
        format!("ws://{}{}/ws", self.authority, self.base)
    }

    pub(super) async fn connect(&self) -> anyhow::Result<TcpStream> {
        let connecting = TcpStream::connect((self.address.0.as_str(), self.address.1));
        let stream = timeout(PATIENCE, connecting).await.context("it does not answer")??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Posts JSON. An error means that it isn't known whether the request arrived.
    pub(super) async fn post(&self, path: &str, token: &str, json: String) -> anyhow::Result<Answer> {
        let request = self.request(path, token, json)?;
        timeout(PATIENCE, self.exchange(request)).await.context("it does not answer")?
    }

    fn request(&self, path: &str, token: &str, json: String) -> anyhow::Result<Request<Full<Bytes>>> {
        let mut bearer = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| Usage("the token has characters that no token has".to_owned()))?;
        bearer.set_sensitive(true);
        let request = Request::builder().method(Method::POST).uri(format!("{}{path}", self.base));
        let request = request
            .header(HOST, &self.authority)
            .header(USER_AGENT, concat!("fanfare/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, "application/json")
            .header(AUTHORIZATION, bearer);
        Ok(request.body(Full::new(json.into()))?)
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(self.connect().await?)).await?;
        let answer = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
            Ok(Answer { status, body })
        };
        // The connection moves the bytes; it has no answer of its own.
        let connection = async {
            drop(connection.await);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = answer => answer,
            () = connection => Err(anyhow::anyhow!("the connection ended")),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.authority)
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
    }

    #[test]
    fn other_urls_are_refused() {
        for (url, says) in [
            ("https://host", "no TLS"),
            ("wss://host", "no TLS"),
            ("ftp://host", "must begin with http://"),
            ("host:8000", "must begin with http://"),
            ("http://", "no URL"),
            ("", "no URL"),
        ] {
            let error = Server::parse(url).expect_err(url).to_string();
            assert!(error.contains(says), "{url}: {error}");
        }
    }
}
