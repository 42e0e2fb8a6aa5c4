//! The HTTP API for logins. Knows requests and responses.

use super::{
    Logins,
    login::{LoginError, Session},
};
use axum::{
    Json,
    body::{Body, to_bytes},
    extract::{FromRequestParts, Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use fanfare::{BodyTimeout, Hub, address_group};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{collections::BTreeMap, convert::Infallible, net::IpAddr, sync::Arc};
use utoipa::{
    IntoResponses, PartialSchema, ToSchema,
    openapi::{self, RefOr},
};
use utoipa_axum::{router::OpenApiRouter, routes};

/// The largest body: the longest address and password, and their JSON.
const MAX_BODY: usize = 8 << 10;

/// The credentials of a login.
#[derive(Deserialize, ToSchema)]
struct LoginInput {
    /// The e-mail address of the account.
    #[schema(example = "ann@example.org")]
    email: String,
    #[schema(format = "password", example = "correct horse battery staple")]
    password: String,
}

/// A refresh token.
#[derive(Deserialize, ToSchema)]
struct RefreshInput {
    /// From the response to the login or to the last refresh.
    refresh_token: String,
}

/// New tokens.
#[derive(Serialize, ToSchema)]
struct SessionBody {
    /// The token for `/ws` and for the API.
    access_token: String,
    /// The scheme of the `Authorization` header.
    #[schema(example = "bearer")]
    token_type: &'static str,
    /// Lifetime of the access token, in seconds.
    #[schema(example = 1800)]
    expires_in: u64,
    /// For one request to `/auth/refresh`, whose response contains the next one.
    refresh_token: String,
    /// Lifetime of the refresh token, in seconds.
    refresh_expires_in: u64,
    user: AccountBody,
}

/// The account.
#[derive(Serialize, ToSchema)]
struct AccountBody {
    /// The user's ID, which publishers address.
    #[schema(example = "ann@example.org")]
    id: String,
    email: String,
    /// `viewer`, `publisher` or `admin`.
    #[schema(example = "viewer")]
    role: &'static str,
}

/// The result of a logout.
#[derive(Serialize, ToSchema)]
struct LogoutBody {
    #[schema(example = "logged out")]
    status: &'static str,
}

/// The errors that are common to all routes.
struct CommonErrors;

impl IntoResponses for CommonErrors {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        let error = openapi::Ref::from_schema_name("ErrorBody");
        let content = openapi::ContentBuilder::new().schema(Some(error)).build();
        let respond = |(status, description, later): (u16, &str, bool)| {
            let mut response =
                openapi::ResponseBuilder::new().description(description).content("application/json", content.clone());
            if later {
                response = response.header("Retry-After", openapi::Header::new(u32::schema()));
            }
            (status.to_string(), response.build().into())
        };
        [
            (400, "The body is not JSON.", false),
            (408, "The body did not arrive in time.", false),
            (413, "The body is too large.", false),
            (415, "The content type is not JSON.", false),
            (422, "A field is missing, duplicate, or not a string.", false),
            (429, "Too many attempts.", true),
            (503, "Logins are currently unavailable.", true),
        ]
        .map(respond)
        .into()
    }
}

/// An error in the common format of the API.
struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    retry_after: Option<u64>,
}

/// The address of the client, by which logins are limited.
struct ClientAddress(IpAddr);

impl FromRequestParts<Arc<Logins>> for ClientAddress {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, logins: &Arc<Logins>) -> Result<Self, Infallible> {
        Ok(Self(address_group(logins.hub().client_address(parts))))
    }
}

/// The routes, with their OpenAPI descriptions.
pub(crate) fn router(logins: Arc<Logins>) -> OpenApiRouter<Hub> {
    OpenApiRouter::new().routes(routes!(login)).routes(routes!(refresh)).routes(routes!(logout)).with_state(logins)
}

/// Log in
///
/// Attempts are limited by address and by account. The response does not reveal which of the credentials was wrong.
#[utoipa::path(
    post,
    path = "/auth/login",
    tag = "auth",
    operation_id = "login",
    security(()),
    request_body = LoginInput,
    responses(
        (status = 200, description = "The login succeeded.", body = SessionBody),
        (status = 401, description = "The address or the password is wrong.", body = ref("#/components/schemas/ErrorBody")),
        CommonErrors,
    )
)]
async fn login(
    State(logins): State<Arc<Logins>>,
    ClientAddress(from): ClientAddress,
    request: Request,
) -> Result<Response, Problem> {
    check_type(&request)?;
    let LoginInput { email, password } = input(request.into_body()).await?;
    Ok(respond(logins.login(from, &email, password).await?))
}

