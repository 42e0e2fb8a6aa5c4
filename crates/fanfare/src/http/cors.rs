//! What pages of other sites may do (CORS), and what they are told where they may not.

use super::error::problem;
use crate::{
    Config, Hub,
    origin::{self, Origins},
};
use axum::{
    extract::{Request, State},
    http::{
        HeaderName, Method, StatusCode,
        header::{ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER},
    },
    middleware::Next,
    response::Response,
};
use std::time::Duration;
use tower_http::cors::{AllowOrigin, CorsLayer};

/// Headers that tracing and monitoring libraries add to a page's requests.
const TRACING_HEADERS: [&str; 5] = ["traceparent", "tracestate", "baggage", "sentry-trace", "x-request-id"];

/// What pages of other sites may do. The hub itself has no credentials that a browser would add by itself.
pub(super) fn permissions(origins: AllowOrigin, config: &Config) -> CorsLayer {
    let headers = [AUTHORIZATION, CONTENT_TYPE].into_iter().chain(TRACING_HEADERS.map(HeaderName::from_static));
    let listed = matches!(config.allowed_origins, Origins::Listed(_));
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(headers.chain(config.cors_headers.iter().cloned()).collect::<Vec<_>>())
        .allow_credentials(listed && config.cors_credentials)
        .expose_headers([
            RETRY_AFTER,
            HeaderName::from_static("fanfare-event-id"),
            HeaderName::from_static("fanfare-position"),
        ])
        .max_age(Duration::from_secs(600))
}

/// Answers the question that a browser asks before a page's request (a preflight) with 403 where the page's site is not
/// allowed. The page can't see it; its developer can, with what to set.
pub(super) async fn reject_preflights(State(hub): State<Hub>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    if request.method() == Method::OPTIONS
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
        && let Err(error) = hub.node().check_origin(headers, origin::peer(request.extensions()))
    {
        return problem(StatusCode::FORBIDDEN, "origin_not_allowed", &error.detail());
    }
    next.run(request).await
}
