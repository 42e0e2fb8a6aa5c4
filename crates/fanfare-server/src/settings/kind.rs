//! The kinds of values of settings: how each is parsed, shown, and described in errors.

use crate::{settings::DatabaseUrl, terminal::without_credentials};
use fanfare::{
    Algorithm,
    broker::redis::{Durability, RedisUrl},
    origin::{Origins, Proxies},
};
use hyper::header::HeaderName;
use std::{
    fmt,
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

impl Secret {
    #[cfg(test)]
    pub(crate) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub(crate) fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// One kind. `NAME` is the placeholder for its value in help texts, `expected()` ends the sentence "expected ...".
macro_rules! kind {
    ($module:ident, $name:literal, $expected:expr, $value:ty, $parse:expr, $show:expr) => {
        pub(crate) mod $module {
            use super::*;

            pub(crate) const NAME: &str = $name;

            pub(crate) fn expected() -> String {
                ($expected).to_string()
            }

            pub(crate) fn parse(text: &str) -> Option<$value> {
                ($parse)(text)
            }

            pub(crate) fn show(value: &$value) -> String {
                ($show)(value)
            }
        }
    };
}

kind!(
    address,
    "ADDRESS:PORT",
    "an IP address or host name of this machine, and a port, such as 127.0.0.1:8000, [::]:8000 or localhost:8000",
    SocketAddr,
    socket_address,
    SocketAddr::to_string
);
kind!(
    own_address,
    "ADDRESS:PORT",
    "an IP address or host name of this machine, and a port, such as 127.0.0.1:9464 or localhost:9464",
    Option<SocketAddr>,
    |text: &str| socket_address(text).map(Some),
    |value: &Option<SocketAddr>| value.map_or_else(not_set, |address| address.to_string())
);
kind!(
    secret,
    "SECRET",
    "a non-empty text; generate one with: openssl rand -hex 32",
    Option<Secret>,
    |text: &str| (!text.is_empty()).then(|| Some(Secret(text.to_owned()))),
    |value: &Option<Secret>| if value.is_some() { "set" } else { "not set" }.to_owned()
);
kind!(
    redis_url,
    "URL",
    "redis://[[user]:password@]host[:port][/database], redis+sentinel://host[,host]/master or \
     redis+cluster://host[,host], with rediss for TLS, or unix:///path/to/socket[?db=database]",
    Option<RedisUrl>,
    |text: &str| text.parse().ok().map(Some),
    |value: &Option<RedisUrl>| value.as_ref().map_or_else(|| "not set".to_owned(), RedisUrl::to_string)
);
kind!(
    word,
    "NAME",
    "a name that consists of letters, digits, _, - and :",
    String,
    |text: &str| is_word(text).then(|| text.to_owned()),
    String::clone
);
kind!(
    channels,
    "CHANNELS",
    "channel names, separated by commas, without white space and *; or none",
    Vec<String>,
    channel_names,
    |value: &Vec<String>| if value.is_empty() { "none".to_owned() } else { value.join(",") }
);
kind!(
    durability,
    "WHEN",
    "log or replica",
    Durability,
    |text: &str| match text {
        "log" => Some(Durability::Log),
        "replica" => Some(Durability::Replica),
        _ => None,
    },
    |value: &Durability| match value {
        Durability::Log => "log",
        Durability::Replica => "replica",
    }
    .to_owned()
);
kind!(
    algorithm,
    "NAME",
    format!("one of {}", Algorithm::ALL.iter().map(|algorithm| algorithm.name()).collect::<Vec<_>>().join(", ")),
    Algorithm,
    |text: &str| text.parse().ok(),
    Algorithm::to_string
);
kind!(
    log_level,
    "LEVEL",
    "error, warn, info, debug or trace, globally or by module, such as info,fanfare=debug",
    String,
    |text: &str| is_filter(text).then(|| text.to_owned()),
    String::clone
);
kind!(
    log_format,
    "FORMAT",
    "text or json",
    LogFormat,
    |text: &str| match text {
        "text" => Some(LogFormat::Text),
        "json" => Some(LogFormat::Json),
        _ => None,
    },
    |value: &LogFormat| match value {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    }
    .to_owned()
);
kind!(
    file,
    "FILE",
    "the path of a file",
    Option<PathBuf>,
    |text: &str| (!text.is_empty()).then(|| Some(PathBuf::from(text))),
    |value: &Option<PathBuf>| value.as_ref().map_or_else(not_set, |path| path.display().to_string())
);
kind!(
    web_url,
    "URL",
    "a URL that begins with https:// or http://",
    Option<String>,
    |text: &str| {
        let good = text.parse::<hyper::Uri>().is_ok_and(|url| is_web(&url)) && reqwest::Url::parse(text).is_ok();
        good.then(|| Some(text.to_owned()))
    },
    |value: &Option<String>| value.as_deref().map_or_else(not_set, |url| without_credentials(url).into_owned())
);
kind!(
    origins,
    "ORIGINS",
    "origins such as https://app.example.org, https://*.example.org or capacitor://localhost, separated by commas, \
     or *; or same for only the hub's own",
    Origins,
    |text: &str| if text == "same" { Some(Origins::Same) } else { text.parse().ok() },
    Origins::to_string
);
kind!(
    headers,
    "HEADERS",
    "names of HTTP headers, separated by commas, such as x-tenant; or none",
    Vec<HeaderName>,
    |text: &str| {
        let names = text.split(',').map(str::trim);
        if text == "none" { Some(Vec::new()) } else { names.map(|name| name.parse().ok()).collect() }
    },
    |value: &Vec<HeaderName>| {
        let names: Vec<_> = value.iter().map(HeaderName::as_str).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(",") }
    }
);
kind!(
    proxies,
    "NETWORKS",
    "addresses or networks such as 10.0.0.0/8, separated by commas; or none",
    Proxies,
    |text: &str| if text == "none" { Some(Proxies::default()) } else { text.parse().ok() },
    |value: &Proxies| if *value == Proxies::default() { "none".to_owned() } else { value.to_string() }
);
kind!(
    text,
    "TEXT",
    "a non-empty text",
    Option<String>,
    |text: &str| (!text.is_empty()).then(|| Some(text.to_owned())),
    |value: &Option<String>| value.clone().unwrap_or_else(not_set)
);
kind!(minutes, "MINUTES", "a whole number of minutes, 1 or more", u64, positive, u64::to_string);
kind!(days, "DAYS", "a whole number of days, 1 or more", u64, positive, u64::to_string);
kind!(
    database_url,
    "URL",
    "sqlite://FILE, postgres://[user[:password]@]host[:port]/database, or none",
    DatabaseUrl,
    |text: &str| text.parse().ok(),
    DatabaseUrl::to_string
);
kind!(count, "N", "a whole number, 0 or more", usize, whole, usize::to_string);
kind!(rate, "N", "a whole number, 0 or more", u32, whole, u32::to_string);
kind!(positive_count, "N", "a whole number, 1 or more", usize, positive, usize::to_string);
kind!(share, "SHARE", "a number from 0 to 1, such as 0.01", f64, fraction, f64::to_string);
kind!(
    duration,
    "DURATION",
    "a duration above 0 such as 500ms, 30s, 5m, 1h or a number of seconds",
    Duration,
    |text: &str| parse_duration(text).filter(|duration| !duration.is_zero()),
    |value: &Duration| show_duration(*value)
);
kind!(switch, "BOOL", "true or false", bool, truth, bool::to_string);
kind!(
    span,
    "DURATION",
    "a duration such as 500ms, 30s, 5m, 1h or a number of seconds",
    Duration,
    |text: &str| parse_duration(text),
    |value: &Duration| show_duration(*value)
);
kind!(
    size,
    "SIZE",
    "a size above 0 such as 64KiB, 64MB or a number of bytes",
    usize,
    |text: &str| parse_size(text).filter(|&bytes| bytes > 0),
    |value: &usize| show_size(*value)
);

/// Parses an address, or resolves a name. Prefers IPv4, because clients try 127.0.0.1 for `localhost`.
fn socket_address(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let (host, port) = text.rsplit_once(':')?;
    let is_name = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c));
    let port = port.parse::<u16>().ok().filter(|_| is_name)?;
    (host, port).to_socket_addrs().ok()?.min_by_key(SocketAddr::is_ipv6)
}

