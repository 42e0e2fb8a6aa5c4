//! `fanfare check` with a good setup, and with each fault that it detects.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};
use tempfile::TempDir;
use testbed::{Authority, HubProcess, RedisServer, Sentinels, until};
use tokio::task::block_in_place;
use tokio_tungstenite::tungstenite::Message;

const SECRET: &str = "7f3c1e0a9b8d4c6e5f2a1b3c4d5e6f70";

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_fanfare"))
}

fn check_in(home: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(program());
    command.arg("check").args(arguments).env_remove("SECRET_KEY").env("RUST_BACKTRACE", "0").stdin(Stdio::null());
    command.envs(environment.iter().copied()).current_dir(home).output().unwrap()
}

/// The worst finding of a check: its level and its text.
fn found(arguments: &[&str], environment: &[(&str, &str)], name: &str) -> (String, String) {
    let home = TempDir::new().unwrap();
    let output = check_in(home.path(), &[arguments, &["--json"]].concat(), environment);
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)));
    let failed = findings.iter().any(|finding| finding["level"] == "fail");
    assert_eq!(output.status.code(), Some(i32::from(failed)), "{arguments:?}");
    let worst = findings
        .iter()
        .filter(|finding| finding["check"] == name)
        .max_by_key(|finding| ["ok", "unknown", "warn", "fail"].iter().position(|level| finding["level"] == *level));
    let worst = worst.unwrap_or_else(|| panic!("{name} in {findings:?}"));
    if worst["level"] == "warn" || worst["level"] == "fail" {
        assert!(worst["why"].as_str().unwrap().ends_with('.'), "{worst}");
    }
    (worst["level"].as_str().unwrap().to_owned(), worst["what"].as_str().unwrap().to_owned())
}

