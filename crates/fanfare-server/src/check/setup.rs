//! The settings: keys, files with secrets, TLS, origins and proxies, heartbeat and drain.

use super::{Check, Finding};
use crate::{
    keyring::Keyring,
    serve::tls,
    settings::{Exposed, Settings},
};
use fanfare::{
    auth::Family,
    origin::{Origins, Proxies},
};
use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};
use x509_parser::{pem::Pem, time::ASN1Time};

const KEYS: Check = Check { name: "keys", why: "A known or guessed key can sign tokens for any user." };
const PERMISSIONS: Check = Check { name: "permissions", why: "Users who can read the file know its secrets." };
const COMMAND_LINE: Check = Check { name: "command line", why: "A known key can sign tokens for any user." };
const TOKENS: Check = Check { name: "tokens", why: "A stolen token is valid until it expires." };
const TLS: Check = Check {
    name: "tls",
    why: "Without TLS, tokens and events can be read in transit; browsers reject connections with an invalid \
        certificate.",
};
const ORIGINS: Check =
    Check { name: "origins", why: "Any page that a user opens could connect with a token that it obtains." };
const PROXIES: Check =
    Check { name: "proxies", why: "A trusted peer can claim any address, and so evade the limits by address." };
const HEARTBEAT: Check = Check { name: "heartbeat", why: "Proxies close idle connections, often after 60 s." };
const DRAIN: Check =
    Check { name: "drain", why: "Clients that are not drained within drain_timeout are closed without notice." };

/// Parts of secrets from examples.
const EXAMPLES: &[&str] = &["secret", "change", "example", "password", "your-", "12345678", "abcdefgh", "test"];

pub(super) fn check(settings: &Settings, exposed: &Exposed) -> Vec<Finding> {
    let mut findings = vec![keys(settings)];
    findings.extend(permissions(settings, exposed));
    findings.extend(exposed.on_command_line().map(|what| COMMAND_LINE.warn(what, &[])));
    findings.push(tokens(settings));
    findings.extend(certificate(settings));
    findings.extend([origins(settings), proxies(settings), heartbeat(settings), drain(settings)]);
    findings
}

fn keys(settings: &Settings) -> Finding {
    let algorithm = settings.algorithm;
    let keyring = match Keyring::load(settings) {
        Ok(keyring) => keyring,
        Err(error) => return KEYS.fail(error.to_string(), &["SECRET_KEY=$(openssl rand -hex 32)"]),
    };
    if algorithm.family() != Family::Secret {
        return KEYS
            .ok(format!("{algorithm}; {}", if settings.jwks_url.is_some() { "from jwks_url" } else { "from files" }));
    }
    if keyring.is_empty() {
        let what = "there is none: a random secret is generated for each run, and the hub listens only on loopback \
            addresses";
        let fixes = ["SECRET_KEY=$(openssl rand -hex 32)    # share it with your backend"];
        return if settings.listen.ip().is_loopback() { KEYS.warn(what, &fixes) } else { KEYS.fail(what, &fixes) };
    }
    let text = settings.secret_key.as_ref().map(|secret| secret.text().to_lowercase()).unwrap_or_default();
    let mut bytes: Vec<u8> = text.bytes().collect();
    bytes.sort_unstable();
    bytes.dedup();
    let known = EXAMPLES.iter().any(|part| text.contains(part));
    if !text.is_empty() && (known || bytes.len() < 10) {
        return KEYS.fail(
            format!("{algorithm}, with a secret that is not random"),
            &["SECRET_KEY=$(openssl rand -hex 32)    # keep the old one as FANFARE_PREVIOUS_SECRET_KEY until its \
                tokens expire"],
        );
    }
    KEYS.ok(format!("{algorithm}, with a secret of sufficient length"))
}

fn permissions(settings: &Settings, exposed: &Exposed) -> Vec<Finding> {
    let files = [&settings.secret_key_file, &settings.private_key_file, &settings.tls_key_file];
    let database = match &settings.database_url {
        crate::settings::DatabaseUrl::File(path) => Some(path),
        _ => None,
    };
    let there = files.into_iter().flatten().chain(database).filter(|path| path.exists());
    let of_settings = exposed
        .files()
        .into_iter()
        .map(|(path, keys)| permission(path, &format!(", which contains {}", keys.join(", "))));
    there.map(|path| permission(path, "")).chain(of_settings).collect()
}

/// Checks which other users can read a file. `content` describes its secrets.
fn permission(path: &Path, content: &str) -> Finding {
    let shown = path.display();
    let mode = match fs::metadata(path) {
        Err(error) => return PERMISSIONS.unknown(format!("{shown}: {error}")),
        Ok(meta) => meta.permissions().mode() & 0o777,
    };
    let fixes = [&*format!("chmod 600 {shown}")];
    if mode & 0o007 != 0 {
        PERMISSIONS.fail(format!("all users of this machine can read {shown}{content} (mode {mode:o})"), &fixes)
    } else if mode & 0o070 != 0 {
        PERMISSIONS.warn(format!("all users of its group can read {shown}{content} (mode {mode:o})"), &fixes)
    } else {
        PERMISSIONS.ok(format!("other users cannot read {shown}"))
    }
}

fn tokens(settings: &Settings) -> Finding {
    let minutes = settings.access_token_expire_minutes;
    if !settings.require_exp {
        let state = format!(
            "the hub's own are valid for {minutes} minutes; tokens that never expire (without `exp`) are \
                accepted"
        );
        let mut fix = vec!["require_exp = true    # in fanfare.toml, once every issuer sets `exp`"];
        fix.extend((minutes > 24 * 60).then_some("ACCESS_TOKEN_EXPIRE_MINUTES=30"));
        return TOKENS.warn(state, &fix);
    }
    let state = format!("the hub's own are valid for {minutes} minutes");
    if minutes <= 24 * 60 { TOKENS.ok(state) } else { TOKENS.warn(state, &["ACCESS_TOKEN_EXPIRE_MINUTES=30"]) }
}

