//! Redis over TLS with certificates of its own: alone, under Sentinel and as a Cluster, for commands and for channels.

use crate::{
    node::{BOUNDS, Node, linked_with, until},
    suite::suite,
};
use fanfare::broker::redis::{BadRedisTls, LinkError, RedisBroker, RedisOptions, RedisTls};
use std::{fs, path::PathBuf, sync::Arc};
use testbed::{Certificates, Cluster, RedisServer, Sentinels};

fn read(path: PathBuf) -> Vec<u8> {
    fs::read(path).unwrap()
}

/// Trusts the authority alone, and shows the client's certificate if there is one.
fn tls(certificates: &Certificates, shown: bool) -> RedisTls {
    let identity = shown.then(|| (read(certificates.client()), read(certificates.client_key())));
    let identity = identity.as_ref().map(|(certificate, key)| (&certificate[..], &key[..]));
    RedisTls::new(Some(&read(certificates.authority())), identity).unwrap()
}

async fn link(url: &str, tls: RedisTls) -> Result<(Arc<RedisBroker>, Arc<Node>), LinkError> {
    linked_with(RedisOptions::new(url.parse::<fanfare::broker::redis::RedisUrl>().unwrap().with_tls(tls)), BOUNDS).await
}

/// Links, hears a channel, and does what every log does.
async fn serves(url: &str, certificates: &Certificates, shown: bool, publish: impl Fn(&[&str]) -> String) {
    let (broker, node) = link(url, tls(certificates, shown)).await.unwrap();
    suite(broker.clone(), node.clone()).await;
    publish(&["PUBLISH", "ws:broadcast", r#"{"type":"note","event_id":"heard","data":{}}"#]);
    until("a channel is heard", || node.ids().iter().any(|id| id == "heard")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_show_certificates() {
    let certificates = Certificates::issued(true);
    let server = RedisServer::setup().certificates(&certificates).start();
    serves(&server.url(), &certificates, true, |command| server.cli(command)).await;
    let error = link(&server.url(), tls(&certificates, false)).await.unwrap_err().to_string();
    assert!(error.contains("set redis_certificate_file and redis_key_file"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn under_sentinel_clients_show_certificates() {
    let certificates = Certificates::issued(true);
    let mut sentinels = Sentinels::start_with_tls(&certificates);
    let url = sentinels.url();
    let master = sentinels.master();
    serves(&url, &certificates, true, |command| master.cli(command)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_clients_show_certificates() {
    let certificates = Certificates::issued(true);
    let mut cluster = Cluster::start_with_tls(&certificates);
    let url = cluster.url();
    let owner = cluster.owner("{ws}:log");
    serves(&url, &certificates, true, |command| owner.cli(command)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_self_signed_certificate_is_its_own_authority() {
    // As rcgen and others make it, and as `openssl req -x509` does.
    for is_authority in [false, true] {
        let certificates = Certificates::self_signed(is_authority, 90);
        let server = RedisServer::setup().certificates(&certificates).password("hush").start();
        serves(&server.url(), &certificates, false, |command| server.cli(command)).await;
    }
}

// attack: a Redis with an expired certificate, with one of an unknown authority, or of another name => the hub does not connect
#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_prove_nothing_are_rejected() {
    let refused = async |server: &RedisServer, host: &str, trusted: &Certificates| {
        let url = server.url().replace("localhost", host);
        link(&url, tls(trusted, false)).await.unwrap_err().to_string()
    };
    for is_authority in [false, true] {
        let expired = Certificates::self_signed(is_authority, -1);
        let valid = Certificates::self_signed(is_authority, 90);
        let stranger = Certificates::self_signed(is_authority, 90);
        let issued = Certificates::issued(false);
        let [old, own, other] =
            [&expired, &valid, &issued].map(|certificates| RedisServer::setup().certificates(certificates).start());
        // A server is tried for a while at start.
        let (expired, unknown, renamed, issued) = tokio::join!(
            refused(&old, "localhost", &expired),
            refused(&own, "localhost", &stranger),
            // The same machine by a name that its certificate does not have.
            refused(&own, "127.0.0.2", &valid),
            refused(&other, "127.0.0.2", &issued),
        );
        assert!(expired.contains("expired"), "{expired}");
        // Of two that are both called the same, one has not signed the other.
        assert!(unknown.contains("redis_ca_file") || unknown.contains("BadSignature"), "{unknown}");
        for error in [renamed, issued] {
            assert!(error.contains("not valid for name"), "{error}");
        }
    }
}

#[test]
fn files_that_are_of_no_use_are_told_apart() {
    let (ours, others) = (Certificates::issued(true), Certificates::issued(true));
    let (certificate, key) = (read(ours.client()), read(ours.client_key()));
    let new = |authority: Option<&[u8]>, identity| RedisTls::new(authority, identity).map(drop).unwrap_err();
    assert_eq!(new(Some(b"nothing"), None), BadRedisTls::NoAuthority);
    assert_eq!(new(None, Some((&key[..], &key[..]))), BadRedisTls::NoCertificate);
    assert_eq!(new(None, Some((&certificate[..], &certificate[..]))), BadRedisTls::NoKey);
    let stranger = read(others.client_key());
    assert!(matches!(new(None, Some((&certificate[..], &stranger[..]))), BadRedisTls::Mismatch(_)));
}
