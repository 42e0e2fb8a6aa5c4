//! Tokens of every algorithm, the test vectors of the RFCs, and attacks on a verifier.

#![expect(clippy::unwrap_used, reason = "a test ends where something that it relies on fails")]

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use fanfare::{
    Algorithm, AuthError, Minter, Verifier,
    auth::{Claims, Family, Flaw, KeyError, Keys},
};
use jsonwebtoken::EncodingKey;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize};
use serde_json::{Value, json};
use std::sync::LazyLock;

const NOW: u64 = 1_800_000_000;
const SECRET: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Two keys of each kind, generated once because that is slow.
static KEYS: LazyLock<Vec<(Family, [KeyPair; 2])>> = LazyLock::new(|| {
    let rsa = || KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let other = |algorithm| KeyPair::generate_for(algorithm).unwrap();
    vec![
        (Family::Rsa, [rsa(), rsa()]),
        (Family::P256, [other(&PKCS_ECDSA_P256_SHA256), other(&PKCS_ECDSA_P256_SHA256)]),
        (Family::P384, [other(&PKCS_ECDSA_P384_SHA384), other(&PKCS_ECDSA_P384_SHA384)]),
        (Family::Ed25519, [other(&PKCS_ED25519), other(&PKCS_ED25519)]),
    ]
});

fn pair(family: Family) -> &'static [KeyPair; 2] {
    &KEYS.iter().find(|(of, _)| *of == family).unwrap().1
}

fn with_keys() -> impl Iterator<Item = Algorithm> {
    Algorithm::ALL.iter().copied().filter(|algorithm| algorithm.family() != Family::Secret)
}

fn claims() -> Claims {
    Claims { sub: "ann".to_owned(), exp: Some(NOW + 60), ..Claims::default() }
}

fn encode(json: &Value) -> String {
    BASE64.encode(json.to_string())
}

#[test]
fn a_token_of_each_algorithm_is_accepted_with_its_own_key_only() {
    for algorithm in with_keys() {
        let [key, other] = pair(algorithm.family());
        let minter = Minter::from_pem(algorithm, &key.serialize_pem()).unwrap();
        let token = minter.mint(&claims());
        for keys in [
            minter.keys().clone(),
            Keys::from_text(algorithm, &key.public_key_pem()).unwrap(),
            Keys::from_text(algorithm, &minter.keys().to_jwks().to_string()).unwrap(),
            Keys::from_text(algorithm, &minter.keys().to_jwks()["keys"][0].to_string()).unwrap(),
        ] {
            let grant = Verifier::new(keys).verify(&token, NOW).unwrap();
            assert_eq!(&*grant.user, "ann", "{algorithm}");
        }
        let stranger = Keys::from_text(algorithm, &other.public_key_pem()).unwrap();
        assert_eq!(Verifier::new(stranger).verify(&token, NOW), Err(Flaw::Signature.into()), "{algorithm}");
        let named = Minter::from_pem(algorithm, &other.serialize_pem()).unwrap();
        assert_eq!(Verifier::new(named.keys().clone()).verify(&token, NOW), Err(Flaw::UnknownKey.into()));
    }
}

#[test]
fn the_jwks_contains_no_secret() {
    for algorithm in with_keys() {
        let minter = Minter::from_pem(algorithm, &pair(algorithm.family())[0].serialize_pem()).unwrap();
        let jwks = minter.keys().to_jwks();
        let key = &jwks["keys"][0];
        assert!(key["kid"].is_string() && key["use"] == "sig" && key["alg"] == algorithm.name(), "{key}");
        for private in ["d", "p", "q", "dp", "dq", "qi", "k"] {
            assert!(key.get(private).is_none(), "{algorithm} {private}");
        }
    }
    assert_eq!(Keys::from_secret(Algorithm::Hs256, SECRET.as_bytes()).unwrap().to_jwks(), json!({ "keys": [] }));
}

#[test]
fn two_keys_are_valid_during_a_rotation() {
    for algorithm in with_keys() {
        let [old, new] =
            pair(algorithm.family()).each_ref().map(|key| Minter::from_pem(algorithm, &key.serialize_pem()).unwrap());
        let rotating = Verifier::new(new.keys().clone().and(old.keys().clone()));
        let pems = pair(algorithm.family()).each_ref().map(KeyPair::public_key_pem).concat();
        let from_file = Verifier::new(Keys::from_text(algorithm, &pems).unwrap());
        for minter in [&old, &new] {
            assert!(rotating.verify(&minter.mint(&claims()), NOW).is_ok(), "{algorithm}");
            assert!(from_file.verify(&minter.mint(&claims()), NOW).is_ok(), "{algorithm}");
        }
        let after = Verifier::new(new.keys().clone());
        assert!(after.verify(&old.mint(&claims()), NOW).is_err(), "{algorithm}");
    }
}

