//! The origin of a request: the site whose page makes it, and the address of its client. Forwarding headers are trusted
//! only from configured proxies.

use axum::{
    extract::ConnectInfo,
    http::{
        Extensions, HeaderMap, HeaderName,
        header::{HOST, ORIGIN},
    },
};
use ipnet::IpNet;
use std::{
    collections::HashSet,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
    sync::{Mutex, PoisonError},
};
use url::{Host, Url};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Maximum number of bytes of an origin or a host in a close reason, which has 123 bytes in total (RFC 6455 section
/// 5.5).
const SHOWN_BYTES: usize = 36;
/// Maximum number of origins that are logged in a period, and the length of the period in milliseconds.
const LOGGED_ORIGINS: usize = 100;
const LOGGED_FOR_MS: u64 = 3_600_000;

/// The sites whose pages may connect, besides the hub's own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Origins {
    /// Only pages of the hub's own site.
    #[default]
    Same,
    /// Also pages of these sites, each as browsers write it: `https://app.example.org`, `capacitor://localhost`,
    /// `null`, `file://`. `https://*.example.org` allows every subdomain, but not `example.org` itself.
    Listed(Vec<String>),
    /// Pages of every site. A page still needs a token; the hub uses no cookies that a browser would add.
    Every,
}

/// Reverse proxies in front of a hub, by address or network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Proxies(Vec<IpNet>);

/// The text is not a list of origins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a list of origins, such as https://app.example.org, https://*.example.org or capacitor://localhost")]
pub struct NotOrigins;

/// The text is not a list of proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a list of addresses or networks, such as 10.0.0.0/8")]
pub struct NotProxies;

/// The request comes from a page of a site that is not allowed. The text is for the log; [`Self::reason`] is for the
/// client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a page of {origin} may not connect to {host}: set allowed_origins = \"{wanted}\"{note}")]
pub(crate) struct ForeignOrigin {
    pub(crate) origin: String,
    host: String,
    /// The value of `allowed_origins` that would allow the origin.
    wanted: String,
    /// The origin. For a page on the local machine also its other local name.
    offer: String,
    note: &'static str,
}

/// The rejected origins that were logged recently.
#[derive(Debug, Default)]
pub(crate) struct LoggedOrigins(Mutex<(u64, HashSet<String>)>);

impl Origins {
    /// Whether pages of `origin` are allowed.
    fn contains(&self, origin: &str) -> bool {
        match self {
            Self::Same => false,
            Self::Listed(origins) => {
                origins.iter().any(|allowed| allowed == origin)
                    || normalized(origin).is_some_and(|origin| origins.iter().any(|allowed| matches(allowed, &origin)))
            }
            Self::Every => true,
        }
    }

    /// Checks the origin of a request (RFC 6455 section 10.2). Browsers send it; other clients do not have to.
    pub(crate) fn check(
        &self,
        headers: &HeaderMap,
        proxies: &Proxies,
        peer: Option<IpAddr>,
    ) -> Result<(), ForeignOrigin> {
        let mut origins = headers.get_all(ORIGIN).into_iter();
        let Some(origin) = origins.next() else { return Ok(()) };
        let host = host(headers, proxies, peer);
        let (Ok(origin), None) = (origin.to_str(), origins.next()) else {
            return Err(ForeignOrigin::new("an unreadable Origin header", host, self));
        };
        let same = || host.is_some_and(|host| is_at(origin, host));
        if self.contains(origin) || same() { Ok(()) } else { Err(ForeignOrigin::new(origin, host, self)) }
    }

    /// The allowed origins for the CORS layer.
    pub(crate) fn to_cors(&self) -> Option<tower_http::cors::AllowOrigin> {
        match self {
            Self::Same => None,
            Self::Listed(_) => {
                let origins = self.clone();
                let allowed = move |origin: &str| origins.contains(origin);
                Some(tower_http::cors::AllowOrigin::predicate(move |origin, _| origin.to_str().is_ok_and(&allowed)))
            }
            Self::Every => Some(tower_http::cors::AllowOrigin::any()),
        }
    }
}

