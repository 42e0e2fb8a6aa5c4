//! Nodes in network namespaces of their own, whose packets to and from Redis can be dropped. Clients reach them by
//! other addresses, so a node that is cut off from Redis keeps its clients.
//!
//! A namespace lives as long as the node in it, and so does the link to it. A guard removes the routes, so nothing
//! remains however this process ends.

use super::{
    Unavailable,
    disk::{find, run},
    guard::Guard,
};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};
use testbed::{HubProcess, RedisSetup, Ways, free_port, until};

/// The number of nodes.
pub(super) const COUNT: usize = 3;

/// Addresses for benchmarks between networks (RFC 2544), which are not in use on any network. Each process uses other
/// ones.
fn address(node: usize, last: u8) -> Ipv4Addr {
    let own = std::process::id() as usize % 80 * COUNT;
    Ipv4Addr::new(198, 18, u8::try_from(own + node).unwrap_or(0), last)
}

/// The last byte of an address: Redis and the node on the link that is cut, clients and the node on the other link.
const REDIS: u8 = 1;
const NODE: u8 = 2;
const CLIENTS: u8 = 4;
const NODE_FOR_CLIENTS: u8 = 3;

/// Nodes in network namespaces of their own.
#[derive(Debug)]
pub(super) struct Networks {
    nodes: Vec<Node>,
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    redis_port: u16,
    /// The prefix of the interfaces of this process.
    prefix: String,
    _guard: Guard,
}

#[derive(Debug)]
struct Node {
    address: SocketAddr,
    hub: Option<HubProcess>,
}

impl Networks {
    /// Makes Redis listen at the addresses that the nodes connect to.
    pub(super) fn listens(setup: RedisSetup) -> RedisSetup {
        setup.line("bind 0.0.0.0").line("protected-mode no")
    }