fn channel_names(text: &str) -> Option<Vec<String>> {
    if text == "none" {
        return Some(Vec::new());
    }
    let names = text.split(',').map(str::trim).map(str::to_owned).collect::<Vec<_>>();
    let valid =
        |name: &String| !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '*');
    names.iter().all(valid).then_some(names)
}

fn truth(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

fn not_set() -> String {
    "not set".to_owned()
}

fn is_web(url: &hyper::Uri) -> bool {
    matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some_and(|host| !host.is_empty())
}

/// Digits may be grouped by underscores, as in TOML.
fn whole<T: FromStr>(text: &str) -> Option<T> {
    let text = text.trim();
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    text.replace('_', "").parse().ok()
}

fn fraction(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|share| (0.0..=1.0).contains(share))
}

fn positive<T: FromStr + Default + PartialEq>(text: &str) -> Option<T> {
    whole(text).filter(|number| *number != T::default())
}

/// Splits a number, which may have a fraction, from its unit.
fn number_and_unit(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    Some((number.replace('_', "").parse().ok()?, unit.trim()))
}

/// Parses a duration. Without a unit it is in seconds.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = number_and_unit(text)?;
    let unit_ms = match unit {
        "ms" => 1.0,
        "" | "s" => 1e3,
        "m" | "min" => 60e3,
        "h" => 3_600e3,
        "d" => 86_400e3,
        _ => return None,
    };
    // Rounded to milliseconds, and at most about a thousand years.
    let ms = (number * unit_ms).round();
    (ms <= 3.2e13).then(|| Duration::from_secs_f64(ms / 1e3))
}