/// The peer address of the connection, if the server provides it.
pub(crate) fn peer(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_canonical())
}

impl ForeignOrigin {
    fn new(origin: &str, host: Option<&str>, allowed: &Origins) -> Self {
        let offer = match normalized(origin).as_deref().and_then(other_local_name) {
            // Developers open a page under either name of the local machine.
            Some(other) => format!("{},{other}", origin.to_ascii_lowercase()),
            None => origin.to_owned(),
        };
        let wanted = match allowed {
            Origins::Listed(origins) => format!("{},{offer}", origins.join(",")),
            Origins::Same | Origins::Every => offer.clone(),
        };
        let note = match origin {
            "null" => ", which allows every page without an origin: files, and sandboxed frames of any site",
            _ => "",
        };
        Self {
            origin: origin.to_owned(),
            host: host.unwrap_or("a request without Host").to_owned(),
            wanted,
            offer,
            note,
        }
    }

    /// The detail of an HTTP response. It does not list the allowed origins.
    pub(crate) fn detail(&self) -> String {
        format!("a page of {} may not use {}: add {} to allowed_origins", self.origin, self.host, self.offer)
    }

    /// The close reason, at most 123 bytes. It does not list the allowed origins.
    pub(crate) fn reason(&self) -> String {
        let exact = format!("origin_not_allowed: {} at {}: set allowed_origins={}", self.origin, self.host, self.offer);
        if exact.len() <= 123 {
            return exact;
        }
        let (origin, host) = (shortened(&self.origin), shortened(&self.host));
        format!("origin_not_allowed: {origin} at {host}: add it to allowed_origins")
    }
}

fn shortened(text: &str) -> String {
    // Readable headers are ASCII. Other text is never cut within a character.
    let end = (0..=SHOWN_BYTES - 3).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    if text.len() <= SHOWN_BYTES { text.to_owned() } else { format!("{}...", &text[..end]) }
}

impl LoggedOrigins {
    /// Whether an origin should be logged: each at most once an hour, and at most `LOGGED_ORIGINS` an hour.
    pub(crate) fn is_new(&self, origin: &str, mono_ms: u64) -> bool {
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (since_ms, origins) = &mut *logged;
        if mono_ms.saturating_sub(*since_ms) >= LOGGED_FOR_MS {
            (*since_ms, *origins) = (mono_ms, HashSet::new());
        }
        origins.len() < LOGGED_ORIGINS && origins.insert(origin.to_owned())
    }
}

/// Whether a normalised origin matches a listed origin or pattern.
fn matches(allowed: &str, origin: &str) -> bool {
    let Some((scheme, domain)) = allowed.split_once("://*.") else { return allowed == origin };
    let host = origin.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://"));
    let subdomain = host.and_then(|host| host.strip_suffix(domain)?.strip_suffix('.'));
    subdomain.is_some_and(|name| !name.is_empty())
}

/// The same origin under the other name of the local machine.
fn other_local_name(origin: &str) -> Option<String> {
    let url = Url::parse(origin).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    let other = match url.host()? {
        Host::Domain("localhost") => "127.0.0.1",
        Host::Ipv4(Ipv4Addr::LOCALHOST) => "localhost",
        Host::Domain(_) | Host::Ipv4(_) | Host::Ipv6(_) => return None,
    };
    Some(format!("{}://{other}{port}", url.scheme()))
}

/// The host that the request was sent to, as the client wrote it.
fn host<'a>(headers: &'a HeaderMap, proxies: &Proxies, peer: Option<IpAddr>) -> Option<&'a str> {
    let forwarded = peer.is_some_and(|peer| proxies.contains(peer));
    let forwarded = forwarded.then(|| headers.get(FORWARDED_HOST)).flatten();
    forwarded.or_else(|| headers.get(HOST))?.to_str().ok()
}

