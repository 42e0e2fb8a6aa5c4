//! The paths of the API, for the hint in a 404 response.

use std::{collections::BTreeSet, sync::RwLock};

/// Paths that the OpenAPI description does not list.
const UNLISTED: [&str; 2] = ["/docs", "/openapi.json"];

/// The path templates of all routers of this process. They only serve as a hint, so hubs of one process share them.
static KNOWN: RwLock<BTreeSet<String>> = RwLock::new(BTreeSet::new());

/// Adds the path templates of a router, such as `/events/{event_id}`.
pub(super) fn learn<'a>(templates: impl Iterator<Item = &'a String>) {
    if let Ok(mut known) = KNOWN.write() {
        known.extend(templates.cloned());
        known.extend(UNLISTED.map(str::to_owned));
    }
}

/// The existing path that results from removing trailing and double slashes from `path`.
pub(super) fn without_extra_slashes(path: &str) -> Option<String> {
    let right: String = segments(path).flat_map(|segment| ["/", segment]).collect();
    let exists = || KNOWN.read().is_ok_and(|known| known.iter().any(|template| fits(template, &right)));
    (right != path && !right.is_empty() && exists()).then_some(right)
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|segment| !segment.is_empty())
}

fn fits(template: &str, path: &str) -> bool {
    let (mut theirs, mut own) = (segments(template), segments(path));
    loop {
        match (theirs.next(), own.next()) {
            (None, None) => return true,
            (Some(theirs), Some(own)) if theirs == own || theirs.starts_with('{') => {}
            _ => return false,
        }
    }
}
