//! Loads and checks the configured keys, which sign and verify tokens.

use crate::settings::{Settings, SettingsError};
use aws_lc_rs::rand;
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use fanfare::{
    Minter, Verifier,
    auth::{Family, KeyError, Keys},
};
use std::{fmt, fs, path::Path};

/// The keys of a hub.
pub(crate) struct Keyring {
    /// The keys that verify tokens, in addition to those at `jwks_url`.
    keys: Keys,
    /// Signs tokens. `None` if only other programs issue them.
    pub(crate) minter: Option<Minter>,
    /// The secret that authenticates connection IDs.
    pub(crate) identity: Option<Vec<u8>>,
    /// The secret that was generated for this run, if any.
    pub(crate) generated: Option<String>,
}

impl Keyring {
    /// Loads the configured keys. Without any, no token can be signed, and all tokens are rejected.
    pub(crate) fn load(settings: &Settings) -> Result<Self, SettingsError> {
        match settings.algorithm.family() {
            Family::Secret => Self::of_secrets(settings),
            _ => Self::of_key_files(settings),
        }
    }

    /// Loads the configured keys, or generates a secret for this run.
    pub(crate) fn load_or_generate(settings: &Settings) -> anyhow::Result<Self> {
        let configured = Self::load(settings)?;
        if settings.algorithm.family() != Family::Secret || !configured.keys.is_empty() {
            return Ok(configured);
        }
        let mut secret = [0; 48];
        rand::fill(&mut secret).map_err(|_| anyhow::anyhow!("failed to generate a random secret"))?;
        // As text, because workers inherit it as an environment variable.
        let secret = BASE64.encode(secret);
        let generated = Self::of_texts(settings, &[("secret_key", secret.clone())])?;
        Ok(Self { generated: Some(secret), ..generated })
    }

    fn of_secrets(settings: &Settings) -> Result<Self, SettingsError> {
        let mut secrets = Vec::new();
        if let Some(secret) = &settings.secret_key {
            secrets.push(("secret_key", secret.text().to_owned()));
        }
        if let Some(path) = &settings.secret_key_file {
            let text = read("secret_key_file", path)?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            secrets.extend(lines.map(|line| ("secret_key_file", line.to_owned())));
            if secrets.is_empty() {
                return Err(SettingsError::key("secret_key_file", path.display(), "the file is empty"));
            }
        }
        if let Some(secret) = &settings.previous_secret_key {
            secrets.push(("previous_secret_key", secret.text().to_owned()));
        }
        Self::of_texts(settings, &secrets)
    }

