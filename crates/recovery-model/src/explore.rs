//! Looks for an order of steps that breaks an invariant: all of them up to a depth, or many at random.

use crate::state::{Budget, Rules, State, Step};
use std::{
    collections::HashSet,
    fmt,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
};

/// A broken invariant, and the steps that lead to it.
#[derive(Debug, Clone)]
pub struct Found {
    wrong: String,
    steps: Vec<Step>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.wrong)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "  {step:?}"))
    }
}

/// Explores every order of steps, the shortest first, up to `most` states. Returns how many states there were, and whether that is all.
///
/// # Errors
/// If an invariant can be broken.
pub fn explore(budget: Budget, rules: Rules, most: usize) -> Result<(usize, bool), Found> {
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let (mut seen, mut layer, mut parents) = (HashSet::new(), vec![(State::new(budget), usize::MAX)], Vec::new());
    seen.insert(hasher.hash_one(&layer[0].0));
    while !layer.is_empty() {
        let mut next = Vec::new();
        for (state, parent) in layer {
            for step in state.steps(rules) {
                let mut after = state.clone();
                if let Err(wrong) = after.take(step, rules) {
                    return Err(Found { wrong, steps: trace(&parents, parent, step) });
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

/// Takes steps at random, `walks` times from the start. The same seed takes the same ones.
///
/// # Errors
/// If an invariant is broken.
pub fn walk(budget: Budget, rules: Rules, seed: u64, walks: u64) -> Result<(), Found> {
    for walk in 0..walks {
        let mut random = fastrand::Rng::with_seed(seed.wrapping_add(walk));
        let (mut state, mut taken) = (State::new(budget), Vec::new());
        for _ in 0..300 {
            let steps = state.steps(rules);
            let Some(step) = random.choice(steps) else { break };
            taken.push(step);
            if let Err(wrong) = state.take(step, rules) {
                let shortest = shrink(budget, rules, taken);
                return Err(Found { wrong: format!("{wrong} (seed {})", seed.wrapping_add(walk)), steps: shortest });
            }
        }
    }
    Ok(())
}

/// The steps without those that are not needed.
fn shrink(budget: Budget, rules: Rules, mut steps: Vec<Step>) -> Vec<Step> {
    let mut at = steps.len();
    while let Some(before) = at.checked_sub(1) {
        at = before;
        let mut fewer = steps.clone();
        fewer.remove(at);
        if let Some(fewer) = fails(budget, rules, &fewer) {
            at = at.min(fewer.len());
            steps = fewer;
        }
    }
    steps
}

/// The steps that were possible up to one that breaks an invariant, if one does.
fn fails(budget: Budget, rules: Rules, steps: &[Step]) -> Option<Vec<Step>> {
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
