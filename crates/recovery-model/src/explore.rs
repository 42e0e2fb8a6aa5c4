//! Searches for an order of steps that violates an invariant: exhaustively up to a number of states, or by random
//! walks.

use crate::state::{Budget, Rules, State, Step};
use std::{
    collections::HashSet,
    fmt,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
};

/// A violated invariant, and the steps that lead to it.
#[derive(Debug, Clone)]
pub struct Violation {
    message: String,
    steps: Vec<Step>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.message)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "  {step:?}"))
    }
}

/// Explores all orders of steps breadth-first, until more than `most` states were reached.
/// Returns the number of distinct states, and whether they are all states that can be reached.
///
/// # Errors
/// If an invariant can be violated.
pub fn explore(budget: Budget, rules: Rules, most: usize) -> Result<(usize, bool), Violation> {
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let (mut seen, mut layer, mut parents) = (HashSet::new(), vec![(State::new(budget), usize::MAX)], Vec::new());
    seen.insert(hasher.hash_one(&layer[0].0));
    while !layer.is_empty() {
        let mut next = Vec::new();
        for (state, parent) in layer {
            for step in state.steps(rules) {
                let mut after = state.clone();
                if let Err(message) = after.take(step, rules) {
                    return Err(Violation { message, steps: trace(&parents, parent, step) });
                }
                if seen.insert(hasher.hash_one(&after)) {
                    parents.push((parent, step));
                    next.push((after, parents.len() - 1));
                }
            }
            if seen.len() > most {
                return Ok((seen.len(), false));
            }
        }
        layer = next;
    }
    Ok((seen.len(), true))
}

fn trace(parents: &[(usize, Step)], mut at: usize, last: Step) -> Vec<Step> {
    let mut steps = vec![last];
    while let Some((parent, step)) = parents.get(at) {
        steps.push(*step);
        at = *parent;
    }
    steps.reverse();
    steps
}

/// Takes `walks` random walks of at most 300 steps from the initial state. The same seed takes the same steps.
///
/// # Errors
/// If an invariant is violated. The steps of the walk are reduced to those that are needed.
pub fn walk(budget: Budget, rules: Rules, seed: u64, walks: u64) -> Result<(), Violation> {
    for walk in 0..walks {
        let mut random = fastrand::Rng::with_seed(seed.wrapping_add(walk));
        let (mut state, mut taken) = (State::new(budget), Vec::new());
        for _ in 0..300 {
            let steps = state.steps(rules);
            let Some(step) = random.choice(steps) else { break };
            taken.push(step);
            if let Err(message) = state.take(step, rules) {
                let shortest = shrink(budget, rules, taken);
                return Err(Violation {
                    message: format!("{message} (seed {})", seed.wrapping_add(walk)),
                    steps: shortest,
                });
            }
        }
    }
    Ok(())
}

/// Removes the steps that the violation does not need.
fn shrink(budget: Budget, rules: Rules, mut steps: Vec<Step>) -> Vec<Step> {
    let mut at = steps.len();
    while let Some(before) = at.checked_sub(1) {
        at = before;
        let mut fewer = steps.clone();
        fewer.remove(at);
        if let Some(fewer) = replay(budget, rules, &fewer) {
            at = at.min(fewer.len());
            steps = fewer;
        }
    }
    steps
}

/// Replays the steps, and skips those that are not possible. Returns the replayed steps if one violates an invariant.
fn replay(budget: Budget, rules: Rules, steps: &[Step]) -> Option<Vec<Step>> {
    let (mut state, mut taken) = (State::new(budget), Vec::new());
    for step in steps {
        if state.steps(rules).contains(step) {
            taken.push(*step);
            if state.take(*step, rules).is_err() {
                return Some(taken);
            }
        }
    }
    None
}
