//! Echoes each WebSocket message, on the same frames and shards as the hub. For conformance tests.
//!
//! `cargo run --release -p fanfare --example echo -- --listen 127.0.0.1:9001`

use fanfare::{Config, Hub, Minter, Verifier, auth::Claims};
use std::{error::Error, time::Duration};

/// Not a secret: the program prints a token that it signs.
const SECRET: &str = "the secret of a conformance test, and of nothing else";
/// More than the largest message of the conformance suite.
const MAX_MESSAGE_BYTES: usize = 32 << 20;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = match (arguments.next().as_deref(), arguments.next()) {
        (Some("--listen"), Some(address)) => address,
        _ => return Err("usage: echo --listen ADDRESS:PORT".into()),
    };
    let config = Config {
        max_frame_bytes: MAX_MESSAGE_BYTES,
        max_message_bytes: MAX_MESSAGE_BYTES,
        max_messages_per_second: 0,
        max_connections_per_user: 0,
        max_connections_per_address: 0,
        connects_per_second_per_address: 0,
        heartbeat_interval: Duration::from_secs(3_600),
        heartbeat_timeout: Duration::from_secs(7_200),
        ..Config::default()
    };
    let hub = Hub::builder(Verifier::from_secret(SECRET)?).config(config).echo().start()?;
    let listener = tokio::net::TcpListener::bind(&address).await?;
    let token = Minter::from_secret(SECRET)?.mint(&Claims { sub: "conformance".to_owned(), ..Claims::default() });
    println!("listening on ws://{}/ws?token={token}", listener.local_addr()?);
    axum::serve(listener, hub.router()).await?;
    Ok(())
}
