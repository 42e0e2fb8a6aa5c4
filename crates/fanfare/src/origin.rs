//! Where a request comes from: the site whose page makes it, and the address of whoever it is made for. What headers say of
//! addresses is believed only of proxies that are named.

use crate::Config;
use axum::{
    extract::ConnectInfo,
    http::{
        HeaderMap, HeaderName, HeaderValue, Uri,
        header::{HOST, ORIGIN},
        request::Parts,
    },
};
use ipnet::IpNet;
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The sites whose pages may use a hub beside its own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Origins {
    /// Pages of the hub's own site alone.
    #[default]
    Same,
    /// Those of these sites too, each written as browsers do: `https://app.example.org`.
    Listed(Vec<String>),
    /// Every site. A page needs a token all the same; the hub has no cookies that a browser would add.
    Every,
}

/// Proxies in front of a hub, by address or network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Proxies(Vec<IpNet>);

/// A list of origins that can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a list of origins, such as https://app.example.org")]
pub struct NotOrigins;

/// A list of proxies that can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a list of addresses or networks, such as 10.0.0.0/8")]
pub struct NotProxies;

/// A page of a site that is not allowed made the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("pages of this origin may not connect; add it to allowed_origins")]
pub(crate) struct ForeignOrigin;

impl Origins {
    /// Whether a page of `origin` may.
    fn contains(&self, origin: &str) -> bool {
        match self {
            Self::Same => false,
            Self::Listed(origins) => origins.iter().any(|allowed| allowed == origin),
            Self::Every => true,
        }
    }

    /// Checks who makes a request (RFC 6455 section 10.2): a browser says whose page it is, and nobody else has to.
    pub(crate) fn check(
        &self,
        headers: &HeaderMap,
        config: &Config,
        peer: Option<IpAddr>,
    ) -> Result<(), ForeignOrigin> {
        let mut origins = headers.get_all(ORIGIN).into_iter();
        let Some(origin) = origins.next() else { return Ok(()) };
        let (Ok(origin), None) = (origin.to_str(), origins.next()) else { return Err(ForeignOrigin) };
        let same = || host(headers, config, peer).is_some_and(|host| is_at(origin, host));
        if self.contains(origin) || same() { Ok(()) } else { Err(ForeignOrigin) }
    }

    /// What CORS needs to know of them.
    pub(crate) fn to_cors(&self) -> Option<tower_http::cors::AllowOrigin> {
        match self {
            Self::Same => None,
            Self::Listed(origins) => {
                let values = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
                Some(tower_http::cors::AllowOrigin::list(values))
            }
            Self::Every => Some(tower_http::cors::AllowOrigin::any()),
        }
    }
}

/// The host that the request was made to, as the client wrote it.
fn host<'a>(headers: &'a HeaderMap, config: &Config, peer: Option<IpAddr>) -> Option<&'a str> {
    let forwarded = peer.is_some_and(|peer| config.trusted_proxies.contains(peer));
    let forwarded = forwarded.then(|| headers.get(FORWARDED_HOST)).flatten();
    forwarded.or_else(|| headers.get(HOST))?.to_str().ok()
}

/// Whether an origin is the site of a host: the same name, and the same port. A proxy in front may speak TLS for it, so that
/// the scheme says nothing here.
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
    /// Whether an address is one of theirs.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|net| net.contains(&address))
    }

    /// Whose request it is that came from `peer`: the last address in `X-Forwarded-For` that is none of a proxy.
    pub(crate) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        if !self.contains(peer) {
            return peer;
        }
        // What the client sent may be any bytes, and stands before what the proxy appended to the same line.
        let lines: Vec<_> =
            headers.get_all(FORWARDED_FOR).into_iter().map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
        let mut client = peer;
        for entry in lines.iter().rev().flat_map(|line| line.rsplit(',')).map(str::trim) {
            // What a proxy did not write as an address was written by somebody behind it.
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

impl crate::Hub {
    /// Whose request it is, by its connection and what trusted proxies say ([`Config::trusted_proxies`]).
    pub fn client_address(&self, parts: &Parts) -> IpAddr {
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
        self.config().trusted_proxies.client(peer.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), &parts.headers)
    }
}

impl FromStr for Origins {
    type Err = NotOrigins;

    /// Origins with commas between them, `*` for every one; nothing for the hub's own alone.
    fn from_str(text: &str) -> Result<Self, NotOrigins> {
        let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
        match parts[..] {
            [] => Ok(Self::Same),
            ["*"] => Ok(Self::Every),
            _ => parts.into_iter().map(origin).collect::<Option<_>>().map(Self::Listed).ok_or(NotOrigins),
        }
    }
}

/// An origin in the form that browsers send (RFC 6454 section 6.2).
fn origin(text: &str) -> Option<String> {
    let text = text.strip_suffix('/').unwrap_or(text).to_ascii_lowercase();
    let uri: Uri = text.parse().ok()?;
    let plain = uri.path() == "/" && uri.query().is_none() && !uri.authority()?.as_str().contains('@');
    let known = matches!(uri.scheme_str(), Some("http" | "https"));
    (plain && known && !text.contains('*')).then_some(text)
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

    /// Addresses and networks with commas between them.
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

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    // attack: an Origin that resembles an allowed one => not taken for it
    #[test]
    fn pages_of_other_sites_are_told_apart() {
        let (listed, config): (Origins, _) =
            ("https://app.example.org, http://localhost:3000/".parse().unwrap(), Config::default());
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
    fn a_proxy_may_say_which_host_was_meant() {
        let config = Config { trusted_proxies: "10.0.0.1".parse().unwrap(), ..Config::default() };
        let headers = headers(&[
            (ORIGIN, "https://hub.example.org"),
            (HOST, "backend:8000"),
            (FORWARDED_HOST, "hub.example.org"),
        ]);
        let check = |peer: &str| Origins::Same.check(&headers, &config, Some(peer.parse().unwrap())).is_ok();
        assert!(check("10.0.0.1") && !check("10.0.0.2"));
    }

    // attack: a forged X-Forwarded-For, also of bytes that are no text => ignored but for what a trusted proxy appended
    #[test]
    fn only_proxies_that_are_named_are_believed() {
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
        // Bytes of the client's, before what the proxy appended or in a line of their own, hide nobody.
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
    fn lists_are_read_and_shown() {
        for (text, shown) in [
            ("", "same"),
            ("*", "*"),
            ("https://App.example.org/", "https://app.example.org"),
            ("http://a:1,https://b", "http://a:1, https://b"),
        ] {
            assert_eq!(text.parse::<Origins>().unwrap().to_string(), shown);
        }
        for text in
            ["app.example.org", "https://*.example.org", "*, https://a", "https://a/path", "ws://a", "https://u@a"]
        {
            assert_eq!(text.parse::<Origins>(), Err(NotOrigins), "{text}");
        }
        assert_eq!("10.0.0.0/8, ::1".parse::<Proxies>().unwrap().to_string(), "10.0.0.0/8, ::1/128");
        assert_eq!("10.0.0.0/33".parse::<Proxies>(), Err(NotProxies));
    }
}
