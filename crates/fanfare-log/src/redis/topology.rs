//! Finds the server that holds the log. Apart from the lease, the waiting times of fresh nodes and the hash tag of the
//! keys, this is all that distinguishes a single server, Sentinel and Cluster.

use super::{
    address::Address,
    connection::{Connection, call, read},
    error::LinkError,
    tls::RedisTls,
    url::{RedisUrl, Topology},
};
use crate::environment::{self, Stream};
use futures_util::{StreamExt, stream::FuturesUnordered};
use redis::{RedisConnectionInfo, Value, aio::PubSub, cmd};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    time::Duration,
};
use tokio::{
    net::{TcpStream, UnixStream},
    time::timeout,
};

/// The timeout for opening a connection.
const CONNECT: Duration = Duration::from_secs(2);

/// The location of a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Located {
    pub(super) address: Address,
    /// With Sentinel, the configuration epoch of the failover that promoted the server (`config-epoch`). It increases
    /// with each failover. A master that is named again after another one therefore counts as another server.
    pub(super) config_epoch: Option<u64>,
}

impl RedisUrl {
    /// Whether all keys must share a hash slot.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.topology, Topology::Cluster(_))
    }

    /// Whether the URL has a password.
    pub(super) fn has_password(&self) -> bool {
        self.password.is_some()
    }

    /// Whether the master is found through Sentinel.
    pub(super) fn is_sentinel(&self) -> bool {
        matches!(self.topology, Topology::Sentinel { .. })
    }

    /// Finds the server that currently holds `key`.
    pub(super) async fn locate(&self, key: &str) -> Result<Located, LinkError> {
        let address = match &self.topology {
            Topology::Standalone(address) => address.clone(),
            Topology::Sentinel { sentinels, master } => return self.ask_majority(sentinels, master).await,
            Topology::Cluster(nodes) => self.ask_each(nodes, async |at| self.ask_cluster(at, key).await).await?,
        };
        Ok(Located { address, config_epoch: None })
    }

    /// The server that more than half of the sentinels name. A minority may be partitioned from a majority that has
    /// promoted another server.
    async fn ask_majority(&self, sentinels: &[Address], master: &str) -> Result<Located, LinkError> {
        let ask = async |n: usize, at: &Address| (n, self.ask_sentinel(at, master).await);
        let mut asked: FuturesUnordered<_> = sentinels.iter().enumerate().map(|(n, at)| ask(n, at)).collect();
        let (mut named, mut failed) = (HashMap::<Located, usize>::new(), BTreeMap::new());
        while let Some((n, answer)) = asked.next().await {
            match answer {
                Ok(located) => {
                    let votes = named.entry(located.clone()).or_default();
                    *votes += 1;
                    if *votes > sentinels.len() / 2 {
                        return Ok(located);
                    }
                }
                // The key makes the reported error independent of the order of the responses. Errors about credentials
                // and names come first, because they apply to all sentinels and are more specific.
                Err(error) => {
                    let says_more = matches!(error, LinkError::Refused(_) | LinkError::NoMaster(_));
                    failed.insert((!says_more, n), error);
                }
            }
        }
        let votes = named.values().max().copied().unwrap_or(0);
        match failed.pop_first().map(|(_, error)| error) {
            Some(error @ LinkError::Refused(_)) => Err(error),
            Some(LinkError::NoMaster(why)) => Err(LinkError::NoMaster(why)),
            Some(error) => Err(LinkError::NoMaster(format!(
                "{votes} of {} sentinels agree on the master {master:?}; more than half must: {error}",
                sentinels.len()
            ))),
            None => {
                Err(LinkError::NoMaster(format!("the sentinels do not agree on the address of the master {master:?}")))
            }
        }
    }

    /// Asks the servers one after another. Returns the first success, or the last error.
    async fn ask_each(
        &self,
        addresses: &[Address],
        ask: impl AsyncFn(&Address) -> Result<Address, LinkError>,
    ) -> Result<Address, LinkError> {
        let mut last = LinkError::NoMaster("the URL has no server".to_owned());
        for address in addresses {
            match ask(address).await {
                Ok(master) => return Ok(master),
                // `Down` would mean that no node can write to the log, but a seed node is not necessarily the server
                // that holds it.
                Err(LinkError::Down(why)) => last = LinkError::Unreachable(why),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The number of sentinels in the URL, and the number that monitor the master according to the sentinels that
    /// responded. `None` without Sentinel.
    pub(super) async fn count_sentinels(&self) -> Option<(usize, usize)> {
        let Topology::Sentinel { sentinels, master } = &self.topology else { return None };
        let others = async |at: &Address| -> Result<usize, LinkError> {
            let mut connection = self.open_sentinel(at).await?;
            let answer = call(&mut connection, cmd("SENTINEL").arg("SENTINELS").arg(master)).await?;
            Ok(read::<Vec<Value>>(answer)?.len())
        };
        let mut asked: FuturesUnordered<_> = sentinels.iter().map(others).collect();
        let mut known = 0;
        while let Some(others) = asked.next().await {
            known = known.max(others.map_or(0, |others| others + 1));
        }
        Some((sentinels.len(), known))
    }

    async fn open_sentinel(&self, at: &Address) -> Result<Connection, LinkError> {
        let mut info = RedisConnectionInfo::default();
        if let Some(password) = &self.password {
            info = info.set_password(password);
        }
        // Sentinels often have no password even if their servers have one.
        match self.open(at, info).await {
            Err(LinkError::Refused(_)) => self.open(at, RedisConnectionInfo::default()).await,
            other => other,
        }
    }

    async fn ask_sentinel(&self, at: &Address, master: &str) -> Result<Located, LinkError> {
        let mut connection = self.open_sentinel(at).await?;
        // The configuration epoch must be read before the address. During a promotion, SENTINEL MASTER returns the new
        // epoch with the old address.
        let state = call(&mut connection, cmd("SENTINEL").arg("MASTER").arg(master)).await;
        let denied = if let Err(LinkError::Refused(why)) = &state { Some(why.clone()) } else { None };
        let state = state.ok().and_then(|state| redis::from_redis_value::<HashMap<String, String>>(state).ok());
        let config_epoch = state.and_then(|state| state.get("config-epoch")?.parse().ok());
        let answer = call(&mut connection, cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(master)).await?;
        match redis::from_redis_value::<Option<(String, u16)>>(answer) {
            Ok(Some((host, port))) if config_epoch.is_some() => {
                Ok(Located { address: Address { host, port }, config_epoch })
            }
            Ok(Some(_)) => Err(LinkError::NoMaster(match denied {
                Some(why) => {
                    format!("the sentinel at {at} denied SENTINEL MASTER ({why}): grant +sentinel|master to the user")
                }
                None => format!("the sentinel at {at} returned no config-epoch for {master:?} (SENTINEL MASTER)"),
            })),
            Ok(None) | Err(_) => {
                Err(LinkError::NoMaster(format!("the sentinel at {at} monitors no master named {master:?}")))
            }
        }
    }

    async fn ask_cluster(&self, at: &Address, key: &str) -> Result<Address, LinkError> {
        let mut connection = self.open(at, self.credentials()).await?;
        let slot: u16 = read(call(&mut connection, cmd("CLUSTER").arg("KEYSLOT").arg(key)).await?)?;
        let slots: Vec<Vec<Value>> = read(call(&mut connection, cmd("CLUSTER").arg("SLOTS")).await?)?;
        let mut owners = slots.into_iter().filter_map(|range| match &range[..] {
            [Value::Int(first), Value::Int(last), Value::Array(master), ..] => {
                (*first..=*last).contains(&i64::from(slot)).then(|| owner(master, at)).flatten()
            }
            _ => None,
        });
        owners.next().ok_or_else(|| LinkError::NoMaster(format!("no node of the Cluster at {at} serves slot {slot}")))
    }

    pub(super) fn credentials(&self) -> RedisConnectionInfo {
        let mut info = RedisConnectionInfo::default().set_db(self.database);
        if let Some(user) = &self.user {
            info = info.set_username(user);
        }
        if let Some(password) = &self.password {
            info = info.set_password(password);
        }
        info
    }

    /// Opens a stream to a server.
    async fn dial(&self, at: &Address) -> Result<Box<dyn Stream>, LinkError> {
        let dialed = |error: io::Error| LinkError::connecting(at, error.into());
        if let Some(dialing) = environment::dial(&at.host, at.port) {
            return dialing.await.map_err(|error| LinkError::unreachable(at, &error.to_string()));
        }
        if at.is_path() {
            return Ok(Box::new(UnixStream::connect(&at.host).await.map_err(dialed)?));
        }
        if self.tls {
            let system = || RedisTls::system().map_err(|error| LinkError::unreachable(at, &error.to_string()));
            let certificates = self.certificates.as_ref().map_or_else(system, Ok)?;
            return Ok(Box::new(certificates.dial(at).await.map_err(dialed)?));
        }
        let stream = TcpStream::connect((at.host.as_str(), at.port)).await.map_err(dialed)?;
        stream.set_nodelay(true).map_err(dialed)?;
        Ok(Box::new(stream))
    }

    /// Opens a connection. Each response must begin within `limit`, and must not pause for longer than that.
    pub(super) async fn connect(
        &self,
        at: &Address,
        info: RedisConnectionInfo,
        limit: Duration,
    ) -> Result<Connection, LinkError> {
        let connecting = async {
            let stream = self.dial(at).await?;
            Connection::over(stream, &info, limit).await.map_err(|error| LinkError::connecting(at, error))
        };
        with_timeout(at, CONNECT, connecting).await
    }

    /// Opens a connection for channels.
    pub(super) async fn pubsub(
        &self,
        at: &Address,
        info: RedisConnectionInfo,
        limit: Duration,
    ) -> Result<PubSub, LinkError> {
        let connecting = async {
            let stream = self.dial(at).await?;
            PubSub::new(&info, stream).await.map_err(|error| LinkError::connecting(at, error))
        };
        with_timeout(at, limit, connecting).await
    }

    async fn open(&self, at: &Address, info: RedisConnectionInfo) -> Result<Connection, LinkError> {
        self.connect(at, info, CONNECT).await
    }
}

/// Applies a timeout to a connection attempt. The timeouts of the Redis client do not cover the whole handshake.
async fn with_timeout<T>(
    at: &Address,
    limit: Duration,
    connecting: impl Future<Output = Result<T, LinkError>>,
) -> Result<T, LinkError> {
    let silent = || LinkError::Silent(format!("{at} accepted no connection within {} s", limit.as_secs()));
    timeout(limit, connecting).await.unwrap_or_else(|_| Err(silent()))
}

fn owner(master: &[Value], asked: &Address) -> Option<Address> {
    let [host, Value::Int(port), ..] = master else { return None };
    let host = redis::from_redis_value::<Option<String>>(host.clone()).ok()?.unwrap_or_default();
    // An empty host means the address that the node was asked at.
    let host = if host.is_empty() { asked.host.clone() } else { host };
    Some(Address { host, port: u16::try_from(*port).ok()? })
}
