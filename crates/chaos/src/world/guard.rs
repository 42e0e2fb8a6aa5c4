//! Cleanup that runs however this process ends.

use std::{
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

/// Runs a script once this value is dropped or this process ends.
#[derive(Debug)]
pub(super) struct Guard(Child);

impl Guard {
    /// Registers the script. `None` if there is no shell.
    pub(super) fn new(script: &str) -> Option<Self> {
        let mut command = Command::new("sh");
        // In a process group of its own, which does not receive Ctrl-C.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // This process never writes to the pipe: `read` returns when the pipe is closed.
        command.args(["-c", &format!("read -r _; {script}")]).spawn().ok().map(Self)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
