//! TLS with the commands of the program, OpenSSL, and an independent WebSocket client.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

use fanfare::{Minter, auth::Claims};
use futures_util::{SinkExt, StreamExt};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::{Value, json};
use std::{
    path::Path,
    process::{Command, Output, Stdio},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tempfile::TempDir;
use testbed::{Authority, HubProcess, until};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
    task::block_in_place,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

const SECRET: &str = "a secret of thirty-two bytes, ok";
const TIMEOUT: Duration = Duration::from_secs(120);

type Socket = WebSocketStream<TlsStream<TcpStream>>;

struct Server {
    hub: HubProcess,
    authority: Authority,
    files: TempDir,
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_fanfare"))
}

fn token(publish: bool, secs: u64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let claims = Claims { sub: "ann".to_owned(), publish, exp: Some(now + secs), ..Claims::default() };
    Minter::from_secret(SECRET).unwrap().mint(&claims)
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        let (authority, files) = (Authority::new(), tempfile::tempdir().unwrap());
        authority.issue(files.path(), 90);
        let path = |name: &str| files.path().join(name).display().to_string();
        let own = ["--tls-certificate-file", &path("server.pem"), "--tls-key-file", &path("server.key")];
        let hub = HubProcess::launch(program(), &[&own, arguments].concat(), &[("SECRET_KEY", SECRET)]);
        until("the hub listens", || hub.log().contains("fanfare 0.1.0 listens"));
        Self { hub, authority, files }
    }

    fn certificate(&self) -> Vec<u8> {
        CertificateDer::from_pem_file(self.files.path().join("server.pem")).unwrap().to_vec()
    }

    /// A client, with a small receive buffer if it is slow.
    async fn connect(&self, slow: bool) -> Socket {
        let socket = TcpSocket::new_v4().unwrap();
        if slow {
            socket.set_recv_buffer_size(32 << 10).unwrap();
        }
        self.connect_over(socket.connect(self.hub.address()).await.unwrap()).await.unwrap()
    }

    async fn connect_over(&self, stream: TcpStream) -> anyhow::Result<Socket> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.files.path().join("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let connecting =
            TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream);
        let stream = timeout(TIMEOUT, connecting).await??;
        let url = format!("wss://localhost/ws?token={}", token(false, 600));
        Ok(timeout(TIMEOUT, client_async(url, stream)).await??.0)
    }

    /// Runs the program against the hub, with its authority as trusted.
    fn run(&self, arguments: &[&str]) -> Output {
        let url = format!("https://localhost:{}", self.hub.address().port());
        let mut command = Command::new(program());
        command.args(arguments).args(["--url", &url]).env("SECRET_KEY", SECRET).stdin(Stdio::null());
        command.env("SSL_CERT_FILE", self.files.path().join("ca.pem")).current_dir(self.files.path());
        command.output().unwrap()
    }

    /// The output of OpenSSL for a connection with these options.
    fn openssl(&self, arguments: &[&str]) -> String {
        let address = self.hub.address().to_string();
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &address, "-servername", "localhost", "-CAfile"]);
        command.arg(self.files.path().join("ca.pem")).args(arguments).stdin(Stdio::null());
        let output = command.output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }
}

