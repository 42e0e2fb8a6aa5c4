//! The command line: commands, flags and help texts. The flags of settings come from the table of settings.

use crate::settings::{Setting, SettingsError, Sources, TABLE, kind};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use std::path::PathBuf;

const CONFIG: &str = "config";

/// The settings that concern tokens. Every command that signs or verifies tokens accepts them.
const TOKEN_SETTINGS: &[&str] = &[
    "secret_key",
    "secret_key_file",
    "previous_secret_key",
    "algorithm",
    "private_key_file",
    "public_key_file",
    "jwks_url",
    "token_issuer",
    "token_audience",
    "leeway",
    "require_exp",
    "access_token_expire_minutes",
];

const ABOUT: &str = "\
A realtime event hub: publish an event once, and every authorised client receives it over
WebSocket, in order and exactly once.

Without a command, fanfare serves on 127.0.0.1:8000, with the log in memory.";

const EXAMPLES: &str = "\
Examples:
  fanfare                     serve, and print a URL and a curl command to try it
  fanfare check               check the machine, the settings and the servers
  fanfare settings            print every setting, its value and its source
  export SECRET_KEY=...       the hub's secret, which the commands below use too
  fanfare serve --listen 0.0.0.0:8000
  fanfare token --sub alice --topics 'project:*'
  fanfare user add ann@example.org
  fanfare publish --type note --data '{\"text\":\"hi\"}' --audience user:alice
  fanfare tail --topics project:7 | jq .data

Exit codes: 0 success, 1 failure, 2 a wrong command line or setting.";

const SERVE_EXAMPLES: &str = "\
Examples:
  fanfare serve                          with a random secret, generated for this run
  SECRET_KEY=... fanfare serve --listen 0.0.0.0:8000 --log-format json
  fanfare serve --config fanfare.toml    from a file: listen = \"0.0.0.0:8000\"
  FANFARE_WINDOW_AGE=2h fanfare serve    from the environment, or from .env
  REDIS_URL=redis://127.0.0.1 fanfare serve --workers 4    four processes on one port

Flags override the environment, which overrides .env, which overrides the file.
SIGINT (Ctrl-C) or SIGTERM drains the clients and exits; a second signal exits
immediately. With several workers, SIGHUP replaces them one at a time.";

const SETTINGS_EXAMPLES: &str = "\
Examples:
  fanfare settings                          as a table
  fanfare settings --config fanfare.toml    validate a file before it is used
  fanfare settings --json | jq '.[] | select(.from != \"default\")'";

const CHECK_EXAMPLES: &str = "\
Examples:
  fanfare check                          with the same flags and environment as serve
  fanfare check --config fanfare.toml --fix    print commands that fix the findings
  fanfare check --url https://hub.example.org  hold a connection through the proxy
  fanfare check --json | jq '.[] | select(.level == \"fail\")'

Each finding is ok, warn, FAIL, or - if it could not be determined. The exit code is 1 if
any finding is FAIL.";

const TOKEN_EXAMPLES: &str = "\
Examples:
  SECRET_KEY=... fanfare token --sub alice
  SECRET_KEY=... fanfare token --sub alice --topics 'project:*,news' --ttl 8h
  SECRET_KEY=... fanfare token --sub backend --publish
  SECRET_KEY=... fanfare token --explain eyJhbGciOi...
  fanfare token --explain - < token.txt     print its claims, even without the secret

Only the token is written to standard output. A token grants its rights to any program
that has it, until it expires.";

const USER_EXAMPLES: &str = "\
Examples:
  fanfare user add ann@example.org --topics 'project:*'
  fanfare user add backend@example.org --role publisher --password-stdin < password.txt
  fanfare user list
  fanfare user disable ann@example.org

Users log in with POST /auth/login. Accounts are stored in fanfare.db in the working
directory, or in the database of database_url (FANFARE_DATABASE_URL). A running hub with
the same database applies a change within a second.";

