//! Faults as steps, so that several go on at once: each waits, does something, or waits until something has come about.

use crate::{load::Load, world::World};
use std::{
    thread,
    time::{Duration, Instant},
};

/// How often it is looked whether a step is due.
const POLL: Duration = Duration::from_millis(10);

/// How long anything may take to come about; then the fault goes on without it.
const PATIENCE: Duration = Duration::from_secs(60);

type Act = Box<dyn FnOnce(&mut World, &Load)>;

/// A part of a fault.
pub(crate) enum Step {
    Wait(Duration),
    Do(Act),
    Until(&'static str, Box<dyn FnMut(&mut World) -> bool>),
}

/// The steps of a fault, one after the other.
#[derive(Default)]
pub(crate) struct Steps(Vec<Step>);

impl Steps {
    pub(crate) fn wait(mut self, duration: Duration) -> Self {
        self.0.push(Step::Wait(duration));
        self
    }

    pub(crate) fn act(mut self, act: impl FnOnce(&mut World, &Load) + 'static) -> Self {
        self.0.push(Step::Do(Box::new(act)));
        self
    }

    pub(crate) fn until(mut self, what: &'static str, holds: impl FnMut(&mut World) -> bool + 'static) -> Self {
        self.0.push(Step::Until(what, Box::new(holds)));
        self
    }
}

/// One fault under way.
struct Course {
    steps: std::vec::IntoIter<Step>,
    at: Option<Step>,
    since: Instant,
    /// When it began and ended, from the beginning of all.
    span: Option<(Duration, Duration)>,
}

/// Lets faults happen, each from its time on. Returns when each began and ended; `None` for those that were not reached
/// because `interrupted` said so.
pub(crate) fn run(
    faults: Vec<(Duration, Steps)>,
    world: &mut World,
    load: &Load,
    interrupted: &dyn Fn() -> bool,
) -> Vec<Option<(Duration, Duration)>> {
    let begun = Instant::now();
    let course = |(start, Steps(steps)): (Duration, Steps)| Course {
        steps: steps.into_iter(),
        at: Some(Step::Wait(start)),
        since: begun,
        span: None,
    };
    let mut courses: Vec<Course> = faults.into_iter().map(course).collect();
    while courses.iter().any(|course| course.at.is_some()) && !interrupted() {
        for course in &mut courses {
            course.go_on(world, load, begun);
        }
        thread::sleep(POLL);
    }
    courses.into_iter().map(|course| course.span).collect()
}

impl Course {
    fn go_on(&mut self, world: &mut World, load: &Load, begun: Instant) {
        let over = match &mut self.at {
            None => return,
            Some(Step::Wait(duration)) => self.since.elapsed() >= *duration,
            Some(Step::Do(_)) => true,
            Some(Step::Until(what, holds)) => {
                let late = self.since.elapsed() > PATIENCE;
                if late {
                    println!("           within {} s never: {what}", PATIENCE.as_secs());
                }
                late || holds(world)
            }
        };
        if !over {
            return;
        }
        let now = begun.elapsed();
        let span = self.span.get_or_insert((now, now));
        if let Some(Step::Do(act)) = self.at.take() {
            act(world, load);
        }
        span.1 = begun.elapsed();
        (self.at, self.since) = (self.steps.next(), Instant::now());
    }
}