async fn next(socket: &mut Socket) -> Value {
    match timeout(TIMEOUT, socket.next()).await.expect("timed out: a message") {
        Some(Ok(Message::Text(text))) => serde_json::from_str(&text).unwrap(),
        other => panic!("expected a text message, got {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_support_tls() {
    let server = block_in_place(|| Server::start(&[]));
    let published = block_in_place(|| server.run(&["publish", "--type", "note", "--event-id", "e1"]));
    assert!(published.status.success(), "{}", String::from_utf8_lossy(&published.stderr));
    let published = block_in_place(|| server.run(&["publish", "--type", "note", "--event-id", "e2"]));
    assert!(published.status.success());
    let tail = block_in_place(|| server.run(&["tail", "--since", "e1", "--count", "1"]));
    let event: Value = serde_json::from_slice(&tail.stdout).unwrap();
    assert_eq!((tail.status.success(), &event["event_id"]), (true, &json!("e2")));
    let load = ["bench", "--connections", "50", "--hold", "1s", "--storms", "1", "--storm-spread", "200ms"];
    let load = block_in_place(|| server.run(&load));
    let output = String::from_utf8_lossy(&load.stdout);
    assert!(load.status.success() && output.contains("50 of 50, 0 failed"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_with_the_wrong_scheme_names_the_right_one() {
    let server = block_in_place(|| Server::start(&[]));
    let plain = block_in_place(|| HubProcess::start(program(), &[], &[("SECRET_KEY", SECRET)]));
    let ca = server.files.path().join("ca.pem");
    for (url, expected) in [
        (format!("ws://localhost:{}/ws", server.hub.address().port()), "speaks TLS: use wss:// or https:// in its URL"),
        (
            format!("https://localhost:{}", plain.address().port()),
            "does not speak TLS: use ws:// or http:// in its URL",
        ),
    ] {
        for arguments in [
            &["publish", "--type", "note"][..],
            &["tail"],
            &["bench", "--connections", "2", "--hold", "1s"],
            &["health"],
            &["why", "e1"],
            &["check", "--hold", "1s"],
        ] {
            let mut command = Command::new(program());
            command.args(arguments).args(["--url", &url]).env("SECRET_KEY", SECRET).stdin(Stdio::null());
            command.env("SSL_CERT_FILE", &ca).current_dir(server.files.path());
            let ran = block_in_place(|| command.output()).unwrap();
            let output = String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned();
            assert!(!ran.status.success() && output.contains(expected), "{arguments:?} {url}: {output}");
            assert!(
                !output.contains("again in") && output.matches(expected).count() == 1,
                "{arguments:?} {url}: {output}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_tls_client_delays_no_other_and_loses_no_events() {
    const EVENTS: u64 = 2_000;
    let server = block_in_place(|| Server::start(&["--connects-per-second-per-address", "0"]));
    let (mut slow, mut quick) = (server.connect(true).await, server.connect(false).await);
    for socket in [&mut slow, &mut quick] {
        assert_eq!(next(socket).await["type"], "ack");
    }
    let lines: String = (1..=EVENTS)
        .map(|n| {
            json!({"type": "note", "audience": "everyone", "data": {"n": n, "pad": "x".repeat(4_000)}}).to_string()
                + "\n"
        })
        .collect();
    let file = server.files.path().join("events");
    std::fs::write(&file, lines).unwrap();
    let url = format!("https://localhost:{}", server.hub.address().port());
    let mut publisher = Command::new(program());
    publisher.args(["publish", "--stdin", "--url", &url]).env("SECRET_KEY", SECRET).stdout(Stdio::null());
    publisher.env("SSL_CERT_FILE", server.files.path().join("ca.pem")).stdin(std::fs::File::open(&file).unwrap());
    let mut publisher = publisher.spawn().unwrap();
    for n in 1..=EVENTS {
        assert_eq!(next(&mut quick).await["data"]["n"], n);
    }
    for n in 1..=EVENTS {
        assert_eq!(next(&mut slow).await["data"]["n"], n);
    }
    assert!(block_in_place(|| publisher.wait()).unwrap().success());
    for socket in [&mut slow, &mut quick] {
        // Many small messages and one of several records, in both directions.
        let long = format!(r#"{{"type":"ping","pad":"{}"}}"#, "x".repeat(60_000));
        for text in [r#"{"type":"ping"}"#, &long, r#"{"type":"ping"}"#] {
            socket.send(Message::text(text)).await.unwrap();
        }
        for _ in 0..3 {
            assert_eq!(next(socket).await["type"], "pong");
        }
        socket.close(None).await.unwrap();
        assert!(matches!(timeout(TIMEOUT, socket.next()).await.unwrap(), Some(Ok(Message::Close(_))) | None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_used_without_closing_connections() {
    let server = block_in_place(|| Server::start(&[]));
    let mut before = server.connect(false).await;
    let (first, certificate_of) =
        (server.certificate(), |socket: &Socket| socket.get_ref().get_ref().1.peer_certificates().unwrap()[0].to_vec());
    assert!(certificate_of(&before) == first);
    server.authority.issue(server.files.path(), 30);
    block_in_place(|| {
        until("the certificate is reloaded", || server.hub.log().contains("the certificate was reloaded"));
    });
    let after = server.connect(false).await;
    assert!(certificate_of(&after) == server.certificate() && certificate_of(&after) != first);
    std::fs::write(server.files.path().join("server.key"), "no key").unwrap();
    block_in_place(|| {
        until("the certificate is rejected", || server.hub.log().contains("the certificate was not reloaded"));
    });
    let still = server.connect(false).await;
    assert!(certificate_of(&still) == certificate_of(&after));
    assert_eq!(next(&mut before).await["type"], "ack");
    before.send(Message::text(r#"{"type":"ping"}"#)).await.unwrap();
    assert_eq!(next(&mut before).await["type"], "pong");
}

// attack: TLS 1.0, TLS 1.1 and cipher suites without forward secrecy => the handshake fails
#[tokio::test(flavor = "multi_thread")]
async fn only_secure_tls_versions_are_accepted() {
    let server = block_in_place(|| Server::start(&[]));
    for (version, speaks) in [("-tls1_3", true), ("-tls1_2", true), ("-tls1_1", false), ("-tls1", false)] {
        let output =
            block_in_place(|| server.openssl(&[version, "-cipher", "ALL:@SECLEVEL=0", "-verify_return_error"]));
        let spoke = output.contains("Verify return code: 0 (ok)") && !output.contains("Cipher is (NONE)");
        assert_eq!(spoke, speaks, "{version}: {output}");
    }
    for weak in ["AES128-SHA", "ECDHE-ECDSA-AES128-SHA", "NULL"] {
        let output = block_in_place(|| server.openssl(&["-tls1_2", "-cipher", &format!("{weak}:@SECLEVEL=0")]));
        assert!(output.contains("Cipher is (NONE)"), "{weak}: {output}");
    }
    let output = block_in_place(|| server.openssl(&["-alpn", "h2,http/1.1"]));
    assert!(output.contains("ALPN protocol: http/1.1"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unusable_certificate_files_stop_the_start_with_advice() {
    let (authority, files) = (Authority::new(), tempfile::tempdir().unwrap());
    authority.issue(files.path(), 90);
    let path = |name: &str| files.path().join(name).display().to_string();
    let other = tempfile::tempdir().unwrap();
    authority.issue(other.path(), 90);
    let other = other.path().join("server.key").display().to_string();
    for (certificate, key, expected) in [
        (path("server.pem"), None, "TLS needs both"),
        (path("missing.pem"), Some(path("server.key")), "missing.pem: "),
        (path("server.key"), Some(path("server.key")), "the file contains no certificate in PEM form"),
        (path("server.pem"), Some(path("server.pem")), "tls_key_file: "),
        (path("server.pem"), Some(other), "the key does not match tls_certificate_file"),
    ] {
        let key = key.map(|key| vec!["--tls-key-file".to_owned(), key]).unwrap_or_default();
        let arguments: Vec<&str> =
            ["--tls-certificate-file", &certificate].into_iter().chain(key.iter().map(String::as_str)).collect();
        let mut hub = block_in_place(|| HubProcess::launch(program(), &arguments, &[("SECRET_KEY", SECRET)]));
        assert_eq!(block_in_place(|| hub.wait()).code(), Some(2), "{}", hub.log());
        assert!(hub.log().contains(expected), "{expected}: {}", hub.log());
    }
}

// attack: a PROXY header from an address that is not listed => the connection fails; a client cannot choose its own address
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_header_before_tls_sets_the_clients_address() {
    let server =
        block_in_place(|| Server::start(&["--proxy-protocol-from", "127.0.0.2", "--max-connections-per-address", "1"]));
    let dial = async |from: &str, header: &'static [u8]| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
        let mut stream = socket.connect(server.hub.address()).await.unwrap();
        stream.write_all(header).await.unwrap();
        server.connect_over(stream).await
    };
    let (one, two) = (b"PROXY TCP4 203.0.113.1 10.0.0.1 4000 443\r\n", b"PROXY TCP4 203.0.113.2 10.0.0.1 4000 443\r\n");
    let mut first = dial("127.0.0.2", one).await.unwrap();
    assert_eq!(next(&mut first).await["type"], "ack");
    let mut other = dial("127.0.0.2", two).await.unwrap();
    assert_eq!(next(&mut other).await["type"], "ack", "each client has its own address");
    let mut again = dial("127.0.0.2", one).await.unwrap();
    let Some(Ok(Message::Close(Some(close)))) = timeout(TIMEOUT, again.next()).await.unwrap() else {
        panic!("a second connection from the same address was accepted");
    };
    assert!(close.reason.starts_with("max_connections_per_address"), "{close:?}");
    assert!(dial("127.0.0.2", b"").await.is_err(), "a balancer without a header");
    assert!(dial("127.0.0.3", one).await.is_err(), "a peer that is not a balancer");
    let mut direct = dial("127.0.0.3", b"").await.unwrap();
    assert_eq!(next(&mut direct).await["type"], "ack");
}
