//! Faults of the servers of a Cluster.

use super::{LOG, Redis, Steps, World, between};
use crate::fault::Fault;
use std::{cell::Cell, rc::Rc, time::Duration};
use testbed::{Cluster, RedisServer};

/// The lag of the replica when its master is killed.
const LAG: Duration = Duration::from_millis(800);

/// The steps of a fault of a Cluster; `None` for other faults.
pub(super) fn steps(fault: Fault, random: &mut fastrand::Rng) -> Option<Steps> {
    let pause = between(random, 1_000, 5_000);
    let owner = Rc::new(Cell::new(0));
    let steps = note(Steps::default(), &owner);
    let steps = match fault {
        Fault::ClusterFailover => steps.act(|world, _| {
            cluster(world).into_iter().for_each(|cluster| cluster.begin_failover(LOG));
        }),
        Fault::ClusterKill => with(hold_replica_back(steps, &owner), &owner, RedisServer::kill),
        Fault::ClusterStop => with(steps, &owner, |node| {
            if node.is_running() {
                node.stop();
            }
        }),
        _ => return None,
    };
    let before = owner.clone();
    let steps = steps
        .until("a replica takes over", move |world| {
            let now = cluster(world).and_then(|cluster| cluster.owner_port(LOG));
            now.is_some_and(|now| now != before.get())
        })
        .wait(pause);
    let steps = with(steps, &owner, super::revive).act(|world, _| {
        cluster(world).into_iter().for_each(let_follow);
    });
    Some(steps.until("the Cluster is healthy", |world| cluster(world).is_none_or(|cluster| cluster.is_settled())))
}

fn cluster(world: &mut World) -> Option<&mut Cluster> {
    match &mut world.redis {
        Redis::Cluster(cluster) => Some(cluster),
        Redis::One(..) | Redis::Sentinel(_) => None,
    }
}

fn note(steps: Steps, owner: &Rc<Cell<u16>>) -> Steps {
    let owner = owner.clone();
    steps.act(move |world, _| {
        let port = cluster(world).and_then(|cluster| cluster.owner_port(LOG));
        owner.set(port.unwrap_or(0));
    })
}

fn with(steps: Steps, owner: &Rc<Cell<u16>>, act: fn(&mut RedisServer)) -> Steps {
    let owner = owner.clone();
    steps.act(move |world, _| {
        let nodes = cluster(world).map(Cluster::nodes).into_iter().flatten();
        nodes.filter(|node| node.port() == owner.get()).for_each(act);
    })
}

/// Stops the replication of the owner's replica, with a password that its master does not accept.
fn hold_replica_back(steps: Steps, owner: &Rc<Cell<u16>>) -> Steps {
    let owner = owner.clone();
    steps
        .act(move |world, _| {
            let Some(cluster) = cluster(world) else { return };
            for node in cluster.nodes().iter().filter(|node| node.is_running()) {
                if node.port() == owner.get() {
                    node.cli(&["CLIENT", "KILL", "TYPE", "replica"]);
                } else {
                    node.cli(&["CONFIG", "SET", "masterauth", "none"]);
                }
            }
            // Again: a replica that reconnected before the password changed would follow.
            cluster.node(owner.get()).cli(&["CLIENT", "KILL", "TYPE", "replica"]);
        })
        .wait(LAG)
}

/// Resumes replication.
pub(super) fn let_follow(cluster: &mut Cluster) {
    for node in cluster.nodes().iter().filter(|node| node.is_running()) {
        node.cli(&["CONFIG", "SET", "masterauth", ""]);
    }
}