/// A public key is known to clients. If it were accepted as a secret, they could sign with it (RFC 8725 section 2.1).
// attack: a token signed by HMAC with the public key as its secret (algorithm confusion) => rejected
#[test]
fn a_public_key_is_never_accepted_as_a_secret() {
    for algorithm in with_keys() {
        let key = &pair(algorithm.family())[0];
        let verifier = Verifier::new(Keys::from_text(algorithm, &key.public_key_pem()).unwrap());
        let pem = key.public_key_pem();
        for secret in [pem.as_bytes().to_vec(), pem.trim().as_bytes().to_vec(), key.public_key_raw().to_vec()] {
            let message = format!("{}.{}", encode(&json!({"alg": "HS256"})), encode(&json!({"sub": "ann"})));
            let hmac = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &secret);
            let signature = BASE64.encode(aws_lc_rs::hmac::sign(&hmac, message.as_bytes()));
            let error = verifier.verify(&format!("{message}.{signature}"), NOW).unwrap_err();
            let expected = algorithm.name();
            assert_eq!(error, Flaw::Algorithm { found: "HS256", expected }.into());
            // The same with the expected algorithm in the header.
            let message = format!("{}.{}", encode(&json!({"alg": algorithm.name()})), encode(&json!({"sub": "ann"})));
            let signature = BASE64.encode(aws_lc_rs::hmac::sign(&hmac, message.as_bytes()));
            assert_eq!(verifier.verify(&format!("{message}.{signature}"), NOW), Err(Flaw::Signature.into()));
        }
        assert_eq!(Keys::from_secret(Algorithm::Hs256, pem.as_bytes()).map(drop), Err(KeyError::KeyAsSecret));
        assert!(Keys::from_text(Algorithm::Hs256, &pem).is_err());
    }
}

/// Keys in a header are chosen by the token's creator (RFC 8725 sections 3.9 and 3.10).
// attack: a token whose header brings or names its own key (jwk, jku, x5u, x5c, kid) => rejected
#[test]
fn keys_in_a_token_header_are_ignored() {
    for algorithm in with_keys() {
        let [ours, theirs] = pair(algorithm.family());
        let verifier = Verifier::new(Minter::from_pem(algorithm, &ours.serialize_pem()).unwrap().keys().clone());
        let minter = Minter::from_pem(algorithm, &theirs.serialize_pem()).unwrap();
        let own = minter.keys().to_jwks()["keys"][0].clone();
        let known = verifier.to_jwks()["keys"][0]["kid"].clone();
        for more in [
            json!({"jwk": own}),
            json!({"jku": "http://127.0.0.1:1/jwks.json"}),
            json!({"x5u": "http://127.0.0.1:1/cert.pem"}),
            json!({"x5c": [BASE64.encode(theirs.public_key_raw())]}),
            json!({"kid": known}),
            json!({"kid": "../../../../dev/null"}),
            json!({"kid": "' OR '1'='1"}),
            json!({"kid": ""}),
            json!({"kid": "x".repeat(4_000)}),
        ] {
            let mut header = json!({"alg": algorithm.name()});
            header.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let token = signed(&header, &json!({"sub": "ann"}), theirs, algorithm);
            let error = verifier.verify(&token, NOW).unwrap_err();
            assert!(
                matches!(error, AuthError::Invalid(Flaw::Signature | Flaw::UnknownKey)),
                "{algorithm} {more}: {error}"
            );
        }
        for odd in
            [json!({"alg": algorithm.name(), "kid": 7}), json!({"alg": [algorithm.name()]}), json!({"alg": null})]
        {
            let token = signed(&odd, &json!({"sub": "ann"}), ours, algorithm);
            assert_eq!(verifier.verify(&token, NOW), Err(Flaw::Header.into()), "{odd}");
        }
    }
}

/// A token with any header and claims, signed by `key`.
fn signed(header: &Value, claims: &Value, key: &KeyPair, algorithm: Algorithm) -> String {
    let message = format!("{}.{}", encode(header), encode(claims));
    let pem = key.serialize_pem();
    let key = match algorithm.family() {
        Family::Rsa => EncodingKey::from_rsa_pem(pem.as_bytes()),
        Family::P256 | Family::P384 => EncodingKey::from_ec_pem(pem.as_bytes()),
        Family::Ed25519 | Family::Secret => EncodingKey::from_ed_pem(pem.as_bytes()),
    };
    let algorithm = algorithm.name().parse().unwrap();
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key.unwrap(), algorithm).unwrap();
    format!("{message}.{signature}")
}

