//! The proxies of deploy/ in front of two workers, with their configuration files: TLS, the upgrade, client addresses,
//! and a rolling restart of the workers.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::{
    fs,
    io::Write,
    path::Path,
    process::{Child, ChildStdin, Command, Output, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use testbed::{Authority, HubProcess, RedisServer, free_port, until};

const SECRET: &str = "a secret of thirty-two bytes, ok";
const EVENTS: usize = 400;
const TIMEOUT: Duration = Duration::from_secs(120);

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_fanfare"))
}

/// A file of deploy/, with the values of this host.
fn deployed(file: &str, changes: &[(&str, &str)]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    changes.iter().fold(text, |text, (from, to)| {
        assert!(text.contains(from), "{file} has no {from:?}");
        text.replace(from, to)
    })
}

/// Two workers, and a proxy in front of them.
struct Site {
    proxy: Child,
    port: u16,
    hub: HubProcess,
    files: TempDir,
    _redis: RedisServer,
}

impl Site {
    fn start(proxy: fn(&Path, u16, &str) -> Command) -> Self {
        let (redis, files, port) = (RedisServer::start(), tempfile::tempdir().unwrap(), free_port());
        Authority::new().issue(files.path(), 90);
        let url = redis.url();
        let arguments = [
            ["--redis-url", &url],
            ["--workers", "2"],
            ["--trusted-proxies", "127.0.0.1"],
            ["--max-connections-per-address", "5"],
            // The limit counts in each worker; all clients could connect to one of them.
            ["--database-url", "none"],
        ];
        let hub = HubProcess::start(program(), &arguments.concat(), &[("SECRET_KEY", SECRET)]);
        let mut command = proxy(files.path(), port, &hub.address().to_string());
        let log = fs::File::create(files.path().join("proxy.log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}: run scripts/setup"));
        let site = Self { proxy: child, port, hub, files, _redis: redis };
        let deadline = Instant::now() + TIMEOUT;
        while !site.run(&["health"]).status.success() {
            let log = || fs::read_to_string(site.files.path().join("proxy.log")).unwrap();
            assert!(
                Instant::now() < deadline,
                "timed out: the hub is not reachable through the proxy: {:?} {}",
                site.run(&["health"]),
                log()
            );
        }
        site
    }

