//! Who is connected and how to end it, over all nodes. For administrators: it tells names and addresses.

use super::{
    access::Admin,
    error::{ApiError, ErrorCode},
    reference::{Params, PathId},
    responses::{ConnectionErrors, RegistryErrors},
};
use crate::{ConnectionId, Hub, presence::ConnectionInfo};
use axum::{Json, extract::State, http::StatusCode};
use fanfare_core::time::iso_8601;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// What a client is told where nobody said why it was disconnected.
const REASON: &str = "an administrator ended the connection";

/// A client that is connected.
#[derive(Serialize, ToSchema)]
pub(super) struct ConnectionBody {
    #[schema(format = "uuid")]
    connection_id: String,
    user_id: String,
    /// The node that it is connected to.
    #[schema(example = "5af7e6e8e4c2f20b")]
    node: String,
    /// Since when, in ISO 8601.
    #[schema(example = "2026-11-23T09:30:00.125Z")]
    connected_at: String,
    /// Where it comes from.
    #[schema(example = "203.0.113.7")]
    address: String,
}

/// A user's connections on all nodes, the longest connected first.
#[derive(Serialize, ToSchema)]
pub(super) struct UserConnectionsBody {
    user_id: String,
    connections: Vec<ConnectionBody>,
}

/// What was ended.
#[derive(Serialize, ToSchema)]
pub(super) struct DisconnectedBody {
    /// How many connections were told to go.
    disconnected: usize,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ReasonParams {
    /// What the client reads as the close's reason; at most 123 bytes of it.
    #[param(nullable = false)]
    reason: Option<String>,
}

impl From<ConnectionInfo> for ConnectionBody {
    fn from(client: ConnectionInfo) -> Self {
        Self {
            connection_id: client.connection.to_string(),
            user_id: client.user.to_string(),
            node: client.node.to_string(),
            connected_at: iso_8601(client.since_ms),
            address: client.address.to_string(),
        }
    }
}

/// List a user's connections
///
/// On all nodes. A node that dies takes its connections off the list within ten seconds.
#[utoipa::path(
    get,
    path = "/users/{user_id}/connections",
    tag = "operate",
    operation_id = "user_connections",
    security(("bearer" = [])),
    params(("user_id" = String, Path, description = "The user, by the `sub` of its tokens.")),
    responses((status = 200, description = "The connections; none for a user who is not connected.", body = UserConnectionsBody),
        RegistryErrors)
)]
pub(super) async fn of_user(
    _: Admin,
    State(hub): State<Hub>,
    PathId(user_id): PathId,
) -> Result<Json<UserConnectionsBody>, ApiError> {
    let connections = hub.connections_of(&user_id).await?.into_iter().map(ConnectionBody::from).collect();
    Ok(Json(UserConnectionsBody { user_id, connections }))
}

/// Disconnect a user
///
/// Every connection of the user is closed with code 4003, on whichever node it is. Clients don't come back by themselves.
#[utoipa::path(
    post,
    path = "/users/{user_id}/disconnect",
    tag = "operate",
    operation_id = "disconnect_user",
    security(("bearer" = [])),
    params(("user_id" = String, Path, description = "The user, by the `sub` of its tokens."), ReasonParams),
    responses((status = 200, description = "Every node was told.", body = DisconnectedBody), RegistryErrors)
)]
pub(super) async fn disconnect_user(
    _: Admin,
    State(hub): State<Hub>,
    PathId(user_id): PathId,
    Params(ReasonParams { reason }): Params<ReasonParams>,
) -> Result<Json<DisconnectedBody>, ApiError> {
    let disconnected = hub.connections_of(&user_id).await?.len();
    // Whoever is not on the list yet is told too.
    hub.disconnect_user(&user_id, reason.as_deref().unwrap_or(REASON)).await?;
    Ok(Json(DisconnectedBody { disconnected }))
}

/// A node that was told to end.
#[derive(Serialize, ToSchema)]
pub(super) struct DrainedBody {
    /// The node.
    #[schema(example = "5af7e6e8e4c2f20b")]
    node: String,
}

/// Drain a node
///
/// The node takes nobody in any more, tells its clients to come back elsewhere, in waves, and ends. A supervisor or a service
/// manager starts another in its place.
#[utoipa::path(
    post,
    path = "/nodes/{node}/drain",
    tag = "operate",
    operation_id = "drain",
    security(("bearer" = [])),
    params(("node" = String, Path, description = "The node, by the name that the dashboard and `/connections` tell.")),
    responses((status = 202, description = "It was told.", body = DrainedBody), ConnectionErrors)
)]
pub(super) async fn drain(
    _: Admin,
    State(hub): State<Hub>,
    PathId(node): PathId,
) -> Result<(StatusCode, Json<DrainedBody>), ApiError> {
    if hub.drain(&node).await? {
        return Ok((StatusCode::ACCEPTED, Json(DrainedBody { node })));
    }
    Err(ApiError::new(ErrorCode::NotFound, format!("no node {node:?} is there")))
}

/// Disconnect one client
///
/// Its connection is closed with code 4003, on whichever node it is. The client does not come back by itself.
#[utoipa::path(
    delete,
    path = "/connections/{connection_id}",
    tag = "operate",
    operation_id = "disconnect",
    security(("bearer" = [])),
    params(("connection_id" = String, Path, format = "uuid", description = "As its `ack` told it."), ReasonParams),
    responses((status = 200, description = "Its node was told.", body = DisconnectedBody), ConnectionErrors)
)]
pub(super) async fn disconnect(
    _: Admin,
    State(hub): State<Hub>,
    PathId(id): PathId,
    Params(ReasonParams { reason }): Params<ReasonParams>,
) -> Result<Json<DisconnectedBody>, ApiError> {
    let unknown = || ApiError::new(ErrorCode::NotFound, format!("no connection {id:?} is there"));
    let connection: ConnectionId = id.parse().map_err(|_| unknown())?;
    hub.connection(connection).await?.ok_or_else(unknown)?;
    hub.disconnect(connection, reason.as_deref().unwrap_or(REASON)).await?;
    Ok(Json(DisconnectedBody { disconnected: 1 }))
}
