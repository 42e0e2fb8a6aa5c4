//! The modules of a crate use each other in one direction.

#![expect(clippy::unwrap_used, reason = "a failed precondition ends the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The crates whose modules have no import cycle.
const LAYERED: [&str; 8] = [
    "fanfare-core",
    "fanfare-log",
    "fanfare",
    "fanfare-client",
    "fanfare-server",
    "recovery-model",
    "testbed",
    "chaos",
];

/// Each top-level module of a crate with the modules that it imports.
type Imports = BTreeMap<String, BTreeSet<String>>;

#[test]
fn no_modules_import_each_other() {
    for name in LAYERED {
        let imports = imports(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name).join("src"));
        assert!(imports.len() > 1 && imports.values().any(|used| !used.is_empty()), "{name}: nothing was found");
        assert_eq!(cycle(&imports), None, "{name}: these modules import each other");
    }
}

#[test]
fn no_modules_of_a_module_import_each_other() {
    let mut folders = 0;
    for name in LAYERED {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name).join("src");
        let inner = fs::read_dir(&src).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
        for folder in inner {
            let imports = siblings(&folder);
            folders += usize::from(imports.values().any(|used| !used.is_empty()));
            assert_eq!(cycle(&imports), None, "{}: these modules import each other", folder.display());
        }
    }
    assert!(folders > 3, "imports were found in {folders} folders");
}

/// Each file of a folder with the files of the folder that it imports.
fn siblings(folder: &Path) -> Imports {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let named = files.map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path));
    let mut imports: Imports = named
        .filter(|(name, _)| name != "mod")
        .map(|(name, path)| (name, imported_from("super::", &fs::read_to_string(path).unwrap())))
        .collect();
    keep_modules(&mut imports);
    imports
}

/// Removes the names that are no other module of the same set.
fn keep_modules(imports: &mut Imports) {
    let modules: BTreeSet<_> = imports.keys().cloned().collect();
    for (module, used) in imports {
        used.retain(|used| used != module && modules.contains(used));
    }
}

#[test]
fn a_cycle_is_found() {
    let of = |module: &str, used: &[&str]| (module.to_owned(), used.iter().map(|used| (*used).to_owned()).collect());
    let chain = Imports::from([of("a", &["b"]), of("b", &["c"]), of("c", &[])]);
    assert_eq!(cycle(&chain), None);
    let circle = Imports::from([of("a", &["b"]), of("b", &["c"]), of("c", &["b"])]);
    assert_eq!(cycle(&circle), Some(vec!["b".to_owned(), "c".to_owned()]));
    let text = "use crate::{a, b::{c, d}, E};\n// crate::f\nlet g = crate::g::h();\n#[cfg(test)]\nuse crate::i;";
    let found: Vec<_> = imported(text).into_iter().collect();
    assert_eq!(found, ["E", "a", "b", "g"]);
    assert_eq!(exported("pub use e::{E, F};\npub use g::G;")["E"], "e");
}

/// Modules that import each other, once those are removed that import none or are imported by none.
fn cycle(imports: &Imports) -> Option<Vec<String>> {
    let mut left: BTreeSet<&String> = imports.keys().collect();
    loop {
        let uses = |module: &String| imports[module].iter().any(|used| left.contains(used));
        let used = |module: &String| left.iter().any(|user| imports[*user].contains(module));
        let ends: Vec<_> = left.iter().copied().filter(|module| !uses(module) || !used(module)).collect();
        if ends.is_empty() {
            break;
        }
        left.retain(|module| !ends.contains(module));
    }
    (!left.is_empty()).then(|| left.into_iter().cloned().collect())
}

fn imports(src: &Path) -> Imports {
    let mut imports = Imports::new();
    for file in sources(src) {
        let module = file.strip_prefix(src).unwrap().components().next().unwrap().as_os_str().to_str().unwrap();
        let module = module.trim_end_matches(".rs");
        if !matches!(module, "lib" | "main") {
            let used = imported(&fs::read_to_string(&file).unwrap());
            imports.entry(module.to_owned()).or_default().extend(used);
        }
    }
    // A name that the crate's root re-exports is its module's.
    let root = fs::read_to_string(src.join("lib.rs")).unwrap_or_default();
    let exported = exported(&root);
    for used in imports.values_mut() {
        let through_root: Vec<_> = used.iter().filter_map(|name| exported.get(name).cloned()).collect();
        used.extend(through_root);
    }
    keep_modules(&mut imports);
    imports
}

/// The names that a crate's root re-exports, with the module that each is from.
fn exported(root: &str) -> BTreeMap<String, String> {
    let mut exported = BTreeMap::new();
    for statement in root.split("use ").skip(1).filter_map(|rest| rest.split(';').next()) {
        if let Some((module, names)) = statement.split_once("::") {
            let names = names.split(['{', '}', ',', ':']).filter_map(name);
            exported.extend(names.map(|name| (name, module.to_owned())));
        }
    }
    exported
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

fn imported(source: &str) -> BTreeSet<String> {
    imported_from("crate::", source)
}

/// The names that follow `crate::` or `super::` outside of comments and of the tests at the end of a file.
fn imported_from(root: &str, source: &str) -> BTreeSet<String> {
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    let code: String =
        source.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n").collect();
    let mut names = BTreeSet::new();
    for rest in code.split(root).skip(1) {
        match rest.strip_prefix('{') {
            None => names.extend(name(rest)),
            Some(list) => {
                let (mut depth, mut item) = (0, String::new());
                for c in list.chars() {
                    match c {
                        '}' if depth == 0 => break,
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' if depth == 0 => names.extend(name(&std::mem::take(&mut item))),
                        c => item.push(c),
                    }
                }
                names.extend(name(&item));
            }
        }
    }
    names
}

fn name(text: &str) -> Option<String> {
    let name: String = text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}