const KEY_EXAMPLES: &str = "\
Examples:
  fanfare key add ci
  fanfare key list
  fanfare key revoke ci
  curl -H \"Authorization: Bearer $KEY\" ...    use a key in place of a token

Only a hash of each key is stored, in the accounts database.";

const PUBLISH_EXAMPLES: &str = "\
Examples:
  fanfare publish --type note --data '{\"text\":\"hi\"}'
  fanfare publish --type note --data '{\"text\":\"hi\"}' --audience user:alice
  fanfare publish --type note --audience topic:project:7 --event-id note-17
  jq -c '.[]' events.json | fanfare publish --stdin --audience everyone

With --stdin each line is one event: a JSON object with type and audience, and optional
data and event_id. --audience applies to lines without an audience. For each event in the
log, a line of JSON with its event_id and position is written to standard output, in the
order of the input.
If the hub is unavailable, the command retries with the same event_id, so that no event
is published twice.

The token comes from --token or FANFARE_TOKEN, or is signed with the configured secret.";

const TAIL_EXAMPLES: &str = "\
Examples:
  fanfare tail                               print a line of JSON for each event
  fanfare tail --topics project:7 --pretty
  fanfare tail --type note --count 1         wait for one event
  fanfare tail --since note-17               replay the events after it, then live events

Events are written to standard output, and the state of the connection to standard
error. After a disconnect the command resumes from its cursor. If the hub has evicted
events after the cursor, the command reports a gap.

The token comes from --token or FANFARE_TOKEN, or is signed with the configured secret.";

const BENCH_EXAMPLES: &str = "\
Examples:
  fanfare bench --url ws://127.0.0.1:8000/ws             1,000 connections
  fanfare bench --preset medium --html report.html --json results.json
  fanfare bench --preset medium --compare results.json   compare with an earlier run
  fanfare bench --connections 5000 --rate 50 --mix everyone=1,user=20 --hold 1m
  fanfare bench --storms 2 --storm-spread 5s --slow 5    reconnect storms, slow readers
  fanfare bench --connections 20000 --churn 100 --hold 30m  constant reconnects
  fanfare bench --floor                                  compare with a bare write loop

Presets: small 1,000 connections, medium 10,000, target 50,000, large 100,000,
million 1,000,000. Clients run in separate processes, as many as the limit on open files
requires. To a hub on loopback they connect from addresses from 127.1.0.1 on.

Every client checks that it receives each event exactly once and in order, across
reconnects. The exit code is 0 if all clients connected, and no event was lost, duplicated
or reordered.

Without --token each client is a user of its own, with a token that is signed with the
configured secret. With --token all clients are that user, whose connections are limited
by max_connections_per_user unless it is an administrator.";

const LOG_LEVEL_EXAMPLES: &str = "\
Examples:
  fanfare log-level debug
  fanfare log-level info,fanfare::broker=debug,hyper=warn
  fanfare log-level info                     restore the default

Levels are error, warn, info, debug, trace and off. A process keeps the level until it
exits. The command requires an administrator's token: from --token or FANFARE_TOKEN, or
signed with the configured secret.";

const PLAN_EXAMPLES: &str = "\
Examples:
  fanfare plan --connections 1000000 --events 2000
  fanfare plan --connections 50000 --events 20 --receivers 5000 --cores 4
  fanfare plan --connections 50000 --tls --spare 0
  fanfare plan --connections 50000 --from here.json    scale to a bench --json here.json
  fanfare plan --check

The network between machines, the CPU of Redis, and proxies are not computed.";

const WHY_EXAMPLES: &str = "\
Examples:
  fanfare why order-7                        when, by whom, and to how many clients
  fanfare why order-7 --user ann             also the state for each of ann's connections
  fanfare why --connection 3f0c9d8e-6a8e-4d0c-9b7e-2f4f6f1f2a3b
  fanfare why order-7 --json | jq .nodes

The command queries all nodes. An event can be queried as long as it is retained
(window_age), and a disconnected client until a thousand more have disconnected from its
node.