// attack: tokens with missing, zeroed, cut, doubled or transplanted signatures => rejected as token_invalid
#[test]
fn malformed_signatures_are_rejected() {
    for algorithm in with_keys() {
        let minter = Minter::from_pem(algorithm, &pair(algorithm.family())[0].serialize_pem()).unwrap();
        let verifier = Verifier::new(minter.keys().clone());
        let token = minter.mint(&claims());
        let (message, signature) = token.rsplit_once('.').unwrap();
        let (header, payload) = message.split_once('.').unwrap();
        let none = encode(&json!({"alg": "none"}));
        let zeros = BASE64.encode(vec![0; BASE64.decode(signature).unwrap().len()]);
        for changed in [
            format!("{message}."),
            format!("{message}.{zeros}"),
            format!("{message}.{signature}{signature}"),
            format!("{message}.{signature}="),
            format!("{message}.{}", &signature[..signature.len() - 4]),
            format!("{token}.{signature}"),
            format!("{none}.{payload}."),
            format!("{none}.{payload}.{signature}"),
            format!("{header}.{}.{signature}", encode(&json!({"sub": "admin", "admin": true}))),
            format!("{payload}.{header}.{signature}"),
            format!("{token}.{token}"),
            format!(" {token}"),
            format!("{token}\n"),
        ] {
            let error = verifier.verify(&changed, NOW).unwrap_err();
            assert_eq!(error.code(), "token_invalid", "{algorithm} {changed}");
        }
    }
}

