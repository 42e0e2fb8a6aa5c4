//! Runs the program with its own directory and environment.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

const TIMEOUT: Duration = Duration::from_secs(120);

/// A command to be run.
pub(crate) struct Program {
    command: Command,
    input: String,
}

/// The result of a command.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A running command.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
    address: String,
    /// The lines that a server printed before it listened.
    pub(crate) earlier: Vec<String>,
}

/// A directory for one test.
pub(crate) fn home(test: &str) -> PathBuf {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    fs::create_dir_all(&home).unwrap();
    home
}

/// The program, without the environment of the test run.
pub(crate) fn fanfare(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanfare"));
    command.current_dir(home).env_clear();
    command
}

impl Program {
    pub(crate) fn new(test: &str) -> Self {
        Self::at(&home(test))
    }

    pub(crate) fn at(home: &Path) -> Self {
        Self { command: fanfare(home), input: String::new() }
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn args(mut self, arguments: &[&str]) -> Self {
        self.command.args(arguments);
        self
    }

    pub(crate) fn input(mut self, text: &str) -> Self {
        text.clone_into(&mut self.input);
        self
    }

    pub(crate) fn run(mut self) -> Ran {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(self.input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        Ran {
            code: output.status.code().expect("the process was killed by a signal"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Running {
    pub(crate) fn start(mut program: Program) -> Self {
        program.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = program.command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, address: String::new(), earlier: Vec::new() }
    }

    /// Starts a server, on a free port unless the command names one, and waits until it listens.
    pub(crate) fn serve(mut program: Program) -> Self {
        if !program.command.get_args().any(|argument| argument == "--listen") {
            program = program.args(&["--listen", "127.0.0.1:0"]);
        }
        let mut server = Self::start(program);
        server.address = loop {
            let line = server.next();
            let address = line.split_once("listens on ").or_else(|| line.split_once("\"address\":\""));
            if let Some((_, rest)) = address {
                let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':').unwrap_or(rest.len());
                break rest[..end].trim_end_matches('.').to_owned();
            }
            server.earlier.push(line);
        };
        server
    }

    fn next(&mut self) -> String {
        self.lines.recv_timeout(TIMEOUT).expect("no further line on the standard error")
    }

    pub(crate) fn address(&self) -> String {
        self.address.clone()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits for a line with `part` in it.
    pub(crate) fn line_with(&mut self, part: &str) -> String {
        loop {
            let line = self.next();
            if line.contains(part) {
                return line;
            }
        }
    }

    /// All lines up to the one with `part` in it.
    pub(crate) fn lines_until(&mut self, part: &str) -> String {
        let mut text = String::new();
        while !text.contains(part) {
            text.push_str(&self.next());
            text.push('\n');
        }
        text
    }

    pub(crate) fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    pub(crate) fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits until the command exits. Returns its code and its standard output.
    pub(crate) fn end(&mut self) -> (i32, String) {
        let mut stdout = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        (self.child.wait().unwrap().code().expect("the process was killed by a signal"), stdout)
    }
}

impl Drop for Running {
    /// Kills the command if a test fails.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
