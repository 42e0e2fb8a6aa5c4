//! Lists and closes connections on all nodes. For administrators, because the responses contain names and addresses.

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

/// The close reason if the request gives none.
const REASON: &str = "an administrator closed the connection";

/// A connected client.
#[derive(Serialize, ToSchema)]
pub(super) struct ConnectionBody {
    #[schema(format = "uuid")]
    connection_id: String,
    user_id: String,
    /// The node that the client is connected to.
    #[schema(example = "5af7e6e8e4c2f20b")]
    node: String,
    /// When the client connected, in ISO 8601.
    #[schema(example = "2026-11-23T09:30:00.125Z")]
    connected_at: String,
    /// The client's address.
    #[schema(example = "203.0.113.7")]
    address: String,
}

/// A user's connections on all nodes, oldest first.
#[derive(Serialize, ToSchema)]
pub(super) struct UserConnectionsBody {
    user_id: String,
    connections: Vec<ConnectionBody>,
}

/// The result of a disconnect.
#[derive(Serialize, ToSchema)]
pub(super) struct DisconnectedBody {
    /// Number of connections that are being closed.
    disconnected: usize,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ReasonParams {
    /// The close reason, at most 123 bytes.
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
/// On all nodes. The connections of a node that crashed are removed within ten seconds.
#[utoipa::path(
    get,
    path = "/users/{user_id}/connections",
    tag = "operate",
    operation_id = "user_connections",
    security(("bearer" = [])),
    params(("user_id" = String, Path, description = "The user: the `sub` of its tokens.")),
    responses(
        (status = 200, description = "The connections; empty if the user is not connected.",
            body = UserConnectionsBody),
        RegistryErrors,
    )
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
/// Every connection of the user is closed with code 4003, on all nodes. Clients do not reconnect by themselves.
#[utoipa::path(
    post,
    path = "/users/{user_id}/disconnect",
    tag = "operate",
    operation_id = "disconnect_user",
    security(("bearer" = [])),
    params(("user_id" = String, Path, description = "The user: the `sub` of its tokens."), ReasonParams),
    responses((status = 200, description = "All nodes were notified.", body = DisconnectedBody), RegistryErrors)
)]
pub(super) async fn disconnect_user(
    _: Admin,
    State(hub): State<Hub>,
    PathId(user_id): PathId,
    Params(ReasonParams { reason }): Params<ReasonParams>,
) -> Result<Json<DisconnectedBody>, ApiError> {
    let disconnected = hub.connections_of(&user_id).await?.len();
    // Notifies all nodes, because a new connection may not be on the list yet.
    hub.disconnect_user(&user_id, reason.as_deref().unwrap_or(REASON)).await?;
    Ok(Json(DisconnectedBody { disconnected }))
}

/// A node that was requested to drain.
#[derive(Serialize, ToSchema)]
pub(super) struct DrainedBody {
    /// The node's name.
    #[schema(example = "5af7e6e8e4c2f20b")]
    node: String,
}

/// Drain a node
///
/// The node rejects new connections, disconnects its clients in waves, and exits. A supervisor or service manager
/// starts another process in its place.
#[utoipa::path(
    post,
    path = "/nodes/{node}/drain",
    tag = "operate",
    operation_id = "drain",
    security(("bearer" = [])),
    params(("node" = String, Path,
        description = "The node's name, as on the dashboard and in `GET /users/{user_id}/connections`.")),
    responses((status = 202, description = "The node was notified.", body = DrainedBody), ConnectionErrors)
)]
pub(super) async fn drain(
    _: Admin,
    State(hub): State<Hub>,
    PathId(node): PathId,
) -> Result<(StatusCode, Json<DrainedBody>), ApiError> {
    if hub.drain(&node).await? {
        return Ok((StatusCode::ACCEPTED, Json(DrainedBody { node })));
    }
    Err(ApiError::new(ErrorCode::NotFound, format!("no node {node:?}")))
}

/// Disconnect a client
///
/// Its connection is closed with code 4003, on any node. The client does not reconnect by itself.
#[utoipa::path(
    delete,
    path = "/connections/{connection_id}",
    tag = "operate",
    operation_id = "disconnect",
    security(("bearer" = [])),
    params(("connection_id" = String, Path, format = "uuid",
        description = "The `connection_id` of the client's first `ack`."), ReasonParams),
    responses((status = 200, description = "The node was notified.", body = DisconnectedBody), ConnectionErrors)
)]
pub(super) async fn disconnect(
    _: Admin,
    State(hub): State<Hub>,
    PathId(id): PathId,
    Params(ReasonParams { reason }): Params<ReasonParams>,
) -> Result<Json<DisconnectedBody>, ApiError> {
    let unknown = || ApiError::new(ErrorCode::NotFound, format!("no connection {id:?}"));
    let connection: ConnectionId = id.parse().map_err(|_| unknown())?;
    hub.connection(connection).await?.ok_or_else(unknown)?;
    hub.disconnect(connection, reason.as_deref().unwrap_or(REASON)).await?;
    Ok(Json(DisconnectedBody { disconnected: 1 }))
}