/// Whether an origin is the site of a host: the same name and port. The scheme is ignored, because a proxy may
/// terminate TLS.
fn is_at(origin: &str, host: &str) -> bool {
    let Some((scheme, site)) = origin.split_once("://") else { return false };
    let default = match scheme {
        "https" => ":443",
        "http" => ":80",
        _ => return false,
    };
    let strip = |authority: &str| authority.strip_suffix(default).unwrap_or(authority).to_ascii_lowercase();
    !site.is_empty() && strip(site) == strip(host)
}

impl Proxies {
    /// Whether an address belongs to a proxy.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|net| net.contains(&address))
    }

    /// The client address of a request from `peer`: the last address in `X-Forwarded-For` that is not a proxy's.
    pub(crate) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        if !self.contains(peer) {
            return peer;
        }
        // The client's part of the header may have any bytes. It precedes the proxy's part, possibly on the same line.
        let lines: Vec<_> =
            headers.get_all(FORWARDED_FOR).into_iter().map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
        let mut client = peer;
        for entry in lines.iter().rev().flat_map(|line| line.rsplit(',')).map(str::trim) {
            // An entry that is not an address was not written by a proxy, so everything before it is untrusted.
            let Some(address) = address(entry) else { break };
            client = address;
            if !self.contains(address) {
                break;
            }
        }
        client
    }
}

/// An address as proxies write it, with or without a port.
fn address(entry: &str) -> Option<IpAddr> {
    let plain = entry.trim_matches(['[', ']']).parse().ok();
    plain
        .or_else(|| entry.parse::<SocketAddr>().ok().map(|address| address.ip()))
        .map(|address: IpAddr| address.to_canonical())
}

impl FromStr for Origins {
    type Err = NotOrigins;

    /// Parses a comma-separated list of origins. `*` is every origin; an empty text is the hub's own origin only.
    fn from_str(text: &str) -> Result<Self, NotOrigins> {
        let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
        match parts[..] {
            [] => Ok(Self::Same),
            ["*"] => Ok(Self::Every),
            _ => parts.into_iter().map(pattern).collect::<Option<_>>().map(Self::Listed).ok_or(NotOrigins),
        }
    }
}

/// Parses a listed origin or a pattern of subdomains, and normalises it as [`normalized`] does.
fn pattern(text: &str) -> Option<String> {
    let Some((scheme, domain)) = text.split_once("://*.") else {
        return normalized(text).filter(|origin| !origin.contains('*'));
    };
    let of_domain = normalized(&format!("{scheme}://{domain}")).filter(|origin| !origin.contains('*'))?;
    let url = Url::parse(&of_domain).ok()?;
    // A pattern on a top-level domain would allow unrelated sites.
    let narrow = matches!(url.host()?, Host::Domain(name) if name.contains('.') || name == "localhost");
    let web = matches!(url.scheme(), "http" | "https");
    (narrow && web).then(|| of_domain.replacen("://", "://*.", 1))
}

/// Normalises an origin to the form that browsers send (RFC 6454 section 6.2): lower case, punycode, no default port.
fn normalized(text: &str) -> Option<String> {
    let text = text.strip_suffix('/').unwrap_or(text);
    let (scheme, site) = match text {
        "null" => return Some(text.to_owned()),
        "file://" | "file:/" => return Some("file://".to_owned()),
        _ => text.split_once("://")?,
    };
    if site.is_empty() || site.contains(|c: char| "/\\?#@".contains(c) || c.is_whitespace() || c.is_control()) {
        return None;
    }
    match scheme.to_ascii_lowercase().as_str() {
        web @ ("http" | "https") => {
            let url = Url::parse(&format!("{web}://{site}")).ok()?;
            Some(url.origin().ascii_serialization())
        }
        // These schemes are not the origin of any page.
        "ws" | "wss" | "ftp" | "file" | "data" | "blob" | "javascript" | "about" => None,
        // Pages of an application or an extension: the origin consists of the scheme and a name.
        other => {
            let fits = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
            let is_scheme = other.starts_with(|c: char| c.is_ascii_lowercase()) && other.chars().all(fits);
            let is_site = site.chars().all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c));
            (is_scheme && is_site).then(|| format!("{other}://{}", site.to_ascii_lowercase()))
        }
    }
}

