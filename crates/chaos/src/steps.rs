//! Faults as steps, so that several run at once: a step waits, acts, or waits for a condition.

use crate::load::Load;
use std::{
    thread,
    time::{Duration, Instant},
};

/// The interval at which due steps and conditions are checked.
const POLL: Duration = Duration::from_millis(10);

/// The timeout of a condition, after which the fault continues without it.
const TIMEOUT: Duration = Duration::from_secs(60);

type Act<W> = Box<dyn FnOnce(&mut W, &Load)>;

/// A step of a fault.
pub(crate) enum Step<W> {
    Wait(Duration),
    Do(Act<W>),
    Until(&'static str, Box<dyn FnMut(&mut W) -> bool>),
}

/// The steps of a fault, in order.
pub(crate) struct Steps<W>(Vec<Step<W>>);

impl<W> Default for Steps<W> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<W> Steps<W> {
    pub(crate) fn wait(mut self, duration: Duration) -> Self {
        self.0.push(Step::Wait(duration));
        self
    }

    pub(crate) fn act(mut self, act: impl FnOnce(&mut W, &Load) + 'static) -> Self {
        self.0.push(Step::Do(Box::new(act)));
        self
    }

    pub(crate) fn until(mut self, what: &'static str, holds: impl FnMut(&mut W) -> bool + 'static) -> Self {
        self.0.push(Step::Until(what, Box::new(holds)));
        self
    }
}

/// A fault in progress.
struct Running<W> {
    steps: std::vec::IntoIter<Step<W>>,
    at: Option<Step<W>>,
    since: Instant,
    /// When it began and ended, from the start of the item.
    span: Option<(Duration, Duration)>,
}

/// Injects faults, each from its time on. Returns when each began and ended; `None` for faults that did not begin
/// because `interrupted` returned true.
pub(crate) fn run<W>(
    faults: Vec<(Duration, Steps<W>)>,
    world: &mut W,
    load: &Load,
    interrupted: &dyn Fn() -> bool,
) -> Vec<Option<(Duration, Duration)>> {
    let begun = Instant::now();
    let course = |(start, Steps(steps)): (Duration, Steps<W>)| Running {
        steps: steps.into_iter(),
        at: Some(Step::Wait(start)),
        since: begun,
        span: None,
    };
    let mut courses: Vec<Running<W>> = faults.into_iter().map(course).collect();
    while courses.iter().any(|course| course.at.is_some()) && !interrupted() {
        for course in &mut courses {
            course.go_on(world, load, begun);
        }
        thread::sleep(POLL);
    }
    courses.into_iter().map(|course| course.span).collect()
}

impl<W> Running<W> {
    fn go_on(&mut self, world: &mut W, load: &Load, begun: Instant) {
        let over = match &mut self.at {
            None => return,
            Some(Step::Wait(duration)) => self.since.elapsed() >= *duration,
            Some(Step::Do(_)) => true,
            Some(Step::Until(what, holds)) => {
                let late = self.since.elapsed() > TIMEOUT;
                if late {
                    println!("           timed out after {} s: {what}", TIMEOUT.as_secs());
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
