//! fanfare as one program: commands, settings, exit codes. What a hub does is the library's business.

mod accounts;
mod bench;
mod check;
mod cli;
mod commands;
mod keyring;
mod logging;
mod memory;
mod redis;
mod serve;
mod settings;
mod terminal;

use settings::SettingsError;
use std::{
    io::{self, Write},
    process::ExitCode,
};

/// The command was not understood, or the settings can't be used.
const USAGE: u8 = 2;
/// Ended by SIGINT, as the shells have it.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    memory::set_mmap_threshold();
    let matches = match cli::command().try_get_matches() {
        Ok(matches) => matches,
        // Help and version are errors to clap, which knows where each is to be printed.
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(USAGE);
            return if error.print().is_ok() { ExitCode::from(code) } else { ExitCode::FAILURE };
        }
    };
    match commands::run(&matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Where even the standard error is closed, the exit code is all there is to say.
            let text = format!("{error:#}");
            let _ = writeln!(io::stderr(), "fanfare: {}", terminal::text(&terminal::without_credentials(&text)));
            if error.is::<bench::Interrupted>() {
                return ExitCode::from(INTERRUPTED);
            }
            let usage = error.is::<SettingsError>() || error.is::<commands::Usage>();
            ExitCode::from(if usage { USAGE } else { 1 })
        }
    }
}

/// Whoever read our output has had enough, as `head` does.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
