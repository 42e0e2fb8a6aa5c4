//! Child processes that never outlive this one, however it ends.

use anyhow::{Context, Result, bail};
use nix::sys::{prctl, signal::Signal};
use std::{
    env,
    ffi::OsString,
    fs::File,
    io::Read,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The time within which a child must listen.
const START: Duration = Duration::from_secs(10);

/// A running child, killed when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
}

/// A child that listens on an address.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) address: SocketAddr,
    process: Running,
}

impl Listening {
    pub(crate) fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// Starts `command` with a free port, and waits until it accepts connections there.
    pub(crate) fn start(name: &str, command: impl FnOnce(SocketAddr) -> Result<Command>) -> Result<Self> {
        let address = free_address()?;
        let mut command = command(address)?;
        command.stdout(Stdio::null());
        let mut process = Running::start(name, &mut command)?;
        let deadline = Instant::now() + START;
        while TcpStream::connect(address).is_err() {
            if let Some(status) = process.child.try_wait()? {
                bail!("{name} exited with {status} instead of listening on {address}:\n{}", process.log());
            }
            if Instant::now() > deadline {
                bail!("{name} does not listen on {address} after {START:?}:\n{}", process.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { address, process })
    }
}

impl Running {
    /// Starts a child whose standard error is redirected to a file.
    pub(crate) fn start(name: &str, command: &mut Command) -> Result<Self> {
        let log = scratch().join(format!("bench-{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = command.stdin(Stdio::null()).stderr(file).spawn();
        Ok(Self { child: child.with_context(|| format!("cannot start {name}"))?, log })
    }

    /// Starts a child that inherits the standard error of this process.
    pub(crate) fn start_with_stderr(name: &str, command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).spawn();
        Ok(Self { child: child.with_context(|| format!("cannot start {name}"))?, log: PathBuf::new() })
    }

    /// Waits until the child exits. Returns its standard output if it succeeded.
    pub(crate) fn output(mut self) -> Result<String> {
        let mut text = String::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut text)?;
        }
        let status = self.child.wait()?;
        if !status.success() {
            bail!("a part of the benchmark failed. {}", self.log());
        }
        Ok(text)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if the child has exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command that runs this program with a hidden sub-command.
pub(crate) fn myself(sub_command: &str) -> Result<Command> {
    guarded(env::current_exe()?, [sub_command])
}

/// A command that runs `program` and is killed when the caller's thread ends.
pub(crate) fn guarded<'a>(program: impl Into<OsString>, args: impl IntoIterator<Item = &'a str>) -> Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.arg("exec").arg(program.into()).args(args);
    Ok(command)
}

/// The sub-command behind [`guarded`]: asks the kernel to kill this process when its parent ends, then executes the
/// program.
pub(crate) fn exec(mut args: impl Iterator<Item = OsString>) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let program = args.next().context("exec: no program given")?;
    Err(Command::new(&program).args(args).exec()).with_context(|| format!("cannot run {}", program.display()))
}

/// A directory for the files of children, without settings of the user.
pub(crate) fn scratch() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