impl fmt::Display for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same => f.write_str("same"),
            Self::Listed(origins) => f.write_str(&origins.join(", ")),
            Self::Every => f.write_str("*"),
        }
    }
}

impl FromStr for Proxies {
    type Err = NotProxies;

    /// Parses a comma-separated list of addresses and networks.
    fn from_str(text: &str) -> Result<Self, NotProxies> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let net =
            |part: &str| part.parse().or_else(|_| part.parse::<IpAddr>().map(IpNet::from)).map_err(|_| NotProxies);
        parts.map(net).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nets: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&nets.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    // attack: an Origin that resembles an allowed one => rejected
    #[test]
    fn pages_of_other_sites_are_rejected() {
        let (listed, config): (Origins, _) =
            ("https://app.example.org, http://localhost:3000/".parse().unwrap(), Proxies::default());
        for (origin, host, same, in_list) in [
            ("https://hub.example.org", "hub.example.org", true, true),
            ("https://hub.example.org", "hub.example.org:443", true, true),
            ("https://HUB.example.org", "hub.example.org", true, true),
            ("http://127.0.0.1:8000", "127.0.0.1:8000", true, true),
            ("http://hub.example.org", "hub.example.org", true, true),
            ("http://127.0.0.1:8001", "127.0.0.1:8000", false, false),
            ("https://hub.example.org.evil.org", "hub.example.org", false, false),
            ("https://evilhub.example.org", "hub.example.org", false, false),
            ("https://app.example.org", "hub.example.org", false, true),
            ("http://app.example.org", "hub.example.org", false, false),
            ("https://app.example.org:8443", "hub.example.org", false, false),
            ("http://localhost:3000", "hub.example.org", false, true),
            ("null", "hub.example.org", false, false),
            ("file://", "hub.example.org", false, false),
            ("", "", false, false),
            ("https://", "", false, false),
        ] {
            let headers = headers(&[(ORIGIN, origin), (HOST, host)]);
            assert_eq!(Origins::Same.check(&headers, &config, None).is_ok(), same, "{origin} at {host}");
            assert_eq!(listed.check(&headers, &config, None).is_ok(), in_list, "{origin} at {host}");
            assert!(Origins::Every.check(&headers, &config, None).is_ok());
        }
        assert!(Origins::Same.check(&headers(&[(HOST, "hub")]), &config, None).is_ok(), "no browser");
        let mut two = headers(&[(ORIGIN, "http://hub"), (HOST, "hub")]);
        two.append(ORIGIN, HeaderValue::from_static("http://evil"));
        assert!(Origins::Same.check(&two, &config, None).is_err());
    }

    #[test]
    fn the_forwarded_host_is_trusted_from_a_proxy_only() {
        let config = "10.0.0.1".parse::<Proxies>().unwrap();
        let headers = headers(&[
            (ORIGIN, "https://hub.example.org"),
            (HOST, "backend:8000"),
            (FORWARDED_HOST, "hub.example.org"),
        ]);
        let check = |peer: &str| Origins::Same.check(&headers, &config, Some(peer.parse().unwrap())).is_ok();
        assert!(check("10.0.0.1") && !check("10.0.0.2"));
    }

