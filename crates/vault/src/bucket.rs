//! What a bucket can do besides holding objects, asked by signed requests of our own: `object_store` has no calls for it.
//!
//! Every answer may be "unknown": keys that may not ask, services that do not know the question.

use std::time::Duration;

use object_store::ClientOptions;
use object_store::aws::{AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{HttpClient, HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector};

use crate::describe::Capabilities;

/// A question that is not answered in time is not answered.
const ANSWER_SECONDS: u64 = 10;
/// SHA-256 of nothing, in base64, sent along with something.
const WRONG_SHA256: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

/// A bucket, by its name and not by its objects.
#[derive(Clone)]
pub(crate) struct Bucket {
    /// With endpoint and name.
    pub(crate) url: String,
    pub(crate) region: String,
    pub(crate) prefix: String,
    pub(crate) credentials: AwsCredentialProvider,
    pub(crate) allow_http: bool,
}

struct Answer {
    status: u16,
    body: String,
}

impl Bucket {
    /// What the bucket does beyond create-if-absent, which is probed with its objects.
    pub(crate) async fn capabilities(&self, probe_object: &str) -> Capabilities {
        let versioning = self.ask("GET", "?versioning=", "", &[]).await;
        let lock = self.ask("GET", "?object-lock=", "", &[]).await;
        Capabilities {
            create_if_absent: true,
            checksums: self.refuses_a_wrong_checksum(probe_object).await,
            versioning: match versioning {
                Some(answer) if answer.status == 200 => Some(answer.body.contains("<Status>Enabled</Status>")),
                _ => None,
            },
            lock: match lock {
                Some(answer) if answer.status == 200 => {
                    Some(answer.body.contains("<ObjectLockEnabled>Enabled</ObjectLockEnabled>"))
                }
                // As S3 says that there is no such configuration.
                Some(answer) if answer.status == 404 => Some(false),
                _ => None,
            },
        }
    }

    /// Sends bytes with the checksum of others.
    async fn refuses_a_wrong_checksum(&self, object: &str) -> Option<bool> {
        let path = match self.prefix.is_empty() {
            true => format!("/{object}"),
            false => format!("/{}/{object}", self.prefix),
        };
        let headers = [
            ("x-amz-checksum-sha256", WRONG_SHA256),
            ("x-amz-sdk-checksum-algorithm", "SHA256"),
        ];
        match self.ask("PUT", &path, "probe\n", &headers).await?.status {
            200..300 => Some(false),
            400 => Some(true),
            _ => None,
        }
    }

    async fn ask(
        &self,
        method: &str,
        path_and_query: &str,
        body: &'static str,
        headers: &[(&'static str, &'static str)],
    ) -> Option<Answer> {
        let mut request = HttpRequest::new(HttpRequestBody::from(body.as_bytes().to_vec()));
        *request.method_mut() = method.parse().ok()?;
        *request.uri_mut() = format!("{}{path_and_query}", self.url).parse().ok()?;
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().ok()?);
        }
        let credential = self.credentials.get_credential().await.ok()?;
        AwsAuthorizer::new(&credential, "s3", &self.region)
            .try_authorize(&mut request, None)
            .ok()?;
        let options = ClientOptions::new()
            .with_allow_http(self.allow_http)
            .with_connect_timeout(Duration::from_secs(ANSWER_SECONDS))
            .with_timeout(Duration::from_secs(ANSWER_SECONDS));
        let client: HttpClient = ReqwestConnector::default().connect(&options).ok()?;
        let response = client.execute(request).await.ok()?;
        let status = response.status().as_u16();
        let body = response.into_body().bytes().await.ok()?;
        Some(Answer {
            status,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }
}
