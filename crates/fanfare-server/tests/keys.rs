//! The keys of an identity provider that rotates them and is sometimes unavailable.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

use axum::{Json, Router, http::StatusCode, response::IntoResponse, routing::get};
use fanfare::{
    Algorithm, Minter,
    auth::{Claims, Keys},
};
use futures_util::StreamExt;
use serde_json::Value;
use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use testbed::{HubProcess, until};
use tokio::{net::TcpListener, task::block_in_place, time::timeout};
use tokio_tungstenite::{connect_async, tungstenite::Message};

const TIMEOUT: Duration = Duration::from_secs(120);

/// An identity provider.
#[derive(Clone, Default)]
struct Provider {
    /// The response. `None`: the provider is unavailable.
    keys: Arc<Mutex<Option<Value>>>,
    fetches: Arc<AtomicUsize>,
}

impl Provider {
    async fn start() -> (Self, String) {
        let provider = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
        let answer = provider.clone();
        let app = Router::new().route(
            "/jwks.json",
            get(async move || {
                answer.fetches.fetch_add(1, Ordering::Relaxed);
                match answer.keys.lock().unwrap().clone() {
                    Some(keys) => Json(keys).into_response(),
                    None => StatusCode::BAD_GATEWAY.into_response(),
                }
            }),
        );
        tokio::spawn(async move { axum::serve(listener, app).await });
        (provider, url)
    }

    fn serve(&self, minters: &[&Minter]) {
        let keys: Vec<Value> = minters.iter().map(|minter| minter.keys().to_jwks()["keys"][0].clone()).collect();
        *self.keys.lock().unwrap() = Some(serde_json::json!({ "keys": keys }));
    }

    fn stop_serving(&self) {
        *self.keys.lock().unwrap() = None;
    }
}

fn key() -> (Minter, String) {
    let pem = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap().serialize_pem();
    (Minter::from_pem(Algorithm::Es256, &pem).unwrap(), pem)
}

fn token(minter: &Minter, issuer: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let (sub, iss, aud) = ("ann".to_owned(), Some(issuer.to_owned()), Some("hub".to_owned()));
    minter.mint(&Claims { sub, iss, aud, exp: Some(now + 600), ..Claims::default() })
}

fn start(url: &str, more: &[&str]) -> HubProcess {
    let own = ["--algorithm", "ES256", "--jwks-url", url, "--token-issuer", "https://idp", "--token-audience", "hub"];
    let program = Path::new(env!("CARGO_BIN_EXE_fanfare"));
    block_in_place(|| HubProcess::start(program, &[&own, more].concat(), &[]))
}

/// Connects. Returns `ack`, or the close code and the code in the close reason.
async fn first_message(hub: &HubProcess, token: &str) -> String {
    let url = format!("ws://{}/ws?token={token}", hub.address());
    let (mut socket, _) = timeout(TIMEOUT, connect_async(url)).await.unwrap().unwrap();
    match timeout(TIMEOUT, socket.next()).await.expect("timed out: a message") {
        Some(Ok(Message::Text(text))) => {
            serde_json::from_str::<Value>(&text).unwrap()["type"].as_str().unwrap().to_owned()
        }
        Some(Ok(Message::Close(Some(frame)))) => {
            format!("{} {}", u16::from(frame.code), frame.reason.split(':').next().unwrap_or_default())
        }
        other => panic!("{other:?}"),
    }
}

async fn until_first_message_is(hub: &HubProcess, token: &str, expected: &str) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let received = first_message(hub, token).await;
        if received == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{received} instead of {expected}:\n{}", hub.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rotated_keys_of_a_provider_are_fetched_without_a_restart() {
    let ((first, _), (second, _), (stranger, _)) = (key(), key(), key());
    let (provider, url) = Provider::start().await;
    provider.serve(&[&first]);
    let hub = start(&url, &["--connects-per-second-per-address", "0"]);
    assert_eq!(first_message(&hub, &token(&first, "https://idp")).await, "ack");
    assert_eq!(first_message(&hub, &token(&first, "https://other")).await, "1008 token_invalid");
    // Tokens with invented keys do not cause a flood of fetches.
    let (fetches, begun) = (provider.fetches.load(Ordering::Relaxed), Instant::now());
    for _ in 0..50 {
        assert_eq!(first_message(&hub, &token(&stranger, "https://idp")).await, "1008 token_invalid");
    }
    let more = provider.fetches.load(Ordering::Relaxed) - fetches;
    // The hub fetches at most every 10 s, however long the 50 connects took.
    let most = 2 + usize::try_from(begun.elapsed().as_secs()).unwrap() / 10;
    assert!(more <= most, "{more} of {most}");

    provider.serve(&[&first, &second]);
    until_first_message_is(&hub, &token(&second, "https://idp"), "ack").await;
    assert_eq!(
        first_message(&hub, &token(&first, "https://idp")).await,
        "ack",
        "both keys are valid during the rotation"
    );
    provider.serve(&[&second]);
    until_first_message_is(&hub, &token(&stranger, "https://idp"), "1008 token_invalid").await;

    provider.stop_serving();
    until_first_message_is(&hub, &token(&stranger, "https://idp"), "1013 keys_unavailable").await;
    assert_eq!(first_message(&hub, &token(&second, "https://idp")).await, "ack", "fetched keys are retained");
    let expected = "can't be fetched: the response was 502 Bad Gateway";
    block_in_place(|| until(expected, || hub.log().contains(expected)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_starts_while_its_provider_is_unavailable() {
    let (minter, _) = key();
    let (provider, url) = Provider::start().await;
    let hub = start(&url, &[]);
    assert_eq!(first_message(&hub, &token(&minter, "https://idp")).await, "1013 keys_unavailable");
    provider.serve(&[&minter]);
    until_first_message_is(&hub, &token(&minter, "https://idp"), "ack").await;
    block_in_place(|| {
        until("the end of the outage is logged", || hub.log().contains("the keys at jwks_url are available again"));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn own_tokens_are_verifiable_with_the_published_key() {
    let (minter, pem) = key();
    let files = tempfile::tempdir().unwrap();
    let (old, _) = key();
    let path = |name: &str| files.path().join(name).display().to_string();
    std::fs::write(path("private.pem"), &pem).unwrap();
    std::fs::write(path("old.json"), old.keys().to_jwks().to_string()).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_fanfare"));
    let arguments =
        ["--algorithm", "ES256", "--private-key-file", &path("private.pem"), "--public-key-file", &path("old.json")];
    let hub = block_in_place(|| HubProcess::start(program, &arguments, &[]));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let claims = Claims { sub: "ann".to_owned(), exp: Some(now + 600), ..Claims::default() };
    for minter in [&minter, &old] {
        assert_eq!(
            first_message(&hub, &minter.mint(&claims)).await,
            "ack",
            "the new key and the previous one are valid"
        );
    }
    let answer = block_in_place(|| hub.get("/.well-known/jwks.json")).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(Keys::from_text(Algorithm::Es256, body).unwrap().len(), 2);
    assert!(!answer.contains("\"d\""), "{answer}");
    let made = block_in_place(|| {
        std::process::Command::new(program).args(["token", "--sub", "bob"]).args(arguments).output().unwrap()
    });
    let made = String::from_utf8(made.stdout).unwrap();
    assert_eq!(first_message(&hub, made.trim()).await, "ack");
}
