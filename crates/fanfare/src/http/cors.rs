//! Cross-origin requests (CORS): permissions, and the response to preflight requests that are not allowed.

use crate::problem::problem;
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

/// The permissions of pages on allowed origins. The hub itself uses no credentials that a browser adds, such as
/// cookies.
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

/// Answers preflight requests from origins that are not allowed with 403. The page cannot read the response; its
/// developer finds the setting to change in it.
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
