//! The command line: help, tokens, settings, serving, publishing and tailing.

mod common;

use common::{Program, Running, fanfare, home};
use fanfare::{
    AuthError, Verifier,
    auth::{Flaw, Keys},
};
use serde_json::Value;
use std::{fs, net::TcpListener, time::SystemTime};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "fedcba9876543210fedcba9876543210";

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[test]
fn every_command_has_help_with_examples() {
    for command in [&[][..], &["serve"], &["settings"], &["token"], &["publish"], &["tail"]] {
        let help = Program::new("help").args(command).args(&["--help"]).run();
        assert_eq!((help.code, help.stderr.as_str()), (0, ""), "{command:?}");
        assert!(help.stdout.contains("Examples:\n") && help.stdout.contains("Usage: fanfare"), "{}", help.stdout);
        assert!(!help.stdout.contains('\u{1b}'), "no colours without a terminal");
    }
    let help = Program::new("help").args(&["serve", "--help"]).run().stdout;
    assert!(help.contains("--max-connections-per-user <N>") && help.contains("[default: 30s]"), "{help}");
    let version = Program::new("help").args(&["--version"]).run();
    assert_eq!(version.stdout, concat!("fanfare ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn a_wrong_command_line_gets_a_suggestion() {
    for (arguments, expected) in [
        (&["serv"][..], "'serve'"),
        (&["serve", "--listn", "x"], "'--listen'"),
        (&["token", "--topisc", "x"], "'--topics'"),
        (&["token"], "--sub"),
        (&["tail", "--count", "0"], "0 is not in"),
        (&["publish", "--type", "a", "--stdin"], "cannot be used with"),
    ] {
        let run = Program::new("usage").args(arguments).run();
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{arguments:?}");
        assert!(run.stderr.contains(expected), "{arguments:?}: {}", run.stderr);
    }
}

#[test]
fn a_created_token_is_verified_and_explained() {
    let program = || Program::new("token").env("SECRET_KEY", SECRET);
    let flags = ["token", "--sub", "alice", "--publish", "--topics", "project:*,news", "--topics", "b", "--ttl", "2m"];
    let minted = program().args(&flags).run();
    assert_eq!((minted.code, minted.stderr.as_str(), minted.stdout.lines().count()), (0, "", 1));
    let token = minted.stdout.trim_end();

    let grant = Verifier::from_secret(SECRET).unwrap().verify(token, now()).unwrap();
    assert_eq!((&*grant.user, grant.publish, grant.admin), ("alice", true, false));
    assert!(grant.may_subscribe("project:7") && grant.may_subscribe("news") && grant.may_subscribe("b"));
    let left = grant.expires_at.unwrap() - now();
    assert!((100..=120).contains(&left), "{left}");
    assert_eq!(Verifier::from_secret(OTHER).unwrap().verify(token, now()), Err(AuthError::Invalid(Flaw::Signature)));

    let explained = program().args(&["token", "--explain", "-"]).input(&minted.stdout).run();
    assert!(explained.stdout.contains("verdict     the hub accepts it"), "{}", explained.stdout);
    let wrong = Program::new("token").env("SECRET_KEY", OTHER).args(&["token", "--explain", token]).run();
    assert!(wrong.stdout.contains("signature   invalid"), "{}", wrong.stdout);
    let unknown = Program::new("token").args(&["token", "--explain", token]).run();
    assert!(unknown.stdout.contains("topics      project:*, news, b"), "{}", unknown.stdout);
}

#[test]
fn the_settings_determine_the_lifetime_of_a_token() {
    let secret = SECRET.repeat(2);
    let program = Program::new("expire").env("SECRET_KEY", &secret).env("ACCESS_TOKEN_EXPIRE_MINUTES", "3");
    let minted = program.env("ALGORITHM", "HS512").args(&["token", "--sub", "a", "--admin"]).run();
    let verifier = Verifier::new(Keys::from_secret(fanfare::Algorithm::Hs512, secret.as_bytes()).unwrap());
    let grant = verifier.verify(minted.stdout.trim(), now()).unwrap();
    let left = grant.expires_at.unwrap() - now();
    assert!((160..=180).contains(&left) && grant.admin, "{left}");
}

#[test]
fn invalid_tokens_are_rejected_with_advice() {
    for (environment, arguments, code, expected) in [
        (None, &["token", "--sub", "a"][..], 2, "set SECRET_KEY"),
        (Some(""), &["token", "--sub", "a"], 2, "secret_key: the empty text is not a valid value"),
        (Some(SECRET), &["token", "--sub", ""], 2, "--sub"),
        (Some(SECRET), &["token", "--sub", "a", "--ttl", "soon"], 2, "--ttl: \"soon\" is not a valid lifetime"),
        (Some(SECRET), &["token", "--sub", "a", "--topics", "a b"], 2, "\"a b\" is not a valid pattern"),
        (Some(SECRET), &["token", "--explain", "abc"], 1, "three parts"),
    ] {
        let program =
            environment.into_iter().fold(Program::new("no-token"), |program, secret| program.env("SECRET_KEY", secret));
        let run = program.args(arguments).run();
        assert_eq!((run.code, run.stdout.as_str()), (code, ""), "{arguments:?}: {}", run.stderr);
        assert!(run.stderr.contains(expected) && !run.stderr.contains(SECRET), "{arguments:?}: {}", run.stderr);
    }
    let weak = Program::new("no-token").env("SECRET_KEY", "short").args(&["token", "--sub", "a"]).run();
    assert!(
        weak.code == 2 && weak.stderr.contains("5 bytes") && weak.stderr.contains("openssl rand -hex 32"),
        "{}",
        weak.stderr
    );
}

#[test]
fn settings_come_from_five_places() {
    let home = home("places");
    fs::write(home.join("fanfare.toml"), "window_events = 1\nwindow_age = \"1m\"\nshards = 1\nmax_connections = 1\n")
        .unwrap();
    fs::write(home.join("other.toml"), "max_batch_events = 7\n").unwrap();
    fs::write(
        home.join(".env"),
        "OTHER=1\nFANFARE_WINDOW_EVENTS=2\nFANFARE_WINDOW_AGE=2m\nSECRET_KEY=hush\nFANFARE_SHARDS=2\n",
    )
    .unwrap();
    let settings = |arguments: &[&str], config: Option<&str>| {
        let program = Program::at(&home).env("FANFARE_WINDOW_EVENTS", "3").env("FANFARE_WINDOW_AGE", "3m");
        let program = config.into_iter().fold(program, |program, file| program.env("FANFARE_CONFIG", file));
        let run = program.args(&["settings", "--json"]).args(arguments).run();
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert!(!run.stdout.contains("hush"));
        let rows: Vec<Value> = serde_json::from_str(&run.stdout).unwrap();
        move |key: &str| {
            let row = rows.iter().find(|row| row["key"] == key).unwrap();
            (row["value"].as_str().unwrap().to_owned(), row["from"].as_str().unwrap().to_owned())
        }
    };
    let setting = settings(&["--window-events", "4"], None);
    for (key, value, from) in [
        ("window_events", "4", "flag --window-events"),
        ("window_age", "3m", "environment FANFARE_WINDOW_AGE"),
        ("shards", "2", ".env:5 FANFARE_SHARDS"),
        ("secret_key", "set", ".env:4 SECRET_KEY"),
        ("max_connections", "1", "fanfare.toml:4 max_connections"),
        ("max_batch_events", "1000", "default"),
    ] {
        assert_eq!(setting(key), (value.to_owned(), from.to_owned()));
    }
    assert_eq!(settings(&[], Some("other.toml"))("max_batch_events").0, "7");
    assert_eq!(settings(&[], Some("other.toml"))("max_connections").1, "default");
    assert_eq!(settings(&["--config", "other.toml"], Some("none.toml"))("max_batch_events").0, "7");
    let table = Program::at(&home).args(&["settings"]).run().stdout;
    assert!(table.starts_with("SETTING ") && !table.contains("hush"), "{table}");
}

#[test]
fn wrong_settings_stop_every_command() {
    let home = home("wrong");
    fs::write(home.join("bad.toml"), "\nheartbeat_intervall = 3\n").unwrap();
    fs::write(home.join("broken.toml"), "listen = \n").unwrap();
    for (environment, arguments, expected) in [
        (
            ("FANFARE_WINDOW_AEG", "1h"),
            &["serve"][..],
            "environment FANFARE_WINDOW_AEG: unknown setting \"window_aeg\" (did you mean window_age?)",
        ),
        (
            ("FANFARE_SHARDS", "two"),
            &["token", "--sub", "a"],
            "environment FANFARE_SHARDS: shards: \"two\" is not a valid value; expected a whole number",
        ),
        (
            ("X", ""),
            &["--listen", "here"],
            "flag --listen: listen: \"here\" is not a valid value; expected an IP address",
        ),
        (
            ("X", ""),
            &["serve", "--config", "bad.toml"],
            "bad.toml:2 heartbeat_intervall: unknown setting \"heartbeat_intervall\" (did you mean \
             heartbeat_interval?)",
        ),
        (("X", ""), &["settings", "--config", "broken.toml"], "broken.toml:1"),
        (("X", ""), &["settings", "--config", "none.toml"], "none.toml can't be read: No such file"),
        (("FANFARE_CONFIG", "."), &["settings"], ". can't be read"),
        (
            ("FANFARE_HEARTBEAT_TIMEOUT", "30s"),
            &["serve"],
            "environment FANFARE_HEARTBEAT_TIMEOUT: heartbeat_timeout (30s) must be longer than heartbeat_interval \
             (30s)",
        ),
        (("X", ""), &["serve", "--workers", "2"], "flag --workers: several workers need a shared log"),
        (
            ("REDIS_URL", "http://:hush@h"),
            &["serve"],
            "redis_url: the configured text is not a valid value; expected redis://[[",
        ),
        (
            ("FANFARE_JWKS_URL", "u:hush@h"),
            &["check"],
            "jwks_url: the configured text is not a valid value; expected a URL",
        ),
        (
            ("FANFARE_JWKS_URL", "http://u:hush/hush@h"),
            &["serve"],
            "jwks_url: the configured text is not a valid value",
        ),
    ] {
        let run = Program::at(&home).env(environment.0, environment.1).args(arguments).run();
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{arguments:?}: {}", run.stderr);
        assert!(run.stderr.starts_with("fanfare: ") && run.stderr.contains(expected), "{arguments:?}: {}", run.stderr);
        assert!(!run.stderr.contains("hush"), "{}", run.stderr);
    }
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = fanfare(&home("pipe"));
    let output = command.arg("settings").stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn a_port_in_use_is_reported() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let run = Program::new("port").args(&["serve", "--listen", &address]).run();
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(run.stderr.contains(&format!("{address} is in use")) && run.stderr.contains("--listen"), "{}", run.stderr);
    let run = Program::new("port").env("SECRET_KEY", SECRET).args(&["--listen", "192.0.2.1:8000"]).run();
    assert!(run.code == 1 && run.stderr.contains("no address 192.0.2.1"), "{}", run.stderr);
}

#[test]
fn without_a_secret_the_hub_prints_commands_to_try_it() {
    let mut server = Running::serve(Program::new("demo"));
    let page = server.line_with("/#token=");
    let curl = server.line_with("curl -X POST");
    server.line_with("a random secret was generated for this run");
    let (url, token) = page.trim().split_once("/#token=").unwrap();
    assert_eq!(url, server.url());

    let mut tail = Running::start(Program::new("demo").args(&["tail", "--url", url, "--token", token, "--count", "1"]));
    tail.line_with("connected as");
    // The printed command is meant to be pasted into a shell.
    assert!(curl.contains(&format!("{url}/events")), "{curl}");
    let bearer = curl.split("Bearer ").nth(1).and_then(|rest| rest.split('\'').next()).unwrap();
    let data = curl.rsplit("-d '").next().unwrap().trim_end_matches('\'');
    let published =
        Program::new("demo").args(&["publish", "--url", url, "--token", bearer, "--stdin"]).input(data).run();
    assert_eq!(published.code, 0, "{}", published.stderr);
    let (code, events) = tail.end();
    let event: Value = serde_json::from_str(&events).unwrap();
    assert_eq!((code, &event["type"]), (0, &Value::from("task_status_update")));

    server.signal("INT");
    assert_eq!(server.end().0, 0);
}

#[test]
fn tokens_of_a_configured_secret_are_not_logged() {
    let mut server = Running::serve(Program::new("configured").env("SECRET_KEY", SECRET));
    let printed = server.lines_until("HTTP API:");
    assert!(printed.contains("fanfare token --sub demo") && !printed.contains("eyJ"), "{printed}");
    server.signal("TERM");
    assert_eq!(server.end().0, 0);
}

// attack: a short secret, a public key as secret, a public address without a secret => the program does not start and reports the cause
// attack: another user of the machine reads a secret in the process list => its owner is warned, with the setting to use instead
#[test]
fn a_secret_on_the_command_line_causes_a_warning() {
    let mut server = Running::serve(Program::new("flag_secret").args(&["serve", "--secret-key", SECRET]));
    let startup_log = server.earlier.join("\n");
    assert!(
        startup_log.contains("WARN") && startup_log.contains("--secret-key on the command line is visible"),
        "{startup_log}"
    );
    assert!(startup_log.contains("secret_key_file") && !startup_log.contains(SECRET), "{startup_log}");
    server.signal("INT");
    assert_eq!(server.end().0, 0);
    let run = Program::new("flag_secret").args(&["token", "--sub", "a", "--secret-key", SECRET]).run();
    assert!(run.code == 0 && run.stderr.contains("--secret-key on the command line"), "{}", run.stderr);
    let run = Program::new("flag_secret").args(&["settings", "--redis-url", "redis://127.0.0.1"]).run();
    assert_eq!((run.code, run.stderr.as_str()), (0, ""), "a URL without a password is not a secret");
}

#[test]
fn insecure_settings_prevent_the_start() {
    for (program, expected) in [
        (Program::new("unsafe").env("SECRET_KEY", "short"), "the secret has 5 bytes; HS256 needs at least 32"),
        (
            Program::new("unsafe").args(&["--listen", "0.0.0.0:0"]),
            "only on loopback addresses: to listen on 0.0.0.0:0, set SECRET_KEY",
        ),
        (
            Program::new("unsafe").args(&[
                "--listen",
                "0.0.0.0:0",
                "--workers",
                "2",
                "--redis-url",
                "redis://127.0.0.1:1",
            ]),
            "set SECRET_KEY",
        ),
        (Program::new("unsafe").args(&["--algorithm", "RS256"]), "RS256 needs keys: set private_key_file"),
        (
            Program::new("unsafe").env("SECRET_KEY", SECRET).args(&["--jwks-url", "https://idp.example/keys"]),
            "HS256 signs with a secret, but jwks_url is set",
        ),
        (
            Program::new("unsafe").env(
                "SECRET_KEY",
                "-----BEGIN PUBLIC KEY-----\n\
                MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----",
            ),
            "the secret is a key in PEM form: configure it as a public or private key",
        ),
    ] {
        let run = program.args(&["--log-format", "json"]).run();
        assert!(run.code == 2 && run.stderr.contains(expected), "{expected}: {} {}", run.code, run.stderr);
    }
}

// attack: injecting a script into the live page => the content security policy allows only the page's own hashes
#[test]
fn pages_of_other_sites_may_load_the_client() {
    let server = Running::serve(Program::new("client_js").args(&["serve"]));
    for path in ["/client.js", "/share.js"] {
        let answer = server.get(path).to_lowercase();
        assert!(answer.contains("\r\naccess-control-allow-origin: *\r\n"), "{path}");
        assert!(answer.contains("\r\ncross-origin-resource-policy: cross-origin\r\n"), "{path}");
        assert_eq!(answer.matches("\r\ncontent-type:").count(), 1, "{path}");
    }
    assert!(!server.get("/dashboard").to_lowercase().contains("access-control-allow-origin"));
}

#[test]
fn the_live_page_runs_only_its_own_script() {
    let mut server = Running::serve(Program::new("page"));
    let answer = server.get("/");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200") && body.contains("<script type=\"module\">"), "{head}");
    assert!(head.contains("cache-control: no-store") && head.contains("script-src 'self' 'sha256-"), "{head}");
    let client = server.get("/client.js");
    assert!(client.starts_with("HTTP/1.1 200") && client.contains("content-type: text/javascript"), "{client:.200}");
    assert!(server.get("/nowhere").starts_with("HTTP/1.1 404"));
    server.signal("INT");
    assert_eq!(server.end().0, 0);
}

