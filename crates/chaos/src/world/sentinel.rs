//! Faults of servers under Sentinel. Replicas lag at each failover, so that nodes have to restore events.

use super::{Redis, Steps, World, between};
use crate::fault::Fault;
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};
use testbed::{CutId, RedisServer, Sentinels};

/// The lag of the replicas. With a longer one, the sentinels notice.
const LAG: Duration = Duration::from_millis(800);

/// The master that a fault affects.
#[derive(Debug, Default, Clone)]
struct Master {
    port: Rc<Cell<u16>>,
    cut: Rc<RefCell<Option<CutId>>>,
}

/// The steps of a fault of Sentinel; `None` for other faults.
pub(super) fn steps(fault: Fault, random: &mut fastrand::Rng) -> Option<Steps> {
    let pause = between(random, 1_000, 5_000);
    let master = Master::default();
    let steps = Steps::default();
    Some(
        match fault {
            Fault::SentinelFailover => {
                let steps = begin_failover(hold_replicas_back(steps, &master, |world| world.nodes()));
                restored(replaced(steps, &master), &master)
            }
            Fault::SentinelKill => {
                let steps = hold_replicas_back(steps, &master, |world| world.nodes());
                let steps = replaced(restored(with(steps, &master, RedisServer::kill), &master), &master);
                with(steps.wait(pause), &master, super::revive)
            }
            Fault::SentinelStop => {
                let steps = hold_replicas_back(steps, &master, |world| world.nodes());
                let steps = with(steps, &master, |server| {
                    if server.is_running() {
                        server.stop();
                    }
                });
                let steps = replaced(restored(steps, &master), &master);
                with(steps.wait(pause), &master, super::revive)
            }
            Fault::SentinelThereAndBack => there_and_back(steps, &master, random, None),
            Fault::SentinelSplitBack => {
                let node = random.u64(..);
                there_and_back(steps, &master, random, Some(node))
            }
            Fault::SentinelSplit => {
                let node = random.u64(..);
                let steps = hold_replicas_back(steps, &master, move |world| world.a_node(node).into_iter().collect());
                restored(replaced(steps, &master).wait(pause), &master)
            }
            _ => return None,
        }
        .until("the replicas follow", |world| sentinels(world).is_none_or(|sentinels| sentinels.is_settled())),
    )
}

fn sentinels(world: &mut World) -> Option<&mut Sentinels> {
    match &mut world.redis {
        Redis::Sentinel(sentinels) => Some(sentinels),
        Redis::One(..) | Redis::Cluster(_) => None,
    }
}

fn server(world: &mut World, port: u16) -> Option<&mut RedisServer> {
    sentinels(world)?.servers().iter_mut().find(|server| server.port() == port)
}

/// Records the current master, and cuts it off from all processes but these: from replicas and sentinels at least.
fn hold_replicas_back(steps: Steps, master: &Master, from: impl FnOnce(&World) -> Vec<u32> + 'static) -> Steps {
    let Master { port, cut } = master.clone();
    steps
        .act(move |world, _| {
            let kept = from(world);
            let Some(sentinels) = sentinels(world) else { return };
            let Some(master) = sentinels.master_port() else { return };
            port.set(master);
            *cut.borrow_mut() = sentinels.relay_of(master).map(|relay| relay.cut_all_but(&kept));
        })
        .wait(LAG)
}

/// Ends the cut. Data in transit is lost.
fn restored(steps: Steps, master: &Master) -> Steps {
    let Master { port, cut } = master.clone();
    steps.act(move |world, _| {
        let relay = sentinels(world).and_then(|sentinels| sentinels.relay_of(port.get()));
        if let Some((relay, cut)) = relay.zip(cut.borrow_mut().take()) {
            relay.reset();
            relay.lift(cut);
        }
    })
}

/// Acts on the recorded master, whether or not it still is the master.
fn with(steps: Steps, master: &Master, act: fn(&mut RedisServer)) -> Steps {
    let port = master.port.clone();
    steps.act(move |world, _| server(world, port.get()).into_iter().for_each(act))
}

fn replaced(steps: Steps, master: &Master) -> Steps {
    let port = master.port.clone();
    steps.until("another server becomes the master", move |world| {
        sentinels(world).is_none_or(|sentinels| sentinels.master_is_not(port.get()))
    })
}

/// A failover, and another one back as soon as possible. The third server may not become the master in between.
/// `split`: only this node can reach the second master in between.
fn there_and_back(steps: Steps, master: &Master, random: &mut fastrand::Rng, split: Option<u64>) -> Steps {
    let (pause, third) = (between(random, 0, 3_000), Rc::new(Cell::new(0)));
    let (first, again, other) = (master.port.clone(), master.port.clone(), third.clone());
    let steps = steps
        .act(move |world, _| {
            let Some(sentinels) = sentinels(world) else { return };
            let master = sentinels.master_port();
            let mut running = sentinels.servers().iter().rev().filter(|server| server.is_running());
            if let Some(server) = running.find(|server| Some(server.port()) != master) {
                server.cli(&["CONFIG", "SET", "replica-priority", "0"]);
                third.set(server.port());
            }
        })
        .until("the sentinels know which server may not become the master", move |world| {
            sentinels(world).is_none_or(|sentinels| sentinels.is_replica(other.get(), 0))
        });
    let steps = begin_failover(hold_replicas_back(steps, master, |world| world.nodes()));
    let (second, old) = (Master::default(), first.clone());
    let steps = restored(replaced(steps, master), master);
    let steps = match split {
        None => steps.wait(pause),
        // As soon as possible, so that some nodes have not connected to the second master yet.
        Some(node) => {
            let steps = steps.until("the first master is a replica", move |world| {
                let of = server(world, old.get());
                of.is_none_or(|server| server.cli(&["INFO", "replication"]).contains("master_link_status:up"))
            });
            hold_replicas_back(steps, &second, move |world| world.a_node(node).into_iter().collect())
        }
    };
    let steps = steps.until("the sentinels know that it is", move |world| {
        sentinels(world).is_none_or(|sentinels| sentinels.is_replica(first.get(), 100))
    });
    let steps = begin_failover(steps).until("the first master is the master again", move |world| {
        sentinels(world).is_none_or(|sentinels| sentinels.master_port() == Some(again.get()))
    });
    let steps = if split.is_some() { restored(steps.wait(Duration::from_secs(8)), &second) } else { steps };
    steps.act(|world, _| sentinels(world).into_iter().for_each(forget_priorities))
}

fn begin_failover(steps: Steps) -> Steps {
    steps.until("a failover begins", |world| sentinels(world).is_some_and(|sentinels| sentinels.failover()))
}

/// Allows any server to become the master again.
pub(super) fn forget_priorities(sentinels: &mut Sentinels) {
    for server in sentinels.servers().iter().filter(|server| server.is_running()) {
        server.cli(&["CONFIG", "SET", "replica-priority", "100"]);
    }
}
