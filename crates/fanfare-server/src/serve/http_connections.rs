//! The HTTP connections of this process: accepted connections that are not upgraded. Limits their number, in total and
//! by address, so that clients and health checks always have files.
//!
//! At a limit, the oldest connection of the busiest address is closed for the new one. A client upgrades within
//! moments, so an old connection is silent, slow, or idle between requests. A new connection is never rejected.
//! Therefore neither one address nor many can keep others from connecting.
//!
//! Knows tasks and addresses, and no sockets or HTTP.

use fanfare::{
    address_group,
    metrics::{Counter, Metrics},
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    future::Future,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::task::AbortHandle;

/// The limits on HTTP connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// The max, if files are available. In a reconnect storm all clients begin as HTTP connections.
    pub(super) max: usize,
    /// The number that is always available.
    pub(super) guaranteed: usize,
    /// Files for clients and HTTP connections together.
    pub(super) files: usize,
    pub(super) per_address: PerAddress,
}

/// The limit for one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PerAddress {
    All,
    Half,
    Fixed(usize),
}

/// The open connections.
pub(super) struct HttpConnections {
    limits: Limits,
    /// Returns the number of clients.
    clients: Box<dyn Fn() -> usize + Send + Sync>,
    metrics: Arc<Metrics>,
    table: Mutex<Table>,
}

/// A connection's entry in the table. Dropping it removes the entry.
pub(super) struct Slot {
    connections: Arc<HttpConnections>,
    id: u64,
}

/// The source that a connection is counted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Source {
    /// An address, or the /64 of an IPv6 address.
    Address(IpAddr),
    /// A proxy, whose connections belong to many clients: each connection counts by itself.
    Proxy(u64),
}

#[derive(Debug, Default)]
struct Table {
    /// The ID of the next connection. IDs ascend, so a smaller one is older.
    next: u64,
    open: BTreeMap<u64, Connection>,
    by_source: HashMap<Source, BTreeSet<u64>>,
    /// The sources by number of connections, then by the age of their oldest one. The last source is the next to lose
    /// one.
    by_load: BTreeSet<(usize, Reverse<u64>, Source)>,
}

#[derive(Debug)]
struct Connection {
    source: Source,
    /// `None` until its task is spawned.
    task: Option<AbortHandle>,
}

impl Limits {
    /// A fixed limit, half of it for one address.
    pub(super) fn fixed(all: usize) -> Self {
        Self { max: all, guaranteed: all, files: usize::MAX, per_address: PerAddress::Half }
    }

    /// The limits in total and for one address, given the number of clients.
    fn beside(&self, clients: usize) -> (usize, usize) {
        let all = self.max.min(self.files.saturating_sub(clients)).max(self.guaranteed).max(1);
        let per_address = match self.per_address {
            PerAddress::All => all,
            PerAddress::Half => all.div_ceil(2),
            PerAddress::Fixed(n) => n.clamp(1, all),
        };
        (all, per_address)
    }
}

impl HttpConnections {
    pub(super) fn new(
        limits: Limits,
        clients: impl Fn() -> usize + Send + Sync + 'static,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self { limits, clients: Box::new(clients), metrics, table: Mutex::default() })
    }

