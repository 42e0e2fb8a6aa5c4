//! `fanfare bench` against a hub process.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

use fanfare::{Minter, auth::Claims};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};
use tempfile::TempDir;
use testbed::{HubProcess, RedisServer, until};

const SECRET: &str = "a secret of thirty-two bytes, ok";

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_fanfare"))
}

fn hub(arguments: &[&str]) -> HubProcess {
    HubProcess::start(program(), arguments, &[("SECRET_KEY", SECRET)])
}

fn bench(home: &TempDir, hub: &HubProcess, arguments: &[&str]) -> Command {
    bench_at(&format!("ws://{}/ws", hub.address()), home, arguments)
}

fn bench_at(url: &str, home: &TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(["bench", "--url", url]).args(arguments);
    command.env("SECRET_KEY", SECRET).env("RUST_BACKTRACE", "0").current_dir(home.path());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(home: &TempDir, hub: &HubProcess, arguments: &[&str]) -> Output {
    bench(home, hub, arguments).output().unwrap()
}

fn output_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn results(home: &TempDir, file: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(home.path().join(file)).unwrap()).unwrap()
}

/// The value of one of the results.
fn result(outcome: &Value, name: &str) -> f64 {
    let results = outcome["figures"].as_array().unwrap();
    let found = results.iter().find(|result| result["name"] == name);
    found.unwrap_or_else(|| panic!("no result {name}"))["value"].as_f64().unwrap()
}

#[test]
fn every_delivery_is_verified_across_storms_and_with_slow_clients() {
    let redis = RedisServer::start();
    let hub = hub(&["--redis-url", &redis.url(), "--workers", "2"]);
    let home = tempfile::tempdir().unwrap();
    let load = ["--connections", "300", "--processes", "2", "--ramp", "500", "--rate", "40", "--hold", "4s"];
    let more = ["--storms", "1", "--storm-spread", "500ms", "--slow", "5", "--churn", "20"];
    let more = [&more[..], &["--json", "a.json", "--html", "a.html"]].concat();
    let output = run(&home, &hub, &[&load[..], &more].concat());
    assert!(output.status.success(), "{}", output_of(&output));
    let outcome = results(&home, "a.json");
    for (name, value) in
        [("connections", 300.0), ("failed connects", 0.0), ("lost", 0.0), ("doubled", 0.0), ("gaps", 0.0)]
    {
        assert_eq!(result(&outcome, name), value, "{name}: {}", output_of(&output));
    }
    // Of ten events one is for everyone, two for a topic of a hundred clients, seven for one client each.
    let published = result(&outcome, "events published");
    assert!(published > 0.0, "{published}");
    let kinds = &outcome["published"]["by_audience"];
    let expected = 300.0 * kinds["everyone"].as_f64().unwrap()
        + 100.0 * kinds["topic"].as_f64().unwrap()
        + kinds["user"].as_f64().unwrap();
    assert_eq!(result(&outcome, "deliveries"), expected);
    assert!(
        outcome["tally"]["churned"].as_u64().unwrap() > 0
            && result(&outcome, "reconnect to ack, p50") > 0.0
            && result(&outcome, "from a storm until all were back") > 0.0
    );
    let page = fs::read_to_string(home.path().join("a.html")).unwrap();
    assert!(page.contains("uPlot") && !page.contains("%%") && !page.contains("src="), "the page is self-contained");

    let output = run(&home, &hub, &["--connections", "50", "--hold", "1s", "--compare", "a.json"]);
    assert!(output_of(&output).contains("now/before") && output.status.success(), "{}", output_of(&output));
}

#[test]
fn the_same_load_runs_on_a_bare_write_loop() {
    let hub = hub(&[]);
    let home = tempfile::tempdir().unwrap();
    let load = ["--connections", "100", "--rate", "50", "--hold", "1s", "--floor", "--json", "f.json"];
    let output = run(&home, &hub, &load);
    assert!(output.status.success(), "{}", output_of(&output));
    let outcome = results(&home, "f.json");
    assert!(
        result(&outcome, "floor: CPU a delivery") > 0.0 && result(&outcome, "hub's CPU a delivery in floors") > 0.0
    );
    assert!(output_of(&output).contains("x the floor"), "{}", output_of(&output));
}

