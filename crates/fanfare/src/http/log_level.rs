//! How much is logged, switched while the hub runs.

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

/// How much is to be logged.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogLevelBody {
    /// A level for all, or by module.
    #[schema(example = "info,fanfare::shard=debug")]
    log_level: String,
}

/// Switch what is logged
///
/// On all nodes, until they end: their next start has the setting `log_level` again.
#[utoipa::path(
    post,
    path = "/log-level",
    tag = "operate",
    operation_id = "set_log_level",
    security(("bearer" = [])),
    request_body = LogLevelBody,
    responses((status = 200, description = "Every node was told.", body = LogLevelBody), LogErrors)
)]
pub(super) async fn set(
    _: Admin,
    State(hub): State<Hub>,
    EventText(text): EventText,
) -> Result<Json<LogLevelBody>, ApiError> {
    let input: LogLevelBody =
        serde_json::from_str(&text).map_err(|error| ApiError::of_text(&text, invalid(error.to_string())))?;
    let Some(switch) = hub.log_switch() else {
        return Err(ApiError::new(ErrorCode::NotFound, "this application's log has no switch".to_owned()));
    };
    switch.check(&input.log_level).map_err(|error| invalid(format!("the field `log_level` can't be that: {error}")))?;
    hub.set_log_level(&input.log_level).await?;
    Ok(Json(input))
}
