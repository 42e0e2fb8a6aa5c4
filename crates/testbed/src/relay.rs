//! A TCP proxy in front of one server: a network link that a test can cut, restore and slow down.

use crate::process::free_port;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// The interval at which a blocked connection checks whether it may continue.
const POLL: Duration = Duration::from_millis(20);

/// A link to a server on this machine, through a port of its own.
///
/// A cut link behaves as a partition does: data is held back, so connections stay open and silent, and new connections
/// receive no response. [`Relay::reset`] closes connections, as a firewall that rejects does.
#[derive(Debug)]
pub struct Relay {
    port: u16,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    target: SocketAddr,
    cuts: Mutex<BTreeMap<CutId, Cut>>,
    next_cut: AtomicU64,
    /// Bytes a second in each direction; 0: no limit.
    rate: AtomicU64,
    /// Bytes that passed in both directions.
    passed: AtomicU64,
    open: Mutex<Vec<(TcpStream, TcpStream)>>,
    ended: Mutex<bool>,
}

/// The directions in which a link is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ways {
    /// Both directions.
    Both,
    /// From clients to the server.
    There,
    /// From the server to clients.
    Back,
}

/// Identifies one cut of a link, for [`Relay::lift`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CutId(u64);

/// The connections that are cut.
#[derive(Debug)]
enum Cut {
    All,
    /// All except those of these processes.
    AllBut(BTreeSet<u32>),
    /// Only those of these processes, in these directions.
    Only(BTreeSet<u32>, Ways),
}

impl Relay {
    /// Starts a relay in front of a port of 127.0.0.1.
    pub fn to(port: u16) -> Self {
        let own = free_port();
        let listener = TcpListener::bind(("127.0.0.1", own)).unwrap();
        let state = Arc::new(State {
            target: SocketAddr::from(([127, 0, 0, 1], port)),
            cuts: Mutex::default(),
            next_cut: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            open: Mutex::default(),
            ended: Mutex::new(false),
        });
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if *shared.ended.lock().unwrap() {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let shared = shared.clone();
                thread::spawn(move || relay(&shared, &stream));
            }
        });
        Self { port: own, state }
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts the link: no data passes, and no connection is closed.
    pub fn cut(&self) {
        self.add(Cut::All);
    }

    /// Cuts the link for all processes except these.
    pub fn cut_all_but(&self, processes: &[u32]) -> CutId {
        self.add(Cut::AllBut(processes.iter().copied().collect()))
    }

    /// Cuts the link for these processes only, in one direction or both.
    pub fn cut_for(&self, processes: &[u32], ways: Ways) -> CutId {
        self.add(Cut::Only(processes.iter().copied().collect(), ways))
    }

    fn add(&self, cut: Cut) -> CutId {
        let id = CutId(self.state.next_cut.fetch_add(1, Ordering::Relaxed));
        self.state.cuts.lock().unwrap().insert(id, cut);
        id
    }

    /// Lifts one cut; the others remain.
    pub fn lift(&self, cut: CutId) {
        self.state.cuts.lock().unwrap().remove(&cut);
    }

    /// Lifts all cuts.
    pub fn restore(&self) {
        self.state.cuts.lock().unwrap().clear();
    }

    /// Closes every connection.
    pub fn reset(&self) {
        for (client, server) in self.state.open.lock().unwrap().drain(..) {
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        }
    }

    /// Limits the throughput in each direction of each connection, in bytes a second; 0: no limit.
    pub fn limit(&self, bytes_a_second: u64) {
        self.state.rate.store(bytes_a_second, Ordering::Relaxed);
    }

    /// The number of bytes that passed in both directions.
    pub fn passed(&self) -> u64 {
        self.state.passed.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        *self.state.ended.lock().unwrap() = true;
        self.restore();
        self.reset();
        // Wakes the listener.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl State {
    /// Waits while the link is cut for a process, in a direction.
    fn wait(&self, process: Option<u32>, way: Ways) {
        while self.is_cut(process, way) {
            thread::sleep(POLL);
        }
    }

    fn is_cut(&self, process: Option<u32>, way: Ways) -> bool {
        self.cuts.lock().unwrap().values().any(|cut| match cut {
            Cut::All => true,
            Cut::AllBut(kept) => process.is_none_or(|process| !kept.contains(&process)),
            Cut::Only(cut, ways) => {
                (*ways == Ways::Both || *ways == way) && process.is_some_and(|process| cut.contains(&process))
            }
        })
    }
}

/// Relays one connection until either side ends it.
fn relay(state: &Arc<State>, client: &TcpStream) {
    let process = owner(client);
    state.wait(process, Ways::There);
    let Ok(server) = TcpStream::connect(state.target) else { return drop(client.shutdown(Shutdown::Both)) };
    for stream in [client, &server] {
        let _ = stream.set_nodelay(true);
    }
    let copy = |stream: &TcpStream| stream.try_clone().unwrap();
    state.open.lock().unwrap().push((copy(client), copy(&server)));
    let (from, to, shared) = (copy(&server), copy(client), state.clone());
    let back = thread::spawn(move || pump(&shared, from, to, process, Ways::Back));
    pump(state, copy(client), server, process, Ways::There);
    let _ = back.join();
}

/// Relays one direction.
fn pump(state: &State, mut from: TcpStream, mut to: TcpStream, process: Option<u32>, way: Ways) {
    let mut buffer = vec![0; 16 << 10];
    let mut due = Instant::now();
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        state.wait(process, way);
        let rate = state.rate.load(Ordering::Relaxed);
        if rate > 0 {
            // The time at which the preceding bytes have passed.
            due = due.max(Instant::now()) + Duration::from_secs_f64(read as f64 / rate as f64);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
        state.passed.fetch_add(read as u64, Ordering::Relaxed);
    }
    // The end of a connection is held back by a cut, as data is.
    state.wait(process, way);
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// The process of this machine at the other end of a connection.
///
/// The kernel does not read its table atomically: while connections open and close, an entry may be missing. The search
/// is therefore repeated for a while, because a cut applies to processes.
fn owner(connection: &TcpStream) -> Option<u32> {
    let (peer, own) = (connection.peer_addr().ok()?, connection.local_addr().ok()?);
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        let found = socket_between(peer.port(), own.port()).and_then(|socket| holder(&socket));
        if found.is_some() || Instant::now() > deadline {
            return found;
        }
        thread::sleep(POLL);
    }
}

/// The open socket from one port to another, in the form of `/proc/ID/fd`.
///
/// Both ports are compared, because another connection may use the same port towards another server, or may have used
/// it (`TIME_WAIT`).
fn socket_between(from: u16, to: u16) -> Option<String> {
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let (from, to) = (format!(":{from:04X}"), format!(":{to:04X}"));
    let inode = table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, remote, inode) = (fields.get(1)?, fields.get(2)?, fields.get(9)?);
        (local.ends_with(&from) && remote.ends_with(&to) && *inode != "0").then(|| (*inode).to_owned())
    })?;
    Some(format!("socket:[{inode}]"))
}

/// A process that has a socket open.
fn holder(socket: &str) -> Option<u32> {
    let has = |id: &u32| {
        let files = fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file.as_os_str() == socket)
    };
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|process| process.file_name().to_str()?.parse().ok()).find(has)
}