    /// The program with the proxy as its hub.
    fn command(&self, arguments: &[&str]) -> Command {
        let url = format!("https://localhost:{}", self.port);
        let mut command = Command::new(program());
        command.args(arguments).args(["--url", &url]).env("SECRET_KEY", SECRET).stdin(Stdio::null());
        command.env("SSL_CERT_FILE", self.files.path().join("ca.pem")).current_dir(self.files.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn listen(&self, from: &str) -> Child {
        let count = EVENTS.to_string();
        let mut tail = self.command(&["tail", "--count", &count]);
        let log = fs::File::create(self.files.path().join(from)).unwrap();
        let tail = tail.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let live = || fs::read_to_string(self.files.path().join(from)).unwrap().contains("connected as");
        until("the listener is connected", live);
        tail
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // The proxy may have exited.
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
    }
}

fn nginx(files: &Path, port: u16, hub: &str) -> Command {
    let path = |name: &str| files.join(name).display().to_string();
    let changes = [
        ("listen 443 ssl", &*format!("listen 127.0.0.1:{port} ssl")),
        ("/etc/ssl/fanfare/fullchain.pem", &path("server.pem")),
        ("/etc/ssl/fanfare/privkey.pem", &path("server.key")),
        ("server 127.0.0.1:8000", &format!("server {hub}")),
    ];
    fs::write(files.join("fanfare.conf"), deployed("nginx/fanfare.conf", &changes)).unwrap();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {};\n", path(name)))
        .concat();
    let main = format!(
        "daemon off;\nmaster_process off;\npid {};\nerror_log stderr;\nworker_processes 1;\n\
         events {{ worker_connections 1024; }}\nhttp {{\n{temporary}include {};\n}}\n",
        path("pid"),
        path("fanfare.conf")
    );
    fs::write(files.join("nginx.conf"), main).unwrap();
    // Debian installs nginx in a directory that is only in the PATH of root.
    let mut command = Command::new(if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" });
    command.arg("-p").arg(files).arg("-c").arg(files.join("nginx.conf"));
    command
}

fn caddy(files: &Path, port: u16, hub: &str) -> Command {
    let path = |name: &str| files.join(name).display().to_string();
    let site =
        format!("https://localhost:{port} {{\n\tbind 127.0.0.1\n\ttls {} {}\n", path("server.pem"), path("server.key"));
    let changes = [
        ("{\n\t# When", "{\n\tadmin off\n\tauto_https off\n\t# When"),
        ("hub.example.org {\n", &*site),
        ("127.0.0.1:8000 {", &format!("{hub} {{")),
    ];
    fs::write(files.join("Caddyfile"), deployed("caddy/Caddyfile", &changes)).unwrap();
    let mut command = Command::new("caddy");
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(files.join("Caddyfile")).env("HOME", files);
    command
}

fn publish(input: &mut ChildStdin, events: std::ops::Range<usize>) {
    for n in events {
        writeln!(
            input,
            "{}",
            json!({"type": "note", "audience": "everyone", "event_id": format!("e{n}"), "data": {"n": n}})
        )
        .unwrap();
    }
    input.flush().unwrap();
}

/// Whether all clients from one address connect and receive every event.
fn all_connect(site: &Site, source: &str, clients: &str) -> bool {
    let load = ["bench", "--connections", clients, "--hold", "1s", "--source", source, "--rate", "20"];
    site.run(&load).status.success()
}

fn workers_behind(proxy: fn(&Path, u16, &str) -> Command) {
    let site = Site::start(proxy);
    let listeners = ["first", "second"].map(|name| site.listen(name));
    let mut publisher = site.command(&["publish", "--stdin"]);
    let mut publisher = publisher.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut input = publisher.stdin.take().unwrap();
    publish(&mut input, 0..EVENTS / 2);
    site.hub.signal(Signal::SIGHUP);
    until("the workers are replaced", || site.hub.log().contains("all workers are replaced"));
    publish(&mut input, EVENTS / 2..EVENTS);
    drop(input);
    assert!(publisher.wait().unwrap().success());
    for listener in listeners {
        let output = listener.wait_with_output().unwrap();
        let ids: Vec<_> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["data"]["n"].as_u64().unwrap())
            .collect();
        assert_eq!(ids, (0..EVENTS as u64).collect::<Vec<_>>(), "each once, in order, during the rollout");
    }
    // Two workers with a limit of five each: eleven clients from one address exceed it, and ten from two addresses do
    // not.
    assert!(!all_connect(&site, "127.0.0.9", "11"), "clients count by the forwarded address");
    std::thread::scope(|scope| {
        let both = ["127.0.0.7", "127.0.0.8"].map(|source| scope.spawn(|| all_connect(&site, source, "5")));
        assert!(both.map(|all| all.join().unwrap()).iter().all(|all| *all), "each address has its own limit");
    });
}

/// The output of a proxy and of curl when a client connects while the hub is down.
fn log_without_a_hub(proxy: fn(&Path, u16, &str) -> Command) -> String {
    let (files, port, closed) = (tempfile::tempdir().unwrap(), free_port(), free_port());
    Authority::new().issue(files.path(), 90);
    let mut command = proxy(files.path(), port, &format!("127.0.0.1:{closed}"));
    let log = fs::File::create(files.path().join("proxy.log")).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}: run scripts/setup"));
    let ask = |path: &str| {
        let mut curl = Command::new("curl");
        curl.args(["--insecure", "--silent", "--http1.1", "--output", "/dev/null", "--write-out", "%{http_code}"]);
        curl.args(["--header", "Connection: Upgrade", "--header", "Upgrade: websocket"]);
        curl.args(["--header", "Sec-WebSocket-Protocol: fanfare, bearer.hush-protocol"]);
        curl.args(["--header", "Authorization: Bearer hush-header"]);
        let output = curl.arg(format!("https://localhost:{port}{path}")).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let log = || fs::read_to_string(files.path().join("proxy.log")).unwrap();
    until("the proxy returns an error because the hub is down", || {
        ask("/ws?token=hush-query&topics=a").starts_with('5')
    });
    until("the log says that the hub is down", || {
        ask("/health");
        log().contains("/health")
    });
    // The proxy may have exited.
    let _ = child.kill();
    let _ = child.wait();
    log()
}

// attack: reading a proxy's error log for tokens of clients that connected while the hub was down => none appears
#[test]
fn proxies_log_no_token_when_the_hub_is_down() {
    for proxy in [nginx, caddy] {
        let log = log_without_a_hub(proxy);
        assert!(!log.contains("hush"), "{log}");
    }
}

#[test]
fn nginx_forwards_to_the_workers_during_a_rollout() {
    workers_behind(nginx);
}

#[test]
fn caddy_forwards_to_the_workers_during_a_rollout() {
    workers_behind(caddy);
}
