//! The log, written to standard error, and changes of its level at runtime.

use crate::{
    settings::{
        Settings,
        kind::{self, LogFormat},
    },
    terminal,
};
use fanfare::LogSwitch;
use std::{
    io::{self, IsTerminal, Write},
    sync::OnceLock,
};
use tracing_subscriber::{EnvFilter, util::SubscriberInitExt};

type Reload = Box<dyn Fn(EnvFilter) -> bool + Send + Sync>;

/// Replaces the filter of this process. Set when logging starts.
static RELOAD: OnceLock<Reload> = OnceLock::new();

/// Starts logging. Further calls have no effect.
pub(crate) fn start(settings: &Settings) {
    if RELOAD.get().is_some() {
        return;
    }
    let format = settings.log_format;
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&settings.log_level))
        .with_writer(move || Lines { to: io::stderr(), format, colours })
        .with_ansi(colours);
    let (started, reload): (_, Reload) = match settings.log_format {
        LogFormat::Text => {
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            (builder.finish().try_init(), Box::new(move |filter| handle.reload(filter).is_ok()))
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            (builder.finish().try_init(), Box::new(move |filter| handle.reload(filter).is_ok()))
        }
    };
    debug_assert!(started.is_ok(), "logging starts only once");
    let _ = RELOAD.set(reload);
}

/// Writes each log event as one line without control characters, even if it contains text from clients.
struct Lines<W> {
    to: W,
    format: LogFormat,
    /// Whether the subscriber colours its lines.
    colours: bool,
}

impl<W: Write> Write for Lines<W> {
    /// Takes a whole event: the subscriber writes each event at once.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        self.to.write_all(line(&text, self.format, self.colours).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The styles that the subscriber uses. They are harmless in values too: none of them hides text or moves the cursor.
const STYLES: [&str; 10] = ["[0m", "[1m", "[2m", "[3m", "[31m", "[32m", "[33m", "[34m", "[35m", "[36m"];

fn line(event: &str, format: LogFormat, colours: bool) -> String {
    let (text, end) = event.strip_suffix('\n').map_or((event, ""), |text| (text, "\n"));
    let text = terminal::without_credentials(text);
    if format == LogFormat::Json {
        return format!("{}{end}", terminal::json(&text));
    }
    let mut parts = text.split('\x1b');
    let mut out = terminal::line(parts.next().unwrap_or_default()).into_owned();
    for part in parts {
        let style = colours && STYLES.iter().any(|style| part.starts_with(style));
        out.push_str(if style { "\x1b" } else { "\\u{1b}" });
        out.push_str(&terminal::line(part));
    }
    out + end
}

/// Changes the log level of this process.
#[derive(Debug)]
pub(crate) struct Switch;

impl LogSwitch for Switch {
    fn check(&self, filter: &str) -> Result<(), String> {
        let expected = || format!("expected {}", kind::log_level::expected());
        kind::log_level::parse(filter).map(drop).ok_or_else(expected)
    }

    fn set(&self, filter: &str) {
        let reloaded = RELOAD.get().is_some_and(|reload| reload(EnvFilter::new(filter)));
        if reloaded {
            // Logged as an error, so that every level except `off` shows it.
            tracing::error!(target: "fanfare::log_level", "log_level is now {filter}");
        } else {
            tracing::error!("log_level was not changed: logging is not running");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // attack: a name with line breaks, C1 or bidirectional controls that reaches the log => one line, with escapes
    #[test]
    fn a_log_event_is_one_line_without_control_characters() {
        let text = |event: &str, colours| line(event, LogFormat::Text, colours);
        assert_eq!(text("a\nWARN fake\u{9b}\u{202e}\n", false), "a\\u{a}WARN fake\\u{9b}\\u{202e}\n");
        assert_eq!(text("\x1b[2J\x1b[31m\n", false), "\\u{1b}[2J\\u{1b}[31m\n");
        assert_eq!(text("\x1b[2J\x1b[8m\x1b[31m\n", true), "\\u{1b}[2J\\u{1b}[8m\x1b[31m\n");
        assert_eq!(text("\x1b[31mred\x1b[0m at http://u:p@h\n", true), "\x1b[31mred\x1b[0m at http://***@h\n");
        assert_eq!(line("{\"a\":\"\u{9b}\u{202e}\"}\n", LogFormat::Json, false), "{\"a\":\"\\u009b\\u202e\"}\n");
    }

    // attack: a name with terminal escapes that reaches the log => logged as text
    #[test]
    fn escapes_in_values_are_logged_as_text() {
        let written = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let writer = {
            let written = written.clone();
            move || Lines { to: Shared(written.clone()), format: LogFormat::Text, colours: false }
        };
        let subscriber = tracing_subscriber::fmt().with_writer(writer).with_ansi(false).finish();
        tracing::subscriber::with_default(subscriber, || {
            let evil = "\u{1b}[2J\nfake";
            tracing::warn!(user = %evil, other = ?evil, "of {evil}");
        });
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert!(text.contains("fake") && !text.contains('\u{1b}'), "{text:?}");
        assert_eq!(text.lines().count(), 1, "{text:?}");
    }

    struct Shared(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
