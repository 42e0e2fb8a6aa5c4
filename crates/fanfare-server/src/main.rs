//! The `fanfare` program: commands, settings and exit codes. The behaviour of a hub is in the library.

mod access;
mod accounts;
mod api_client;
mod bench;
mod check;
mod cli;
mod commands;
mod keyring;
mod logging;
mod memory;
mod proc;
mod redis;
mod serve;
mod settings;
mod terminal;
mod util;

use settings::SettingsError;
use std::{
    io::{self, Write},
    process::ExitCode,
};

/// Exit code for a wrong command line or wrong settings.
const USAGE: u8 = 2;
/// Exit code after SIGINT, as in shells.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    memory::set_mmap_threshold();
    let matches = match cli::command().try_get_matches() {
        Ok(matches) => matches,
        // clap treats help and version as errors, and knows the stream for each.
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(USAGE);
            return if error.print().is_ok() { ExitCode::from(code) } else { ExitCode::FAILURE };
        }
    };
    match commands::run(&matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is closed too, the exit code is the only report.
            let text = format!("{error:#}");
            let _ = writeln!(io::stderr(), "fanfare: {}", terminal::text(&terminal::without_credentials(&text)));
            if error.is::<bench::Interrupted>() {
                return ExitCode::from(INTERRUPTED);
            }
            let usage = error.is::<SettingsError>() || error.is::<util::UsageError>();
            ExitCode::from(if usage { USAGE } else { 1 })
        }
    }
}

/// Whether the reader of the output has exited, such as `head`.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
