//! Values that may be used and must not be shown.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};
use strongroom_proto::api::without_password;

/// What stands for a secret wherever it would be shown.
const HIDDEN: &str = "(secret)";

/// A secret. It shows as `(secret)` in every format; [`Secret::expose`] is the one way to the text.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes a text in.
    pub const fn new(text: String) -> Self {
        Self(text)
    }
    /// The text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(HIDDEN)
    }
}

/// A URL that may hold a password. It shows without it in every format; [`SecretUrl::expose`] is the one way to the
/// whole.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// Takes a URL in.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
    /// The URL with its password.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", shown_url(&self.0))
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown_url(&self.0))
    }
}

impl Serialize for SecretUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&shown_url(&self.0))
    }
}

/// A URL, or several joined by commas, as it may be shown. One without a secret stays letter by letter as it was
/// written. In a NATS URL a user without a password is a token, and so is hidden.
pub fn shown_url(text: &str) -> String {
    // A comma inside one URL (postgres://a,b/db) does not begin another.
    if text.matches("://").count() > 1 && text.contains(',') {
        return text
            .split(',')
            .map(|one| shown_url(one.trim()))
            .collect::<Vec<_>>()
            .join(",");
    }
    if !text.contains("://") {
        return if text.contains("password") {
            "(not a valid URL)".to_owned()
        } else {
            text.to_owned()
        };
    }
    match url::Url::parse(text) {
        Ok(url) => {
            let token = matches!(url.scheme(), "nats" | "tls" | "ws" | "wss")
                && !url.username().is_empty()
                && url.password().is_none();
            if token {
                let mut url = url;
                return match url.set_username("token") {
                    Ok(()) => url.to_string(),
                    Err(()) => "(not a valid URL)".to_owned(),
                };
            }
            let in_query = url
                .query_pairs()
                .any(|(key, _)| key == "password" || key == "sslpassword");
            if !in_query && url.password().is_none() {
                text.to_owned()
            } else {
                without_secret_query(url)
            }
        }
        // Several hosts in one Postgres URL are no valid URL; without an '@' there is nobody to hide.
        Err(_) if !text.contains('@') && !text.contains("password") => text.to_owned(),
        Err(_) => "(not a valid URL)".to_owned(),
    }
}

fn without_secret_query(mut url: url::Url) -> String {
    let kept: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(key, _)| key != "sslpassword")
        .map(|(key, value)| (key.into_owned(), value.into_owned()))
        .collect();
    if url.query().is_some() {
        url.set_query(None);
        if !kept.is_empty() {
            url.query_pairs_mut().extend_pairs(kept);
        }
    }
    without_password(url.as_str())
}
