//! Logging in over HTTP. Knows requests and answers.

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

/// What a request may hold: the longest address and password, with what surrounds them.
const MAX_BODY: usize = 8 << 10;

/// Who logs in.
#[derive(Deserialize, ToSchema)]
struct LoginInput {
    /// The account.
    #[schema(example = "ann@example.org")]
    email: String,
    #[schema(format = "password", example = "correct horse battery staple")]
    password: String,
}

/// Who was let in before.
#[derive(Deserialize, ToSchema)]
struct RefreshInput {
    /// As the login answered it.
    refresh_token: String,
}

/// What is to be shown from now on.
#[derive(Serialize, ToSchema)]
struct SessionBody {
    /// The token for `/ws` and for the API.
    access_token: String,
    /// How it is shown: `Authorization: Bearer`.
    #[schema(example = "bearer")]
    token_type: &'static str,
    /// How long it is valid, in seconds.
    #[schema(example = 1800)]
    expires_in: u64,
    /// For `/auth/refresh`, once; its answer has the next one.
    refresh_token: String,
    /// How long that is valid, in seconds.
    refresh_expires_in: u64,
    user: AccountBody,
}

/// Who was let in.
#[derive(Serialize, ToSchema)]
struct AccountBody {
    /// The user's id, as publishers address it.
    #[schema(example = "ann@example.org")]
    id: String,
    email: String,
    /// `viewer`, `publisher` or `admin`.
    #[schema(example = "viewer")]
    role: &'static str,
}

/// What was done, in a word.
#[derive(Serialize, ToSchema)]
struct LogoutBody {
    #[schema(example = "logged out")]
    status: &'static str,
}

/// What any of the routes may answer instead.
struct Refusals;

impl IntoResponses for Refusals {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        let error = openapi::Ref::from_schema_name("ErrorBody");
        let content = openapi::ContentBuilder::new().schema(Some(error)).build();
        let answer = |(status, description, later): (u16, &str, bool)| {
            let mut response =
                openapi::ResponseBuilder::new().description(description).content("application/json", content.clone());
            if later {
                response = response.header("Retry-After", openapi::Header::new(u32::schema()));
            }
            (status.to_string(), response.build().into())
        };
        [
            (400, "The body is not JSON.", false),
            (408, "The body did not come in time.", false),
            (413, "The body is too large.", false),
            (415, "The body is declared to be something other than JSON.", false),
            (422, "A field is missing, there twice, or no string.", false),
            (429, "Too many attempts.", true),
            (503, "It can't be done now.", true),
        ]
        .map(answer)
        .into()
    }
}

/// What went wrong, in the form of every error of the API.
struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    retry_after: Option<u64>,
}

/// Whose request it is.
struct Caller(IpAddr);

impl FromRequestParts<Arc<Logins>> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, logins: &Arc<Logins>) -> Result<Self, Infallible> {
        Ok(Self(address_group(logins.hub().client_address(parts))))
    }
}

/// The routes, with their description.
pub(crate) fn router(logins: Arc<Logins>) -> OpenApiRouter<Hub> {
    OpenApiRouter::new().routes(routes!(login)).routes(routes!(refresh)).routes(routes!(logout)).with_state(logins)
}

/// Log in
///
/// Attempts are limited by address and by account. Which of the two was wrong is not told.
#[utoipa::path(
    post,
    path = "/auth/login",
    tag = "auth",
    operation_id = "login",
    security(()),
    request_body = LoginInput,
    responses(
        (status = 200, description = "Let in.", body = SessionBody),
        (status = 401, description = "The address or the password is wrong.", body = ref("#/components/schemas/ErrorBody")),
        Refusals,
    )
)]
async fn login(State(logins): State<Arc<Logins>>, Caller(from): Caller, request: Request) -> Result<Response, Problem> {
    check_type(&request)?;
    let LoginInput { email, password } = input(request.into_body()).await?;
    Ok(answer(logins.login(from, &email, password).await?))
}

/// Get a new access token
///
/// Each refresh token is good for one use; used again later, it and all that came of its login end.
#[utoipa::path(
    post,
    path = "/auth/refresh",
    tag = "auth",
    operation_id = "refresh",
    security(()),
    request_body = RefreshInput,
    responses(
        (status = 200, description = "The next tokens.", body = SessionBody),
        (status = 401, description = "The refresh token has ended, or was used.",
            body = ref("#/components/schemas/ErrorBody")),
        Refusals,
    )
)]
async fn refresh(
    State(logins): State<Arc<Logins>>,
    Caller(from): Caller,
    request: Request,
) -> Result<Response, Problem> {
    check_type(&request)?;
    let RefreshInput { refresh_token } = input(request.into_body()).await?;
    Ok(answer(logins.renew(from, &refresh_token).await?))
}

/// Log out
///
/// Ends the refresh tokens of one login. Its access token ends by itself.
#[utoipa::path(
    post,
    path = "/auth/logout",
    tag = "auth",
    operation_id = "logout",
    security(()),
    request_body = RefreshInput,
    responses(
        (status = 200, description = "They have ended, if there were any.", body = LogoutBody),
        Refusals,
    )
)]
async fn logout(
    State(logins): State<Arc<Logins>>,
    Caller(from): Caller,
    request: Request,
) -> Result<Response, Problem> {
    check_type(&request)?;
    let RefreshInput { refresh_token } = input(request.into_body()).await?;
    logins.logout(from, &refresh_token).await?;
    Ok(Json(LogoutBody { status: "logged out" }).into_response())
}

/// A page of another site can send forms and plain text to here, but no JSON without being asked about first.
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
            (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", format!("the body may have at most {MAX_BODY} bytes"))
        };
        Problem { status, code, detail, retry_after: None }
    })?;
    serde_json::from_slice(&bytes).map_err(|error| {
        // What is repeated of the body could be a password.
        let (status, code, detail) = match error.classify() {
            serde_json::error::Category::Data => {
                (StatusCode::UNPROCESSABLE_ENTITY, "invalid", "a field is missing, there twice, or no string")
            }
            _ => (StatusCode::BAD_REQUEST, "not_json", "the body is not a JSON object"),
        };
        Problem { status, code, detail: detail.to_owned(), retry_after: None }
    })
}

fn answer(session: Session) -> Response {
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
                // Where the database is, is not told to strangers.
                tracing::error!("a login failed: {error:#}");
                let detail = "nobody can log in now; try again later".to_owned();
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
