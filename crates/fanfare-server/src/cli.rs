//! The command line: commands, flags and the help that teaches them. Flags of settings come from the table.

use crate::settings::{Setting, SettingsError, Sources, TABLE, kind};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use std::path::PathBuf;

const CONFIG: &str = "config";

/// Settings that concern tokens; every command that makes or reads one takes them.
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
A realtime event hub: publish once, and every client that is allowed to know gets it over WebSocket, in order, once.

Without a command it serves: on 127.0.0.1:8000, with the log in memory and no configuration.";

const EXAMPLES: &str = "\
Examples:
  fanfare                     serve, and print a URL and a curl line to try it with
  fanfare check               is this machine ready, and are the settings safe?
  fanfare settings            every setting, its value and where it came from
  export SECRET_KEY=...       the hub's secret, which the commands below share with it
  fanfare serve --listen 0.0.0.0:8000
  fanfare token --sub alice --topics 'project:*'
  fanfare user add ann@example.org
  fanfare publish --type note --data '{\"text\":\"hi\"}' --audience user:alice
  fanfare tail --topics project:7 | jq .data

Exit codes: 0 all went well, 1 it failed, 2 the command or a setting is wrong.";

const SERVE_EXAMPLES: &str = "\
Examples:
  fanfare serve                          try it out: the secret is made for this run
  SECRET_KEY=... fanfare serve --listen 0.0.0.0:8000 --log-format json
  fanfare serve --config fanfare.toml    from a file: listen = \"0.0.0.0:8000\"
  FANFARE_WINDOW_AGE=2h fanfare serve    from the environment, or from .env
  REDIS_URL=redis://127.0.0.1 fanfare serve --workers 4    four processes on one port

A flag is stronger than the environment, that than .env, and that than the file.
SIGINT (Ctrl-C) or SIGTERM ends it: clients are told to come back later; a second
one ends it at once. With several workers SIGHUP replaces them, one at a time.";

const SETTINGS_EXAMPLES: &str = "\
Examples:
  fanfare settings                          as a table
  fanfare settings --config fanfare.toml    check a file before it is used
  fanfare settings --json | jq '.[] | select(.from != \"default\")'";

const CHECK_EXAMPLES: &str = "\
Examples:
  fanfare check                          as serve would be started, with the same flags
  fanfare check --config fanfare.toml --fix  what to run and write to mend what is found
  fanfare check --url https://hub.example.org    through the proxy, for 70 s
  fanfare check --json | jq '.[] | select(.level == \"fail\")'

Each finding is ok, warn, FAIL, or - where it can't be told here. The exit code is 1 if
one is FAIL.";

const TOKEN_EXAMPLES: &str = "\
Examples:
  SECRET_KEY=... fanfare token --sub alice
  SECRET_KEY=... fanfare token --sub alice --topics 'project:*,news' --ttl 8h
  SECRET_KEY=... fanfare token --sub backend --publish
  SECRET_KEY=... fanfare token --explain eyJhbGciOi...
  fanfare token --explain - < token.txt     what it says, even without the secret

The token alone goes to the standard output. Whoever has it may do what it says
until it expires.";

const USER_EXAMPLES: &str = "\
Examples:
  fanfare user add ann@example.org --topics 'project:*'
  fanfare user add backend@example.org --role publisher --password-stdin < password.txt
  fanfare user list
  fanfare user disable ann@example.org

They log in with POST /auth/login. The accounts are in fanfare.db of the working
directory, or where database_url (FANFARE_DATABASE_URL) says; the hub reads the same, and
hears of a change within a second.";

const KEY_EXAMPLES: &str = "\
Examples:
  fanfare key add ci
  fanfare key list
  fanfare key revoke ci
  curl -H \"Authorization: Bearer $KEY\" ...    a key is shown as a token is

Only a hash of each key is kept, beside the accounts.";

const PUBLISH_EXAMPLES: &str = "\
Examples:
  fanfare publish --type note --data '{\"text\":\"hi\"}'
  fanfare publish --type note --data '{\"text\":\"hi\"}' --audience user:alice
  fanfare publish --type note --audience topic:project:7 --event-id note-17
  jq -c '.[]' events.json | fanfare publish --stdin --audience everyone

