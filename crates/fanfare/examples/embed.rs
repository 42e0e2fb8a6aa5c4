//! A hub inside an application with its own routes: `SECRET_KEY=... cargo run -p fanfare --example embed`.

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use fanfare::{Audience, Draft, Hub, PublishError, Verifier, problem};
use serde_json::{Value, json};
use std::{error::Error, net::SocketAddr, time::Duration};

/// A handler of the application. It accepts an order, and notifies the customer's browsers.
async fn order(State(hub): State<Hub>, Json(order): Json<Value>) -> Result<Json<Value>, Response> {
    let customer = order["customer"].as_str().ok_or_else(|| invalid("an order needs a customer"))?;
    let draft = Draft::new("order_placed", &order).map_err(|error| invalid(&error.to_string()))?;
    let published = hub.publish(draft, Audience::User(customer.into())).await.map_err(|error| not_published(&error))?;
    Ok(Json(json!({ "event_id": published.event_id })))
}

fn invalid(detail: &str) -> Response {
    problem(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail)
}

/// A log failure is temporary, so the client may retry. An invalid event stays invalid.
fn not_published(error: &PublishError) -> Response {
    let detail = error.to_string();
    match error {
        PublishError::Broker(_) => {
            let problem = problem(StatusCode::SERVICE_UNAVAILABLE, "log_unavailable", &detail);
            ([("Retry-After", "1")], problem).into_response()
        }
        PublishError::TooLarge { .. } => problem(StatusCode::PAYLOAD_TOO_LARGE, "event_too_large", &detail),
        PublishError::Invalid(_) | PublishError::Audience(_) => invalid(&detail),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let secret = std::env::var("SECRET_KEY").map_err(|_| "set SECRET_KEY to the secret that tokens are signed with")?;
    let hub = Hub::builder(Verifier::from_secret(&secret)?).identity_secret(secret).start()?;
    let app = Router::new().route("/orders", post(order)).with_state(hub.clone()).merge(hub.router());

    let address = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:8000".to_owned());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) })
        .await?;
    hub.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