/// The examples of RFC 7515 appendices A.1 to A.3 and RFC 8037 appendix A.4. Their signatures are valid, but their
/// claims name no user. With one changed byte the signatures are not valid.
#[test]
fn the_test_vectors_of_the_rfcs() {
    const CLAIMS: &str =
        "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let secret = BASE64
        .decode("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow")
        .unwrap();
    let rsa = json!({
        "kty": "RSA", "e": "AQAB",
        "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pC\
              gNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmt\
              dVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
    });
    let ec = json!({
        "kty": "EC", "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    });
    let ed = json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
    let no_user = |flaw: &Flaw| matches!(flaw, Flaw::Claim { name: "sub", .. });
    let no_claims = |flaw: &Flaw| matches!(flaw, Flaw::Claims);
    let keys = |algorithm, jwk: &Value| Keys::from_text(algorithm, &jwk.to_string()).unwrap();
    for (keys, token, right) in [
        (
            Keys::from_secret(Algorithm::Hs256, &secret).unwrap(),
            format!("eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{CLAIMS}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
            &no_user as &dyn Fn(&Flaw) -> bool,
        ),
        (
            keys(Algorithm::Rs256, &rsa),
            format!(
                "eyJhbGciOiJSUzI1NiJ9.{CLAIMS}.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5Y\
                 Kt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZR\
                 mB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywl\
                 VmtVrBp0igcN_IoypGlUPQGe77Rw"
            ),
            &no_user,
        ),
        (
            keys(Algorithm::Es256, &ec),
            format!(
                "eyJhbGciOiJFUzI1NiJ9.{CLAIMS}.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
            ),
            &no_user,
        ),
        (
            keys(Algorithm::EdDsa, &ed),
            "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg\
             5BhVsPt9g7sVvpAr_MuM0KAg"
                .to_owned(),
            &no_claims,
        ),
    ] {
        let verifier = Verifier::new(keys);
        let flaw = |token: &str| match verifier.verify(token, NOW) {
            Err(AuthError::Invalid(flaw)) => flaw,
            other => panic!("{other:?}"),
        };
        assert!(right(&flaw(&token)), "{token}: {:?}", flaw(&token));
        let at = token.rfind('.').unwrap() + 5;
        let other = if &token[at..=at] == "A" { "B" } else { "A" };
        assert_eq!(flaw(&format!("{}{other}{}", &token[..at], &token[at + 1..])), Flaw::Signature);
    }
}

/// The vector of RFC 7519 section 3.1, with the secret of RFC 7515 appendix A.1, is the first one above. Section 6.1
/// has the unsecured token.
// attack: a token with alg none => rejected
#[test]
fn an_unsecured_token_is_rejected() {
    let token = "eyJhbGciOiJub25lIn0.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.";
    let verifier = Verifier::from_secret(SECRET).unwrap();
    let error = verifier.verify(token, NOW).unwrap_err();
    assert_eq!(error, Flaw::Algorithm { found: "no algorithm (alg: none)", expected: "HS256" }.into());
}

#[test]
fn keys_of_the_wrong_kind_are_rejected_with_the_expected_kind() {
    let pem = |family| pair(family)[0].public_key_pem();
    for algorithm in with_keys() {
        for (family, _) in KEYS.iter().filter(|(family, _)| *family != algorithm.family()) {
            let error = Keys::from_text(algorithm, &pem(*family)).map(drop).unwrap_err();
            assert_eq!(error, KeyError::WrongKind { algorithm });
            let private = pair(*family)[0].serialize_pem();
            assert_eq!(Minter::from_pem(algorithm, &private).map(drop), Err(KeyError::WrongKind { algorithm }));
        }
        let [key, _] = pair(algorithm.family());
        assert_eq!(Keys::from_text(algorithm, &key.serialize_pem()).map(drop), Err(KeyError::Private));
        assert_eq!(
            Minter::from_pem(algorithm, &key.public_key_pem()).map(drop),
            Err(KeyError::Unreadable { private: true })
        );
        assert_eq!(Keys::from_text(algorithm, "no key").map(drop), Err(KeyError::Unreadable { private: false }));
        assert_eq!(Keys::from_text(algorithm, "{}").map(drop), Err(KeyError::NoneFits { keys: 1, algorithm }));
    }
    let error = KeyError::WrongKind { algorithm: Algorithm::Es384 }.to_string();
    assert_eq!(error, "not a key for ES384, which needs an EC key on the curve P-384");
}

// attack: a JWKS with weak, symmetric, private or encryption keys => none of them is used to verify tokens
#[test]
fn only_keys_for_the_algorithm_are_used_from_a_set() {
    let jwk = |family: Family, algorithm| {
        let minter = Minter::from_pem(algorithm, &pair(family)[0].serialize_pem()).unwrap();
        minter.keys().to_jwks()["keys"][0].clone()
    };
    let good = jwk(Family::P256, Algorithm::Es256);
    let with = |name: &str, value: Value| {
        let mut key = good.clone();
        key[name] = value;
        key
    };
    let count =
        |keys: Value| Keys::from_text(Algorithm::Es256, &json!({ "keys": keys }).to_string()).map(|keys| keys.len());
    let none = |keys| Err(KeyError::NoneFits { keys, algorithm: Algorithm::Es256 });
    assert_eq!(count(json!([good, jwk(Family::Rsa, Algorithm::Rs256), {"kty": "new"}, 7])), Ok(1));
    assert_eq!(count(json!([with("use", json!("enc"))])), none(1));
    assert_eq!(count(json!([with("alg", json!("ES384"))])), none(1));
    assert_eq!(count(json!([with("key_ops", json!(["sign"]))])), none(1));
    assert_eq!(count(json!([with("key_ops", json!(["verify"]))])), Ok(1));
    assert_eq!(count(json!([with("x", json!("AAAA"))])), none(1));
    assert_eq!(count(json!([])), none(0));
    assert_eq!(count(json!([{"kty": "oct", "k": BASE64.encode(SECRET)}])), none(1));
    assert_eq!(count(json!([with("d", json!("AAAA"))])), Err(KeyError::Private));
    let weak = json!({"kty": "RSA", "e": "AQAB", "n": BASE64.encode([0xff; 128])});
    let weak = Keys::from_text(Algorithm::Rs256, &weak.to_string()).map(drop);
    assert_eq!(weak, Err(KeyError::NoneFits { keys: 1, algorithm: Algorithm::Rs256 }), "an RSA key of 1,024 bits");
}

#[tokio::test]
async fn an_unknown_key_is_fetched() {
    let [old, new] =
        pair(Family::P256).each_ref().map(|key| Minter::from_pem(Algorithm::Es256, &key.serialize_pem()).unwrap());
    let (verifier, source) = Verifier::new(Keys::none(Algorithm::Es256)).with_source();
    let asked = tokio::spawn(async move {
        source.wanted().await;
        source.fail();
        source.wanted().await;
        source.renew(old.keys().clone());
        source.wanted().await;
        source.keep();
        source.wanted().await;
        source.renew(new.keys().clone());
        source.wanted().await;
        source.fail();
        source.wanted().await;
        source.fail();
        (old, new)
    });
    let [old, new] =
        pair(Family::P256).each_ref().map(|key| Minter::from_pem(Algorithm::Es256, &key.serialize_pem()).unwrap());
    let (old, new) = (old.mint(&claims()), new.mint(&claims()));
    let verify = async |token: &str| verifier.verify_or_refresh(token, NOW).await.map(drop);
    assert_eq!(verify(&old).await, Err(AuthError::KeysUnavailable), "the source is down, and has never provided a key");
    assert_eq!(verify(&old).await, Ok(()), "fetched");
    assert_eq!(verify(&old).await, Ok(()), "without a fetch");
    assert_eq!(verify(&new).await, Err(Flaw::UnknownKey.into()), "fetched a moment ago");
    assert_eq!(verify(&new).await, Ok(()), "rotated");
    assert_eq!(verify(&old).await, Err(AuthError::KeysUnavailable), "the source is down");
    assert_eq!(verify(&new).await, Ok(()), "fetched keys remain in use while the source is down");
    assert_eq!(verify(&old).await, Err(AuthError::KeysUnavailable));
    asked.await.unwrap();
}