With --stdin each line is one event, an object with type and audience, and with
data and event_id if wanted; --audience is for the lines that have none. For each
event in the log, a line of JSON with its event_id and position goes to the
standard output, in the order of the input.
If the hub can't be reached, publishing is tried again under the same event_id, so
that nothing is published twice.

The token comes from --token, from FANFARE_TOKEN, or is made with the configured
secret.";

const TAIL_EXAMPLES: &str = "\
Examples:
  fanfare tail                               a line of JSON for each event
  fanfare tail --topics project:7 --pretty
  fanfare tail --type note --count 1         wait for one event
  fanfare tail --since note-17               what came after it, then what comes

Events go to the standard output, the state of the connection to the standard
error. A lost connection is taken up again where it was; if the hub no longer holds
what came in between, it says that there is a gap.

The token comes from --token, from FANFARE_TOKEN, or is made with the configured
secret.";

const BENCH_EXAMPLES: &str = "\
Examples:
  fanfare bench --url ws://127.0.0.1:8000/ws             1,000 connections
  fanfare bench --preset medium --html report.html --json figures.json
  fanfare bench --preset medium --compare figures.json   beside the run before
  fanfare bench --connections 5000 --rate 50 --mix everyone=1,user=20 --hold 1m
  fanfare bench --storms 2 --storm-spread 5s --slow 5    break off, read slowly
  fanfare bench --connections 20000 --churn 100 --hold 30m  come and go; does memory grow?
  fanfare bench --floor                                  beside a bare write loop

Presets: small 1,000 connections, medium 10,000, target 50,000, large 100,000,
million 1,000,000. Clients are processes of their own, as many as the limit of open
files asks for; to a hub on loopback they come from addresses from 127.1.0.1 on.

Every client checks that each event comes once and in order, over reconnects too.
The exit status is 0 if all were there and nothing was lost, doubled or reordered.

Without --token each client is a user of its own, with a token that is made with the
configured secret; with it all are the one user that it names, of whom the hub lets in
max_connections_per_user, or any number if it is an administrator.";

const LOG_LEVEL_EXAMPLES: &str = "\
Examples:
  fanfare log-level debug
  fanfare log-level info,fanfare::broker=debug,hyper=warn
  fanfare log-level info                     as it is unless log_level is set

Levels are error, warn, info, debug, trace and off. It holds until a process ends. It
needs an administrator's token: from --token, from FANFARE_TOKEN, or made with the
configured secret.";

const PLAN_EXAMPLES: &str = "\
Examples:
  fanfare plan --connections 1000000 --events 2000
  fanfare plan --connections 50000 --events 20 --receivers 5000 --cores 4
  fanfare plan --connections 50000 --tls --spare 0
  fanfare plan --connections 50000 --from here.json        (from bench --json here.json)
  fanfare plan --check

What is not computed: the network between, Redis' own CPU, and what a proxy takes.";

const WHY_EXAMPLES: &str = "\
Examples:
  fanfare why order-7                        when, from whom, to how many
  fanfare why order-7 --user ann             and with each of ann's connections
  fanfare why --connection 3f0c9d8e-6a8e-4d0c-9b7e-2f4f6f1f2a3b
  fanfare why order-7 --json | jq .nodes

Every node is asked. An event is known as long as it is held for clients that come back
(window_age), a client that has left until a thousand more have left its node.

It needs an administrator's token: from --token, from FANFARE_TOKEN, or made with the
configured secret. The exit status is 1 where nothing is known.";

const HEALTH_EXAMPLES: &str = "\
Examples:
  fanfare health && echo yes
  fanfare health --url https://hub.example.org