The command requires an administrator's token: from --token or FANFARE_TOKEN, or signed
with the configured secret. The exit code is 1 if the event or client is unknown.";

const HEALTH_EXAMPLES: &str = "\
Examples:
  fanfare health && echo yes
  fanfare health --url https://hub.example.org

Queries /health/ready, for container probes and scripts. The exit code is 0 if the hub
accepts clients, and 1 if it is draining, its log is unhealthy, or it is unreachable; the
reason is written to standard error.";

/// The whole command line.
pub(crate) fn command() -> Command {
    Command::new("fanfare")
        .version(env!("CARGO_PKG_VERSION"))
        .about(ABOUT)
        .after_help(EXAMPLES)
        .override_usage("fanfare [COMMAND]")
        .max_term_width(120)
        .args_conflicts_with_subcommands(true)
        .disable_help_subcommand(true)
        // `fanfare --listen ...` serves too. The help of `serve` documents its flags.
        .args(setting_args(|_| true).map(|arg| arg.hide(true)))
        .arg(config_arg().hide(true))
        .subcommands([
            serve(),
            settings(),
            check(),
            health(),
            plan(),
            log_level(),
            token(),
            user(),
            key(),
            publish(),
            tail(),
            why(),
            bench(),
        ])
}

fn serve() -> Command {
    Command::new("serve")
        .about("Serve clients and publishers until SIGINT or SIGTERM (the default command)")
        .after_help(SERVE_EXAMPLES)
        .arg(config_arg())
        .args(setting_args(|_| true))
}

fn settings() -> Command {
    Command::new("settings")
        .about("Print every setting, its value and its source; secrets are not shown")
        .after_help(SETTINGS_EXAMPLES)
        .arg(switch("json", "Print JSON"))
        .arg(switch("markdown", "Print the documentation of the settings").conflicts_with("json"))
        .arg(config_arg())
        .args(setting_args(|_| true))
}

fn check() -> Command {
    Command::new("check")
        .about("Check the machine, the settings and the servers for production use")
        .after_help(CHECK_EXAMPLES)
        .arg(switch("json", "Print the findings as JSON"))
        .arg(
            switch("fix", "Print commands and settings that fix the findings, without running them")
                .conflicts_with("json"),
        )
        .arg(value("url", "URL", "Also test the public address, and hold a connection through it"))
        .arg(value("hold", "DURATION", "How long to hold the connection").default_value("70s").requires("url"))
        .arg(config_arg())
        .args(setting_args(|_| true))
}

fn health() -> Command {
    Command::new("health")
        .about("Report as the exit code whether a hub accepts clients")
        .after_help(HEALTH_EXAMPLES)
        .arg(url_arg("http://127.0.0.1:8000", "The URL of the hub"))
}

fn token() -> Command {
    Command::new("token")
        .about("Create a token, or explain one")
        .after_help(TOKEN_EXAMPLES)
        .arg(value("sub", "USER", "The ID of the user").required_unless_present("explain"))
        .arg(switch("publish", "Allow publishing"))
        .arg(switch("admin", "Grant all rights"))
        .arg(list(
            "topics",
            "PATTERN",
            "Topic patterns that it may subscribe to, such as 'project:*'; separated by commas",
        ))
        .arg(value("ttl", "DURATION", "Lifetime, such as 30m or 8h [default: access_token_expire_minutes]"))
        .arg(
            value("explain", "TOKEN", "Explain this token instead; -: read it from standard input")
                .conflicts_with_all(["sub", "publish", "admin", "topics", "ttl"]),
        )
        .args(token_settings())
}