#[test]
fn a_good_setup_has_no_findings() {
    let redis = RedisServer::setup().persistent().password("hush-hush").start();
    let (home, files) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    Authority::new().issue(files.path(), 90);
    let path = |name: &str| files.path().join(name).display().to_string();
    fs::set_permissions(path("server.key"), fs::Permissions::from_mode(0o600)).unwrap();
    let chain = fs::read_to_string(path("server.pem")).unwrap() + &fs::read_to_string(path("ca.pem")).unwrap();
    fs::write(path("chain.pem"), chain).unwrap();
    let (url, chain, key) = (redis.url(), path("chain.pem"), path("server.key"));
    let arguments =
        ["--redis-url", &url, "--tls-certificate-file", &chain, "--tls-key-file", &key, "--max-connections", "500"];
    let output = check_in(home.path(), &arguments, &[("SECRET_KEY", SECRET)]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    for line in
        ["ok    keys ", "ok    permissions ", "ok    tls ", "ok    redis ", "ok    redis: files ", "ok    database "]
    {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!text.contains("FAIL") && !text.contains(SECRET) && !text.contains("hush-hush"), "{text}");
    assert!(!home.path().join("fanfare.db").exists(), "a check changes nothing");
}

#[test]
fn each_fault_of_the_settings_is_found() {
    let files = TempDir::new().unwrap();
    let path = |name: &str| files.path().join(name).display().to_string();
    let write = |name: &str, text: &str, mode: u32| {
        fs::write(files.path().join(name), text).unwrap();
        fs::set_permissions(files.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
        path(name)
    };
    let open = write("open.key", SECRET, 0o644);
    let closed = write("closed.key", SECRET, 0o600);
    let good = [("SECRET_KEY", SECRET)];
    let guessed = [("SECRET_KEY", "your-secret-key-change-in-production!")];
    for (arguments, environment, name, level, expected) in [
        (&[][..], &[][..], "keys", "warn", "there is none"),
        (&["--listen", "0.0.0.0:8000"], &[], "keys", "fail", "there is none"),
        (&[], &guessed, "keys", "fail", "a secret that is not random"),
        (&[], &[("SECRET_KEY", "short")], "keys", "fail", "has 5 bytes"),
        (&[], &[("SECRET_KEY", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")], "keys", "fail", "not random"),
        (&[], &good, "keys", "ok", "HS256"),
        (&["--secret-key-file", &open], &[], "permissions", "fail", "(mode 644)"),
        (&["--secret-key-file", &closed], &[], "permissions", "ok", "closed.key"),
        (&[], &good, "tokens", "warn", "never expire"),
        (&["--require-exp", "true"], &good, "tokens", "ok", "valid for 30 minutes"),
        (
            &["--require-exp", "true", "--access-token-expire-minutes", "100000"],
            &good,
            "tokens",
            "warn",
            "100000 minutes",
        ),
        (&["--listen", "0.0.0.0:8000"], &good, "tls", "warn", "none, on 0.0.0.0:8000"),
        (&["--listen", "0.0.0.0:8000", "--trusted-proxies", "10.0.0.1"], &good, "tls", "ok", "the trusted proxies"),
        (&["--allowed-origins", "*"], &good, "origins", "warn", "every site"),
        (&["--allowed-origins", "http://app.example.org"], &good, "origins", "warn", "has no TLS"),
        (&["--allowed-origins", "https://app.example.org"], &good, "origins", "ok", "https://app.example.org"),
        (&["--trusted-proxies", "0.0.0.0/0"], &good, "proxies", "fail", "all addresses are trusted"),
        (&["--heartbeat-interval", "90s", "--heartbeat-timeout", "200s"], &good, "heartbeat", "warn", "every 90 s"),
        (&["--drain-rate", "10"], &good, "drain", "warn", "takes 5000 s"),
        (&["--max-connections", "10000000"], &good, "files", "warn", "max_connections is 10000000"),
        (&["--max-connections", "10"], &good, "files", "ok", "max_connections is 10"),
        (&["--window-bytes", "9000GiB"], &good, "memory", "warn", "MiB are available"),
        (&["--redis-url", "redis://:hush@127.0.0.1:1"], &good, "redis", "fail", "can't be reached"),
        (&["--database-url", "postgres://me:hush@127.0.0.1:1/hub"], &good, "database", "fail", "Connection refused"),
        (
            &["--database-url", "sqlite:///nowhere/hub.db"],
            &good,
            "database",
            "fail",
            "failed to create the file /nowhere/hub.db: No such file",
        ),
        (&["--database-url", "none"], &good, "database", "ok", "none"),
        (
            &["--algorithm", "RS256", "--jwks-url", "http://127.0.0.1:1/jwks.json"],
            &[],
            "jwks",
            "fail",
            "Connection refused",
        ),
    ] {
        let (found_level, what) = found(arguments, environment, name);
        assert!(
            found_level == level && what.contains(expected) && !what.contains("hush"),
            "{arguments:?}: {found_level} {what}"
        );
    }
}

// attack: another user of the machine reads .env or fanfare.toml with a secret in it => `fanfare check` fails, with the chmod
#[test]
fn setting_files_with_secrets_that_other_users_can_read_are_found() {
    let secret = format!("SECRET_KEY={SECRET}\n");
    for (name, text, mode, level, expected) in [
        (
            ".env",
            secret.as_str(),
            0o644,
            "fail",
            "all users of this machine can read .env, which contains secret_key (mode 644)",
        ),
        (".env", &secret, 0o640, "warn", "all users of its group can read .env"),
        (".env", &secret, 0o600, "ok", "other users cannot read .env"),
        (".env", "REDIS_URL=redis://127.0.0.1:1\nFANFARE_SHARDS=1\n", 0o644, "", ""),
        (
            "fanfare.toml",
            "redis_url = \"redis://:hush@127.0.0.1:1\"\n",
            0o644,
            "fail",
            "fanfare.toml, which contains redis_url",
        ),
        (
            "fanfare.toml",
            "jwks_url = \"https://u:hush@127.0.0.1:1/k\"\nalgorithm = \"RS256\"\n",
            0o644,
            "fail",
            "jwks_url",
        ),
    ] {
        let home = TempDir::new().unwrap();
        fs::write(home.path().join(name), text).unwrap();
        fs::set_permissions(home.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
        let output = check_in(home.path(), &["--json"], &[]);
        let all = String::from_utf8(output.stdout).unwrap();
        assert!(!all.contains("hush"), "{all}");
        let findings: Vec<Value> = serde_json::from_str(&all).unwrap();
        let finding = findings.iter().find(|finding| finding["check"] == "permissions");
        let (what, fix) = finding.map_or((String::new(), Value::Null), |finding| {
            assert_eq!(finding["level"], level, "{name} {mode:o}");
            (finding["what"].as_str().unwrap().to_owned(), finding["fix"].clone())
        });
        assert!(what.contains(expected) && what.is_empty() == expected.is_empty(), "{name} {mode:o}: {what}");
        assert!(level != "fail" || fix[0] == format!("chmod 600 {name}"), "{fix}");
    }
}

#[test]
fn each_fault_of_a_certificate_is_found() {
    let (authority, files) = (Authority::new(), TempDir::new().unwrap());
    let path = |name: &str| files.path().join(name).display().to_string();
    let read = |name: &str| fs::read_to_string(files.path().join(name)).unwrap();
    let other = TempDir::new().unwrap();
    Authority::new().issue(other.path(), 90);
    let stranger = fs::read_to_string(other.path().join("server.pem")).unwrap();
    for (days, level, expected) in
        [(90, "warn", "are missing"), (10, "warn", "expires in 9 days"), (-3, "fail", "expired 3 days ago")]
    {
        authority.issue(files.path(), days);
        let (found_level, what) = of_files(&path("server.pem"), &path("server.key"));
        // `found` returns the worst finding. The chain of an expired certificate does not matter.
        assert_eq!(found_level, level, "{what}");
        assert!(what.contains(expected) || what.contains("are missing"), "{what}");
    }
    authority.issue(files.path(), 90);
    fs::write(path("chain.pem"), read("server.pem") + &read("ca.pem")).unwrap();
    assert_eq!(of_files(&path("chain.pem"), &path("server.key")).0, "ok");
    fs::write(path("chain.pem"), read("server.pem") + &stranger).unwrap();
    let (level, what) = of_files(&path("chain.pem"), &path("server.key"));
    assert!(level == "fail" && what.contains("certificate 1 of the chain is not issued by the next one"), "{what}");
    let (level, what) = of_files(&path("server.pem"), &other.path().join("server.key").display().to_string());
    assert!(level == "fail" && what.contains("does not match tls_certificate_file"), "{what}");
}

fn of_files(certificate: &str, key: &str) -> (String, String) {
    found(&["--tls-certificate-file", certificate, "--tls-key-file", key], &[("SECRET_KEY", SECRET)], "tls")
}

#[test]
fn settings_that_lose_events_in_a_failover_are_found() {
    let mut servers = Sentinels::start();
    let found = |url: &str, name| found(&["--redis-url", url], &[("SECRET_KEY", SECRET)], name);
    let url = servers.url();
    let (level, what) = found(&url, "redis: failover");
    assert!(level == "fail" && what.contains("min-replicas-to-write is 0"), "{what}");
    servers.master().cli(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    assert_eq!(found(&url, "redis: failover").0, "ok");
    assert_eq!(found(&url, "redis: sentinels").0, "ok");
    let (level, what) = found(&servers.url_at(&servers.ports()[..2]), "redis: sentinels");
    assert_eq!((&*level, &*what), ("fail", "the URL names 2, and 3 monitor the master"));
}

#[test]
fn each_fault_of_a_redis_is_found() {
    let redis = RedisServer::setup().line("maxmemory-policy allkeys-lru").line("maxclients 40").start();
    let url = redis.url();
    let found = |more: &[&str], name| found(&[&["--redis-url", &url], more].concat(), &[("SECRET_KEY", SECRET)], name);
    for (more, name, level, expected) in [
        (&[][..], "redis: eviction", "fail", "allkeys-lru"),
        (&[], "redis: files", "warn", "not saved to a file"),
        (&["--workers", "8"], "redis: clients", "warn", "of 40 connected, and this hub needs 32"),
        (&["--durability", "replica"], "redis: replicas", "fail", "durability is replica"),
        (&[], "redis: latency", "ok", " ms"),
        (&[], "redis: clock", "ok", " ms from this machine's clock"),
    ] {
        let (found_level, what) = found(more, name);
        assert!(found_level == level && what.contains(expected), "{name}: {found_level} {what}");
    }
    redis.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    redis.cli(&["CONFIG", "SET", "maxmemory", "10mb"]);
    let (level, what) = found(&[], "redis: eviction");
    assert!(level == "warn" && what.contains("maxmemory is 10 MiB"), "{what}");
    assert_eq!(found(&[], "redis: memory").0, "ok");
    redis.cli(&["CONFIG", "SET", "maxmemory", "300kb"]);
    let (level, what) = found(&[], "redis: memory");
    assert!(level == "fail" && what.starts_with("full: ") && what.contains("Redis rejects events"), "{what}");
}

/// A proxy that closes each connection some time after the server's first bytes.
fn proxy_with_timeout(to: SocketAddr, after: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = TcpStream::connect(to).unwrap();
            let pass =
                |mut from: TcpStream, mut to: TcpStream| thread::spawn(move || std::io::copy(&mut from, &mut to));
            pass(client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || {
                let _ = server.peek(&mut [0]);
                pass(server, client.try_clone().unwrap());
                thread::sleep(after);
                let _ = client.shutdown(Shutdown::Both);
            });
        }
    });
    address
}

/// A server that does not support upgrades.
fn plain_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.read(&mut [0; 4_096]);
            let _ = client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    address
}

#[test]
fn the_public_address_is_tested() {
    let hub = HubProcess::start(program(), &["--heartbeat-interval", "1s"], &[("SECRET_KEY", SECRET)]);
    let cut = proxy_with_timeout(hub.address(), Duration::from_secs(2));
    for (address, name, level, expected) in [
        (hub.address(), "hold", "ok", "held for 4 s, with "),
        (cut, "hold", "fail", "ended after "),
        (plain_server(), "upgrade", "fail", "answers 200 OK instead of 101"),
        (SocketAddr::from(([127, 0, 0, 1], testbed::free_port())), "address", "fail", "Connection refused"),
    ] {
        let url = format!("http://{address}");
        let (found_level, what) = found(&["--url", &url, "--hold", "4s"], &[("SECRET_KEY", SECRET)], name);
        assert!(found_level == level && what.contains(expected), "{name}: {found_level} {what}");
    }
    let (level, what) = found(
        &["--url", &format!("http://{}", hub.address()), "--hold", "1s"],
        &[("SECRET_KEY", &SECRET.replace('7', "8"))],
        "hold",
    );
    assert!(level == "fail" && what.contains("closed with 1008: token_invalid"), "{what}");
}

/// A proxy that distributes its connections to two hubs in turn.
fn alternating_proxy(hubs: [SocketAddr; 2]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for (client, to) in listener.incoming().flatten().zip(hubs.into_iter().cycle()) {
            let server = TcpStream::connect(to).unwrap();
            let pass = |mut from: TcpStream, mut to: TcpStream| {
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                })
            };
            pass(client.try_clone().unwrap(), server.try_clone().unwrap());
            pass(server, client);
        }
    });
    address
}