For probes of containers and scripts: it asks /health/ready. The exit status is 0 where
clients are taken, and 1 where the hub drains, its log is not in order, or it is not
there; then the reason is on the standard error.";

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
        // `fanfare --listen ...` serves too; the flags are explained where they belong.
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
        .about("Serve clients and publishers until SIGINT or SIGTERM (what `fanfare` alone does)")
        .after_help(SERVE_EXAMPLES)
        .arg(config_arg())
        .args(setting_args(|_| true))
}

fn settings() -> Command {
    Command::new("settings")
        .about("Print every setting, its value and where it came from; secrets are not shown")
        .after_help(SETTINGS_EXAMPLES)
        .arg(switch("json", "Print them as JSON"))
        .arg(switch("markdown", "Print the documentation of the settings").conflicts_with("json"))
        .arg(config_arg())
        .args(setting_args(|_| true))
}

fn check() -> Command {
    Command::new("check")
        .about("Check this machine, the settings and the servers for what production needs")
        .after_help(CHECK_EXAMPLES)
        .arg(switch("json", "Print the findings as JSON"))
        .arg(
            switch("fix", "Print the commands and lines of configuration that mend what was found; nothing is run")
                .conflicts_with("json"),
        )
        .arg(value("url", "URL", "The public address, through which a connection is held"))
        .arg(value("hold", "DURATION", "How long to hold it").default_value("70s").requires("url"))
        .arg(config_arg())
        .args(setting_args(|_| true))
}

fn health() -> Command {
    Command::new("health")
        .about("Ask a hub whether it takes clients; the exit status says so")
        .after_help(HEALTH_EXAMPLES)
        .arg(url_arg("http://127.0.0.1:8000", "The hub"))
}

fn token() -> Command {
    Command::new("token")
        .about("Make a token, or explain one")
        .after_help(TOKEN_EXAMPLES)
        .arg(value("sub", "USER", "The user whose token it is").required_unless_present("explain"))
        .arg(switch("publish", "Allow it to publish"))
        .arg(switch("admin", "Allow it everything"))
        .arg(list("topics", "PATTERN", "Topics that it may subscribe to, such as 'project:*'; more after commas"))
        .arg(value("ttl", "DURATION", "How long it is valid, such as 30m or 8h [default: access_token_expire_minutes]"))
        .arg(
            value("explain", "TOKEN", "Explain a token instead; - reads it from the standard input")
                .conflicts_with_all(["sub", "publish", "admin", "topics", "ttl"]),
        )
        .args(token_settings())
}

