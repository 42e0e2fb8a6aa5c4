//! What `/metrics` gives: every figure that docs/metrics.md names and no other, and what stands in some of them.

#![expect(clippy::unwrap_used, reason = "a test ends where something that it relies on fails")]

use fanfare::{Minter, auth::Claims, metrics::Counter};
use futures_util::{SinkExt, StreamExt};
use nix::sys::signal::Signal;
use std::{
    fmt::Write,
    fs,
    net::Ipv4Addr,
    path::Path,
    time::{Duration, SystemTime},
};
use testbed::{Authority, HubProcess, RedisServer, free_port, free_ports, get, until};
use tokio::{task::block_in_place, time::timeout};
use tokio_tungstenite::{connect_async, tungstenite::Message};

const SECRET: &str = "a secret of thirty-two bytes, ok";
/// Where figures are served: not where the hub listens, which may take the next port.
const HOME: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const PATIENCE: Duration = Duration::from_secs(120);

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_fanfare"))
}

fn token(admin: bool) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let claims = Claims { sub: "ann".to_owned(), admin, exp: Some(now + 600), ..Claims::default() };
    Minter::from_secret(SECRET).unwrap().mint(&claims)
}

/// The figures at an address of their own, once they can be had there.
fn scrape(port: u16) -> String {
    let mut text = String::new();
    until("the figures are served", || {
        let answer = get((HOME, port).into(), "/metrics").unwrap_or_default();
        text = answer.split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned());
        answer.starts_with("HTTP/1.1 200") && text.ends_with("# EOF\n")
    });
    text
}

/// The figure at the end of the line that begins so.
fn figure(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name}: {text}")).parse().unwrap()
}

/// The page of the documentation, from what a hub says of its own figures.
fn documentation(text: &str) -> String {
    let mut page = "# Figures\n\n\
        What `/metrics` gives, in the text form that Prometheus reads. It needs an administrator's token on the hub's own address; at `metrics_listen` it needs none \
        ([operations.md](operations.md#metrics)). Names ending in `_seconds` are in seconds, those in `_bytes` in bytes. Each process tells its own; the sum over all of them is \
        the fleet's, except for what says \"on all nodes\" or is the log's.\n\n\
        | name | kind | labels | what |\n|---|---|---|---|\n"
        .to_owned();
    let mut kinds: Vec<(&str, &str)> = Vec::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            kinds.push((name, kind));
        }
    }
    for (name, kind) in kinds {
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let help = text.lines().find_map(|line| line.strip_prefix(&format!("# HELP {name} ")));
        let samples = text.lines().filter_map(|line| line.strip_prefix(&format!("{name}{suffix}{{")));
        let mut labels: Vec<&str> = Vec::new();
        for sample in samples {
            let label = sample.split('=').next().unwrap();
            if !labels.contains(&label) {
                labels.push(label);
            }
        }
        let labels: String = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        writeln!(page, "| `{name}{suffix}` | {kind} | {labels} | {} |", help.unwrap()).unwrap();
    }
    for family in Counter::ALL.chunk_by(|a, b| a.family() == b.family()) {
        let Some((label, _)) = family[0].label() else { continue };
        writeln!(page, "\n`{}_total`, by `{label}`:\n", family[0].family()).unwrap();
        for member in family {
            writeln!(page, "- `{}`: {}", member.label().unwrap().1, member.help()).unwrap();
        }
    }
    page
}

