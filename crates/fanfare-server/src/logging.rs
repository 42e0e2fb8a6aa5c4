//! What the program logs, to the standard error, and the switch for how much.

use crate::settings::{
    Settings,
    kind::{self, LogFormat},
};
use fanfare::LogSwitch;
use std::{
    io::{self, IsTerminal},
    sync::OnceLock,
};
use tracing_subscriber::{EnvFilter, util::SubscriberInitExt};

type Reload = Box<dyn Fn(EnvFilter) -> bool + Send + Sync>;

/// Changes the filter of this process, once logging has started.
static RELOAD: OnceLock<Reload> = OnceLock::new();

/// Starts logging for the rest of the process; a second call changes nothing.
pub(crate) fn start(settings: &Settings) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&settings.log_level))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
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
