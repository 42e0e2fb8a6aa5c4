//! A file system of its own for Redis, which can be filled.

use super::guard::Guard;
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tempfile::TempDir;

/// A file system in memory. It is unmounted when this value is dropped or this process ends.
#[derive(Debug)]
pub(crate) struct Disk {
    /// Unmounts it before its directory is removed.
    _guard: Guard,
    home: TempDir,
}

/// Its size in KiB, unless it is full.
const ROOM_KIB: u64 = 2 << 20;

impl Disk {
    /// Mounts a file system. `None` if that is not permitted.
    pub(super) fn mount() -> Option<Self> {
        let home = tempfile::Builder::new().prefix("disk-").tempdir().ok()?;
        let size = format!("size={ROOM_KIB}k");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "fanfare-chaos"]).arg(home.path()))?;
        let guard = Guard::new(&format!("umount -l '{0}'; rmdir '{0}'", home.path().display()))?;
        Some(Self { _guard: guard, home })
    }

    pub(super) fn path(&self) -> &Path {
        self.home.path()
    }

    /// Shrinks it until no space is left.
    pub(super) fn fill(&self) {
        let used = used_kib(self.path()).unwrap_or(0);
        // The kernel rejects a size below what is used, so a little space is left.
        let _ = (4..10).map(|more| self.resize(used + (1 << more))).find(|done| *done);
    }

    pub(super) fn make_room(&self) {
        self.resize(ROOM_KIB);
    }

    fn resize(&self, kib: u64) -> bool {
        let size = format!("remount,size={kib}k");
        run(Command::new("mount").args(["-o", &size]).arg(self.path())).is_some()
    }
}

fn used_kib(path: &Path) -> Option<u64> {
    let output = Command::new("df").args(["--output=used", "-k"]).arg(path).output().ok()?;
    String::from_utf8_lossy(&output.stdout).lines().nth(1)?.trim().parse().ok()
}

/// Runs a command. `None` if it fails.
pub(super) fn run(command: &mut Command) -> Option<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().ok()?;
    status.success().then_some(())
}

/// The path of a program on the PATH or in the directories for root.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|path| path.is_file())
}
