//! Changes the log filter at runtime.

use super::{
    access::Admin,
    body::{EventText, invalid},
    error::{ApiError, ErrorCode},
    responses::LogErrors,
};
use crate::Hub;
use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A log filter.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogLevelBody {
    /// A level for all modules, or levels by module.
    #[schema(example = "info,fanfare::shard=debug")]
    log_level: String,
}

/// Change the log level
///
/// On all nodes, until they exit. A restarted node uses the setting `log_level` again.
#[utoipa::path(
    post,
    path = "/log-level",
    tag = "operate",
    operation_id = "set_log_level",
    security(("bearer" = [])),
    request_body = LogLevelBody,
    responses((status = 200, description = "All nodes were notified.", body = LogLevelBody), LogErrors)
)]
pub(super) async fn set(
    _: Admin,
    State(hub): State<Hub>,
    EventText(text): EventText,
) -> Result<Json<LogLevelBody>, ApiError> {
    let input: LogLevelBody =
        serde_json::from_str(&text).map_err(|error| ApiError::of_text(&text, invalid(error.to_string())))?;
    let Some(switch) = hub.log_switch() else {
        return Err(ApiError::new(ErrorCode::NotFound, "this application does not support log levels".to_owned()));
    };
    switch.check(&input.log_level).map_err(|error| invalid(format!("the field `log_level` is not valid: {error}")))?;
    hub.set_log_level(&input.log_level).await?;
    Ok(Json(input))
}
