//! Faults of a single server.

use super::{Steps, World, between};
use crate::fault::Fault;
use std::{cell::RefCell, rc::Rc, time::Duration};
use testbed::{RedisFiles, RedisServer};

/// The steps of a fault of a single server; `None` for other faults.
pub(super) fn steps(fault: Fault, random: &mut fastrand::Rng) -> Option<Steps> {
    let lasts = Duration::from_millis(fault.lasts_ms());
    let steps = Steps::default();
    Some(match fault {
        Fault::KillRedis => steps
            .act(|world, _| on(world, RedisServer::kill))
            .wait(between(random, 1_000, 5_000))
            .act(|world, _| on(world, start)),
        Fault::ForgetRedis => steps
            .act(|world, _| {
                on(world, |server| {
                    server.kill();
                    server.forget();
                });
            })
            .wait(between(random, 0, 1_000))
            .act(|world, _| on(world, start)),
        // The copy lacks what an append-only file that is synced once a second may lose.
        Fault::PowerLoss => from_copy(steps, between(random, 600, 1_500), between(random, 200, 2_000)),
        Fault::OldCopy => from_copy(steps, Duration::from_secs(3), between(random, 200, 2_000)),
        Fault::OldThenNew => old_then_new(steps, random),
        Fault::StopRedis | Fault::StopRedisLong => steps
            .act(|world, _| {
                on(world, |server| {
                    if server.is_running() {
                        server.stop();
                    }
                });
            })
            .wait(lasts)
            .act(|world, _| {
                on(world, |server| {
                    if server.is_running() {
                        server.cont();
                    }
                });
            }),
        Fault::ClientKill => steps.act(|world, _| {
            on(world, |server| {
                for kind in ["normal", "pubsub"] {
                    server.cli(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]);
                }
            });
        }),
        Fault::ClientPause => steps
            .act(|world, _| {
                on(world, |server| {
                    server.cli(&["CLIENT", "PAUSE", "3000", "ALL"]);
                });
            })
            .wait(lasts),
        Fault::DiskFull => {
            let change = |world: &mut World, full: bool| {
                if let Some(disk) = &world.disk {
                    if full { disk.fill() } else { disk.make_room() }
                }
            };
            steps.act(move |world, _| change(world, true)).wait(lasts).act(move |world, _| change(world, false))
        }
        _ => return None,
    })
}

fn on(world: &mut World, act: impl FnOnce(&mut RedisServer)) {
    if let Some(server) = world.server() {
        act(server);
    }
}

/// Starts a server, unless another fault has started it.
fn start(server: &mut RedisServer) {
    if !server.is_running() {
        server.restart();
    }
}

type Copy = Rc<RefCell<Option<RedisFiles>>>;

fn take_copy(steps: Steps, copy: &Copy) -> Steps {
    let copy = copy.clone();
    steps.act(move |world, _| *copy.borrow_mut() = world.server().map(|server| server.files()))
}

fn use_copy(steps: Steps, copy: &Copy, down: Duration) -> Steps {
    let copy = copy.clone();
    steps.act(|world, _| on(world, RedisServer::kill)).wait(down).act(move |world, _| {
        on(world, |server| {
            if let Some(files) = &*copy.borrow() {
                server.kill();
                server.restart_with(files);
            }
        });
    })
}

/// Restarts Redis from a copy of an age, after a downtime.
fn from_copy(steps: Steps, age: Duration, down: Duration) -> Steps {
    let copy = Copy::default();
    use_copy(take_copy(steps, &copy).wait(age), &copy, down)
}

fn old_then_new(steps: Steps, random: &mut fastrand::Rng) -> Steps {
    let (old, new) = (Copy::default(), Copy::default());
    let steps = take_copy(steps, &old).wait(Duration::from_secs(2));
    let steps = use_copy(take_copy(steps, &new), &old, between(random, 100, 500));
    use_copy(steps.wait(between(random, 500, 5_000)), &new, between(random, 100, 500))
}
