//! Makes text from other systems safe to print: escapes control characters and bidirectional controls, and removes
//! passwords from URLs.

use std::{borrow::Cow, fmt::Write};

/// Escapes text of several lines: control characters except line breaks and tabs become `\u{..}`.
pub(crate) fn text(text: &str) -> Cow<'_, str> {
    escape(text, |c| is_unsafe(c) && !matches!(c, '\n' | '\t'), |c, out| write!(out, "\\u{{{:x}}}", u32::from(c)))
}

/// Escapes text of one line: line breaks and tabs are escaped too.
pub(crate) fn line(text: &str) -> Cow<'_, str> {
    escape(text, is_unsafe, |c, out| write!(out, "\\u{{{:x}}}", u32::from(c)))
}

/// Escapes JSON without changing its value. White space between tokens stays.
pub(crate) fn json(text: &str) -> Cow<'_, str> {
    escape(text, |c| is_unsafe(c) && c >= ' ', |c, out| write!(out, "\\u{:04x}", u32::from(c)))
}

/// Placeholders for user and password in descriptions of URL syntax, which are not credentials.
const PLACEHOLDERS: [&str; 2] = ["[[user]:password", "[user[:password]"];

/// Replaces user and password of all URLs in the text by `***`.
pub(crate) fn without_credentials(text: &str) -> Cow<'_, str> {
    const SCHEME_END: &str = "://";
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(SCHEME_END) {
        let (before, after) = rest.split_at(at + SCHEME_END.len());
        out.push_str(before);
        rest = match credentials_end(after) {
            Some(at) if !PLACEHOLDERS.contains(&&after[..at]) => {
                out.push_str("***");
                &after[at..]
            }
            _ => after,
        };
    }
    if out.is_empty() { text.into() } else { (out + rest).into() }
}

/// The index of the `@` that ends the credentials of a URL, given the text after its scheme.
fn credentials_end(after: &str) -> Option<usize> {
    let url = &after[..after.find(|c: char| c.is_whitespace() || "\"'".contains(c)).unwrap_or(after.len())];
    let authority = &url[..url.find(['/', '?', '#']).unwrap_or(url.len())];
    authority.rfind('@').or_else(|| {
        // An unescaped `/`, `?` or `#` in a password ends the authority early, and leaves a port that is not a number.
        let port = authority.rsplit_once(':').map_or("", |(_, port)| port);
        let is_none = !authority.ends_with(']') && port.chars().any(|c| !c.is_ascii_digit());
        url.rfind('@').filter(|_| is_none)
    })
}

/// Whether a URL contains a user or a password.
pub(crate) fn has_credentials(url: &str) -> bool {
    without_credentials(url) != url
}

/// C0 and C1 controls, DEL, and the controls of the bidirectional algorithm.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}')
}

fn escape(
    text: &str,
    shown: impl Fn(char) -> bool,
    show: impl Fn(char, &mut String) -> std::fmt::Result,
) -> Cow<'_, str> {
    if !text.contains(&shown) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if shown(c) {
            // Writing to a string never fails.
            let _ = show(c, &mut out);
        } else {
            out.push(c);
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    // attack: a user id or an event with terminal escapes, C1 controls or bidirectional controls => shown as escapes
    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(text("ann\n\tbob é \u{1f600}"), "ann\n\tbob é \u{1f600}");
        assert_eq!(line("a\nb\tc"), "a\\u{a}b\\u{9}c");
        assert_eq!(text("\u{1b}[2J\r\u{7f}\u{9b}31m"), "\\u{1b}[2J\\u{d}\\u{7f}\\u{9b}31m");
        for c in "\u{202a}\u{202e}\u{2066}\u{2069}\u{200e}\u{200f}\u{61c}\u{80}\u{9f}".chars() {
            assert_eq!(line(&c.to_string()), format!("\\u{{{:x}}}", u32::from(c)));
        }
    }

    #[test]
    fn escaped_json_is_the_same_json() {
        let value = serde_json::json!({ "a\u{9b}": "x\u{202e}y\u{7f}\u{1b}" });
        let plain = format!("{value:#}");
        let escaped = json(&plain);
        assert!(escaped.contains("\\u202e") && escaped.contains("\\u009b") && escaped.contains("\\u007f"), "{escaped}");
        assert!(!escaped.contains(|c: char| is_unsafe(c) && c != '\n'), "{escaped:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
    }

    // attack: reading the password of a URL in settings, checks, logs or errors => it is shown as ***
    #[test]
    fn passwords_in_urls_are_hidden() {
        for (text, shown) in [
            ("https://u:p@h/path", "https://***@h/path"),
            ("https://u:p@x@h", "https://***@h"),
            (
                "see http://a:b@c, and redis+sentinel://:pw@h:1,g:2/m",
                "see http://***@c, and redis+sentinel://***@h:1,g:2/m",
            ),
            ("https://h/a@b?c@d", "https://h/a@b?c@d"),
            ("ann@example.org", "ann@example.org"),
            ("http://h", "http://h"),
            (
                "http://u:p/w@h/x, http://u:p#w@h and \"http://u:p?w@h\"",
                "http://***@h/x, http://***@h and \"http://***@h\"",
            ),
            (
                "http://[::1]/a@b http://h:80/a@b http://[::1]:80/a@b",
                "http://[::1]/a@b http://h:80/a@b http://[::1]:80/a@b",
            ),
            ("redis://[[user]:password@]host, rediss://[x:p@h", "redis://[[user]:password@]host, rediss://***@h"),
            ("postgres://[user[:password]@]host", "postgres://[user[:password]@]host"),
        ] {
            assert_eq!(without_credentials(text), shown);
        }
        assert!(has_credentials("postgres://u:p@h/d") && !has_credentials("postgres://h/d"));
    }
}
