//! The invariants hold for every order of steps, and are violated without any one of the rules.

use recovery_model::{Budget, Rules, explore, walk};

const SMALL: Budget =
    Budget { nodes: 2, starts: 0, events: 2, kills: 1, restarts: 1, promotions: 0, returns: 0, copies: 1, lapses: 1 };

const LARGE: Budget =
    Budget { nodes: 2, starts: 2, events: 4, kills: 2, restarts: 2, promotions: 2, returns: 0, copies: 2, lapses: 4 };

/// Sentinels name a master again after they had replaced it.
const RETURNS: Budget = Budget { returns: 2, ..LARGE };

#[test]
fn no_order_of_steps_violates_an_invariant_in_a_small_model() {
    let (states, all) = explore(SMALL, Rules::ALL, 1_000_000).unwrap_or_else(|violation| panic!("{violation}"));
    println!("{states} states, complete: {all}");
    assert!(states > 10_000);
}

#[test]
fn no_random_walk_violates_an_invariant_in_a_larger_model() {
    let walks = std::env::var("RECOVERY_WALKS").ok().and_then(|walks| walks.parse().ok()).unwrap_or(200_000);
    for budget in [LARGE, RETURNS] {
        walk(budget, Rules::ALL, 1, walks).unwrap_or_else(|violation| panic!("{violation}"));
    }
}

#[test]
fn without_any_one_rule_an_invariant_is_violated() {
    let all = Rules::ALL;
    for (rule, budget, without) in [
        ("history", LARGE, Rules { history: false, ..all }),
        ("remembered members", LARGE, Rules { remembered_members: false, ..all }),
        ("informed", LARGE, Rules { informed: false, ..all }),
        ("informed of this log", RETURNS, Rules { informed_of_this_log: false, ..all }),
        ("witness", LARGE, Rules { witness: false, ..all }),
        ("lossy", LARGE, Rules { lossy: false, ..all }),
        ("lease", LARGE, Rules { lease: false, ..all }),
        ("named", RETURNS, Rules { named: false, ..all }),
    ] {
        let violation = walk(budget, without, 1, 2_000_000);
        assert!(
            violation.is_err(),
            "no violation without the rule {rule}: the rule is redundant, or the model does not cover it"
        );
    }
}
