//! The OpenAPI 3.1 description of the API, and a page to read and try it. Both work without a network: the page's parts
//! are embedded in the binary, and its policy forbids it to load anything from other hosts.

use super::error::{ApiError, ErrorCode};
use crate::Hub;
use crate::problem::ErrorBody;
use axum::{
    Router,
    body::Bytes,
    extract::Path,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use std::{borrow::Cow, sync::Arc};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};

/// Its paths are relative, so that it also works if an application nests the hub under a prefix.
const PAGE: &str = include_str!("docs.html");

/// Starts the page. A separate file, because the policy allows no inline script.
const START: &str = r##"SwaggerUIBundle({
  url: "openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null, tryItOutEnabled: true,
  tagsSorter: undefined, displayRequestDuration: true,
});
"##;

const POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'self'";

/// The name of the page's start script.
const START_FILE: &str = "start.js";

/// The description without its routes, which are added by their own declarations.
#[derive(OpenApi)]
#[openapi(
    info(title = "fanfare", description = include_str!("description.md"), license(name = "MIT OR Apache-2.0")),
    // Relative to the description itself, so that it also works behind a proxy and under a prefix.
    servers((url = ".", description = "The hub that serves this description.")),
    paths(websocket),
    components(schemas(ErrorBody)),
    modifiers(&Bearer),
    tags(
        (name = "connect", description = "Receive events over WebSocket."),
        (name = "publish", description = "Publish events to everyone, a user, a connection or a topic."),
        (name = "reference", description = "Typed events, with the endpoints of the FastAPI hub."),
        (name = "health", description = "The status of the hub. No token needed."),
        (name = "operate", description = "For operators."),
    )
)]
struct Description;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("JWT")
            .description(Some("A signed token. The claim `publish` allows publishing, and `admin` all requests."))
            .build();
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(scheme));
    }
}

#[utoipa::path(
    get,
    path = "/ws",
    tag = "connect",
    operation_id = "connect",
    summary = "Connect over WebSocket",
    description = include_str!("websocket.md"),
    security((), ("bearer" = [])),
    params(
        ("token" = Option<String>, Query, description = "The token, if neither `Authorization: Bearer` nor an entry of \
            `Sec-WebSocket-Protocol` carries it."),
        ("connection_id" = Option<String>, Query, format = "uuid",
            description = "Resume as this connection: the `connection_id` of the first `ack`."),
        ("last_event_id" = Option<String>, Query, example = "pos-1f00c3-42",
            description = "The cursor: the `log_position` of the last message received, or its `event_id`. Later \
                events are replayed."),
        ("topics" = Option<String>, Query, example = "project:7,project:9",
            description = "Topics to subscribe to, separated by commas."),
    ),
    responses(
        (status = 101, description = "The connection is upgraded. A missing or invalid token is answered with close \
            code 1008 and a reason."),
        (status = 400, description = "The handshake has no valid key (RFC 6455 section 4.2.1), or the query is not \
            valid.", body = ErrorBody),
        (status = 429, description = "The address exceeds its connect rate (`connects_per_second_per_address`), or too \
            many of its rejected clients wait for their close frame (`refusal_delay`).",
            body = ErrorBody, headers(("Retry-After" = u32))),
        (status = 503, description = "Too many rejected clients wait for their close frame (`refusal_delay`).",
            body = ErrorBody, headers(("Retry-After" = u32))),
        (status = 426, description = "Not a WebSocket handshake, or not version 13.", body = ErrorBody,
            headers(("Upgrade" = String), ("Sec-WebSocket-Version" = String)),
            example = json!({"detail": "this is a WebSocket endpoint", "code": "upgrade_required"})),
    )
)]
#[expect(dead_code, reason = "it describes a route that is implemented outside of this module")]
fn websocket() {}

pub(super) fn description() -> utoipa::openapi::OpenApi {
    Description::openapi()
}

/// Marks routes as open to requests without a token.
pub(super) fn open(spec: &mut utoipa::openapi::OpenApi, paths: &[&str]) {
    for path in paths {
        if let Some(post) = spec.paths.paths.get_mut(*path).and_then(|item| item.post.as_mut()) {
            post.security.get_or_insert_default().insert(0, SecurityRequirement::default());
        }
    }
}

/// The routes of the documentation.
pub(super) fn router(spec: &utoipa::openapi::OpenApi) -> Router<Hub> {
    let spec = Bytes::from(serde_json::to_vec(spec).unwrap_or_default());
    let answer = move || std::future::ready(([(header::CONTENT_TYPE, "application/json")], spec.clone()));
    Router::new()
        .route("/openapi.json", get(answer))
        .route("/docs", get(page))
        .route("/docs/", get(async || Redirect::permanent("../docs")))
        .route("/docs/{file}", get(file))
}

async fn page() -> impl IntoResponse {
    let policy = HeaderName::from_static("content-security-policy");
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8"), (policy, POLICY)], PAGE)
}

async fn file(Path(name): Path<String>) -> Result<Response, ApiError> {
    if name == START_FILE {
        return Ok(([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], START).into_response());
    }
    let not_found = || ApiError::new(ErrorCode::NotFound, format!("the documentation has no file {name:?}"));
    let config = Arc::new(utoipa_swagger_ui::Config::default());
    let file = utoipa_swagger_ui::serve(&name, config).ok().flatten().ok_or_else(not_found)?;
    let body = match file.bytes {
        Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        Cow::Owned(bytes) => bytes.into(),
    };
    let mut response = ([(header::CONTENT_TYPE, file.content_type)], body).into_response();
    if file.gzpipped {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    Ok(response)
}
