//! What has to be undone on the machine, however this process ends.

use std::{
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

/// Runs a script once this value, or this process, ends.
#[derive(Debug)]
pub(super) struct Guard(Child);

impl Guard {
    /// `None` if there is no shell.
    pub(super) fn new(script: &str) -> Option<Self> {
        let mut command = Command::new("sh");
        // In a group of its own, which Ctrl-C does not reach.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // Nobody writes to the pipe: it ends with the process.
        command.args(["-c", &format!("read -r _; {script}")]).spawn().ok().map(Self)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