#[test]
fn publish_and_tail_survive_a_restart_of_the_hub() {
    let program = || Program::new("restart").env("SECRET_KEY", SECRET);
    let mut server = Running::serve(program());
    let (url, address) = (server.url(), server.address());
    let publish = |id: &str, audience: &str| {
        let event = ["--type", "note", "--data", "{\"n\":1}", "--event-id", id, "--audience", audience];
        program().args(&["publish", "--url", &url]).args(&event)
    };
    let filter = ["--topics", "a,b", "--type", "note", "--count", "3", "--pretty"];
    let mut tail = Running::start(program().args(&["tail", "--url", &url]).args(&filter));
    tail.line_with("connected as");
    for (id, audience) in [("e1", "everyone"), ("e2", "user:somebody"), ("e3", "topic:b"), ("e3", "topic:b")] {
        let run = publish(id, audience).run();
        let answer: Value = serde_json::from_str(&run.stdout).expect(&run.stderr);
        assert_eq!((run.code, &answer["event_id"]), (0, &Value::from(id)));
        assert!(answer["position"].as_str().unwrap().starts_with("pos-"));
    }
    server.signal("INT");
    assert_eq!(server.end().0, 0);
    tail.line_with("reconnecting in");
    let mut waiting = Running::start(publish("e4", "everyone"));
    waiting.line_with("retrying in");

    let mut server = Running::serve(program().args(&["--listen", &address]));
    let (code, answer) = waiting.end();
    assert_eq!(code, 0, "{answer}");
    tail.line_with("gap: ");
    // e4 may arrive before or after the gap; this event arrives after it.
    assert_eq!(publish("e5", "topic:a").run().code, 0);
    let (code, events) = tail.end();
    assert_eq!((code, events.lines().count()), (0, 3), "{events}");
    assert!(events.lines().all(|line| line.ends_with("Z  note  {\"n\":1}")), "{events}");
    server.signal("INT");
    assert_eq!(server.end().0, 0);
}