fn user() -> Command {
    let email = || Arg::new("email").value_name("EMAIL").help("The account").required(true);
    let role = || {
        let roles = crate::accounts::Role::ALL.map(crate::accounts::Role::name);
        value("role", "ROLE", "What it may do").value_parser(clap::builder::PossibleValuesParser::new(roles))
    };
    let topics =
        || list("topics", "PATTERN", "Topics that it may subscribe to, such as 'project:*'; more after commas");
    let password = || switch("password-stdin", "Read the password from the first line of the standard input");
    let of_accounts = |command: Command| command.args(account_settings());
    Command::new("user")
        .about("Add, list, change and remove people who may log in")
        .after_help(USER_EXAMPLES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommands(
            [
                Command::new("add")
                    .about("Add somebody; the password is asked for")
                    .arg(email())
                    .arg(role().default_value("viewer"))
                    .arg(topics())
                    .arg(password()),
                Command::new("list").about("List them all").arg(switch("json", "Print them as JSON")),
                Command::new("passwd")
                    .about("Set a new password; tokens of the old one end")
                    .arg(email())
                    .arg(password()),
                Command::new("set").about("Change role or topics").arg(email()).arg(role()).arg(topics()),
                Command::new("disable").about("Cut somebody off, at once and on all nodes").arg(email()),
                Command::new("enable").about("Let somebody log in again").arg(email()),
                Command::new("remove").about("Remove somebody, and cut them off").arg(email()),
            ]
            .map(of_accounts),
        )
}

fn key() -> Command {
    let name = || Arg::new("name").value_name("NAME").help("What the key is called").required(true);
    let of_accounts = |command: Command| command.args(account_settings());
    Command::new("key")
        .about("Make, list and revoke access keys, which programs show instead of tokens")
        .after_help(KEY_EXAMPLES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommands(
            [
                Command::new("add")
                    .about("Make a key that may publish; it is printed once")
                    .arg(name())
                    .arg(switch("admin", "Allow it everything")),
                Command::new("list").about("List them all").arg(switch("json", "Print them as JSON")),
                Command::new("revoke").about("Take one away").arg(name()),
            ]
            .map(of_accounts),
        )
}

fn publish() -> Command {
    Command::new("publish")
        .about("Publish an event, or one from each line of the standard input")
        .after_help(PUBLISH_EXAMPLES)
        .arg(value("type", "TYPE", "The event's type").required_unless_present("stdin"))
        .arg(value("data", "JSON", "The event's data, a JSON object").default_value("{}"))
        .arg(value(
            "audience",
            "WHO",
            "Who receives it: everyone, user:ID, connection:ID or topic:NAME [default: \
                everyone]; with --stdin: who receives the lines that have no audience",
        ))
        .arg(value("event-id", "ID", "The event's id, by which it is published once [default: a random one]"))
        .arg(
            switch("stdin", "Publish each line of the standard input as one event, in batches")
                .conflicts_with_all(["type", "data", "event-id"]),
        )
        .arg(url_arg("http://127.0.0.1:8000", "The hub"))
        .arg(bearer_arg())
        .args(token_settings())
}

fn tail() -> Command {
    Command::new("tail")
        .about("Print events as they come, over reconnects")
        .after_help(TAIL_EXAMPLES)
        .arg(list("topics", "TOPIC", "Topics to subscribe to; more after commas"))
        .arg(list("type", "TYPE", "Print events of this type only; may be given again"))
        .arg(value("since", "ID", "Begin after this event_id"))
        .arg(switch("json", "Print one line of JSON an event, as it came (the default)"))
        .arg(switch("pretty", "Print for people: time, type and data").conflicts_with("json"))
        .arg(value("count", "N", "End after this many events").value_parser(value_parser!(u64).range(1..)))
        .arg(url_arg("ws://127.0.0.1:8000/ws", "The hub"))
        .arg(bearer_arg())
        .args(token_settings())
}

fn log_level() -> Command {
    Command::new("log-level")
        .about("Switch what a running hub logs, on all its nodes")
        .after_help(LOG_LEVEL_EXAMPLES)
        .arg(Arg::new("level").value_name("LEVEL").help("A level, for all or by module").required(true))
        .arg(url_arg("http://127.0.0.1:8000", "The hub, any of its nodes"))
        .arg(bearer_arg())
        .args(token_settings())
}

fn plan() -> Command {
    let number = |name, help| value(name, "N", help).value_parser(positive);
    Command::new("plan")
        .about("Compute how many machines a load takes, from what was measured")
        .after_help(PLAN_EXAMPLES)
        .arg(number("connections", "Clients that are connected").required_unless_present("check"))
        .arg(number("events", "Events a second").default_value("10"))
        .arg(number("receivers", "Clients that an event is for, on the average").default_value("1"))
        .arg(number("payload", "Bytes of an event's JSON").default_value("300"))
        .arg(number("connects", "Connects a second [default: each client once an hour]"))
        .arg(value("heartbeat", "DURATION", "How often each client is sent a ping").default_value("30s"))
        .arg(switch("tls", "TLS ends in the hub, not in a proxy"))
        .arg(number("cores", "Cores of a machine").default_value("2"))
        .arg(value("memory", "SIZE", "Memory of a machine").default_value("8GiB"))
        .arg(number("files", "Files that a process may open").default_value("1000000"))
        .arg(
            value("window", "SIZE", "What each process holds for clients that come back (window_bytes)")
                .default_value("64MiB"),
        )
        .arg(number("busy", "How busy the cores may be, in percent").default_value("60"))
        .arg(number("spare", "Machines that may fail").default_value("1"))
        .arg(value("from", "FILE", "Take the costs of a machine from a run of `fanfare bench --json FILE` there"))
        .arg(switch("check", "Print the model beside what was measured instead"))
        .arg(switch("json", "Print it as JSON"))
}

fn why() -> Command {
    Command::new("why")
        .about("Tell why an event came or did not, node by node, or how a client stands")
        .after_help(WHY_EXAMPLES)
        .arg(
            Arg::new("event")
                .value_name("EVENT")
                .help("The event, by its event_id")
                .required_unless_present("connection"),
        )
        .arg(value("user", "USER", "Tell too how it stands with each connection of this user").requires("event"))
        .arg(value("connection", "ID", "Tell of this client instead, connected or gone").conflicts_with("event"))
        .arg(switch("json", "Print it as JSON"))
        .arg(url_arg("http://127.0.0.1:8000", "The hub, any of its nodes"))
        .arg(bearer_arg())
        .args(token_settings())
}

fn bench() -> Command {
    let number = |name, value_name, help| value(name, value_name, help).value_parser(value_parser!(u64).range(1..));
    let rate = |name, help| value(name, "N", help).value_parser(positive);
    let presets = crate::bench::PRESETS.iter().map(|preset| preset.name);
    Command::new("bench")
        .about("Put a load on a hub, check every delivery, and report what it took")
        .after_help(BENCH_EXAMPLES)
        .arg(
            value("preset", "NAME", "What the load consists of, unless flags say otherwise")
                .value_parser(clap::builder::PossibleValuesParser::new(presets))
                .default_value("small"),
        )
        .arg(url_arg("ws://127.0.0.1:8000/ws", "The hub"))
        .arg(number("connections", "N", "How many connections"))
        .arg(rate("ramp", "Connects a second"))
        .arg(value("hold", "DURATION", "How long to publish once all are connected, such as 30s"))
        .arg(rate("rate", "Events a second; 0: none"))
        .arg(value("mix", "WEIGHTS", "How often each audience has its turn [default: everyone=1,topic=2,user=7]"))
        .arg(
            value("payload", "BYTES", "What is added to each event's data")
                .default_value("200")
                .value_parser(value_parser!(u32).range(..=1_000_000)),
        )
        .arg(value("storms", "N", "How often all clients break off and come back").value_parser(value_parser!(u32)))
        .arg(value("storm-spread", "DURATION", "The time in which they come back").default_value("10s"))
        .arg(
            value("slow", "PERCENT", "How many of the clients read once a second only")
                .value_parser(value_parser!(u32).range(..=100)),
        )
        .arg(rate("churn", "Clients a second that break off and come back, all the time"))
        .arg(number("processes", "N", "Processes of clients [default: as few as can hold them]"))
        .arg(
            list("source", "ADDRESS", "Where to connect from; more after commas [default: loopback aliases]")
                .value_parser(value_parser!(std::net::IpAddr)),
        )
        .arg(switch("floor", "Put the same load on a bare write loop too"))
        .arg(value("json", "FILE", "Write every figure to a file; - is the standard output"))
        .arg(value("html", "FILE", "Write a page with plots to a file"))
        .arg(value("compare", "FILE", "Show the figures of an earlier --json beside these"))
        .arg(value("part", "WHICH", "").hide(true))
        .arg(bearer_arg())
        .args(token_settings())
}

/// A number that is not negative.
fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| "it is a number such as 0.5 or 1000".to_owned())
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
    value(CONFIG, "FILE", "A TOML file of settings [default: $FANFARE_CONFIG, or fanfare.toml if it is there]")
        .value_parser(value_parser!(PathBuf))
}

fn url_arg(default: &'static str, help: &'static str) -> Arg {
    value("url", "URL", help).env("FANFARE_URL").hide_env_values(true).default_value(default)
}

fn bearer_arg() -> Arg {
    value("token", "TOKEN", "The token to show").env("FANFARE_TOKEN").hide_env_values(true)
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

/// What the command line, the environment and the files say of the settings.
pub(crate) fn sources(mut matches: &ArgMatches) -> Result<Sources, SettingsError> {
    // Those that have commands of their own leave the flags to them.
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