    // attack: a page whose Origin resembles a listed subdomain, application or IDN name => rejected
    #[test]
    fn origins_of_applications_and_subdomains_are_allowed_as_listed() {
        let listed = "capacitor://localhost, ionic://localhost, tauri://localhost, chrome-extension://abcdefghijklmnop, \
            null, file://, https://*.example.org, http://*.dev.example.org:3000, https://m\u{fc}nchen.example, \
            https://default.example:443";
        let listed: Origins = listed.parse().unwrap();
        for (origin, may) in [
            ("capacitor://localhost", true),
            ("ionic://localhost", true),
            ("tauri://localhost", true),
            ("chrome-extension://abcdefghijklmnop", true),
            ("null", true),
            ("file://", true),
            ("https://a.example.org", true),
            ("https://A.b.Example.org", true),
            ("https://a.example.org:443", true),
            ("http://x.dev.example.org:3000", true),
            ("https://xn--mnchen-3ya.example", true),
            ("https://default.example", true),
            ("https://default.example:443", true),
            ("capacitor://evil", false),
            ("ionic://localhost:1", false),
            ("chrome-extension://abcdefghijklmnoq", false),
            ("NULL", false),
            ("https://example.org", false),
            ("https://.example.org", false),
            ("https://evilexample.org", false),
            ("https://a.example.org.evil.org", false),
            ("https://evil.org/.example.org", false),
            ("https://evil.org\\.example.org", false),
            ("https://evil.org#.example.org", false),
            ("https://evil.org?.example.org", false),
            ("https://a@evil.org", false),
            ("http://a.example.org", false),
            ("https://a.example.org:8443", false),
            ("http://x.dev.example.org", false),
            ("http://default.example", false),
            ("https://munchen.example", false),
        ] {
            let headers = headers(&[(ORIGIN, origin), (HOST, "hub.example.net")]);
            assert_eq!(listed.check(&headers, &Proxies::default(), None).is_ok(), may, "{origin}");
            assert!(Origins::Same.check(&headers, &Proxies::default(), None).is_err(), "{origin}");
        }
    }

    #[test]
    fn a_rejection_names_origin_host_and_setting() {
        let reject = |allowed: &str, origin: &str, host: &str| {
            let allowed: Origins = allowed.parse().unwrap();
            allowed.check(&headers(&[(ORIGIN, origin), (HOST, host)]), &Proxies::default(), None).unwrap_err()
        };
        let local = reject("", "http://localhost:5173", "127.0.0.1:8000");
        assert_eq!(
            local.to_string(),
            "a page of http://localhost:5173 may not connect to 127.0.0.1:8000: set allowed_origins = \
             \"http://localhost:5173,http://127.0.0.1:5173\""
        );
        assert!(local.reason().contains("allowed_origins"), "{}", local.reason());
        let other = reject("https://a.example, https://b.example", "https://app.example.org", "hub.example.org");
        assert!(
            other.to_string().ends_with("\"https://a.example,https://b.example,https://app.example.org\""),
            "{other}"
        );
        assert_eq!(
            other.reason(),
            "origin_not_allowed: https://app.example.org at hub.example.org: set allowed_origins=https://app.example.org"
        );
        assert!(reject("", "null", "hub").to_string().contains("sandboxed frames"));
        let long = format!("https://{}.example.org", "a".repeat(200));
        for host in ["hub", &"h".repeat(300)] {
            let reason = reject("", &long, host).reason();
            assert!(reason.len() <= 123 && reason.contains("allowed_origins"), "{}: {reason}", reason.len());
        }
    }

    // attack: a flood of connects with made-up origins => the log names each once an hour, and at most a hundred
    #[test]
    fn rejected_origins_are_logged_once() {
        let logged = LoggedOrigins::default();
        assert!(logged.is_new("a", 1) && !logged.is_new("a", 2) && logged.is_new("b", 2));
        let more = (0..1_000).filter(|n| logged.is_new(&n.to_string(), 3)).count();
        assert_eq!(more, 98);
        assert!(logged.is_new("a", LOGGED_FOR_MS + 1));
    }

