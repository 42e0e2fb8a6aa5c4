//! The HTTP API: publishing, health, metrics and its own documentation. Knows the hub's handle, and nothing of sockets,
//! sessions or the log behind it.
//!
//! A route and its OpenAPI description are one item, so `/openapi.json` cannot list a route that does not exist.

mod access;
mod body;
mod body_limit;
mod connections;
mod cors;
mod docs;
mod error;
mod events;
mod health;
mod log_level;
mod metrics;
mod paths;
mod reference;
mod responses;
mod tokens;
mod why;

pub use body_limit::{BodyTimeout, limit_body};
pub use error::not_found;

use crate::{Hub, origin, sys, upgrade::upgrade};
use axum::{Router, http::request::Parts, middleware, routing::any};
use std::net::{IpAddr, Ipv4Addr};
use utoipa_axum::{router::OpenApiRouter, routes};

impl Hub {
    /// All metrics in the OpenMetrics 1.0 text format, as served by `/metrics`.
    pub async fn metrics_text(&self) -> String {
        metrics::metrics_text(self).await
    }

    /// The client address of a request, from its connection and the headers of trusted proxies
    /// ([`Config::trusted_proxies`](crate::Config::trusted_proxies)).
    pub fn client_address(&self, parts: &Parts) -> IpAddr {
        let peer = origin::peer(&parts.extensions).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        self.config().trusted_proxies.client(peer, &parts.headers)
    }

    /// The routes of the hub: `/ws`, the HTTP API and its OpenAPI description.
    pub fn router(&self) -> Router {
        self.router_with(OpenApiRouter::new())
    }

    /// The routes of the hub and further routes, in one OpenAPI description.
    ///
    /// Call it within a Tokio runtime. Otherwise subscribers of the topic `$sys` receive no status messages.
    pub fn router_with(&self, more: OpenApiRouter<Self>) -> Router {
        sys::start(self);
        Router::new().route("/ws", any(upgrade).with_state(self.shared_node())).merge(router(self.clone(), more))
    }
}

/// Every route of the API, and further routes that an application describes. The router has no fallback, so it merges
/// into any application.
fn router(hub: Hub, more: OpenApiRouter<Hub>) -> Router {
    let (router, mut spec) = OpenApiRouter::with_openapi(docs::description())
        .merge(more)
        .routes(routes!(events::publish))
        .routes(routes!(events::publish_batch))
        .routes(routes!(why::event))
        .routes(routes!(reference::update_task))
        .routes(routes!(reference::broadcast_task_update))
        .routes(routes!(reference::notify_user))
        .routes(routes!(reference::send_notification))
        .routes(routes!(reference::create_calendar_event))
        .routes(routes!(reference::record_agent_activity))
        .routes(routes!(connections::of_user))
        .routes(routes!(connections::disconnect_user))
        .routes(routes!(connections::disconnect))
        .routes(routes!(why::client))
        .routes(routes!(connections::drain))
        .routes(routes!(log_level::set))
        .routes(routes!(tokens::revoke))
        .routes(routes!(tokens::jwks))
        .routes(routes!(health::connections))
        .routes(routes!(health::service))
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
        .routes(routes!(metrics::metrics))
        .split_for_parts();
    if hub.config().compat {
        docs::open(&mut spec, &reference::OPEN_WITH_COMPAT);
    }
    paths::learn(spec.paths.paths.keys());
    let router = router
        .merge(docs::router(&spec))
        .method_not_allowed_fallback(error::method_not_allowed)
        .route_layer(middleware::from_fn_with_state(hub.clone(), error::count))
        .layer(middleware::from_fn_with_state(hub.config().handshake_timeout, limit_body));
    let router = match hub.config().allowed_origins.to_cors() {
        Some(origins) => router.layer(cors::permissions(origins, hub.config())),
        None => router,
    };
    router.layer(middleware::from_fn_with_state(hub.clone(), cors::reject_preflights)).with_state(hub)
}
