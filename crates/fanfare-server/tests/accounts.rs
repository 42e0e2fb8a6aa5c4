//! Accounts, from the command line to WebSocket connections, with SQLite and PostgreSQL.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

use futures_util::StreamExt;
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};
use tempfile::TempDir;
use testbed::{HubProcess, Postgres, RedisServer, until};
use tokio::{task::block_in_place, time::timeout};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

const SECRET: &str = "a secret of thirty-two bytes, ok";
const PASSWORD: &str = "correct horse battery";
const TIMEOUT: Duration = Duration::from_secs(120);

type Socket = WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;

/// A database, and the resources that it needs.
struct Database {
    url: String,
    postgres: Option<Postgres>,
    _home: TempDir,
}

impl Database {
    /// One database of each kind.
    fn each() -> Vec<Self> {
        let home = || tempfile::tempdir().unwrap();
        let postgres = block_in_place(Postgres::start);
        let file = home();
        let url = format!("sqlite://{}/accounts.db", file.path().display());
        vec![
            Self { url, postgres: None, _home: file },
            Self { url: postgres.url(), postgres: Some(postgres), _home: home() },
        ]
    }

    fn hub(&self, arguments: &[&str]) -> HubProcess {
        let all = [&["--database-url", &self.url][..], arguments].concat();
        block_in_place(|| HubProcess::start(program(), &all, &[("SECRET_KEY", SECRET)]))
    }