/// Formats a duration in the largest unit that leaves a whole number.
pub(crate) fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    let units = [("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
    let fits = units.iter().find(|(_, unit_ms)| ms > 0 && ms.is_multiple_of(*unit_ms));
    fits.map_or_else(|| format!("{ms}ms"), |(unit, unit_ms)| format!("{}{unit}", ms / unit_ms))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be within 2^53")]
fn parse_size(text: &str) -> Option<usize> {
    let (number, unit) = number_and_unit(text)?;
    let bytes = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "kib" => 1_024.0,
        "mib" => 1_048_576.0,
        "gib" => 1_073_741_824.0,
        _ => return None,
    };
    let bytes = (number * bytes).round();
    (bytes <= 9e15).then_some(bytes as usize)
}

fn show_size(bytes: usize) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let fits = units.iter().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit));
    fits.map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

/// Checks levels by itself, because `EnvFilter` accepts a misspelt level as the name of a module.
fn is_filter(text: &str) -> bool {
    let known = |level: &str| {
        ["error", "warn", "info", "debug", "trace", "off"].contains(&level.trim().to_ascii_lowercase().as_str())
    };
    let directive = |part: &str| part.rsplit_once('=').map_or_else(|| known(part), |(_, level)| known(level));
    text.split(',').all(directive) && tracing_subscriber::EnvFilter::try_new(text).is_ok()
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-:".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms, shown) in [
            ("30", 30_000, "30s"),
            ("30s", 30_000, "30s"),
            ("500ms", 500, "500ms"),
            ("1.5s", 1_500, "1500ms"),
            ("5m", 300_000, "5m"),
            ("90m", 5_400_000, "90m"),
            ("1h", 3_600_000, "1h"),
            ("2d", 172_800_000, "48h"),
        ] {
            let duration = duration::parse(text).expect(text);
            assert_eq!(duration.as_millis(), ms, "{text}");
            assert_eq!(show_duration(duration), shown);
            assert_eq!(parse_duration(shown), Some(duration));
        }
        for text in ["", "s", "0", "-1s", "soon", "5 minutes", "1e3", "1..2", "99999999999999h", "0.1ms"] {
            assert_eq!(duration::parse(text), None, "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes, shown) in [
            ("65536", 65_536, "64KiB"),
            ("64KiB", 65_536, "64KiB"),
            ("64 MB", 64_000_000, "62500KiB"),
            ("64mib", 67_108_864, "64MiB"),
            ("1.5GiB", 1_610_612_736, "1536MiB"),
            ("1_000", 1_000, "1000"),
        ] {
            assert_eq!(size::parse(text), Some(bytes), "{text}");
            assert_eq!(show_size(bytes), shown);
            assert_eq!(parse_size(shown), Some(bytes));
        }
        for text in ["", "0", "KiB", "-5", "64KiBs", "99999999GiB"] {
            assert_eq!(size::parse(text), None, "{text}");
        }
    }

    #[test]
    fn whole_numbers() {
        assert_eq!(count::parse("50_000"), Some(50_000));
        assert_eq!(count::parse("0"), Some(0));
        assert_eq!(positive_count::parse("0"), None);
        for text in ["", "-1", "+1", "_1", "1.5", "many", "99999999999999999999"] {
            assert_eq!(count::parse(text), None, "{text}");
        }
    }

    #[test]
    fn host_names_are_resolved() {
        for (text, shown) in [
            ("127.0.0.1:8000", "127.0.0.1:8000"),
            ("[::]:0", "[::]:0"),
            ("localhost:8000", "127.0.0.1:8000"),
            ("LOCALHOST:8000", "127.0.0.1:8000"),
        ] {
            let parsed = address::parse(text).expect(text);
            assert_eq!(address::show(&parsed), shown);
            assert_eq!(own_address::parse(text), Some(Some(parsed)));
        }
        for text in ["localhost", "localhost:", ":8000", "localhost:port", "localhost:99999", "a b:1", "name.invalid:1"]
        {
            assert_eq!(address::parse(text), None, "{text}");
        }
    }

    #[test]
    fn log_levels() {
        for text in ["info", "WARN", "info,fanfare=debug", "fanfare::shard=trace,off"] {
            assert!(log_level::parse(text).is_some(), "{text}");
        }
        for text in ["", "inof", "fanfare=loud", "info,"] {
            assert!(log_level::parse(text).is_none(), "{text}");
        }
    }

    // attack: reading secrets from the printed settings => shown as set, never in plain text
    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(secret::show(&Some(Secret::new("hush"))), "set");
        assert_eq!(format!("{:?}", Secret::new("hush")), "Secret(..)");
        let url = |text| redis_url::show(&redis_url::parse(text).unwrap());
        assert_eq!(url("redis://me:hush@host:1/0"), "redis://***@host:1/0");
        assert_eq!(url("redis://host:1"), "redis://host:1/0");
    }
}