#[test]
fn rejections_end_the_client_commands() {
    let mut server = Running::serve(Program::new("refusals").env("SECRET_KEY", SECRET));
    let url = server.url();
    let program = || Program::new("refusals");
    for (run, expected) in [
        (program().args(&["publish", "--type", "a", "--url", &url, "--token", "abc"]).run(), "(token_invalid)"),
        (program().args(&["tail", "--url", &url, "--token", "abc"]).run(), "(1008): token_invalid"),
        (
            program().env("SECRET_KEY", OTHER).args(&["tail", "--url", &url]).run(),
            "does SECRET_KEY differ from the hub's secret?",
        ),
        (
            program().env("SECRET_KEY", SECRET).args(&["publish", "--type", "ping", "--url", &url]).run(),
            "belongs to the protocol",
        ),
        (
            program()
                .env("SECRET_KEY", SECRET)
                .args(&["publish", "--stdin", "--url", &url])
                .input("{\"type\":\"a\",\"audience\":\"everyone\"}\n\n{\"type\":\"\",\"audience\":\"everyone\"}\n")
                .run(),
            "line 3: the hub rejected it: the field `type` must have 1 to 256",
        ),
        (
            program()
                .env("SECRET_KEY", SECRET)
                .args(&["publish", "--stdin", "--url", &url])
                .input("{\"type\":\"a\",\"audience\":\"everyone\"}\n{\"type\":\"a\"}\n")
                .run(),
            "line 2: the hub rejected it: the field `audience` is missing",
        ),
        (
            program()
                .env("SECRET_KEY", SECRET)
                .args(&["publish", "--stdin", "--audience", "user:ann", "--url", &url])
                .input("{\"type\":\"a\"}\n{\"type\":\"a\",\"user\":\"bob\"}\n")
                .run(),
            "line 2: the hub rejected it: the field `user` does not select the audience",
        ),
        (
            program()
                .env("SECRET_KEY", SECRET)
                .args(&["publish", "--stdin", "--url", &url])
                .input("{\"type\":\"a\",\"audience\":\"everyone\"}\n[]\n")
                .run(),
            "line 2: not a JSON object",
        ),
    ] {
        assert!(run.code == 1 && run.stderr.contains(expected), "{expected}: {} {}", run.code, run.stderr);
    }
    for (run, expected) in [
        (
            program().args(&["publish", "--type", "a", "--url", &url]).run(),
            "give --token, set FANFARE_TOKEN, or set SECRET_KEY",
        ),
        (program().args(&["tail", "--token", "t", "--url", "ftp://h"]).run(), "must begin with http://, https://"),
        (program().args(&["publish", "--token", "t", "--type", "a", "--data", "[]"]).run(), "must be a JSON object"),
        (program().args(&["publish", "--token", "t", "--type", "a", "--audience", "all"]).run(), "user:ID"),
    ] {
        assert!(run.code == 2 && run.stderr.contains(expected), "{expected}: {} {}", run.code, run.stderr);
    }
    server.signal("INT");
    assert_eq!(server.end().0, 0);
}

