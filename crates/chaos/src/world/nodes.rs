//! Faults of nodes and of their links.

use super::{Nodes, Steps, World};
use crate::fault::Fault;
use nix::sys::signal::Signal;
use std::{cell::RefCell, rc::Rc, time::Duration};
use testbed::{HubProcess, Ways};

/// The throughput of a slow link, in bytes a second.
const SLOW: u64 = 20_000;

/// The steps of a fault of nodes or links; `None` for other faults.
pub(super) fn steps(fault: Fault, random: &mut fastrand::Rng) -> Option<Steps> {
    let (node, steps) = (random.u64(..), Steps::default());
    let short = Duration::from_millis(Fault::lasts_ms(fault));
    Some(match fault {
        Fault::KillWorker => {
            let back = super::between(random, 300, 3_000);
            steps
                .act(move |world, _| world.kill_node(node))
                .wait(back)
                // The supervisor restarts the worker.
                .act(|world, _| {
                    if let Nodes::Networks(networks) = &mut world.hub {
                        networks.restart();
                    }
                })
        }
        Fault::StopWorker | Fault::StopWorkerLong => {
            let stopped = Rc::new(RefCell::new(None));
            let same = stopped.clone();
            steps
                .act(move |world, _| {
                    *stopped.borrow_mut() = world.a_node(node);
                    signal(*stopped.borrow(), Signal::SIGSTOP);
                })
                .wait(short)
                .act(move |_, _| signal(*same.borrow(), Signal::SIGCONT))
        }
        Fault::RollingRestart => {
            let before = Rc::new(RefCell::new((Vec::new(), 0)));
            let known = before.clone();
            steps
                .act(move |world, _| {
                    if let Nodes::Workers { hub, .. } = &world.hub {
                        *before.borrow_mut() = (hub.workers(), hub.log().len());
                        hub.signal(Signal::SIGHUP);
                    }
                })
                .until("all workers are replaced", move |world| {
                    let (workers, logged) = &*known.borrow();
                    world.has_rolled(workers, *logged)
                })
        }
        Fault::AloneThenKilled | Fault::AloneThenStopped => alone(steps, node, fault == Fault::AloneThenKilled),
        Fault::SlowLink => steps
            .act(|world, _| world.relays().iter().for_each(|relay| relay.limit(SLOW)))
            .wait(short)
            .act(|world, _| world.relays().iter().for_each(|relay| relay.limit(0))),
        Fault::CutLinks => cut(steps, short, |_| None, Ways::Both),
        Fault::CutWorker => cut(steps, short, move |world| world.a_node(node), Ways::Both),
        Fault::CutWorkerThere => cut(steps, short, move |world| world.a_node(node), Ways::There),
        Fault::CutWorkerBack => cut(steps, short, move |world| world.a_node(node), Ways::Back),
        Fault::Partition | Fault::PartitionLong => partition(steps, short, node, Ways::Both),
        Fault::PartitionThere => partition(steps, short, node, Ways::There),
        Fault::PartitionBack => partition(steps, short, node, Ways::Back),
        _ => return None,
    })
}

/// One node acknowledges events that no other node knows; then it is killed or stopped, Redis restarts empty, and the
/// other nodes continue.
fn alone(steps: Steps, node: u64, killed: bool) -> Steps {
    let who = Rc::new(RefCell::new((None, Vec::new())));
    let (then, later) = (who.clone(), who.clone());
    let steps = steps
        .act(move |world, _| {
            let one = world.a_node(node);
            let others: Vec<u32> = world.nodes().into_iter().filter(|other| Some(*other) != one).collect();
            others.iter().for_each(|other| signal(Some(*other), Signal::SIGSTOP));
            *who.borrow_mut() = (one, others);
        })
        .wait(Duration::from_secs(3))
        .act(move |world, _| {
            let (one, others) = &*then.borrow();
            if killed {
                world.kill_process(*one);
            } else {
                signal(*one, Signal::SIGSTOP);
            }
            if let Some(server) = world.server() {
                server.kill();
                server.forget();
                server.restart();
            }
            others.iter().for_each(|other| signal(Some(*other), Signal::SIGCONT));
        })
        .wait(Duration::from_secs(if killed { 1 } else { 3 }));
    steps.act(move |world, _| {
        let (one, _) = &*later.borrow();
        match &mut world.hub {
            Nodes::Networks(networks) if killed => networks.restart(),
            Nodes::Networks(_) | Nodes::Workers { .. } => signal(one.filter(|_| !killed), Signal::SIGCONT),
        }
    })
}

fn signal(process: Option<u32>, signal: Signal) {
    if let Some(process) = process {
        HubProcess::signal_to(process, signal);
    }
}

/// Cuts the links of one node, or of all nodes.
fn cut(steps: Steps, lasts: Duration, of: impl FnOnce(&World) -> Option<u32> + 'static, ways: Ways) -> Steps {
    let cuts = Rc::new(RefCell::new(Vec::new()));
    let same = cuts.clone();
    steps
        .act(move |world, _| {
            let node = of(world);
            *cuts.borrow_mut() = world
                .relays()
                .iter()
                .map(|relay| node.map_or_else(|| relay.cut_all_but(&[]), |node| relay.cut_for(&[node], ways)))
                .collect();
        })
        .wait(lasts)
        .act(move |world, _| {
            world.relays().iter().zip(&*same.borrow()).for_each(|(relay, cut)| relay.lift(*cut));
        })
}

fn partition(steps: Steps, lasts: Duration, node: u64, ways: Ways) -> Steps {
    let change = move |world: &mut World, cut: bool| {
        if let Nodes::Networks(networks) = &world.hub {
            networks.cut(node, ways, cut);
        }
    };
    steps.act(move |world, _| change(world, true)).wait(lasts).act(move |world, _| change(world, false))
}

impl World {
    fn kill_node(&mut self, random: u64) {
        let node = self.a_node(random);
        self.kill_process(node);
    }

    fn kill_process(&mut self, node: Option<u32>) {
        match &mut self.hub {
            Nodes::Workers { .. } => signal(node, Signal::SIGKILL),
            Nodes::Networks(networks) => networks.kill(node),
        }
    }
}
