//! fanfare as one program.

use anyhow::Context;
use axum::response::Html;
use fanfare::{Config, Hub, Minter, Verifier, auth::Claims};
use std::{net::SocketAddr, time::Duration};

fn number(key: &str, default: usize) -> usize {
    std::env::var(format!("FANFARE_{key}")).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn seconds(key: &str, default: Duration) -> Duration {
    let text = std::env::var(format!("FANFARE_{key}")).unwrap_or_default();
    text.trim_end_matches('s').parse().map_or(default, Duration::from_secs_f64)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let listen = arguments.iter().position(|a| a == "--listen").map_or("127.0.0.1:8000", |i| &arguments[i + 1]);
    let secret = std::env::var("SECRET_KEY").unwrap_or_else(|_| "development".to_owned());
    if arguments.get(1).is_some_and(|a| a == "token") {
        let claims =
            Claims { sub: "demo".to_owned(), publish: true, topics: vec!["*".to_owned()], ..Claims::default() };
        println!("{}", Minter::from_secret(&secret)?.mint(&claims));
        return Ok(());
    }
    let d = Config::default();
    let config = Config {
        shards: number("SHARDS", 0),
        heartbeat_interval: seconds("HEARTBEAT_INTERVAL", d.heartbeat_interval),
        heartbeat_timeout: seconds("HEARTBEAT_TIMEOUT", d.heartbeat_timeout),
        max_connections: number("MAX_CONNECTIONS", d.max_connections),
        max_connections_per_user: number("MAX_CONNECTIONS_PER_USER", d.max_connections_per_user),
        max_connections_per_address: number("MAX_CONNECTIONS_PER_ADDRESS", d.max_connections_per_address),
        connects_per_second_per_address: number("CONNECTS_PER_SECOND_PER_ADDRESS", 100) as u32,
        window_events: number("WINDOW_EVENTS", d.window_events),
        ..d
    };
    let hub = Hub::builder(Verifier::from_secret(&secret)?).config(config).identity_secret(secret).start()?;
    let app = hub.router().route("/", axum::routing::get(|| async { Html("page") }));
    let listener = tokio::net::TcpListener::bind(listen).await.context("bind")?;
    eprintln!("listening on {}", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) })
        .await?;
    hub.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