    /// Runs a command with one line on its standard input.
    fn run(&self, arguments: &[&str], line: &str) -> Output {
        let mut command = Command::new(program());
        command
            .args(arguments)
            .env("FANFARE_DATABASE_URL", &self.url)
            .env("SECRET_KEY", SECRET)
            .env("RUST_BACKTRACE", "0");
        command.current_dir(self._home.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command that does not read its input may have exited.
        let _ = writeln!(child.stdin.take().unwrap(), "{line}");
        child.wait_with_output().unwrap()
    }

    fn must(&self, arguments: &[&str], line: &str) -> String {
        let output = self.run(arguments, line);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn add_user(&self, email: &str, role: &str) {
        self.must(&["user", "add", email, "--role", role, "--topics", "project:*", "--password-stdin"], PASSWORD);
    }
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_fanfare"))
}

/// An HTTP response.
struct HttpResponse {
    status: u16,
    head: String,
    body: Value,
}

fn post(hub: &HubProcess, path: &str, token: Option<&str>, body: &Value) -> HttpResponse {
    block_in_place(|| {
        let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        send(hub, path, &format!("{authorization}Content-Type: application/json\r\n"), &body.to_string())
    })
}

fn send(hub: &HubProcess, path: &str, head: &str, body: &str) -> HttpResponse {
    block_in_place(|| {
        let mut stream = TcpStream::connect(hub.address()).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n{head}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        HttpResponse {
            status,
            head: head.to_ascii_lowercase(),
            body: serde_json::from_str(body).unwrap_or(Value::Null),
        }
    })
}

fn login(hub: &HubProcess, email: &str, password: &str) -> HttpResponse {
    post(hub, "/auth/login", None, &json!({ "email": email, "password": password }))
}

/// The response once the limits on logins allow it. Some tests log in often.
fn when_allowed(mut ask: impl FnMut() -> HttpResponse) -> HttpResponse {
    let mut response = None;
    block_in_place(|| until("the limits allow it", || response.insert(ask()).status != 429));
    response.unwrap()
}

fn logged_in(hub: &HubProcess, email: &str) -> HttpResponse {
    let response = when_allowed(|| login(hub, email, PASSWORD));
    assert_eq!(response.status, 200, "{}", response.body);
    response
}

fn text(response: &HttpResponse, field: &str) -> String {
    response.body[field].as_str().unwrap_or_else(|| panic!("no {field} in {}", response.body)).to_owned()
}

async fn connect(hub: &HubProcess, token: &str) -> Socket {
    let url = format!("ws://{}/ws?token={token}&topics=project:7", hub.address());
    timeout(TIMEOUT, connect_async(url)).await.unwrap().unwrap().0
}

/// The type of the next message, or the code and reason of a close.
async fn next_message(socket: &mut Socket) -> String {
    match timeout(TIMEOUT, socket.next()).await.expect("timed out: a message") {
        Some(Ok(Message::Text(text))) => {
            serde_json::from_str::<Value>(&text).unwrap()["type"].as_str().unwrap().to_owned()
        }
        Some(Ok(Message::Close(Some(frame)))) => format!("{} {}", u16::from(frame.code), frame.reason.as_str()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_grants_the_rights_of_the_role() {
    for database in Database::each() {
        let hub = database.hub(&[]);
        for (email, role) in
            [("ann@example.org", "viewer"), ("bob@example.org", "publisher"), ("eve@example.org", "admin")]
        {
            database.add_user(email, role);
            let session = login(&hub, &email.to_uppercase(), PASSWORD);
            assert_eq!((session.status, &session.body["token_type"]), (200, &json!("bearer")), "{}", session.body);
            assert_eq!((&session.body["expires_in"], &session.body["user"]["role"]), (&json!(1_800), &json!(role)));
            assert!(session.head.contains("cache-control: no-store"), "{}", session.head);
            let token = text(&session, "access_token");
            let mut socket = connect(&hub, &token).await;
            assert_eq!(next_message(&mut socket).await, "ack");
            let event = json!({"type": "note", "audience": {"user": email}});
            let (published, revoked) = match role {
                "viewer" => (403, 403),
                "publisher" => (201, 403),
                _ => (201, 200),
            };
            assert_eq!(post(&hub, "/events", Some(&token), &event).status, published, "{role}");
            if published == 201 {
                assert_eq!(next_message(&mut socket).await, "note", "a user is addressed by the account");
            }
            assert_eq!(post(&hub, "/tokens/revoke", Some(&token), &json!({"jti": "x"})).status, revoked, "{role}");
        }
        let list: Value = serde_json::from_str(&database.must(&["user", "list", "--json"], "")).unwrap();
        assert_eq!(list.as_array().unwrap().len(), 3);
        assert_eq!(list[0]["topics"], json!(["project:*"]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_login_does_not_reveal_the_cause() {
    for database in Database::each() {
        let hub = database.hub(&["--logins-per-minute-per-address", "0", "--logins-per-minute-per-account", "0"]);
        let before = login(&hub, "ann@example.org", PASSWORD);
        database.add_user("ann@example.org", "viewer");
        database.add_user("gone@example.org", "viewer");
        database.must(&["user", "disable", "gone@example.org"], "");
        let wrong = login(&hub, "ann@example.org", "wrong");
        for response in [
            before,
            login(&hub, "nobody@example.org", PASSWORD),
            login(&hub, "gone@example.org", PASSWORD),
            login(&hub, "no address", PASSWORD),
            login(&hub, "' OR '1'='1", "' OR '1'='1"),
            login(&hub, "ann@example.org", ""),
            login(&hub, "ann@example.org", &"x".repeat(2_000)),
        ] {
            assert_eq!((response.status, &response.body), (401, &wrong.body));
            let without_date = |head: &str| head.lines().filter(|line| !line.starts_with("date:")).collect::<String>();
            assert_eq!(without_date(&response.head), without_date(&wrong.head));
        }
        for (body, status) in [
            (json!({"email": "ann@example.org"}), 422),
            (json!({"email": "ann@example.org", "password": 7}), 422),
            (json!([]), 422),
            (json!({"email": "ann@example.org", "password": "x".repeat(9_000)}), 413),
        ] {
            assert_eq!(post(&hub, "/auth/login", None, &body).status, status);
        }
        assert!(!hub.log().contains(PASSWORD), "{}", hub.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_user_is_disconnected_on_all_nodes() {
    let redis = block_in_place(RedisServer::start);
    for database in Database::each() {
        let hub = database.hub(&["--redis-url", &redis.url(), "--workers", "2"]);
        database.add_user("ann@example.org", "viewer");
        database.add_user("bob@example.org", "viewer");
        let session = login(&hub, "ann@example.org", PASSWORD);
        let (ann, bob) = (text(&session, "access_token"), text(&logged_in(&hub, "bob@example.org"), "access_token"));
        let mut sockets = Vec::new();
        for _ in 0..8 {
            sockets.push(connect(&hub, &ann).await);
        }
        let mut other = connect(&hub, &bob).await;
        for socket in sockets.iter_mut().chain([&mut other]) {
            assert_eq!(next_message(socket).await, "ack");
        }
        database.must(&["user", "disable", "ann@example.org"], "");
        for socket in &mut sockets {
            assert!(next_message(socket).await.starts_with("1008 token_revoked: "));
        }
        assert!(next_message(&mut connect(&hub, &ann).await).await.starts_with("1008 token_revoked: "));
        assert_eq!(login(&hub, "ann@example.org", PASSWORD).status, 401);
        let renewal = json!({ "refresh_token": text(&session, "refresh_token") });
        assert_eq!(post(&hub, "/auth/refresh", None, &renewal).status, 401);
        let url = format!("ws://{}/ws?token={bob}", hub.address());
        let (mut again, _) = connect_async(url).await.unwrap();
        assert_eq!(next_message(&mut again).await, "ack", "other users are not affected");

        database.must(&["user", "enable", "ann@example.org"], "");
        let ann = text(&logged_in(&hub, "ann@example.org"), "access_token");
        // Enabling revokes earlier tokens, as every change does. A login in the same second counts as later.
        assert_eq!(next_message(&mut connect(&hub, &ann).await).await, "ack");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_password_a_new_role_and_removal_revoke_earlier_tokens() {
    for database in Database::each() {
        let hub = database.hub(&[]);
        let changes: [(&[&str], &str); 3] = [
            (&["user", "passwd", "ann@example.org", "--password-stdin"], "another long one"),
            (&["user", "set", "ann@example.org", "--role", "publisher"], ""),
            (&["user", "remove", "ann@example.org"], ""),
        ];
        for (change, line) in changes {
            database.run(&["user", "remove", "ann@example.org"], "");
            database.add_user("ann@example.org", "viewer");
            let token = until_accepted(&hub, PASSWORD).await;
            let mut socket = connect(&hub, &token).await;
            assert_eq!(next_message(&mut socket).await, "ack");
            database.must(change, line);
            let next_message = next_message(&mut socket).await;
            assert!(next_message.starts_with("1008 token_revoked: "), "{change:?}: {next_message}");
        }
        let again = database.run(&["user", "passwd", "ann@example.org", "--password-stdin"], PASSWORD);
        assert_eq!(again.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&again.stderr).contains("unknown user ann@example.org"));
    }
}

/// Logs in until the hub accepts the token. A change that the hub has not read yet revokes tokens of new logins too.
async fn until_accepted(hub: &HubProcess, password: &str) -> String {
    let deadline = std::time::Instant::now() + TIMEOUT;
    loop {
        let token = text(&when_allowed(|| login(hub, "ann@example.org", password)), "access_token");
        let mut socket = connect(hub, &token).await;
        if next_message(&mut socket).await == "ack" {
            return token;
        }
        assert!(std::time::Instant::now() < deadline, "no token was accepted");
    }
}

fn renew(hub: &HubProcess, token: &str) -> HttpResponse {
    when_allowed(|| post(hub, "/auth/refresh", None, &json!({ "refresh_token": token })))
}

fn claims(token: &str) -> Value {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

// attack: use a stolen refresh token beside its owner, or after a logout => one successor, and all of the login ends together
#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_renewed_and_a_stolen_refresh_token_ends_it() {
    for database in Database::each() {
        let hub = database.hub(&[]);
        database.add_user("ann@example.org", "viewer");
        for replayed in [true, false] {
            let first = login(&hub, "ann@example.org", PASSWORD);
            let second = renew(&hub, &text(&first, "refresh_token"));
            assert_eq!(second.status, 200, "{}", second.body);
            assert_ne!(text(&first, "refresh_token"), text(&second, "refresh_token"));
            let mut sockets = Vec::new();
            for session in [&first, &second] {
                let mut socket = connect(&hub, &text(session, "access_token")).await;
                assert_eq!(next_message(&mut socket).await, "ack");
                sockets.push(socket);
            }
            let sids = [&first, &second].map(|session| claims(&text(session, "access_token"))["sid"].clone());
            assert!(sids[0].is_string() && sids[0] == sids[1], "{sids:?}");
            // Two tabs may use the same token at the same time, and get the same successor.
            let again = renew(&hub, &text(&first, "refresh_token"));
            assert_eq!((again.status, text(&again, "refresh_token")), (200, text(&second, "refresh_token")));
            let third = renew(&hub, &text(&second, "refresh_token"));
            assert_eq!(third.status, 200);
            assert_eq!(renew(&hub, "ffr_unknown").status, 401);
            if replayed {
                assert_eq!(renew(&hub, &text(&first, "refresh_token")).status, 401, "its successor was used already");
            } else {
                let out = post(&hub, "/auth/logout", None, &json!({ "refresh_token": text(&third, "refresh_token") }));
                assert_eq!(out.status, 200);
            }
            for session in [&first, &second, &third] {
                assert_eq!(
                    renew(&hub, &text(session, "refresh_token")).status,
                    401,
                    "all tokens of a login end together"
                );
            }
            for socket in &mut sockets {
                assert!(next_message(socket).await.starts_with("1008 token_revoked: "));
            }
            let mut late = connect(&hub, &text(&third, "access_token")).await;
            assert!(next_message(&mut late).await.starts_with("1008 token_revoked: "));
        }
        assert!(!hub.log().contains("ffr_"), "{}", hub.log());
    }
}

// attack: present one refresh token many times at once, on several nodes => one successor for all, never two chains
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_renewals_of_one_token_have_one_successor() {
    let redis = block_in_place(RedisServer::start);
    for database in Database::each() {
        let arguments = ["--redis-url", &redis.url(), "--logins-per-minute-per-address", "0"];
        let hubs = [database.hub(&arguments), database.hub(&arguments)];
        database.add_user("ann@example.org", "viewer");
        let first = text(&logged_in(&hubs[0], "ann@example.org"), "refresh_token");
        let responses: Vec<HttpResponse> = block_in_place(|| {
            std::thread::scope(|scope| {
                let (hubs, first) = (&hubs, &first);
                let threads: Vec<_> = (0..12).map(|n| scope.spawn(move || renew(&hubs[n % 2], first))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            })
        });
        let successor = text(&responses[0], "refresh_token");
        for response in &responses {
            assert_eq!(
                (response.status, text(response, "refresh_token")),
                (200, successor.clone()),
                "{}",
                response.body
            );
        }
        assert_eq!(renew(&hubs[1], &successor).status, 200);
    }
}

// attack: refresh after POST /tokens/revoke by user, issued_before or sid => 401, on all nodes
#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_ends_refresh_tokens_too() {
    for database in Database::each() {
        let redis = block_in_place(RedisServer::start);
        for arguments in [&[][..], &["--redis-url", &redis.url()]] {
            let hubs = [database.hub(arguments), database.hub(arguments)];
            database.run(&["user", "add", "ann@example.org", "--topics", "project:*", "--password-stdin"], PASSWORD);
            database.run(&["key", "revoke", "root"], "");
            let root = database.must(&["key", "add", "root", "--admin"], "").trim().to_owned();
            for by in ["user", "sid", "issued_before"] {
                let first = logged_in(&hubs[0], "ann@example.org");
                let token = text(&first, "access_token");
                let mut socket = connect(&hubs[1], &token).await;
                assert_eq!(next_message(&mut socket).await, "ack", "{by}");
                let input = match by {
                    "user" => json!({"user": "ann@example.org"}),
                    "sid" => json!({"sid": claims(&token)["sid"]}),
                    _ => json!({"issued_before": claims(&token)["iat"].as_u64().unwrap() + 1}),
                };
                let response = post(&hubs[0], "/tokens/revoke", Some(&root), &input);
                assert_eq!(response.status, 200, "{by}: {}", response.body);
                assert!(next_message(&mut socket).await.starts_with("1008 token_revoked: "), "{by}");
                for hub in &hubs {
                    assert_eq!(renew(hub, &text(&first, "refresh_token")).status, 401, "{by}");
                }
                let later = logged_in(&hubs[1], "ann@example.org");
                let mut socket = connect(&hubs[1], &text(&later, "access_token")).await;
                assert_eq!(next_message(&mut socket).await, "ack", "{by}: a new login works immediately");
                assert_eq!(renew(&hubs[0], &text(&later, "refresh_token")).status, 200, "{by}");
            }
        }
    }
}

// attack: refresh at a hub with another database, which receives the revocation over Redis only => 401
#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_reaches_the_logins_of_other_databases() {
    let redis = block_in_place(RedisServer::start);
    let databases = Database::each();
    let hubs: Vec<_> = databases.iter().map(|database| database.hub(&["--redis-url", &redis.url()])).collect();
    databases[0].add_user("eve@example.org", "admin");
    databases[1].add_user("ann@example.org", "viewer");
    let session = login(&hubs[1], "ann@example.org", PASSWORD);
    let mut socket = connect(&hubs[1], &text(&session, "access_token")).await;
    assert_eq!(next_message(&mut socket).await, "ack");
    let eve = text(&logged_in(&hubs[0], "eve@example.org"), "access_token");
    assert_eq!(post(&hubs[0], "/tokens/revoke", Some(&eve), &json!({"user": "ann@example.org"})).status, 200);
    assert!(next_message(&mut socket).await.starts_with("1008 token_revoked: "));
    assert_eq!(renew(&hubs[1], &text(&session, "refresh_token")).status, 401);
}

// attack: make an account of a removed one's address, and resume with its cursor or connection_id => none of its events
#[tokio::test(flavor = "multi_thread")]
async fn a_recreated_account_receives_no_events_of_its_predecessor() {
    for database in Database::each() {
        let hub = database.hub(&[]);
        database.add_user("eve@example.org", "publisher");
        database.add_user("ann@example.org", "viewer");
        let eve = text(&logged_in(&hub, "eve@example.org"), "access_token");
        let token = text(&logged_in(&hub, "ann@example.org"), "access_token");
        let mut socket = connect(&hub, &token).await;
        let ack = message(&mut socket).await;
        let (cursor, connection) = (ack["event_id"].as_str().unwrap(), ack["connection_id"].as_str().unwrap());
        let publish = |kind: &str| {
            for audience in [json!({"user": "ann@example.org"}), json!({ "connection": connection })] {
                let event = json!({"type": kind, "audience": audience});
                assert_eq!(post(&hub, "/events", Some(&eve), &event).status, 201);
            }
        };
        publish("private");
        assert_eq!([next_message(&mut socket).await, next_message(&mut socket).await], ["private", "private"]);
        database.must(&["user", "remove", "ann@example.org"], "");
        database.add_user("ann@example.org", "viewer");

        let token = text(&logged_in(&hub, "ann@example.org"), "access_token");
        let replay_from = claims(&token)["replay_from"].as_u64().unwrap();
        block_in_place(|| until("the account is a second old", || unix_secs() >= replay_from));
        let url = format!("ws://{}/ws?token={token}&last_event_id={cursor}&connection_id={connection}", hub.address());
        let (mut socket, _) = timeout(TIMEOUT, connect_async(url)).await.unwrap().unwrap();
        let ack = message(&mut socket).await;
        assert_eq!((&ack["type"], &ack["replayed"]), (&json!("ack"), &json!(0)));
        assert_ne!(ack["connection_id"], connection);
        let gap = message(&mut socket).await;
        assert_eq!(gap["type"], "gap");
        let event = json!({"type": "for the predecessor", "audience": {"connection": connection}});
        assert_eq!(post(&hub, "/events", Some(&eve), &event).status, 201);
        let event = json!({"type": "own", "audience": {"user": "ann@example.org"}});
        assert_eq!(post(&hub, "/events", Some(&eve), &event).status, 201);
        assert_eq!(next_message(&mut socket).await, "own", "and nothing before it");
        // Its own history is replayed. The cursor of the gap still leads to events after it.
        let (cursor, connection) = (gap["event_id"].as_str().unwrap(), ack["connection_id"].as_str().unwrap());
        let url = format!("ws://{}/ws?token={token}&last_event_id={cursor}&connection_id={connection}", hub.address());
        let (mut socket, _) = timeout(TIMEOUT, connect_async(url)).await.unwrap().unwrap();
        let back = message(&mut socket).await;
        assert_eq!((&back["connection_id"], &back["resumed"]), (&ack["connection_id"], &json!(true)));
        assert_eq!(next_message(&mut socket).await, "own");
    }
}

async fn message(socket: &mut Socket) -> Value {
    match timeout(TIMEOUT, socket.next()).await.expect("timed out: a message") {
        Some(Ok(Message::Text(text))) => serde_json::from_str(&text).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn unix_secs() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

// attack: guess the password of somebody's account to lock its owner out => only the guesser's address is limited
#[tokio::test(flavor = "multi_thread")]
async fn attempts_from_other_addresses_do_not_lock_an_account_out() {
    for database in Database::each() {
        let hub = database.hub(&[
            "--trusted-proxies",
            "127.0.0.1",
            "--logins-per-minute-per-account",
            "2",
            "--logins-per-minute-per-address",
            "0",
        ]);
        database.add_user("ann@example.org", "viewer");
        let body = |password: &str| json!({"email": "ann@example.org", "password": password}).to_string();
        let from = |address: &str, password: &str| {
            let head = format!("X-Forwarded-For: {address}\r\nContent-Type: application/json\r\n");
            send(&hub, "/auth/login", &head, &body(password)).status
        };
        let (mut guesses, mut response) = (0, 401);
        while response == 401 {
            assert!(guesses < 60, "no attempt was rejected");
            (guesses, response) = (guesses + 1, from("203.0.113.1", "wrong"));
        }
        assert_eq!((response, from("198.51.100.7", PASSWORD)), (429, 200), "the owner uses another address");
        // A botnet reaches the limit for all unknown addresses together. The owner's address is known by then.
        let mut refused = 0;
        for n in 0..120 {
            refused = from(&format!("192.0.2.{n}"), "wrong");
            if refused == 429 {
                break;
            }
        }
        assert_eq!((refused, from("198.51.100.7", PASSWORD)), (429, 200));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_are_limited_by_account_and_by_address_over_all_workers() {
    let redis = block_in_place(RedisServer::start);
    for database in Database::each() {
        for (limit, accounts) in [("--logins-per-minute-per-account", 1), ("--logins-per-minute-per-address", 50)] {
            let other = match accounts {
                1 => "--logins-per-minute-per-address",
                _ => "--logins-per-minute-per-account",
            };
            let hub = database.hub(&["--redis-url", &redis.url(), "--workers", "2", limit, "6", other, "0"]);
            database.run(&["user", "add", "ann@example.org", "--password-stdin"], PASSWORD);
            let mut allowed = 0;
            let refused = loop {
                let response = login(&hub, &format!("user-{}@example.org", allowed % accounts), "wrong");
                match response.status {
                    401 => allowed += 1,
                    _ => break response,
                }
                // The limit allows one more every ten seconds.
                assert!(allowed < 12, "{limit}: no attempt was rejected");
            };
            assert!(allowed >= 6, "{limit}: {allowed}");
            assert_eq!((refused.status, &refused.body["code"]), (429, &json!("too_many_logins")));
            let wait = refused.head.lines().find_map(|line| line.strip_prefix("retry-after: ")).unwrap();
            assert!((1..=10).contains(&wait.parse::<u32>().unwrap()), "{wait}");
            if let Some(postgres) = &database.postgres {
                postgres.psql("hub", "DELETE FROM fanfare_attempts");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn access_keys_publish_until_they_are_revoked() {
    for database in Database::each() {
        let hub = database.hub(&[]);
        let key = database.must(&["key", "add", "ci"], "").trim().to_owned();
        assert!(key.starts_with("ffk_"), "{key}");
        let publish = || post(&hub, "/events", Some(&key), &json!({"type": "note", "audience": "everyone"})).status;
        assert_eq!(publish(), 201, "a key is accepted as soon as it is created");
        assert_eq!(post(&hub, "/tokens/revoke", Some(&key), &json!({"user": "x"})).status, 403);
        let list = database.must(&["key", "list"], "");
        assert!(list.contains("ci    publish") && !list.contains(&key[4..]), "{list}");
        assert_eq!(database.run(&["key", "add", "ci"], "").status.code(), Some(1), "key names are unique");
        if let Some(postgres) = &database.postgres {
            let kept = postgres.psql("hub", "SELECT * FROM fanfare_access_keys");
            assert!(kept.contains("ci") && !kept.contains(&key[4..]), "{kept}");
        }
        let mut listening = connect(&hub, &key).await;
        assert_eq!(next_message(&mut listening).await, "ack");
        database.must(&["key", "revoke", "ci"], "");
        block_in_place(|| until("the key is rejected", || publish() == 401));
        // First arrive the events that it published, and the error that it may not subscribe to the topic.
        let closed = loop {
            let next_message = next_message(&mut listening).await;
            if next_message != "note" && next_message != "error" {
                break next_message;
            }
        };
        assert!(closed.starts_with("1008 token_revoked"), "{closed}");
        assert_eq!(database.run(&["key", "revoke", "ci"], "").status.code(), Some(1), "the key does not exist");
        let again = database.must(&["key", "add", "ci"], "").trim().to_owned();
        let publish = || post(&hub, "/events", Some(&again), &json!({"type": "note", "audience": "everyone"})).status;
        assert_eq!(publish(), 201, "a new key of the same name is valid");
        assert!(!hub.log().contains(&key[4..]), "{}", hub.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revocations_survive_a_restart() {
    for database in Database::each() {
        let hub = database.hub(&[]);
        database.add_user("eve@example.org", "admin");
        database.add_user("ann@example.org", "viewer");
        let (eve, ann) =
            (text(&logged_in(&hub, "eve@example.org"), "access_token"), until_accepted(&hub, PASSWORD).await);
        assert_eq!(post(&hub, "/tokens/revoke", Some(&eve), &json!({"user": "ann@example.org"})).status, 200);
        drop(hub);
        let hub = database.hub(&[]);
        assert!(next_message(&mut connect(&hub, &ann).await).await.starts_with("1008 token_revoked: "));
        assert_eq!(next_message(&mut connect(&hub, &eve).await).await, "ack");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_and_tokens_work_while_the_database_is_unavailable() {
    let Some(mut database) = Database::each().pop() else { return };
    let hub = database.hub(&[]);
    database.add_user("ann@example.org", "publisher");
    let token = text(&logged_in(&hub, "ann@example.org"), "access_token");
    let mut socket = connect(&hub, &token).await;
    assert_eq!(next_message(&mut socket).await, "ack");
    let postgres = database.postgres.as_mut().unwrap();
    block_in_place(|| postgres.kill());
    let refused = login(&hub, "ann@example.org", PASSWORD);
    assert_eq!((refused.status, &refused.body["code"]), (503, &json!("accounts_unavailable")));
    assert!(refused.head.contains("retry-after: 5"), "{}", refused.head);
    assert_eq!(post(&hub, "/events", Some(&token), &json!({"type": "note", "audience": "everyone"})).status, 201);
    assert_eq!(next_message(&mut socket).await, "note");
    // The database stays unavailable until the hub has failed to poll it. A poll may wait for seconds, and would
    // succeed without a log message if the database returned before.
    block_in_place(|| until("the outage is logged", || hub.log().contains("failed to read changes")));
    block_in_place(|| database.postgres.as_mut().unwrap().restart());
    block_in_place(|| until("logins work again", || login(&hub, "ann@example.org", PASSWORD).status == 200));
    block_in_place(|| {
        until("the end of the outage is logged", || hub.log().contains("the accounts database is available again"));
    });
    assert!(hub.log().contains("a login failed: "), "{}", hub.log());
    assert!(!hub.log().contains("database's"), "the password is in the log: {}", hub.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unusable_database_stops_the_start_with_advice() {
    for (url, says) in [
        ("postgres://hub:hush@127.0.0.1:1/hub", "check database_url (FANFARE_DATABASE_URL)"),
        ("mysql://host/hub", "database_url: the configured text is not a valid value; expected sqlite://FILE"),
    ] {
        let mut hub =
            block_in_place(|| HubProcess::launch(program(), &["--database-url", url], &[("SECRET_KEY", SECRET)]));
        assert!(!block_in_place(|| hub.wait()).success());
        assert!(hub.log().contains(says) && !hub.log().contains("hush"), "{}", hub.log());
    }
    let home = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/missing/accounts.db", home.path().display());
    let hub = block_in_place(|| HubProcess::start(program(), &["--database-url", &url], &[("SECRET_KEY", SECRET)]));
    assert_eq!(login(&hub, "ann@example.org", PASSWORD).status, 401, "no account exists yet");
}