fn user() -> Command {
    let email = || Arg::new("email").value_name("EMAIL").help("The e-mail address of the account").required(true);
    let role = || {
        let roles = crate::accounts::Role::ALL.map(crate::accounts::Role::name);
        value("role", "ROLE", "The role of the account").value_parser(clap::builder::PossibleValuesParser::new(roles))
    };
    let topics = || {
        list("topics", "PATTERN", "Topic patterns that it may subscribe to, such as 'project:*'; separated by commas")
    };
    let password = || switch("password-stdin", "Read the password from the first line of standard input");
    let of_accounts = |command: Command| command.args(account_settings());
    Command::new("user")
        .about("Manage accounts")
        .after_help(USER_EXAMPLES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommands(
            [
                Command::new("add")
                    .about("Create an account; prompts for the password")
                    .arg(email())
                    .arg(role().default_value("viewer"))
                    .arg(topics())
                    .arg(password()),
                Command::new("list").about("List all accounts").arg(switch("json", "Print JSON")),
                Command::new("passwd")
                    .about("Set a new password, and revoke earlier tokens")
                    .arg(email())
                    .arg(password()),
                Command::new("set").about("Change the role or the topics").arg(email()).arg(role()).arg(topics()),
                Command::new("disable")
                    .about("Disable an account, and disconnect its clients on all nodes")
                    .arg(email()),
                Command::new("enable").about("Enable a disabled account").arg(email()),
                Command::new("remove").about("Remove an account, and disconnect its clients").arg(email()),
            ]
            .map(of_accounts),
        )
}

fn key() -> Command {
    let name = || Arg::new("name").value_name("NAME").help("The name of the key").required(true);
    let of_accounts = |command: Command| command.args(account_settings());
    Command::new("key")
        .about("Manage access keys, which programs use instead of tokens")
        .after_help(KEY_EXAMPLES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommands(
            [
                Command::new("add")
                    .about("Create a key that may publish, and print it once")
                    .arg(name())
                    .arg(switch("admin", "Grant all rights")),
                Command::new("list").about("List all keys").arg(switch("json", "Print JSON")),
                Command::new("revoke").about("Revoke a key").arg(name()),
            ]
            .map(of_accounts),
        )
}

fn publish() -> Command {
    Command::new("publish")
        .about("Publish an event, or one from each line of standard input")
        .after_help(PUBLISH_EXAMPLES)
        .arg(value("type", "TYPE", "The type of the event").required_unless_present("stdin"))
        .arg(value("data", "JSON", "The data of the event, a JSON object").default_value("{}"))
        .arg(value(
            "audience",
            "AUDIENCE",
            "The audience: everyone, user:ID, connection:ID or topic:NAME [default: everyone]; with --stdin: \
             for lines without an audience",
        ))
        .arg(value("event-id", "ID", "The ID of the event, which prevents duplicates [default: random]"))
        .arg(
            switch("stdin", "Publish each line of standard input as one event, in batches")
                .conflicts_with_all(["type", "data", "event-id"]),
        )
        .arg(url_arg("http://127.0.0.1:8000", "The URL of the hub"))
        .arg(bearer_arg())
        .args(token_settings())
}

fn tail() -> Command {
    Command::new("tail")
        .about("Print events as they arrive, across reconnects")
        .after_help(TAIL_EXAMPLES)
        .arg(list("topics", "TOPIC", "Topics to subscribe to; separated by commas"))
        .arg(list("type", "TYPE", "Print only events of this type; may be repeated"))
        .arg(value("since", "ID", "Replay the events after this cursor: a log_position or event_id"))
        .arg(switch("json", "Print each event as one line of JSON, unchanged (the default)"))
        .arg(switch("pretty", "Print the time, type and data of each event").conflicts_with("json"))
        .arg(value("count", "N", "Exit after this many events").value_parser(value_parser!(u64).range(1..)))
        .arg(url_arg("ws://127.0.0.1:8000/ws", "The URL of the hub"))
        .arg(bearer_arg())
        .args(token_settings())
}

fn log_level() -> Command {
    Command::new("log-level")
        .about("Change the log level of a running hub, on all nodes")
        .after_help(LOG_LEVEL_EXAMPLES)
        .arg(Arg::new("level").value_name("LEVEL").help("A level, globally or by module").required(true))
        .arg(url_arg("http://127.0.0.1:8000", "The URL of any node of the hub"))
        .arg(bearer_arg())
        .args(token_settings())
}

fn plan() -> Command {
    let number = |name, help| value(name, "N", help).value_parser(positive);
    Command::new("plan")
        .about("Compute the machines that a load requires, from measurements")
        .after_help(PLAN_EXAMPLES)
        .arg(number("connections", "Connected clients").required_unless_present("check"))
        .arg(number("events", "Events a second").default_value("10"))
        .arg(number("receivers", "Clients in the audience of an event, on average").default_value("1"))
        .arg(number("payload", "Size of an event's JSON in bytes").default_value("300"))
        .arg(number("connects", "Connects a second [default: each client once an hour]"))
        .arg(value("heartbeat", "DURATION", "Interval of pings to each client").default_value("30s"))
        .arg(switch("tls", "Terminate TLS in the hub, not in a proxy"))
        .arg(number("cores", "Cores of a machine").default_value("2"))
        .arg(value("memory", "SIZE", "Memory of a machine").default_value("8GiB"))
        .arg(number("files", "Limit on open files of a process").default_value("1000000"))
        .arg(value("window", "SIZE", "Size of the window of each process (window_bytes)").default_value("64MiB"))
        .arg(number("busy", "Highest utilisation of the cores, in percent").default_value("60"))
        .arg(number("spare", "Number of machines that may fail").default_value("1"))
        .arg(value(
            "from",
            "FILE",
            "Scale the costs to another machine by the result of `fanfare bench --json FILE` there",
        ))
        .arg(switch("check", "Compare the model with the measurements instead"))
        .arg(switch("json", "Print JSON"))
}

fn why() -> Command {
    Command::new("why")
        .about("Explain the deliveries of an event on each node, or the state of a client")
        .after_help(WHY_EXAMPLES)
        .arg(
            Arg::new("event")
                .value_name("EVENT")
                .help("The event_id of the event")
                .required_unless_present("connection"),
        )
        .arg(value("user", "USER", "Also print the state for each connection of this user").requires("event"))
        .arg(
            value("connection", "ID", "Print the state of this client instead, connected or disconnected")
                .conflicts_with("event"),
        )
        .arg(switch("json", "Print JSON"))
        .arg(url_arg("http://127.0.0.1:8000", "The URL of any node of the hub"))
        .arg(bearer_arg())
        .args(token_settings())
}

fn bench() -> Command {
    let number = |name, value_name, help| value(name, value_name, help).value_parser(value_parser!(u64).range(1..));
    let rate = |name, help| value(name, "N", help).value_parser(positive);
    let presets = crate::bench::PRESETS.iter().map(|preset| preset.name);
    Command::new("bench")
        .about("Generate load on a hub, verify every delivery, and report latencies and costs")
        .after_help(BENCH_EXAMPLES)
        .arg(
            value("preset", "NAME", "The load, which flags override")
                .value_parser(clap::builder::PossibleValuesParser::new(presets))
                .default_value("small"),
        )
        .arg(url_arg("ws://127.0.0.1:8000/ws", "The URL of the hub"))
        .arg(number("connections", "N", "Number of connections"))
        .arg(rate("ramp", "Connects a second"))
        .arg(value("hold", "DURATION", "How long to publish after all clients have connected, such as 30s"))
        .arg(rate("rate", "Events a second; 0: none"))
        .arg(value("mix", "WEIGHTS", "Relative frequency of each audience [default: everyone=1,topic=2,user=7]"))
        .arg(
            value("payload", "BYTES", "Size of the padding in each event's data")
                .default_value("200")
                .value_parser(value_parser!(u32).range(..=1_000_000)),
        )
        .arg(
            value("storms", "N", "Number of reconnect storms, in which all clients disconnect")
                .value_parser(value_parser!(u32)),
        )
        .arg(value("storm-spread", "DURATION", "The time over which they reconnect").default_value("10s"))
        .arg(
            value("slow", "PERCENT", "Share of clients that read only once a second")
                .value_parser(value_parser!(u32).range(..=100)),
        )
        .arg(rate("churn", "Clients a second that disconnect and reconnect, continuously"))
        .arg(number("processes", "N", "Number of client processes [default: as few as possible]"))
        .arg(
            list("source", "ADDRESS", "Addresses to connect from; separated by commas [default: loopback aliases]")
                .value_parser(value_parser!(std::net::IpAddr)),
        )
        .arg(switch("floor", "Also run the same load on a bare write loop"))
        .arg(value("json", "FILE", "Write all results to a file; -: standard output"))
        .arg(value("html", "FILE", "Write an HTML report with plots to a file"))
        .arg(value("compare", "FILE", "Compare with the results of an earlier --json"))
        .arg(value("part", "WHICH", "").hide(true))
        .arg(bearer_arg())
        .args(token_settings())
}

/// Parses a number that is not negative.
fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| "expected a number such as 0.5 or 1000".to_owned())
}