/// Connects once, and returns the connection ID and the position after the first messages.
async fn connect_once(address: SocketAddr, cursor: &str) -> (String, String) {
    let claims = fanfare::auth::Claims { sub: "ann".to_owned(), ..Default::default() };
    let token = fanfare::Minter::from_secret(SECRET).unwrap().mint(&claims);
    let url = format!("ws://{address}/ws?token={token}{cursor}");
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    socket.send(Message::text(r#"{"type":"ping"}"#)).await.unwrap();
    let mut name = String::new();
    loop {
        let frame = socket.next().await.unwrap().unwrap().into_text().unwrap();
        let frame: Value = serde_json::from_str(&frame).unwrap();
        match frame["type"].as_str().unwrap() {
            "ack" => name = frame["connection_id"].as_str().unwrap().to_owned(),
            "pong" => return (name, frame["event_id"].as_str().unwrap().to_owned()),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hubs_with_separate_logs_behind_one_address_are_found() {
    let start = || HubProcess::start(program(), &["--database-url", "none"], &[("SECRET_KEY", SECRET)]);
    let hubs = block_in_place(|| [start(), start()]);
    let proxy = alternating_proxy([hubs[0].address(), hubs[1].address()]);
    let ask = |address: SocketAddr| {
        let url = format!("http://{address}");
        block_in_place(|| found(&["--url", &url, "--hold", "1s"], &[("SECRET_KEY", SECRET)], "one log"))
    };
    let (level, what) = ask(proxy);
    assert!(level == "fail" && what.contains("2 hubs with separate logs respond at this address"), "{level} {what}");
    let (level, what) = ask(hubs[0].address());
    assert!(level == "ok" && what.contains("from one log"), "{level} {what}");

    let publish = |hub: &HubProcess| {
        let url = format!("http://{}", hub.address());
        let mut command = Command::new(program());
        command.args(["publish", "--type", "note", "--url", &url]).env("SECRET_KEY", SECRET).stdin(Stdio::null());
        assert!(block_in_place(|| command.output()).unwrap().status.success());
    };
    // A client alternates between the hubs, and each log has advanced when it returns.
    let (name, mut cursor) = connect_once(hubs[0].address(), "").await;
    for turn in 1..10 {
        publish(&hubs[turn % 2]);
        (_, cursor) =
            connect_once(hubs[turn % 2].address(), &format!("&connection_id={name}&last_event_id={cursor}")).await;
    }
    for hub in &hubs {
        block_in_place(|| until("the finding is logged", || hub.log().contains("clients alternate between this hub")));
        assert_eq!(hub.log().matches("clients alternate").count(), 1);
    }
}

#[test]
fn fixes_are_printed_and_not_run() {
    let files = TempDir::new().unwrap();
    let key = files.path().join("open.key");
    fs::write(&key, SECRET).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let path = key.display().to_string();
    let output = check_in(files.path(), &["--fix", "--secret-key-file", &path], &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(&format!("\nchmod 600 {path}\n")), "{text}");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("checks failed"));
}
