//! Why an event came or did not, and how a client stands. For administrators: it tells names and addresses.

use super::{
    access::Admin,
    error::{ApiError, ErrorCode},
    reference::{Params, PathId},
    responses::ConnectionErrors,
};
use crate::{
    ConnectionId, Hub,
    why::{ClientDetails, Journey},
};
use axum::{Json, extract::State};
use serde::Deserialize;
use utoipa::IntoParams;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct JourneyParams {
    /// Tell too how it stands with each connection of this user.
    #[param(nullable = false)]
    user: Option<String>,
}

/// The journey of an event
///
/// When the log took it and from whom, and on each node: how many clients it is for, to how many it was written, who waits for
/// it, how often it was acknowledged, and who was passed over for which reason.
#[utoipa::path(
    get,
    path = "/events/{event_id}",
    tag = "operate",
    operation_id = "journey",
    security(("bearer" = [])),
    params(("event_id" = String, Path, description = "The event, by its id."), JourneyParams),
    responses((status = 200, description = "The journey so far.", body = Journey), ConnectionErrors)
)]
pub(super) async fn event(
    _: Admin,
    State(hub): State<Hub>,
    PathId(id): PathId,
    Params(JourneyParams { user }): Params<JourneyParams>,
) -> Result<Json<Journey>, ApiError> {
    let journey = hub.journey(&id, user.as_deref()).await?;
    let unknown = || {
        let detail = format!("no node holds an event {id:?}: it was never published, or it is older than window_age");
        ApiError::new(ErrorCode::NotFound, detail)
    };
    Ok(Json(journey.ok_or_else(unknown)?))
}

/// One client
///
/// Who it is, since when and from where, its cursor and how far that is behind the log's head; of one that has left a while
/// ago, how it ended. Each node remembers the last 1,000 that left.
#[utoipa::path(
    get,
    path = "/connections/{connection_id}",
    tag = "operate",
    operation_id = "client",
    security(("bearer" = [])),
    params(("connection_id" = String, Path, format = "uuid", description = "As its `ack` told it.")),
    responses((status = 200, description = "How it stands, or how it ended.", body = ClientDetails), ConnectionErrors)
)]
pub(super) async fn client(
    _: Admin,
    State(hub): State<Hub>,
    PathId(id): PathId,
) -> Result<Json<ClientDetails>, ApiError> {
    let unknown = || ApiError::new(ErrorCode::NotFound, format!("no connection {id:?} is there, or was lately"));
    let connection: ConnectionId = id.parse().map_err(|_| unknown())?;
    Ok(Json(hub.client(connection).await?.ok_or_else(unknown)?))
}