    /// Serves a connection of an address, or of a proxy, in its own task. At a limit it closes another connection and
    /// returns true; the socket of that one is closed when its task runs next.
    pub(super) fn spawn<F>(self: &Arc<Self>, address: Option<IpAddr>, serve: impl FnOnce(Slot) -> F) -> bool
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (slot, evicted) = self.admit(address);
        let id = slot.id;
        let task = tokio::spawn(serve(slot)).abort_handle();
        match self.table().open.get_mut(&id) {
            Some(connection) => connection.task = Some(task),
            // Its entry was removed already: it has finished, or was evicted before its task was spawned.
            None => task.abort(),
        }
        evicted
    }

    /// Closes the next connection in the order of eviction. Returns false if there is none.
    pub(super) fn close_one(&self) -> bool {
        let mut table = self.table();
        let oldest = table.oldest_of_busiest();
        oldest.is_some_and(|id| self.evict(&mut table, id, Counter::LimitHttpConnections))
    }

    fn admit(self: &Arc<Self>, address: Option<IpAddr>) -> (Slot, bool) {
        let mut table = self.table();
        let id = table.next;
        table.next += 1;
        let source = address.map_or(Source::Proxy(id), |address| Source::Address(address_group(address)));
        let evicted = self.make_room(&mut table, source);
        table.insert(id, Connection { source, task: None });
        (Slot { connections: self.clone(), id }, evicted)
    }

    fn make_room(&self, table: &mut Table, source: Source) -> bool {
        let (all, per_address) = self.limits.beside((self.clients)());
        let of_source = table.by_source.get(&source);
        if let Some(oldest) = of_source.filter(|ids| ids.len() >= per_address).and_then(BTreeSet::first) {
            let oldest = *oldest;
            self.evict(table, oldest, Counter::LimitHttpPerAddress)
        } else if table.open.len() >= all
            && let Some(oldest) = table.oldest_of_busiest()
        {
            self.evict(table, oldest, Counter::LimitHttpConnections)
        } else {
            false
        }
    }

    fn evict(&self, table: &mut Table, id: u64, counter: Counter) -> bool {
        let Some(connection) = table.remove(id) else { return false };
        self.metrics.add(counter, 1);
        if let Some(task) = connection.task {
            task.abort();
        }
        true
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Counts the connection for the address that a PROXY header named.
    pub(super) fn set_address(&self, address: IpAddr) {
        let source = Source::Address(address_group(address));
        let mut table = self.connections.table();
        if let Some(connection) = table.remove(self.id) {
            self.connections.make_room(&mut table, source);
            table.insert(self.id, Connection { source, ..connection });
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.connections.table().remove(self.id);
    }
}

impl Table {
    fn oldest_of_busiest(&self) -> Option<u64> {
        self.by_load.last().map(|(_, Reverse(oldest), _)| *oldest)
    }

    fn insert(&mut self, id: u64, connection: Connection) {
        self.change(connection.source, |ids| ids.insert(id));
        self.open.insert(id, connection);
    }

    fn remove(&mut self, id: u64) -> Option<Connection> {
        let connection = self.open.remove(&id)?;
        self.change(connection.source, |ids| ids.remove(&id));
        Some(connection)
    }

    fn change(&mut self, source: Source, change: impl FnOnce(&mut BTreeSet<u64>) -> bool) {
        let ids = self.by_source.entry(source).or_default();
        let load = |ids: &BTreeSet<u64>| ids.first().map(|oldest| (ids.len(), Reverse(*oldest), source));
        if let Some(before) = load(ids) {
            self.by_load.remove(&before);
        }
        change(ids);
        match load(ids) {
            Some(after) => drop(self.by_load.insert(after)),
            None => drop(self.by_source.remove(&source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, net::Ipv4Addr};

    fn address(n: u8) -> IpAddr {
        Ipv4Addr::new(127, 0, 0, n).into()
    }

    fn connections(all: usize, per_address: usize) -> Arc<HttpConnections> {
        let limits = Limits { per_address: PerAddress::Fixed(per_address), ..Limits::fixed(all) };
        HttpConnections::new(limits, || 0, Arc::default())
    }

    fn open(connections: &HttpConnections) -> BTreeSet<u64> {
        connections.table().open.keys().copied().collect()
    }

    // attack: one address fills every HTTP connection => its own oldest ones are closed; other addresses keep theirs
    #[test]
    fn an_address_at_its_limit_loses_its_own_oldest() {
        let connections = connections(10, 2);
        let _slots = [1, 2, 1, 1, 1].map(|n| connections.admit(Some(address(n))).0);
        assert_eq!(open(&connections), [1, 3, 4].into());
    }

    // attack: many addresses fill every HTTP connection => the oldest of the busiest is closed for each new one
    #[test]
    fn a_full_table_closes_the_oldest_of_the_busiest_address() {
        let connections = connections(4, 3);
        let _slots = [9, 1, 2, 2, 3, 4, 5].map(|n| connections.admit(Some(address(n))).0);
        // First one of the two connections of address 2, then the oldest of all.
        assert_eq!(open(&connections), [3, 4, 5, 6].into());
    }

    #[test]
    fn connections_of_a_proxy_count_separately() {
        let connections = connections(4, 2);
        let slots = [None, None, None, Some(1)].map(|n| connections.admit(n.map(address)).0);
        assert_eq!(open(&connections), [0, 1, 2, 3].into());
        // Their PROXY headers name the same client, which has one connection already.
        slots[0].set_address(address(1));
        slots[1].set_address(address(1));
        assert_eq!(open(&connections), [1, 2, 3].into());
    }

    #[test]
    fn http_connections_use_files_that_clients_leave() {
        let limits = Limits { max: 100, guaranteed: 10, files: 120, per_address: PerAddress::Half };
        assert_eq!([0, 20, 50, 110, 500].map(|clients| limits.beside(clients).0), [100, 100, 70, 10, 10]);
        assert_eq!(limits.beside(50).1, 35);
        assert_eq!(Limits { per_address: PerAddress::All, ..limits }.beside(50), (70, 70));
        assert_eq!(Limits { per_address: PerAddress::Fixed(80), ..limits }.beside(50), (70, 70));
    }

    #[test]
    fn a_dropped_slot_removes_its_entry() {
        let connections = connections(4, 4);
        drop([1, 1, 2].map(|n| connections.admit(Some(address(n))).0));
        let table = connections.table();
        assert!(table.open.is_empty() && table.by_source.is_empty() && table.by_load.is_empty());
    }

    #[tokio::test]
    async fn the_task_of_an_evicted_connection_is_aborted() {
        let connections = connections(1, 1);
        let (guard, dropped) = tokio::sync::oneshot::channel::<()>();
        connections.spawn(Some(address(1)), |slot| async move {
            let _kept = (slot, guard);
            std::future::pending::<()>().await;
        });
        connections.spawn(Some(address(2)), |slot| async move {
            let _slot = slot;
            std::future::pending::<()>().await;
        });
        dropped.await.unwrap_err();
        assert!(connections.close_one());
        assert!(!connections.close_one());
    }
}