    /// Starts the nodes, and waits until they are ready.
    pub(super) fn start(
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
        redis_port: u16,
    ) -> Result<Self, Unavailable> {
        for tool in ["ip", "unshare", "nsenter"] {
            find(tool).ok_or_else(|| format!("{tool} is not installed"))?;
        }
        run(Command::new("unshare").args(["--net", "true"]))
            .ok_or("cannot create network namespaces (root is required)")?;
        let node = |node| Node { address: (address(node, NODE_FOR_CLIENTS), free_port()).into(), hub: None };
        // Packets for a node that is gone must not take another route.
        let mut cleanup = String::new();
        for node in 0..COUNT {
            let network = format!("{}/29", address(node, 0));
            ip(&["route", "replace", "unreachable", &network]).ok_or("cannot add routes")?;
            cleanup += &format!("ip route del unreachable {network}; ip route del blackhole {}; ", address(node, NODE));
        }
        let guard = Guard::new(&format!("PATH=$PATH:/usr/sbin:/sbin; {cleanup}")).ok_or("sh is not installed")?;
        let mut all = Self {
            nodes: (0..COUNT).map(node).collect(),
            program: program.to_owned(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            environment: environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect(),
            redis_port,
            prefix: format!("ff{}", std::process::id()),
            _guard: guard,
        };
        for node in 0..COUNT {
            all.launch(node).ok_or("cannot create a link between network namespaces")?;
        }
        until("all nodes are ready", || {
            all.nodes.iter().all(|node| node.hub.as_ref().is_some_and(HubProcess::is_ready))
        });
        Ok(all)
    }

    fn launch(&mut self, node: usize) -> Option<()> {
        let mut command = Command::new("unshare");
        // The last address to be assigned shows that the link is complete.
        let script = "ip link set lo up; \
                      until ip -4 addr show dev hub 2>/dev/null | grep -q \"$0/\"; do sleep 0.02; done; exec \"$@\"";
        let ready = address(node, NODE_FOR_CLIENTS).to_string();
        command.args(["--net", "sh", "-c", script, &ready]).arg(&self.program);
        let url = format!("redis://{}:{}", address(node, REDIS), self.redis_port);
        let mut arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        arguments.extend(["--redis-url", &url]);
        let environment: Vec<_> =
            self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let hub = HubProcess::launch_at(self.nodes[node].address, &mut command, &arguments, &environment);
        let process = hub.id();
        let own = fs::read_link("/proc/self/ns/net").ok()?;
        until("the node has a network", || {
            fs::read_link(format!("/proc/{process}/ns/net")).is_ok_and(|network| network != own)
        });
        let (outer, id) = (format!("{}n{node}", self.prefix), process.to_string());
        let [redis, inner, inner_for_clients, clients] =
            [REDIS, NODE, NODE_FOR_CLIENTS, CLIENTS].map(|last| address(node, last).to_string());
        // The link of a node that was killed a moment ago may still exist.
        let _ = ip(&["link", "del", &outer]);
        ip(&["link", "add", &outer, "type", "veth", "peer", "name", "hub", "netns", &id])?;
        for addr in [&redis, &clients] {
            ip(&["addr", "add", &format!("{addr}/32"), "dev", &outer])?;
        }
        ip(&["link", "set", &outer, "up"])?;
        // While the node is cut off, another route drops its packets.
        let _ = ip(&["route", "add", &inner, "dev", &outer, "src", &redis]);
        ip(&["route", "add", &inner_for_clients, "dev", &outer, "src", &clients])?;
        let inside = |arguments: &[&str]| inside(process, arguments);
        inside(&["addr", "add", &format!("{inner}/32"), "dev", "hub"])?;
        inside(&["link", "set", "hub", "up"])?;
        inside(&["route", "add", &redis, "dev", "hub", "src", &inner])?;
        // The node's address of the other link is not assigned yet, and is not needed.
        inside(&["route", "add", &clients, "dev", "hub"])?;
        inside(&["addr", "add", &format!("{inner_for_clients}/32"), "dev", "hub"])?;
        self.nodes[node].hub = Some(hub);
        Some(())
    }

    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.address).collect()
    }

    /// The process IDs of running nodes.
    pub(super) fn processes(&self) -> Vec<u32> {
        self.nodes.iter().filter_map(|node| node.hub.as_ref()).map(HubProcess::id).collect()
    }

    pub(super) fn logs(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.hub.as_ref().map_or_else(String::new, HubProcess::log)).collect()
    }

    /// Kills the node with a process ID.
    pub(super) fn kill(&mut self, process: Option<u32>) {
        let nodes = self.nodes.iter_mut();
        nodes.filter(|node| node.hub.as_ref().map(HubProcess::id) == process).for_each(|node| node.hub = None);
    }

    /// Restarts the nodes that were killed, and those that exited because they did not reach Redis when they started.
    pub(super) fn restart(&mut self) {
        for node in 0..COUNT {
            if self.nodes[node].hub.as_mut().is_some_and(HubProcess::has_ended) {
                self.nodes[node].hub = None;
            }
            if self.nodes[node].hub.is_none() && self.launch(node).is_none() {
                println!("           failed to restart a node");
            }
        }
    }

    /// Drops the packets of a node to Redis, those of Redis to it, or both; or stops doing so.
    pub(super) fn cut(&self, random: u64, ways: Ways, cut: bool) {
        let node = usize::try_from(random % COUNT as u64).unwrap_or(0);
        let [redis, inner] = [REDIS, NODE].map(|last| address(node, last).to_string());
        if ways != Ways::Back
            && let Some(hub) = &self.nodes[node].hub
        {
            let _ = match cut {
                true => inside(hub.id(), &["route", "replace", "blackhole", &redis]),
                false => inside(hub.id(), &["route", "replace", &redis, "dev", "hub", "src", &inner]),
            };
        }
        if ways != Ways::There {
            let outer = format!("{}n{node}", self.prefix);
            let _ = match cut {
                true => ip(&["route", "replace", "blackhole", &inner]),
                false => {
                    // A node that was killed in the meantime has no link: its next start adds the route.
                    let _ = ip(&["route", "del", "blackhole", &inner]);
                    ip(&["route", "replace", &inner, "dev", &outer, "src", &redis])
                }
            };
        }
    }

    /// Ends every cut, restarts killed nodes, and waits until all nodes are ready. Redis must be running.
    pub(super) fn heal(&mut self) {
        (0..COUNT as u64).for_each(|node| self.cut(node, Ways::Both, false));
        until("all nodes are ready", || {
            self.restart();
            self.nodes.iter().all(|node| node.hub.as_ref().is_some_and(HubProcess::is_ready))
        });
    }
}

fn ip(arguments: &[&str]) -> Option<()> {
    run(Command::new(find("ip")?).args(arguments))
}

/// Configures the network of a process.
fn inside(process: u32, arguments: &[&str]) -> Option<()> {
    let mut command = Command::new("nsenter");
    run(command.args(["--net", "--target", &process.to_string()]).arg(find("ip")?).args(arguments))
}