#[test]
fn clients_of_one_token_are_one_user_and_its_limit_is_reported() {
    let hub = hub(&["--max-connections-per-user", "20"]);
    let home = tempfile::tempdir().unwrap();
    let token = |admin, publish| {
        let claims = Claims { sub: "ann".to_owned(), admin, publish, ..Claims::default() };
        Minter::from_secret(SECRET).unwrap().mint(&claims)
    };
    let load = ["--connections", "50", "--ramp", "500", "--rate", "50", "--hold", "1s", "--json", "t.json"];

    let admin = token(true, false);
    let output = run(&home, &hub, &[&load[..], &["--token", &admin]].concat());
    assert!(output.status.success(), "{}", output_of(&output));
    let outcome = results(&home, "t.json");
    let (user, published) = (&outcome["published"]["by_audience"]["user"], result(&outcome, "events published"));
    assert!(user.as_f64().unwrap() > 0.5 * published, "events for the user reach all clients");

    let output = run(&home, &hub, &[&load[..], &["--token", &token(false, true)]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", output_of(&output));
    assert!(output_of(&output).contains("closed 1013 max_connections_per_user"), "{}", output_of(&output));
    assert_eq!(result(&results(&home, "t.json"), "connections"), 20.0);
    assert_eq!(result(&results(&home, "t.json"), "lost"), 0.0, "{}", output_of(&output));

    let few = ["--connections", "10", "--hold", "1s", "--token", &token(false, false)];
    let output = run(&home, &hub, &few);
    assert!(output.status.success() && output_of(&output).contains("may not publish"), "{}", output_of(&output));
}

#[test]
fn an_error_that_concerns_all_clients_is_reported_once() {
    let hub = hub(&[]);
    let home = tempfile::tempdir().unwrap();
    let load = ["--connections", "500", "--processes", "2", "--hold", "1s"];
    let mut wrong_secret = bench(&home, &hub, &load);
    wrong_secret.env("SECRET_KEY", "another secret of thirty-two bytes");
    let wrong_token = [&load[..], &["--token", "no token"]].concat();
    let mut unreachable = bench_at(&format!("http://127.0.0.1:{}", testbed::free_port()), &home, &load);
    let mut other_path = bench_at(&format!("http://{}/elsewhere", hub.address()), &home, &load);
    for (command, expected) in [
        (&mut wrong_secret, "signed with another key; set SECRET_KEY to the hub's secret"),
        (&mut bench(&home, &hub, &wrong_token), "token_invalid: "),
        (&mut unreachable, "failed to reach the hub at 127.0.0.1:"),
        (&mut other_path, "/elsewhere/ws is not a fanfare hub: HTTP status 404"),
    ] {
        let output = command.output().unwrap();
        let text = output_of(&output);
        assert!(!output.status.success(), "{text}");
        assert_eq!((text.matches(expected).count(), text.lines().count()), (1, 1), "{expected}: {text}");
    }
    let metrics = hub.get("/ws/health").unwrap();
    assert!(metrics.contains(r#""total":0"#), "{metrics}");
}

#[test]
fn an_interrupted_run_writes_its_results() {
    let hub = hub(&[]);
    let home = tempfile::tempdir().unwrap();
    let load = ["--connections", "20", "--hold", "10m", "--json", "i.json"];
    let child = bench(&home, &hub, &load).spawn().unwrap();
    until("events are delivered", || {
        let metrics = hub.get("/ws/health").unwrap_or_default();
        metrics.contains(r#""total":20"#)
    });
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", output_of(&output));
    assert!(output_of(&output).contains("INTERRUPTED") && results(&home, "i.json")["interrupted"] == true);
    until("all clients are disconnected", || hub.get("/ws/health").unwrap_or_default().contains(r#""total":0"#));
}

#[test]
fn a_run_fails_if_the_hub_is_killed() {
    let mut hub = hub(&[]);
    let home = tempfile::tempdir().unwrap();
    let child = bench(&home, &hub, &["--connections", "20", "--hold", "10s"]).spawn().unwrap();
    until("all clients are connected", || hub.get("/ws/health").unwrap_or_default().contains(r#""total":20"#));
    hub.kill();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", output_of(&output));
    assert!(
        output_of(&output).contains("20 broken") && output_of(&output).contains("connection refused"),
        "{}",
        output_of(&output)
    );
}