/// Refresh the access token
///
/// A refresh token can be used once. If it is used again later, its login ends with all of its tokens.
#[utoipa::path(
    post,
    path = "/auth/refresh",
    tag = "auth",
    operation_id = "refresh",
    security(()),
    request_body = RefreshInput,
    responses(
        (status = 200, description = "New tokens.", body = SessionBody),
        (status = 401, description = "The refresh token has expired or was used before.",
            body = ref("#/components/schemas/ErrorBody")),
        CommonErrors,
    )
)]
async fn refresh(
    State(logins): State<Arc<Logins>>,
    ClientAddress(from): ClientAddress,
    request: Request,
) -> Result<Response, Problem> {
    check_type(&request)?;
    let RefreshInput { refresh_token } = input(request.into_body()).await?;
    Ok(respond(logins.renew(from, &refresh_token).await?))
}

/// Log out
///
/// Ends a login: its refresh tokens, its access tokens, and their connections.
#[utoipa::path(
    post,
    path = "/auth/logout",
    tag = "auth",
    operation_id = "logout",
    security(()),
    request_body = RefreshInput,
    responses(
        (status = 200, description = "The login has ended, or did not exist.", body = LogoutBody),
        CommonErrors,
    )
)]
async fn logout(
    State(logins): State<Arc<Logins>>,
    ClientAddress(from): ClientAddress,
    request: Request,
) -> Result<Response, Problem> {
    check_type(&request)?;
    let RefreshInput { refresh_token } = input(request.into_body()).await?;
    logins.logout(from, &refresh_token).await?;
    Ok(Json(LogoutBody { status: "logged out" }).into_response())
}

/// Rejects other content types, because pages of other sites can send forms and plain text without a preflight request.
fn check_type(request: &Request) -> Result<(), Problem> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let essence = kind.map(|kind| kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    if essence.as_deref() == Some("application/json") {
        return Ok(());
    }
    Err(Problem {
        status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
        code: "unsupported_media_type",
        detail: "expected Content-Type: application/json".to_owned(),
        retry_after: None,
    })
}

async fn input<T: DeserializeOwned>(body: Body) -> Result<T, Problem> {
    let bytes = to_bytes(body, MAX_BODY).await.map_err(|error| {
        let (status, code, detail) = if BodyTimeout::caused(&error) {
            (StatusCode::REQUEST_TIMEOUT, "request_timeout", BodyTimeout.to_string())
        } else {
            (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", format!("the body must have at most {MAX_BODY} bytes"))
        };
        Problem { status, code, detail, retry_after: None }
    })?;
    serde_json::from_slice(&bytes).map_err(|error| {
        // The message of serde_json could repeat a password from the body.
        let (status, code, detail) = match error.classify() {
            serde_json::error::Category::Data => {
                (StatusCode::UNPROCESSABLE_ENTITY, "invalid", "a field is missing, duplicate, or not a string")
            }
            _ => (StatusCode::BAD_REQUEST, "not_json", "the body is not a JSON object"),
        };
        Problem { status, code, detail: detail.to_owned(), retry_after: None }
    })
}

fn respond(session: Session) -> Response {
    let Session { access_token, expires_in, refresh_token, refresh_expires_in, user } = session;
    let user = AccountBody { id: user.email.clone(), email: user.email, role: user.role.name() };
    let body = SessionBody { access_token, token_type: "bearer", expires_in, refresh_token, refresh_expires_in, user };
    let mut response = Json(body).into_response();
    // RFC 6749 section 5.1.
    for (name, value) in [(header::CACHE_CONTROL, "no-store"), (HeaderName::from_static("pragma"), "no-cache")] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

impl From<LoginError> for Problem {
    fn from(error: LoginError) -> Self {
        let (status, code, retry_after) = match &error {
            LoginError::Wrong => (StatusCode::UNAUTHORIZED, "invalid_credentials", None),
            LoginError::WrongRenewal => (StatusCode::UNAUTHORIZED, "invalid_refresh_token", None),
            LoginError::TooMany { retry_after } => {
                (StatusCode::TOO_MANY_REQUESTS, "too_many_logins", Some(retry_after.as_secs().max(1)))
            }
            LoginError::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy", Some(1)),
            LoginError::Unavailable(_) | LoginError::Failed(_) => {
                // The location of the database is logged, and not sent to clients.
                tracing::error!("a login failed: {error:#}");
                let detail = "logins are currently unavailable; try again later".to_owned();
                let code = "accounts_unavailable";
                return Self { status: StatusCode::SERVICE_UNAVAILABLE, code, detail, retry_after: Some(5) };
            }
        };
        Self { status, code, detail: error.to_string(), retry_after }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = fanfare::problem(self.status, self.code, &self.detail);
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
