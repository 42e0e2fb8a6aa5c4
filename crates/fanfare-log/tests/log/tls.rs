//! Redis over TLS with configured certificates: a single server, Sentinel and Cluster, for commands and channels.

use crate::{
    node::{BOUNDS, Node, linked_with, until},
    suite::suite,
};
use fanfare_log::redis::{BadRedisTls, LinkError, RedisBroker, RedisOptions, RedisTls};
use std::{fs, path::PathBuf, sync::Arc};
use testbed::{Certificates, Cluster, RedisServer, Sentinels};

fn read(path: PathBuf) -> Vec<u8> {
    fs::read(path).unwrap()
}

/// A configuration that trusts only the authority, with the client's certificate if `with_identity`.
fn tls(certificates: &Certificates, with_identity: bool) -> RedisTls {
    let identity = with_identity.then(|| (read(certificates.client()), read(certificates.client_key())));
    let identity = identity.as_ref().map(|(certificate, key)| (&certificate[..], &key[..]));
    RedisTls::new(Some(&read(certificates.authority())), identity).unwrap()
}

async fn link(url: &str, tls: RedisTls) -> Result<(Arc<RedisBroker>, Arc<Node>), LinkError> {
    linked_with(RedisOptions::new(url.parse::<fanfare_log::redis::RedisUrl>().unwrap().with_tls(tls)), BOUNDS).await
}

/// Runs the suite over TLS, and receives a message on a channel.
async fn serves(url: &str, certificates: &Certificates, with_identity: bool, publish: impl Fn(&[&str]) -> String) {
    let (broker, node) = link(url, tls(certificates, with_identity)).await.unwrap();
    suite(broker.clone(), node.clone()).await;
    publish(&["PUBLISH", "ws:broadcast", r#"{"type":"note","event_id":"heard","data":{}}"#]);
    until("the message on the channel is appended", || node.ids().iter().any(|id| id == "heard")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hub_presents_its_client_certificate() {
    let certificates = Certificates::issued(true);
    let server = RedisServer::setup().certificates(&certificates).start();
    serves(&server.url(), &certificates, true, |command| server.cli(command)).await;
    let error = link(&server.url(), tls(&certificates, false)).await.unwrap_err().to_string();
    assert!(error.contains("set redis_certificate_file and redis_key_file"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn under_sentinel_the_hub_presents_its_client_certificate() {
    let certificates = Certificates::issued(true);
    let mut sentinels = Sentinels::start_with_tls(&certificates);
    let url = sentinels.url();
    let master = sentinels.master();
    serves(&url, &certificates, true, |command| master.cli(command)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_the_hub_presents_its_client_certificate() {
    let certificates = Certificates::issued(true);
    let mut cluster = Cluster::start_with_tls(&certificates);
    let url = cluster.url();
    let owner = cluster.owner("{ws}:log");
    serves(&url, &certificates, true, |command| owner.cli(command)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_self_signed_certificate_is_trusted_as_its_own_authority() {
    // Both the form of rcgen and others, and that of `openssl req -x509`, which is marked as an authority.
    for is_authority in [false, true] {
        let certificates = Certificates::self_signed(is_authority, 90);
        let server = RedisServer::setup().certificates(&certificates).password("hush").start();
        serves(&server.url(), &certificates, false, |command| server.cli(command)).await;
    }
}

// attack: a Redis whose certificate has expired, has another name, or comes from an unknown authority => not connected
#[tokio::test(flavor = "multi_thread")]
async fn untrusted_certificates_are_rejected() {
    let rejected = async |server: &RedisServer, host: &str, trusted: &Certificates| {
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
        // The attempts run in parallel, because each node retries for ten seconds at startup.
        let (expired, unknown, renamed, issued) = tokio::join!(
            rejected(&old, "localhost", &expired),
            rejected(&own, "localhost", &stranger),
            // The same machine by an address that its certificate does not list.
            rejected(&own, "127.0.0.2", &valid),
            rejected(&other, "127.0.0.2", &issued),
        );
        assert!(expired.contains("expired"), "{expired}");
        // If both certificates have the same subject, the error is about the signature.
        assert!(unknown.contains("redis_ca_file") || unknown.contains("BadSignature"), "{unknown}");
        for error in [renamed, issued] {
            assert!(error.contains("not valid for name"), "{error}");
        }
    }
}

#[test]
fn unusable_files_have_distinct_errors() {
    let (ours, others) = (Certificates::issued(true), Certificates::issued(true));
    let (certificate, key) = (read(ours.client()), read(ours.client_key()));
    let new = |authority: Option<&[u8]>, identity| RedisTls::new(authority, identity).map(drop).unwrap_err();
    assert_eq!(new(Some(b"nothing"), None), BadRedisTls::NoAuthority);
    assert_eq!(new(None, Some((&key[..], &key[..]))), BadRedisTls::NoCertificate);
    assert_eq!(new(None, Some((&certificate[..], &certificate[..]))), BadRedisTls::NoKey);
    let stranger = read(others.client_key());
    assert!(matches!(new(None, Some((&certificate[..], &stranger[..]))), BadRedisTls::Mismatch(_)));
}
