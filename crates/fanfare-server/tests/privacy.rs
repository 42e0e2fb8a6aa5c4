//! Logs, responses and close reasons contain no credentials, at any log level.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

use fanfare::{Minter, auth::Claims};
use futures_util::StreamExt;
use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use testbed::{HubProcess, Postgres, RedisServer, until};
use tokio::{task::block_in_place, time::timeout};
use tokio_tungstenite::{
    connect_async,
    tungstenite::{
        Message,
        client::IntoClientRequest,
        http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL},
    },
};

const SECRET: &str = "a secret of thirty-two bytes, ok";
const PASSWORD: &str = "correct horse battery";
const TIMEOUT: Duration = Duration::from_secs(120);

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_fanfare"))
}

fn token(user: &str) -> String {
    let claims = Claims { sub: user.to_owned(), publish: true, admin: true, ..Claims::default() };
    Minter::from_secret(SECRET).unwrap().mint(&claims)
}

fn ask(hub: &HubProcess, method: &str, path: &str, bearer: &str, body: &str) -> String {
    block_in_place(|| {
        let mut stream = TcpStream::connect(hub.address()).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: hub\r\nConnection: close\r\nAuthorization: Bearer {bearer}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    })
}

// attack: reading logs at level trace, responses and close reasons for credentials => no password, token, key or secret appears in any
#[tokio::test(flavor = "multi_thread")]
async fn logs_contain_no_credentials_at_any_level() {
    let (redis, postgres) = block_in_place(|| (RedisServer::setup().password("hush-redis").start(), Postgres::start()));
    let (redis_url, database_url) = (redis.url(), postgres.url());
    let arguments = ["--redis-url", &redis_url, "--database-url", &database_url, "--log-level", "trace"];
    let hub = block_in_place(|| HubProcess::start(program(), &arguments, &[("SECRET_KEY", SECRET)]));
    let run = |arguments: &[&str], line: &str| {
        let mut command = Command::new(program());
        command.args(arguments).env("FANFARE_DATABASE_URL", &database_url).env("FANFARE_LOG_LEVEL", "trace");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let _ = writeln!(child.stdin.take().unwrap(), "{line}");
        let output = block_in_place(|| child.wait_with_output()).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (_, messages) = run(&["user", "add", "ann@example.org", "--role", "admin", "--password-stdin"], PASSWORD);
    assert!(!messages.contains(PASSWORD), "{messages}");
    let (key, messages) = run(&["key", "add", "ci"], "");
    assert!(!messages.contains(key.trim()), "{messages}");

    let login = format!(r#"{{"email":"ann@example.org","password":"{PASSWORD}"}}"#);
    let session = ask(&hub, "POST", "/auth/login", "", &login);
    let session: serde_json::Value = serde_json::from_str(session.split_once("\r\n\r\n").unwrap().1).unwrap();
    let [access, refresh] = ["access_token", "refresh_token"].map(|name| session[name].as_str().unwrap().to_owned());
    let tokens = ["query", "header", "protocol", "expired"].map(token);
    block_in_place(|| {
        until("the key is accepted", || {
            ask(&hub, "POST", "/events", key.trim(), r#"{"type":"note","audience":"everyone"}"#).contains(" 201 ")
        });
    });
    let mut answers = vec![
        ask(&hub, "POST", "/auth/login", "", &login.replace("horse", "house")),
        ask(&hub, "POST", "/auth/refresh", "", &format!(r#"{{"refresh_token":"{refresh}x"}}"#)),
        ask(&hub, "POST", "/auth/refresh", "", &format!(r#"{{"refresh_token":{refresh}}}"#)),
        ask(&hub, "POST", "/events", &format!("{}x", tokens[0]), "{}"),
        ask(&hub, "POST", &format!("/events?token={}", tokens[0]), &tokens[1], "{"),
        ask(&hub, "GET", &format!("/nowhere?token={}", tokens[0]), "", ""),
        ask(&hub, "GET", "/metrics", &tokens[1], ""),
        ask(&hub, "GET", "/ws/health", "", ""),
    ];
    let url = |query: &str| format!("ws://{}/ws{query}", hub.address());
    let mut by_header = url("").into_client_request().unwrap();
    by_header.headers_mut().insert(AUTHORIZATION, format!("Bearer {}", tokens[1]).parse().unwrap());
    let mut by_protocol = url("").into_client_request().unwrap();
    by_protocol.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, format!("fanfare, bearer.{}", tokens[2]).parse().unwrap());
    let requests = [
        url(&format!("?token={}", tokens[0])).into_client_request().unwrap(),
        by_header,
        by_protocol,
        url(&format!("?token={access}&connection_id=x&last_event_id=y")).into_client_request().unwrap(),
        url(&format!("?token={}x", tokens[3])).into_client_request().unwrap(),
        url(&format!("?token={}", key.trim())).into_client_request().unwrap(),
    ];
    for request in requests {
        let (mut socket, answer) = timeout(TIMEOUT, connect_async(request)).await.unwrap().unwrap();
        answers.push(format!("{:?}", answer.headers()));
        match timeout(TIMEOUT, socket.next()).await.unwrap() {
            Some(Ok(Message::Text(text))) => answers.push(text.to_string()),
            Some(Ok(Message::Close(frame))) => answers.push(format!("{frame:?}")),
            other => panic!("{other:?}"),
        }
    }
    let log = hub.log();
    assert!(log.contains("TRACE"), "the log contains lines of level trace");
    // The middle of each credential, because the beginnings are alike.
    let middle = |text: &str| text[text.len() / 2 - 8..text.len() / 2 + 8].to_owned();
    let secrets = [&access, &refresh, key.trim(), &tokens[0], &tokens[1], &tokens[2], &tokens[3]].map(middle);
    let plain =
        [PASSWORD, SECRET, "hush-redis", "database's password", "database%27s", "a%20database"].map(str::to_owned);
    for secret in secrets.iter().chain(&plain) {
        let line = log.lines().find(|line| line.contains(secret.as_str()));
        assert_eq!(line, None, "the log contains {secret}");
        let answer = answers.iter().find(|answer| answer.contains(secret.as_str()));
        assert_eq!(answer, None, "a response contains {secret}");
    }
}
