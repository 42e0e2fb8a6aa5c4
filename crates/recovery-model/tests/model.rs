//! The protocol holds in every order of steps, and with any of its rules taken away it does not.

use recovery_model::{Budget, Rules, explore, walk};

const SMALL: Budget =
    Budget { nodes: 2, starts: 0, events: 2, kills: 1, restarts: 1, promotions: 0, copies: 1, lapses: 1 };

const LARGE: Budget =
    Budget { nodes: 2, starts: 2, events: 4, kills: 2, restarts: 2, promotions: 2, copies: 2, lapses: 4 };

#[test]
fn no_order_of_steps_breaks_a_small_world() {
    let (states, all) = explore(SMALL, Rules::ALL, 1_000_000).unwrap_or_else(|found| panic!("{found}"));
    println!("{states} states, all of them: {all}");
    assert!(states > 10_000);
}

#[test]
fn no_random_order_breaks_a_larger_world() {
    let walks = std::env::var("RECOVERY_WALKS").ok().and_then(|walks| walks.parse().ok()).unwrap_or(200_000);
    walk(LARGE, Rules::ALL, 1, walks).unwrap_or_else(|found| panic!("{found}"));
}

#[test]
fn without_any_of_its_rules_the_protocol_fails() {
    let all = Rules::ALL;
    for (rule, without) in [
        ("history", Rules { history: false, ..all }),
        ("remembered members", Rules { remembered_members: false, ..all }),
        ("informed", Rules { informed: false, ..all }),
        ("witness", Rules { witness: false, ..all }),
        ("lineage put back", Rules { lineage_put_back: false, ..all }),
        ("lossy", Rules { lossy: false, ..all }),
        ("lease", Rules { lease: false, ..all }),
    ] {
        let found = walk(LARGE, without, 1, 2_000_000);
        assert!(found.is_err(), "without {rule} the protocol holds too, or the model does not see what it is for");
    }
}
