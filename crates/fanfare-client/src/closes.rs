//! The reconnect policy after a close, and the pauses between attempts. The table of close codes is in `fanfare-core`.

use fanfare_core::{CloseCode, close::Reconnect};
use std::time::Duration;

/// Reasons of 1008 that no other token of the same user can fix.
const FINAL: [&str; 2] = ["forbidden", "origin_not_allowed"];

/// Returns the reconnect policy after a close; `None` for a code that no hub sends, such as 1006.
pub(crate) fn reconnect_policy(code: u16, reason: &str) -> Option<Reconnect> {
    let known = find(code)?;
    let reason_code = reason.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
    if known == CloseCode::Policy && FINAL.contains(&reason_code) {
        return Some(Reconnect::Never);
    }
    Some(known.reconnect())
}

/// Returns the pause before the next attempt, after `attempts` failures in a row.
///
/// The pause has full jitter, so that clients that were disconnected together reconnect at different times. `random` is
/// a number from 0 to 1.
pub(crate) fn pause(policy: Option<Reconnect>, attempts: u32, longest: Duration, random: f64) -> Duration {
    let (least, spread) = match policy {
        None => (0, 1_000),
        Some(Reconnect::Never) => (0, 0),
        Some(Reconnect::Now | Reconnect::WithNewToken) => (0, 250),
        Some(Reconnect::Later) => (1_000, 4_000),
    };
    let spread = Duration::from_millis(spread).saturating_mul(1 << attempts.min(20)).min(longest);
    (Duration::from_millis(least) + spread.mul_f64(random.clamp(0.0, 1.0))).min(longest)
}

/// Returns a human-readable description of a close.
pub(crate) fn describe(code: u16, reason: &str) -> String {
    let meaning = find(code).map_or("", CloseCode::meaning);
    match if reason.is_empty() { meaning } else { reason } {
        "" => format!("the hub closed the connection ({code})"),
        why => format!("the hub closed the connection ({code}): {why}"),
    }
}

fn find(code: u16) -> Option<CloseCode> {
    CloseCode::ALL.iter().copied().find(|known| known.number() == code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn close_codes_have_the_reconnect_policy_of_the_vectors() {
        let file: Value = serde_json::from_str(include_str!("../../../tests/wire/closes.json")).unwrap();
        let cases = file["cases"].as_array().unwrap();
        assert!(cases.len() > 20, "{file}");
        for case in cases {
            let code = u16::try_from(case["code"].as_u64().unwrap()).unwrap();
            let then = match reconnect_policy(code, case["reason"].as_str().unwrap()) {
                None => "lost",
                Some(Reconnect::Never) => "never",
                Some(Reconnect::Now) => "now",
                Some(Reconnect::Later) => "later",
                Some(Reconnect::WithNewToken) => "new token",
            };
            assert_eq!(case["then"], then, "{case}");
        }
    }

    #[test]
    fn pauses_grow_up_to_the_maximum() {
        let longest = Duration::from_secs(30);
        let pauses = |random| (0..7).map(move |n| pause(Some(Reconnect::Later), n, longest, random).as_millis());
        assert_eq!(pauses(1.0).collect::<Vec<_>>(), [5_000, 9_000, 17_000, 30_000, 30_000, 30_000, 30_000]);
        assert!(pauses(0.0).all(|least| least == 1_000));
        assert_eq!(pause(None, u32::MAX, longest, 1.0), longest);
    }

    #[test]
    fn a_close_is_described_by_its_reason_or_its_code() {
        assert!(describe(4001, "").contains("A newer socket took over"));
        assert!(describe(1008, "token_expired: x").ends_with("(1008): token_expired: x"));
        assert_eq!(describe(4999, ""), "the hub closed the connection (4999)");
    }
}