fn certificate(settings: &Settings) -> Vec<Finding> {
    let (Some(certificate), Some(_)) = (&settings.tls_certificate_file, &settings.tls_key_file) else {
        let behind = settings.hub.trusted_proxies != Proxies::default();
        return vec![if settings.listen.ip().is_loopback() {
            TLS.ok("none, on loopback: a proxy on this machine terminates it")
        } else if behind {
            TLS.ok("none: the trusted proxies terminate it")
        } else {
            TLS.warn(
                format!("none, on {}", settings.listen),
                &[
                    "tls_certificate_file = \"fullchain.pem\"    # in fanfare.toml",
                    "tls_key_file = \"privkey.pem\"",
                    "# or use a proxy, and set trusted_proxies to its address",
                ],
            )
        }];
    };
    if let Err(error) = tls::load(settings) {
        return vec![TLS.fail(error.to_string(), &[])];
    }
    let text = fs::read(certificate).unwrap_or_default();
    let chain: Vec<Pem> = Pem::iter_from_buffer(&text).flatten().collect();
    chain_findings(&chain)
}

fn chain_findings(chain: &[Pem]) -> Vec<Finding> {
    let parsed: Vec<_> = chain.iter().filter_map(|pem| pem.parse_x509().ok()).collect();
    let Some(own) = parsed.first() else { return vec![TLS.fail("failed to parse the certificate", &[])] };
    let names: Vec<String> = own
        .subject_alternative_name()
        .ok()
        .flatten()
        .map_or_else(Vec::new, |names| names.value.general_names.iter().map(ToString::to_string).collect());
    let left = own.validity().not_after.timestamp() - ASN1Time::now().timestamp();
    let days = left / 86_400;
    let renew = ["# renew the certificate; the hub reloads the files by itself"];
    let mut findings = vec![if left <= 0 {
        TLS.fail(format!("the certificate expired {} days ago", -days), &renew)
    } else if own.validity().not_before > ASN1Time::now() {
        TLS.fail("the certificate is not valid yet", &["# set the clock, or wait"])
    } else if days < 30 {
        TLS.warn(format!("the certificate expires in {days} days"), &renew)
    } else {
        TLS.ok(format!("the certificate for {} is valid for {days} more days and matches its key", names.join(", ")))
    }];
    let broken = parsed.windows(2).position(|pair| pair[0].issuer() != pair[1].subject());
    let alone = parsed.len() == 1 && own.issuer() != own.subject();
    if let Some(at) = broken {
        let what = format!("certificate {} of the chain is not issued by the next one", at + 1);
        findings
            .push(TLS.fail(what, &["cat server.pem intermediate.pem > fullchain.pem    # each issued by the next"]));
    } else if alone {
        let what = "the intermediate certificates are missing";
        findings.push(TLS.warn(what, &["cat server.pem intermediate.pem > fullchain.pem"]));
    }
    if names.is_empty() {
        findings
            .push(TLS.fail("the certificate names no host (subjectAltName)", &["# request one with the host's name"]));
    }
    findings
}

fn origins(settings: &Settings) -> Finding {
    match &settings.hub.allowed_origins {
        Origins::Same => ORIGINS.ok("only pages of the hub's own site"),
        Origins::Every => ORIGINS
            .warn("pages of every site (*)", &["allowed_origins = \"https://app.example.org\"    # in fanfare.toml"]),
        Origins::Listed(origins) => {
            let plain = origins.iter().find(|origin| {
                origin.starts_with("http://") && !origin.contains("//localhost") && !origin.contains("//127.")
            });
            match plain {
                Some(origin) => ORIGINS.warn(format!("{origin} has no TLS: its pages can be replaced in transit"), &[]),
                None => ORIGINS.ok(format!("pages of the hub's own site, and of {}", origins.join(", "))),
            }
        }
    }
}

fn proxies(settings: &Settings) -> Finding {
    let shown = settings.hub.trusted_proxies.to_string();
    if shown.split(", ").any(|net| net.ends_with("/0")) {
        return PROXIES
            .fail("all addresses are trusted", &["trusted_proxies = \"10.0.0.1\"    # the proxy's own address"]);
    }
    PROXIES.ok(if shown.is_empty() { "none are trusted".to_owned() } else { format!("{shown} are trusted") })
}

fn heartbeat(settings: &Settings) -> Finding {
    let interval = settings.hub.heartbeat_interval;
    let state = format!("a ping every {} s", interval.as_secs());
    if interval < Duration::from_secs(55) {
        HEARTBEAT.ok(state)
    } else {
        HEARTBEAT.warn(state, &["heartbeat_interval = \"30s\"    # in fanfare.toml"])
    }
}

fn drain(settings: &Settings) -> Finding {
    let (rate, timeout) = (u64::from(settings.hub.drain_rate), settings.drain_timeout.as_secs());
    let connections = settings.hub.max_connections as u64;
    let needed = if rate == 0 { 0 } else { connections.div_ceil(rate) };
    let state = format!("{connections} clients are drained in {needed} s, within drain_timeout ({timeout} s)");
    if needed <= timeout {
        return DRAIN.ok(state);
    }
    DRAIN.warn(
        format!("draining {connections} clients takes {needed} s, but drain_timeout is {timeout} s"),
        &[&format!("drain_timeout = \"{}s\"    # in fanfare.toml", needed + 10)],
    )
}
