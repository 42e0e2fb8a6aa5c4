//! The table of attacks in docs/security.md, built from the comments above the tests.
//!
//! A test of something that an attacker would try has a comment directly above it:
//! `attack: <what is tried> => <what the hub does>`. `UPDATE_DOCS=1 cargo test --test security_docs` rewrites the table.

#![expect(clippy::unwrap_used, reason = "a failed precondition fails the test")]

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

const DOCUMENT: &str = "docs/security.md";
const BEGIN: &str = "<!-- attacks: begin -->";
const END: &str = "<!-- attacks: end -->";

/// The directories of tests, below the repository's root.
const ROOTS: [&str; 4] = ["crates", "tests/python", "tests/e2e", "clients"];
const SKIPPED: [&str; 6] = ["node_modules", "target", "dist", "build", "__pycache__", ".venv"];

/// Sections of the table in order. A test belongs to the first section that has a word in its file's path.
const SECTIONS: [(&str, &[&str]); 9] = [
    ("Clients", &["clients/", "fanfare-client", "tests/e2e/client"]),
    ("Accounts, tokens and revocation", &["account", "token", "auth", "keys", "identity", "revo", "grant", "login"]),
    (
        "Secrets, logs and terminals",
        &["privacy", "settings", "commands", "check", "terminal", "cli", "deploy", "keyring"],
    ),
    ("TLS and proxies", &["tls", "prox", "introduction"]),
    ("Browsers and origins", &["origin", "e2e", "page", "cors", "csp"]),
    ("Resource limits", &["flood", "limit", "admission", "slow", "accept", "deadline", "budget"]),
    ("WebSocket protocol", &["fanfare-core", "wire", "messages", "frames", "resume", "session", "connect"]),
    ("Publishing and the HTTP API", &["http", "publish", "events", "schema"]),
    ("The log, Redis and several nodes", &[""]),
];

#[derive(Debug, PartialEq, Eq)]
struct Attack {
    tried: String,
    holds: String,
    file: String,
    test: String,
}

#[test]
fn the_table_of_attacks_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join(DOCUMENT);
    let document = fs::read_to_string(&path).unwrap();
    let (head, rest) = document.split_once(BEGIN).unwrap_or_else(|| panic!("{DOCUMENT} has no line {BEGIN}"));
    let (_, tail) = rest.split_once(END).unwrap_or_else(|| panic!("{DOCUMENT} has no line {END}"));
    let current = format!("{head}{BEGIN}\n{}{END}{tail}", table(&attacks(&root)));
    if env::var_os("UPDATE_DOCS").is_some_and(|value| value == "1") {
        fs::write(&path, current).unwrap();
        return;
    }
    assert!(
        document == current,
        "{DOCUMENT} is stale. Run: UPDATE_DOCS=1 cargo test -p fanfare-server --test security_docs"
    );
}

#[test]
fn comments_above_tests_of_all_languages_are_read() {
    let rust =
        "// attack: a flood => it is refused\n// attack: a | b => c\n#[tokio::test]\nasync fn floods_are_refused() {\n";
    let found = attacks_in("crates/x/tests/flood.rs", rust);
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].tried.as_str(), found[0].holds.as_str()), ("a flood", "it is refused"));
    assert_eq!((found[1].tried.as_str(), found[1].test.as_str()), ("a | b", "floods_are_refused"));
    let python = "# attack: a => b\n@pytest.mark.parametrize(\n    (\"x\"), [1],\n)\ndef test_it(hub):\n";
    assert_eq!(attacks_in("tests/python/test_a.py", python)[0].test, "test_it");
    for line in ["test(\"a page of another site\", async () => {", "  it('a page of another site', () => {"] {
        let script = format!("// attack: a => b\n{line}\n");
        assert_eq!(attacks_in("clients/typescript/test/a.js", &script)[0].test, "a page of another site");
    }
    let row = table(&attacks_in("crates/x/tests/flood.rs", rust));
    assert!(row.contains(r"| a \| b | c | [flood.rs::floods_are_refused](../crates/x/tests/flood.rs) |"), "{row}");
}

