//! The live page, the dashboard and their files. They load nothing from other hosts, and a content security policy
//! allows only their own scripts and styles.

use aws_lc_rs::digest;
use axum::{
    Router,
    http::{
        HeaderName, HeaderValue,
        header::{
            ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
    routing::get,
};
use base64::{Engine, engine::general_purpose::STANDARD};

const PAGE: &str = include_str!("../../assets/live.html");
const DASHBOARD: &str = include_str!("../../assets/dashboard.html");
const CHARTS: &str = include_str!("../../assets/uplot/uPlot.iife.min.js");
const CHARTS_STYLE: &str = include_str!("../../assets/uplot/uPlot.min.css");
/// The core of `clients/typescript`, built there; a test checks that it is current.
const CLIENT: &str = include_str!("../../assets/client.js");
/// The module that the client loads for `share`.
const SHARE: &str = include_str!("../../assets/share.js");

pub(super) fn router() -> Router {
    let (live, dashboard) = (headers(PAGE), headers(DASHBOARD));
    let file = |media| {
        [
            (CONTENT_TYPE, HeaderValue::from_static(media)),
            (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        ]
    };
    let script = file("text/javascript; charset=utf-8");
    // Pages of all origins may load the client, which is the same for all of them.
    let public = [
        (ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")),
        (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("cross-origin")),
    ];
    let public = (script.clone(), public);
    let (charts, share, style) = (script, public.clone(), file("text/css; charset=utf-8"));
    Router::new()
        .route("/", get(async move || (live, PAGE)))
        .route("/dashboard", get(async move || (dashboard, DASHBOARD)))
        .route("/client.js", get(async move || (public.0, public.1, CLIENT)))
        .route("/share.js", get(async move || (share.0, share.1, SHARE)))
        .route("/uplot.js", get(async move || (charts, CHARTS)))
        .route("/uplot.css", get(async move || (style, CHARTS_STYLE)))
}

fn headers(page: &str) -> [(HeaderName, HeaderValue); 5] {
    // Never fails: base64 is valid in a header.
    let policy = HeaderValue::from_str(&policy(page)).unwrap_or(HeaderValue::from_static("default-src 'none'"));
    [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CONTENT_SECURITY_POLICY, policy),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ]
}

/// Allows the page's inline script and style by their hashes, and connections to its own origin.
fn policy(page: &str) -> String {
    format!(
        "default-src 'none'; script-src 'self'{}; style-src 'self'{}; img-src 'self' data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hashes(page, "script type=\"module\""),
        hashes(page, "style")
    )
}

/// The hashes of the contents of all elements with a name (Content Security Policy Level 3, section 2.3.1).
fn hashes(page: &str, element: &str) -> String {
    let name = element.split(' ').next().unwrap_or(element);
    let (open, close) = (format!("<{element}>"), format!("</{name}>"));
    let contents = page.split(&open).skip(1).filter_map(|rest| rest.split(&close).next());
    let hashes: String = contents
        .map(|content| {
            let hash = digest::digest(&digest::SHA256, content.as_bytes());
            format!(" 'sha256-{}'", STANDARD.encode(hash))
        })
        .collect();
    if hashes.is_empty() { " 'none'".to_owned() } else { hashes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_allows_only_the_pages_own_script_and_style() {
        // printf 'alert(1)' | openssl dgst -sha256 -binary | base64
        let policy = policy("<style>a</style><script type=\"module\">alert(1)</script>");
        assert!(
            policy.contains("script-src 'self' 'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI=';"),
            "{policy}"
        );
        assert!(policy.contains("style-src 'self' 'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs=';"), "{policy}");
        assert!(hashes("<p>", "script").contains("'none'"));
    }

    #[test]
    fn every_script_and_style_of_the_page_is_hashed() {
        for page in [PAGE, DASHBOARD] {
            for (element, name) in [("script type=\"module\"", "script"), ("style", "style")] {
                let others = page.matches(&format!("<{name} src=")).count();
                assert_eq!(
                    page.matches(&format!("<{name}")).count() - others,
                    page.matches(&format!("<{element}>")).count()
                );
            }
            assert!(
                !page.contains(" style=\"") && !page.contains(" onclick="),
                "inline attributes are not covered by hashes"
            );
        }
    }
}
