//! The body of every error response.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

/// An error response in the API's format, for an application's own routes. `code` is for programs, and `detail` is a
/// sentence.
pub fn problem(status: StatusCode, code: &'static str, detail: &str) -> Response {
    (status, Json(ErrorBody { detail: detail.to_owned(), code, index: None })).into_response()
}

/// The response to a failed request.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// A sentence that states what is wrong and where.
    pub(crate) detail: String,
    /// The error code, for programs.
    pub(crate) code: &'static str,
    /// Index of the event in its batch, from 0, if the error concerns one event.
    #[schema(nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) index: Option<usize>,
}