    // attack: a forged X-Forwarded-For, also with bytes that are not text => only the entries of trusted proxies count
    #[test]
    fn forwarding_headers_are_trusted_from_configured_proxies_only() {
        let proxies: Proxies = "10.0.0.0/8, 2001:db8::1".parse().unwrap();
        for (peer, forwarded, client) in [
            ("192.0.2.9", "203.0.113.7", "192.0.2.9"),
            ("10.0.0.1", "203.0.113.7", "203.0.113.7"),
            ("::ffff:10.0.0.1", "203.0.113.7", "203.0.113.7"),
            ("10.0.0.1", "1.2.3.4, 203.0.113.7", "203.0.113.7"),
            ("10.0.0.1", "1.2.3.4, 203.0.113.7, 10.1.1.1", "203.0.113.7"),
            ("10.0.0.1", "10.2.2.2, 10.1.1.1", "10.2.2.2"),
            ("10.0.0.1", "203.0.113.7:4711", "203.0.113.7"),
            ("10.0.0.1", "[2001:db8::7]:4711", "2001:db8::7"),
            ("2001:db8::1", "2001:db8::7", "2001:db8::7"),
            ("10.0.0.1", "unknown, 10.1.1.1", "10.1.1.1"),
            ("10.0.0.1", "", "10.0.0.1"),
        ] {
            let headers = headers(&[(FORWARDED_FOR, forwarded)]);
            let found = proxies.client(peer.parse().unwrap(), &headers);
            assert_eq!(found, client.parse::<IpAddr>().unwrap(), "{peer} {forwarded}");
        }
        // Bytes from the client do not hide its address, on the proxy's line or on a line of their own.
        let bytes = |bytes: &[u8]| HeaderValue::from_bytes(bytes).unwrap();
        for (first, second) in [(&b"\xff, 203.0.113.7"[..], None), (b"\xff", Some("203.0.113.7"))] {
            let mut lines = HeaderMap::new();
            lines.append(FORWARDED_FOR, bytes(first));
            if let Some(line) = second {
                lines.append(FORWARDED_FOR, HeaderValue::from_static(line));
            }
            let found = proxies.client("10.0.0.1".parse().unwrap(), &lines);
            assert_eq!(found, "203.0.113.7".parse::<IpAddr>().unwrap(), "{first:?}");
        }
        let mut lines = headers(&[(FORWARDED_FOR, "1.2.3.4")]);
        lines.append(FORWARDED_FOR, HeaderValue::from_static("203.0.113.7"));
        assert_eq!(proxies.client("10.0.0.1".parse().unwrap(), &lines).to_string(), "203.0.113.7");
    }

    #[test]
    fn lists_are_parsed_and_displayed() {
        for (text, shown) in [
            ("", "same"),
            ("*", "*"),
            ("https://App.example.org/", "https://app.example.org"),
            ("http://a:1,https://b", "http://a:1, https://b"),
            ("https://a:443,http://b:80,https://c:80", "https://a, http://b, https://c:80"),
            (
                "https://m\u{fc}nchen.example,https://*.B\u{fc}cher.example:8443",
                "https://xn--mnchen-3ya.example, https://*.xn--bcher-kva.example:8443",
            ),
            ("null,file:///,file://", "null, file://, file://"),
            ("Capacitor://localhost,tauri://localhost/", "capacitor://localhost, tauri://localhost"),
        ] {
            assert_eq!(text.parse::<Origins>().unwrap().to_string(), shown);
        }
        for text in [
            "app.example.org",
            "*, https://a",
            "https://a/path",
            "ws://a",
            "https://u@a",
            "https://*.org",
            "https://a.*.org",
            "https://*",
            "https://*.*.example.org",
            "https://*.10.0.0.1",
            "capacitor://*.example.org",
            "capacitor://",
            "javascript://a",
            "file://etc",
        ] {
            assert_eq!(text.parse::<Origins>(), Err(NotOrigins), "{text}");
        }
        assert_eq!("10.0.0.0/8, ::1".parse::<Proxies>().unwrap().to_string(), "10.0.0.0/8, ::1/128");
        assert_eq!("10.0.0.0/33".parse::<Proxies>(), Err(NotProxies));
    }
}
