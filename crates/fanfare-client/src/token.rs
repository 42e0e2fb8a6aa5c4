//! Where the token comes from: given once, or asked for when one is needed.

use std::{error::Error, fmt, future::Future, pin::Pin, sync::Arc};

/// Why a token is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenReason {
    /// To connect: there was none yet, or the hub refused the last one.
    Connect,
    /// The one in use ends soon; the new one is shown over the same connection.
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
    /// A token that is asked for when one is needed: before the first connect, after the hub refused the last one, and
    /// shortly before the one in use ends. An error is tried again later.
    pub fn asked<F, R>(ask: F) -> Self
    where
        F: Fn(TokenReason) -> R + Send + Sync + 'static,
        R: Future<Output = Result<String, Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        Self(Source::Asked(Arc::new(move |reason| Box::pin(ask(reason)))))
    }

    /// Asks for one, if there is somebody to ask.
    pub(crate) fn ask(&self, reason: TokenReason) -> Option<TokenFuture> {
        match &self.0 {
            Source::Given(_) => None,
            Source::Asked(ask) => Some(ask(reason)),
        }
    }

    pub(crate) fn given(&self) -> Option<&str> {
        match &self.0 {
            Source::Given(token) => Some(token),
            Source::Asked(_) => None,
        }
    }
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