fn value(name: &'static str, value_name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value_name).help(help)
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

fn list(name: &'static str, value_name: &'static str, help: &'static str) -> Arg {
    value(name, value_name, help).action(ArgAction::Append).value_delimiter(',')
}

fn config_arg() -> Arg {
    value(CONFIG, "FILE", "A TOML file with settings [default: $FANFARE_CONFIG, or fanfare.toml if it exists]")
        .value_parser(value_parser!(PathBuf))
}

fn url_arg(default: &'static str, help: &'static str) -> Arg {
    value("url", "URL", help).env("FANFARE_URL").hide_env_values(true).default_value(default)
}

fn bearer_arg() -> Arg {
    value("token", "TOKEN", "The token or access key").env("FANFARE_TOKEN").hide_env_values(true)
}

fn token_settings() -> impl Iterator<Item = Arg> {
    setting_args(|key| TOKEN_SETTINGS.contains(&key)).chain([config_arg()])
}

fn account_settings() -> impl Iterator<Item = Arg> {
    setting_args(|key| key == "database_url").chain([config_arg()])
}

fn setting_args(wanted: fn(&str) -> bool) -> impl Iterator<Item = Arg> {
    TABLE.iter().filter(move |setting| wanted(setting.key)).map(|setting| {
        let arg = Arg::new(setting.key)
            .long(setting.flag())
            .value_name(setting.value_name)
            .help(format!("{} [default: {}]", setting.help, setting.default_text()))
            .help_heading("Settings");
        match setting.value_name {
            kind::switch::NAME => arg.num_args(0..=1).default_missing_value("true"),
            _ => arg.allow_hyphen_values(true),
        }
    })
}

/// The sources of the settings: the command line, the environment and the files.
pub(crate) fn sources(mut matches: &ArgMatches) -> Result<Sources, SettingsError> {
    // Flags belong to the innermost subcommand.
    while let Some((_, of_command)) = matches.subcommand() {
        matches = of_command;
    }
    let flags = TABLE.iter().filter_map(|setting: &'static Setting| {
        let text = matches.try_get_one::<String>(setting.key).ok().flatten()?;
        Some((setting, text.clone()))
    });
    let config = matches.get_one::<PathBuf>(CONFIG);
    Sources::read(flags.collect(), config.map(PathBuf::as_path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn lines_of_examples_fit_a_terminal() {
        for text in [
            EXAMPLES,
            SERVE_EXAMPLES,
            CHECK_EXAMPLES,
            HEALTH_EXAMPLES,
            WHY_EXAMPLES,
            PLAN_EXAMPLES,
            LOG_LEVEL_EXAMPLES,
            SETTINGS_EXAMPLES,
            TOKEN_EXAMPLES,
            USER_EXAMPLES,
            KEY_EXAMPLES,
            PUBLISH_EXAMPLES,
            TAIL_EXAMPLES,
            BENCH_EXAMPLES,
        ] {
            for line in text.lines() {
                assert!(line.chars().count() <= 90, "{line}");
            }
        }
    }
}