#[tokio::test(flavor = "multi_thread")]
async fn every_figure_is_documented_and_counts() {
    let (redis, authority, files) = (RedisServer::start(), Authority::new(), tempfile::tempdir().unwrap());
    authority.issue(files.path(), 90);
    let (url, port) = (redis.url(), free_port());
    let path = |name: &str| files.path().join(name).display().to_string();
    let (certificate, key, own) = (path("server.pem"), path("server.key"), format!("{HOME}:{port}"));
    let arguments = [
        ["--redis-url", &url],
        ["--tls-certificate-file", &certificate],
        ["--tls-key-file", &key],
        ["--metrics-listen", &own],
    ];
    let hub = block_in_place(|| HubProcess::launch(program(), &arguments.concat(), &[("SECRET_KEY", SECRET)]));
    block_in_place(|| until("the hub listens", || hub.log().contains("fanfare 0.1.0 listens")));
    block_in_place(|| {
        until("a probe came back", || scrape(port).contains("fanfare_log_lag_seconds"));
        redis.cli(&["PUBLISH", "ws:broadcast", r#"{"type":"note","data":{}}"#]);
        until("the event was counted", || scrape(port).contains("fanfare_events_by_type_total{type=\"note\"} 1\n"));
    });
    let text = block_in_place(|| scrape(port));
    assert!(text.ends_with("# EOF\n"), "{text}");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    let end = figure(&text, "fanfare_certificate_end_seconds") - now;
    assert!((89.0 * 86_400.0..=91.0 * 86_400.0).contains(&end), "{end}");
    let started = figure(&text, "process_start_time_seconds");
    assert!(started <= now && started > now - 120.0, "{started} {now}");
    assert!(figure(&text, "process_cpu_seconds_total") > 0.0);
    assert!(figure(&text, "process_resident_memory_bytes") > 1e6);
    assert!(figure(&text, "process_open_fds") > 5.0 && figure(&text, "process_max_fds") > 100.0);
    assert!(figure(&text, "fanfare_redis_commands_total") > 5.0);
    assert_eq!(figure(&text, "fanfare_redis_errors_total"), 0.0);
    assert_eq!(figure(&text, "fanfare_log_head"), 1.0);
    assert!(figure(&text, "fanfare_shard_busy_seconds_total{shard=\"0\"}") > 0.0);

    let documented = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let page = documentation(&text);
    if std::env::var_os("FANFARE_UPDATE_DOCS").is_some() {
        fs::write(&documented, &page).unwrap();
    }
    assert_eq!(
        fs::read_to_string(&documented).unwrap_or_default(),
        page,
        "docs/metrics.md is not what the hub says: run this test with FANFARE_UPDATE_DOCS=1"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_and_round_trips_are_measured() {
    let (port, out) = (free_port(), "fanfare_deliveries_by_type_total{type=\"note\"}");
    let own = format!("{HOME}:{port}");
    let arguments = ["--metrics-listen", &own, "--heartbeat-interval", "200ms", "--heartbeat-timeout", "30s"];
    let hub = block_in_place(|| HubProcess::start(program(), &arguments, &[("SECRET_KEY", SECRET)]));
    let url = format!("ws://{}/ws?token={}", hub.address(), token(false));
    let (mut socket, _) = timeout(PATIENCE, connect_async(url)).await.unwrap().unwrap();
    let publish = format!("http://{}/events", hub.address());
    let request = reqwest::Client::new().post(publish).bearer_auth(token(true));
    let request =
        request.header("content-type", "application/json").body(r#"{"type":"note","audience":"everyone","data":{}}"#);
    assert_eq!(request.send().await.unwrap().status(), 201);
    let (mut pinged, mut noted) = (false, false);
    while !(pinged && noted) {
        let message = timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
        let text = message.to_text().unwrap();
        if text.contains("\"ping\"") {
            socket.send(Message::text(r#"{"type":"pong"}"#)).await.unwrap();
            pinged = true;
        }
        noted |= text.contains("\"note\"");
    }
    let counted = ["fanfare_round_trip_seconds_count", "fanfare_append_to_write_seconds_count", out];
    block_in_place(|| {
        until("a round trip and the delivery were measured", || {
            let text = scrape(port);
            let value = |name| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
            counted.iter().all(|name| value(name).is_some_and(|value| value >= 1.0))
        });
    });
    let text = block_in_place(|| scrape(port));
    assert_eq!(figure(&text, out), 1.0);
    assert_eq!(figure(&text, "fanfare_append_to_write_seconds_count"), 1.0);
    assert_eq!(figure(&text, "fanfare_events_by_type_total{type=\"note\"}"), 1.0);
    assert_eq!((figure(&text, "fanfare_log_events"), figure(&text, "fanfare_clients_behind")), (1.0, 0.0));
    assert!(figure(&text, "fanfare_shard_loop_seconds_count") > 1.0);
    // On the hub's own address they are for administrators.
    assert!(hub.get("/metrics").unwrap().starts_with("HTTP/1.1 401"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_worker_has_its_figures_and_its_replacement_goes_on_with_them() {
    // The second worker takes the next port.
    let (redis, port) = (RedisServer::start(), free_ports(2));
    let (url, own) = (redis.url(), format!("{HOME}:{port}"));
    let arguments = ["--redis-url", &url, "--workers", "2", "--metrics-listen", &own];
    let hub = block_in_place(|| HubProcess::start(program(), &arguments, &[("SECRET_KEY", SECRET)]));
    block_in_place(|| {
        let before = [port, port + 1].map(|port| figure(&scrape(port), "process_start_time_seconds"));
        until("both workers are ready", || hub.log().contains("all workers are ready"));
        hub.signal(Signal::SIGHUP);
        until("both workers are replaced", || hub.log().contains("all workers are replaced"));
        for (port, before) in [port, port + 1].into_iter().zip(before) {
            until("the new worker's figures are there", || {
                figure(&scrape(port), "process_start_time_seconds") > before
            });
        }
    });
}

#[test]
fn alerts_and_the_dashboard_name_figures_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let documented = read("docs/metrics.md");
    let mut named = 0;
    for file in ["deploy/prometheus/alerts.yml", "deploy/grafana/fanfare.json"] {
        let text = read(file);
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| word.starts_with("fanfare_") || word.starts_with("process_")) {
            let name = word.strip_suffix("_bucket").unwrap_or(word);
            assert!(documented.contains(&format!("| `{name}` |")), "{file}: {word}");
            named += 1;
        }
    }
    assert!(named > 40, "{named}");
}
