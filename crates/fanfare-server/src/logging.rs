//! What the program logs, to the standard error, and the switch for how much.

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

/// Changes the filter of this process, once logging has started.
static RELOAD: OnceLock<Reload> = OnceLock::new();

/// Starts logging for the rest of the process; a second call changes nothing.
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
    debug_assert!(started.is_ok(), "logging is started once");
    let _ = RELOAD.set(reload);
}

/// Writes each event of the log as one line that a terminal may show, whatever text of clients is in it.
struct Lines<W> {
    to: W,
    format: LogFormat,
    /// The subscriber colours its lines.
    colours: bool,
}

impl<W: Write> Write for Lines<W> {
    /// Takes a whole event, which is how the subscriber writes.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        self.to.write_all(line(&text, self.format, self.colours).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The styles that the subscriber uses. None of them hides or moves anything, so that a name may contain them too.
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

/// The switch of this process' log.
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
            // At the level that is told of at any, unless all is off.
            tracing::error!(target: "fanfare::log_level", "log_level is {filter} now");
        } else {
            tracing::error!("log_level stays as it is: logging has ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // attack: a name with line breaks, C1 or bidirectional controls that reaches the log => one line, with escapes
    #[test]
    fn an_event_of_the_log_is_one_line_that_a_terminal_may_show() {
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