#[test]
fn commands_for_accounts_name_the_database_that_they_used() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().canonicalize().unwrap();
    let run = |arguments: &[&str], input: &str| Program::at(&home).args(arguments).input(input).run();
    let file = format!("the database is sqlite://{}/fanfare.db (database_url, FANFARE_DATABASE_URL)", home.display());
    for (arguments, input) in [
        (&["key", "list"][..], ""),
        (&["key", "add", "ci"], ""),
        (&["key", "revoke", "ci"], ""),
        (&["user", "add", "ann@example.org", "--password-stdin"], "correct horse battery\n"),
        (&["user", "list"], ""),
        (&["user", "disable", "ann@example.org"], ""),
        (&["user", "remove", "ann@example.org"], ""),
    ] {
        let ran = run(arguments, input);
        assert!(ran.code == 0 && ran.stderr.contains(&file), "{arguments:?}: {} {}", ran.code, ran.stderr);
        assert!(!ran.stdout.contains("sqlite"), "{arguments:?}: {}", ran.stdout);
    }
    for arguments in [&["key", "revoke", "ci"][..], &["user", "disable", "ann@example.org"]] {
        let ran = run(arguments, "");
        let place = format!("sqlite://{}/fanfare.db", home.display());
        assert!(ran.code == 1 && ran.stderr.contains(&place), "{arguments:?}: {} {}", ran.code, ran.stderr);
    }
    let elsewhere = run(&["key", "list", "--database-url", "sqlite://other.db"], "");
    assert!(elsewhere.stderr.contains(&format!("sqlite://{}/other.db", home.display())), "{}", elsewhere.stderr);
}
