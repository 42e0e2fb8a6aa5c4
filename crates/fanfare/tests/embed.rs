//! The example `embed`, from the outside.

#![expect(clippy::unwrap_used, reason = "a test ends where something that it relies on fails")]

use fanfare::{Minter, auth::Claims};
use futures_util::StreamExt;
use serde_json::Value;
use std::{process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::Command,
    time::timeout,
};

const SECRET: &str = "a secret of thirty-two bytes, ok";
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test]
async fn an_application_publishes_from_its_own_route_and_shuts_down_gracefully() {
    let test = std::env::current_exe().unwrap();
    let example = test.parent().unwrap().parent().unwrap().join("examples/embed");
    let mut child = Command::new(example)
        .envs([("SECRET_KEY", SECRET), ("LISTEN", "127.0.0.1:0")])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = timeout(PATIENCE, lines.next_line()).await.expect("a first line in time").unwrap().unwrap();
    let address = line.strip_prefix("listening on ").unwrap();

    let claims = Claims { sub: "ann".to_owned(), ..Claims::default() };
    let url = format!("ws://{address}/ws?token={}", Minter::from_secret(SECRET).unwrap().mint(&claims));
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    let mut next = async || -> Value {
        let message = timeout(PATIENCE, socket.next()).await.expect("a message in time").unwrap().unwrap();
        serde_json::from_str(message.to_text().unwrap()).unwrap()
    };
    assert_eq!(next().await["type"], "ack");

    let long = format!(r#"{{"customer":"{}"}}"#, "x".repeat(257));
    for (body, says) in [(r#"{"item":"bell"}"#, "needs a customer"), (&long, "256 bytes")] {
        let refused = place_order(address, body).await;
        assert!(refused.starts_with("HTTP/1.1 422 ") && refused.contains(says), "{refused}");
    }
    let answer = place_order(address, r#"{"customer":"ann","item":"bell"}"#).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");

    let event = next().await;
    assert_eq!((&event["type"], &event["data"]["item"]), (&Value::from("order_placed"), &Value::from("bell")));
    assert!(answer.contains(event["event_id"].as_str().unwrap()), "{answer}");

    let interrupted = Command::new("kill").args(["-INT", &child.id().unwrap().to_string()]).status().await.unwrap();
    assert!(interrupted.success());
    assert_eq!(next().await["type"], "goaway");
    drop(socket);
    let status = timeout(PATIENCE, child.wait()).await.expect("an end in time").unwrap();
    assert!(status.success(), "{status}");
}

async fn place_order(address: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "POST /orders HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an answer in time").unwrap();
    answer
}
