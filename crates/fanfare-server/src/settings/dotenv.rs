//! Parses `.env` as python-dotenv does, because the file usually belongs to an application that reads it that way.
//! There is no shell: a `$` is literal, and `${NAME}` and `${NAME:-default}` are replaced by variables.
//!
//! Knows text only, and no settings.

/// The content of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Dotenv {
    pub(super) variables: Vec<Variable>,
    /// Lines that are not `NAME=value`, counted from 1. They are ignored; the other lines apply.
    pub(super) skipped: Vec<usize>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) value: String,
    /// The line of its name, counted from 1.
    pub(super) line: usize,
}

/// Parses the text of a file. `environment` provides variables that the file uses without having set them before.
pub(super) fn parse(text: &str, environment: impl Fn(&str) -> Option<String>) -> Dotenv {
    let mut reader = Reader { text, rest: text.strip_prefix('\u{feff}').unwrap_or(text) };
    let mut dotenv = Dotenv::default();
    loop {
        reader.skip(char::is_whitespace);
        if reader.rest.is_empty() {
            return dotenv;
        }
        let line = reader.line();
        match reader.binding() {
            Some(Some((name, value))) => {
                let value = dotenv.expand(&value, &environment);
                dotenv.variables.push(Variable { name, value, line });
            }
            Some(None) => {}
            None => {
                reader.take_while(|c| !is_newline(c));
                dotenv.skipped.push(line);
            }
        }
    }
}

impl Dotenv {
    fn expand(&self, value: &str, environment: impl Fn(&str) -> Option<String>) -> String {
        let (mut expanded, mut rest) = (String::with_capacity(value.len()), value);
        while let Some((before, after)) = rest.split_once("${") {
            expanded.push_str(before);
            let Some((name, default, after)) = reference(after) else {
                expanded.push_str("${");
                rest = after;
                continue;
            };
            let earlier = self.variables.iter().rev().find(|variable| variable.name == name);
            let found = earlier.map(|variable| variable.value.clone()).or_else(|| environment(name));
            expanded.push_str(&found.unwrap_or_else(|| default.to_owned()));
            rest = after;
        }
        expanded + rest
    }
}

/// Parses what follows `${`. Returns the name, the default, and the text after the brace.
fn reference(text: &str) -> Option<(&str, &str, &str)> {
    let end = text.find([':', '}'])?;
    let (name, rest) = text.split_at(end);
    if let Some(after) = rest.strip_prefix('}') {
        return Some((name, "", after));
    }
    let (default, after) = rest.strip_prefix(":-")?.split_once('}')?;
    Some((name, default, after))
}

struct Reader<'a> {
    text: &'a str,
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn line(&self) -> usize {
        let read = &self.text[..self.text.len() - self.rest.len()];
        // A carriage return alone ends a line too, as in python-dotenv.
        read.replace("\r\n", "\n").matches(is_newline).count() + 1
    }

    fn skip(&mut self, of: impl Fn(char) -> bool) {
        self.take_while(of);
    }

    fn take_while(&mut self, of: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !of(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    /// Parses a name and its value. Returns `None` for a malformed line, and `Some(None)` for a comment or a name
    /// without a value.
    #[expect(clippy::option_option, reason = "a comment is not an error and sets no variable")]
    fn binding(&mut self) -> Option<Option<(String, String)>> {
        if let Some(after) = self.rest.strip_prefix("export").filter(|rest| rest.starts_with(is_space)) {
            self.rest = after.trim_start_matches(is_space);
        }
        let name = if self.rest.starts_with('#') { None } else { Some(self.name()?) };
        self.skip(is_space);
        let value = if self.rest.starts_with('=') { Some(self.value()?) } else { None };
        self.end_of_line()?;
        Some(name.zip(value))
    }

    fn name(&mut self) -> Option<String> {
        if let Some(quoted) = self.rest.strip_prefix('\'') {
            let (name, after) = quoted.split_once('\'').filter(|(name, _)| !name.is_empty())?;
            self.rest = after;
            return Some(name.to_owned());
        }
        let name = self.take_while(|c| c != '=' && c != '#' && !c.is_whitespace());
        (!name.is_empty()).then(|| name.to_owned())
    }

    /// Parses the `=` and the value.
    fn value(&mut self) -> Option<String> {
        self.rest = &self.rest[1..];
        let spaced = !self.take_while(is_space).is_empty();
        match self.rest.chars().next() {
            Some(quote @ ('\'' | '"')) => self.quoted(quote),
            Some('#') if spaced => Some(String::new()),
            _ => {
                let whole = self.take_while(|c| !is_newline(c));
                let comment =
                    whole.match_indices('#').map(|(at, _)| at).find(|&at| whole[..at].ends_with(char::is_whitespace));
                Some(whole[..comment.unwrap_or(whole.len())].trim_end().to_owned())
            }
        }
    }

    /// Parses a quoted value, which may span several lines.
    fn quoted(&mut self, quote: char) -> Option<String> {
        let (mut value, mut chars) = (String::new(), self.rest[1..].char_indices());
        loop {
            match chars.next()? {
                (at, c) if c == quote => {
                    self.rest = &self.rest[1 + at + c.len_utf8()..];
                    return Some(value);
                }
                (_, '\\') => match (chars.next()?.1, quote) {
                    (c @ ('\\' | '\''), _) => value.push(c),
                    (c, '"') => match unescaped(c) {
                        Some(meant) => value.push(meant),
                        None => value.extend(['\\', c]),
                    },
                    (c, _) => value.extend(['\\', c]),
                },
                (_, c) => value.push(c),
            }
        }
    }

    /// Skips a comment, and requires the end of the line.
    fn end_of_line(&mut self) -> Option<()> {
        let after = self.rest.trim_start_matches(is_space);
        if after.starts_with('#') {
            self.rest = after;
            self.skip(|c| !is_newline(c));
        }
        self.skip(is_space);
        (self.rest.is_empty() || self.rest.starts_with(is_newline)).then_some(())
    }
}

/// The character of an escape in double quotes.
fn unescaped(c: char) -> Option<char> {
    Some(match c {
        '"' => '"',
        'a' => '\u{7}',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\u{b}',
        _ => return None,
    })
}

fn is_newline(c: char) -> bool {
    c == '\n' || c == '\r'
}

fn is_space(c: char) -> bool {
    c.is_whitespace() && !is_newline(c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Deserialize)]
    struct Vectors {
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        text: String,
        values: BTreeMap<String, String>,
    }

    fn environment(name: &str) -> Option<String> {
        (name == "HOME_OF_TESTS").then(|| "/home/tests".to_owned())
    }

    #[test]
    fn files_are_parsed_as_by_python_dotenv() {
        let vectors: Vectors = serde_json::from_str(include_str!("dotenv.json")).unwrap();
        assert!(vectors.cases.len() > 50);
        for Case { text, values } in vectors.cases {
            let variables = parse(&text, environment).variables;
            let read: BTreeMap<_, _> = variables.into_iter().map(|variable| (variable.name, variable.value)).collect();
            assert_eq!(read, values, "{text:?}");
        }
    }

    #[test]
    fn malformed_lines_are_reported_by_number() {
        let text = "A=1\n\n  B=\"two\nlines\"\r\nnot a line\n# c\nexport C=3\nD=\"open\nE=1";
        let Dotenv { variables, skipped } = parse(text, environment);
        let lines: Vec<_> = variables.iter().map(|variable| (variable.name.as_str(), variable.line)).collect();
        assert_eq!(lines, [("A", 1), ("B", 3), ("C", 7), ("E", 9)]);
        assert_eq!(skipped, [5, 8]);
    }
}