    /// The first secret signs, and all of them verify.
    fn of_texts(settings: &Settings, secrets: &[(&'static str, String)]) -> Result<Self, SettingsError> {
        let algorithm = settings.algorithm;
        let mut keys = Keys::none(algorithm);
        for (setting, secret) in secrets {
            let own = Keys::from_secret(algorithm, secret.as_bytes());
            keys = keys.and(own.map_err(|error| SettingsError::key(setting, "", error))?);
        }
        let first = secrets.first().filter(|(setting, _)| *setting != "previous_secret_key");
        let minter = first.map(|(setting, secret)| {
            Minter::new(algorithm, secret.as_bytes()).map_err(|error| SettingsError::key(setting, "", error))
        });
        let identity = first.map(|(_, secret)| secret.clone().into_bytes());
        Ok(Self { keys, minter: minter.transpose()?, identity, generated: None })
    }

    fn of_key_files(settings: &Settings) -> Result<Self, SettingsError> {
        let algorithm = settings.algorithm;
        let (mut keys, mut minter) = (Keys::none(algorithm), None);
        let mut identity = settings.secret_key.as_ref().map(|secret| secret.text().as_bytes().to_vec());
        if let Some(path) = &settings.private_key_file {
            let (pem, wrong) = (read("private_key_file", path)?, wrong("private_key_file", path));
            let own = Minter::from_pem(algorithm, &pem).map_err(wrong)?;
            keys = keys.and(own.keys().clone());
            minter = Some(own);
            identity = identity.or(Some(pem.into_bytes()));
        }
        if let Some(path) = &settings.public_key_file {
            let (text, wrong) = (read("public_key_file", path)?, wrong("public_key_file", path));
            keys = keys.and(Keys::from_text(algorithm, &text).map_err(wrong)?);
        }
        Ok(Self { keys, minter, identity, generated: None })
    }

    /// The verifier for the tokens of clients and publishers.
    pub(crate) fn verifier(&self, settings: &Settings) -> Verifier {
        let mut verifier =
            Verifier::new(self.keys.clone()).leeway(settings.leeway.as_secs()).require_exp(settings.require_exp);
        if let Some(issuer) = &settings.token_issuer {
            verifier = verifier.issuer(issuer);
        }
        if let Some(audience) = &settings.token_audience {
            verifier = verifier.audience(audience);
        }
        verifier
    }

    /// Whether there is no key that verifies tokens.
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

fn read(setting: &'static str, path: &Path) -> Result<String, SettingsError> {
    fs::read_to_string(path).map_err(|error| SettingsError::key(setting, path.display(), error))
}

fn wrong(setting: &'static str, path: &Path) -> impl FnOnce(KeyError) -> SettingsError {
    move |error| SettingsError::key(setting, path.display(), error)
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("keys", &self.keys).field("minter", &self.minter).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::kind::Secret;
    use fanfare::{Algorithm, auth::Claims};
    use std::path::PathBuf;

    const NOW: u64 = 1_800_000_000;

    fn secret(n: usize) -> Secret {
        Secret::new(&n.to_string().repeat(32))
    }

    fn file(text: &str) -> (tempfile::NamedTempFile, Option<PathBuf>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let path = file.path().to_owned();
        (file, Some(path))
    }

    fn token(secret: &Secret) -> String {
        Minter::from_secret(secret.text()).unwrap().mint(&Claims { sub: "ann".to_owned(), ..Claims::default() })
    }

    #[test]
    fn the_first_secret_signs_and_all_verify() {
        let (_kept, path) = file(&format!("{}\n\n  {}\n", secret(1).text(), secret(2).text()));
        let of_file = Settings { secret_key_file: path, ..Settings::default() };
        let of_values =
            Settings { secret_key: Some(secret(1)), previous_secret_key: Some(secret(2)), ..Settings::default() };
        for settings in [of_file, of_values] {
            let keyring = Keyring::load(&settings).unwrap();
            let verifier = keyring.verifier(&settings);
            for (n, good) in [(1, true), (2, true), (3, false)] {
                assert_eq!(verifier.verify(&token(&secret(n)), NOW).is_ok(), good, "{n}");
            }
            let ours = keyring.minter.unwrap().mint(&Claims { sub: "bob".to_owned(), ..Claims::default() });
            let first = Verifier::from_secret(secret(1).text()).unwrap();
            assert!(first.verify(&ours, NOW).is_ok());
            assert_eq!(keyring.identity.as_deref(), Some(secret(1).text().as_bytes()));
        }
    }

    #[test]
    fn an_error_names_the_setting_and_the_file() {
        let (_a, empty) = file("\n");
        let (_b, short) = file("short");
        let missing = Some(PathBuf::from("/nowhere/key"));
        for (settings, says) in [
            (
                Settings { secret_key: Some(Secret::new("short")), ..Settings::default() },
                "secret_key: the secret has 5 bytes",
            ),
            (Settings { secret_key_file: empty, ..Settings::default() }, "the file is empty"),
            (Settings { secret_key_file: short.clone(), ..Settings::default() }, "HS256 needs at least 32"),
            (
                Settings { secret_key_file: missing, ..Settings::default() },
                "secret_key_file: /nowhere/key: No such file",
            ),
            (
                Settings { algorithm: Algorithm::EdDsa, private_key_file: short.clone(), ..Settings::default() },
                "not a private key in PEM form",
            ),
            (
                Settings { algorithm: Algorithm::EdDsa, public_key_file: short, ..Settings::default() },
                "not a key in PEM form, JWK or JWKS",
            ),
        ] {
            let error = Keyring::load(&settings).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains("short"), "{error}");
        }
    }

    #[test]
    fn a_secret_is_generated_only_if_none_is_configured() {
        let keyring = Keyring::load_or_generate(&Settings::default()).unwrap();
        assert!(keyring.generated.as_ref().is_some_and(|secret| secret.len() == 64));
        let configured = Settings { secret_key: Some(secret(1)), ..Settings::default() };
        assert_eq!(Keyring::load_or_generate(&configured).unwrap().generated, None);
    }
}