#[test]
#[should_panic(expected = "has no test below it")]
fn a_comment_without_a_test_is_an_error() {
    attacks_in("crates/x/tests/flood.rs", "// attack: a => b\nconst X: u8 = 1;\n\n\n#[test]\nfn it_holds() {}\n");
}

fn attacks(root: &Path) -> Vec<Attack> {
    let mut files = Vec::new();
    for folder in ROOTS {
        collect(&root.join(folder), &mut files);
    }
    files.sort();
    let own = Path::new(file!()).file_name().unwrap();
    let read = |file: &PathBuf| {
        let name = file.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        attacks_in(&name, &fs::read_to_string(file).unwrap())
    };
    files.iter().filter(|file| file.file_name() != Some(own)).flat_map(read).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() && !SKIPPED.iter().any(|skipped| *skipped == name) {
            collect(&path, files);
        }
        let wanted =
            path.extension().is_some_and(|end| ["rs", "py", "js", "mjs", "ts", "tsx"].iter().any(|e| *e == end));
        if kind.is_file() && wanted {
            files.push(path);
        }
    }
}

fn attacks_in(file: &str, text: &str) -> Vec<Attack> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let Some(comment) = annotation(line) else { continue };
        let place = format!("{file}:{}", i + 1);
        let (tried, holds) = comment
            .split_once(" => ")
            .unwrap_or_else(|| panic!("{place}: write `attack: <what is tried> => <what the hub does>`"));
        let test = test_below(&lines[i + 1..]).unwrap_or_else(|| panic!("{place}: the attack has no test below it"));
        let [tried, holds] = [tried, holds].map(|part| part.trim().to_owned());
        assert!(!tried.is_empty() && !holds.is_empty(), "{place}: one side of => is empty");
        found.push(Attack { tried, holds, file: file.to_owned(), test });
    }
    found
}

fn annotation(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let comment = line.strip_prefix("//").or_else(|| line.strip_prefix('#'))?;
    Some(comment.trim_start().strip_prefix("attack:")?.trim())
}

/// The name of the test that follows, with only comments, attributes and decorators in between.
fn test_below(lines: &[&str]) -> Option<String> {
    let mut brackets = 0;
    for line in lines {
        let line = line.trim();
        if let Some(name) = test_name(line) {
            return Some(name);
        }
        let continued = brackets > 0;
        brackets += line.matches(['(', '[']).count();
        brackets = brackets.saturating_sub(line.matches([')', ']']).count());
        let skipped = ["//", "#", "@"].iter().any(|start| line.starts_with(start));
        if !(continued || skipped) {
            return None;
        }
    }
    None
}

fn test_name(line: &str) -> Option<String> {
    let line = line.strip_prefix("pub ").unwrap_or(line);
    let line = line.strip_prefix("async ").unwrap_or(line);
    if let Some(rest) = line.strip_prefix("fn ").or_else(|| line.strip_prefix("def ")) {
        return Some(rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()?.to_owned());
    }
    let rest = ["test(", "it(", "test.skip(", "sharing("].iter().find_map(|call| line.strip_prefix(call))?;
    let quote = rest.chars().next()?;
    match quote {
        '"' | '\'' | '`' => Some(rest[1..].split(quote).next()?.to_owned()),
        // A test whose name is computed from its case.
        _ => Some(rest.split([',', ')']).next()?.to_owned()),
    }
}

fn section(file: &str) -> usize {
    SECTIONS.iter().position(|(_, words)| words.iter().any(|word| file.contains(word))).unwrap()
}

fn table(attacks: &[Attack]) -> String {
    let mut sections: BTreeMap<usize, Vec<&Attack>> = BTreeMap::new();
    for attack in attacks {
        sections.entry(section(&attack.file)).or_default().push(attack);
    }
    let cell = |text: &str| text.replace('|', r"\|");
    let mut text = String::new();
    for (section, attacks) in sections {
        text += &format!("\n### {}\n\n| Tried | Holds | Test |\n|---|---|---|\n", SECTIONS[section].0);
        for Attack { tried, holds, file, test } in attacks {
            let name = file.rsplit('/').next().unwrap();
            text += &format!("| {} | {} | [{name}::{}](../{file}) |\n", cell(tried), cell(holds), cell(test));
        }
    }
    text + "\n"
}
