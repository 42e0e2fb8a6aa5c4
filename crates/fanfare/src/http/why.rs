//! Traces deliveries and inspects clients. For administrators, because the responses contain names and addresses.

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
    /// Also report the delivery state for each connection of this user.
    #[param(nullable = false)]
    user: Option<String>,
}

/// Trace the delivery of an event
///
/// When the log accepted the event, and its publisher. For each node: the number of clients in the audience, the number
/// of clients it was written to, the number of waiting clients, the number of acknowledgements, and the number of
/// skipped clients by reason.
#[utoipa::path(
    get,
    path = "/events/{event_id}",
    tag = "operate",
    operation_id = "journey",
    security(("bearer" = [])),
    params(("event_id" = String, Path, description = "The event's ID."), JourneyParams),
    responses((status = 200, description = "The delivery so far.", body = Journey), ConnectionErrors)
)]
pub(super) async fn event(
    _: Admin,
    State(hub): State<Hub>,
    PathId(id): PathId,
    Params(JourneyParams { user }): Params<JourneyParams>,
) -> Result<Json<Journey>, ApiError> {
    let journey = hub.journey(&id, user.as_deref()).await?;
    let unknown = || {
        let detail = format!("no node has an event {id:?} in its window: it was never published, or it was evicted");
        ApiError::new(ErrorCode::NotFound, detail)
    };
    Ok(Json(journey.ok_or_else(unknown)?))
}

/// Inspect a client
///
/// Its user, when it connected and from which address, its cursor, and its lag behind the head of the log. For a
/// recently disconnected client, also its close code. Each node remembers its last 1,000 disconnected clients.
#[utoipa::path(
    get,
    path = "/connections/{connection_id}",
    tag = "operate",
    operation_id = "client",
    security(("bearer" = [])),
    params(("connection_id" = String, Path, format = "uuid",
        description = "The `connection_id` of the client's first `ack`.")),
    responses(
        (status = 200, description = "The client's state, or its last connection.", body = ClientDetails),
        ConnectionErrors,
    )
)]
pub(super) async fn client(
    _: Admin,
    State(hub): State<Hub>,
    PathId(id): PathId,
) -> Result<Json<ClientDetails>, ApiError> {
    let unknown = || ApiError::new(ErrorCode::NotFound, format!("no connection {id:?} is open or was closed recently"));
    let connection: ConnectionId = id.parse().map_err(|_| unknown())?;
    Ok(Json(hub.client(connection).await?.ok_or_else(unknown)?))
}
