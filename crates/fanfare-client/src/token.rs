//! Tokens: a fixed token, or a token source that is called when a token is needed.

use std::{error::Error, fmt, future::Future, pin::Pin, sync::Arc, time::Duration};
use tokio::time::timeout;

/// Why a token is requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenReason {
    /// A token is needed to connect. Any valid token suffices.
    Connect,
    /// A token is needed to connect, and the hub rejected the last one. A different token is needed.
    Rejected,
    /// The current token expires soon. The new token is sent over the open connection.
    Expiring,
}

pub(crate) type TokenFuture = Pin<Box<dyn Future<Output = Result<String, Box<dyn Error + Send + Sync>>> + Send>>;

/// A JWT or an access key for the hub.
#[derive(Clone)]
pub struct Token(pub(crate) Source);

#[derive(Clone)]
pub(crate) enum Source {
    Given(String),
    Asked(Arc<dyn Fn(TokenReason) -> TokenFuture + Send + Sync>),
}

impl Token {
    /// A token source that is called when a token is needed: before the first connect, after the hub rejected the last
    /// token, and shortly before the current token expires.
    ///
    /// An error, a timeout ([`token_timeout`](crate::Options::token_timeout)), and a result that is neither a JWT nor
    /// an access key are reported and retried. The result itself is not part of the report.
    pub fn asked<F, R>(ask: F) -> Self
    where
        F: Fn(TokenReason) -> R + Send + Sync + 'static,
        R: Future<Output = Result<String, Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        Self(Source::Asked(Arc::new(move |reason| Box::pin(ask(reason)))))
    }

    /// Requests a token from the token source, if there is one.
    pub(crate) fn ask(&self, reason: TokenReason, limit: Duration) -> Option<TokenFuture> {
        let Source::Asked(ask) = &self.0 else { return None };
        let answer = ask(reason);
        Some(Box::pin(async move {
            let token = timeout(limit, answer).await.map_err(|_| NoToken::TimedOut(limit))??;
            if is_token(&token) { Ok(token) } else { Err(NoToken::NotAToken.into()) }
        }))
    }

    pub(crate) fn given(&self) -> Option<&str> {
        match &self.0 {
            Source::Given(token) => Some(token),
            Source::Asked(_) => None,
        }
    }
}

/// Why a token source returned no token.
#[derive(Debug, thiserror::Error)]
enum NoToken {
    #[error("the token source did not answer within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    #[error("the token source returned neither a JWT nor an access key")]
    NotAToken,
}

/// Returns whether a text has the form of a JWT (RFC 7519 section 3) or of an access key. The hub verifies it.
fn is_token(text: &str) -> bool {
    let is_word = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if let Some(key) = text.strip_prefix("ffk_") {
        return !key.is_empty() && is_word(key);
    }
    let parts: Vec<_> = text.split('.').collect();
    parts.len() == 3 && parts.iter().all(|part| !part.is_empty() && is_word(part))
}

impl<T: Into<String>> From<T> for Token {
    fn from(token: T) -> Self {
        Self(Source::Given(token.into()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_jwts_and_access_keys_are_tokens() {
        for token in ["aa.bb-_.cc", "ffk_aZ09-_"] {
            assert!(is_token(token), "{token}");
        }
        for other in [
            "",
            "undefined",
            "null",
            "a.b",
            "a..c",
            "a.b.c.d",
            "a.b.c\n",
            "Bearer a.b.c",
            "{\"a\":1}",
            "ffk_",
            "ffk_ x",
        ] {
            assert!(!is_token(other), "{other}");
        }
    }
}
