//! The protocol holds in every order of steps, and with any of its rules taken away it does not.

use recovery_model::{Budget, Rules, explore, walk};

const SMALL: Budget =
    Budget { nodes: 2, starts: 0, events: 2, kills: 1, restarts: 1, promotions: 0, returns: 0, copies: 1, lapses: 1 };

const LARGE: Budget =
    Budget { nodes: 2, starts: 2, events: 4, kills: 2, restarts: 2, promotions: 2, returns: 0, copies: 2, lapses: 4 };

/// Where sentinels name a master again that they had given up.
const RETURNS: Budget = Budget { returns: 2, ..LARGE };

#[test]
fn no_order_of_steps_breaks_a_small_world() {
    let (states, all) = explore(SMALL, Rules::ALL, 1_000_000).unwrap_or_else(|found| panic!("{found}"));
    println!("{states} states, all of them: {all}");
    assert!(states > 10_000);
}

#[test]
fn no_random_order_breaks_a_larger_world() {
    let walks = std::env::var("RECOVERY_WALKS").ok().and_then(|walks| walks.parse().ok()).unwrap_or(200_000);
    for budget in [LARGE, RETURNS] {
        walk(budget, Rules::ALL, 1, walks).unwrap_or_else(|found| panic!("{found}"));
    }
}

#[test]
fn without_any_of_its_rules_the_protocol_fails() {
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
        let found = walk(budget, without, 1, 2_000_000);
        assert!(found.is_err(), "without {rule} the protocol holds too, or the model does not see what it is for");
    }
}
