//! A client of the API for tests: plain HTTP, so that what is tested is what any client sees.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use strongroom_testkit::wait_for_async;

use crate::{SOON, TOKEN};

/// A client of a fleet's API.
#[derive(Clone)]
pub struct Api {
    base: String,
    http: reqwest::Client,
}

impl Api {
    pub(crate) fn new(port: u16) -> Self {
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(15))
            .build()
            .expect("an HTTP client");
        Self {
            base: format!("http://127.0.0.1:{port}"),
            http,
        }
    }

    /// GET; the status and the JSON body.
    pub async fn get(&self, path: &str) -> Result<(u16, Value)> {
        let request = self.http.get(format!("{}{path}", self.base)).bearer_auth(TOKEN);
        answer(request).await
    }

    /// POST; the status and the JSON body.
    pub async fn post(&self, path: &str, body: Value) -> Result<(u16, Value)> {
        self.send(reqwest::Method::POST, path, body).await
    }

    /// Any method with a body; the status and the JSON body.
    pub async fn send(&self, method: reqwest::Method, path: &str, body: Value) -> Result<(u16, Value)> {
        let request = self
            .http
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(TOKEN);
        answer(
            request
                .header("content-type", "application/json")
                .body(body.to_string()),
        )
        .await
    }

    /// GET without a token; the status.
    pub async fn get_without_token(&self, path: &str) -> Result<(u16, Value)> {
        answer(self.http.get(format!("{}{path}", self.base))).await
    }

    /// Asks for backups; the job ids.
    pub async fn backup(&self, targets: &[&str]) -> Result<Vec<String>> {
        let (status, body) = self
            .post("/api/v1/backup/create", json!({ "type": "full", "targets": targets }))
            .await?;
        ensure!(status == 201, "{status}: {body}");
        let jobs = body["jobs"].as_array().context("jobs")?;
        Ok(jobs
            .iter()
            .filter_map(|job| job["job_id"].as_str().map(str::to_owned))
            .collect())
    }

    /// Backs a target up and waits until the backup has passed its verification; the backup's id.
    pub async fn backed_up(&self, target: &str) -> Result<String> {
        let id = self.backup(&[target]).await?.remove(0);
        self.completed(&id).await?;
        let backup = self.verified(&id).await?;
        ensure!(backup["verified"] == true, "{backup}");
        Ok(backup["backup_id"].as_str().context("backup_id")?.to_owned())
    }

    /// Asks for a restore and waits until it has completed; what the answer to the question was.
    pub async fn restore(&self, ask: Value) -> Result<Value> {
        let (status, created) = self.post("/api/v1/restore/create", ask).await?;
        ensure!(status == 201, "{status}: {created}");
        self.completed(created["restore_id"].as_str().context("restore_id")?)
            .await?;
        Ok(created)
    }

    /// One job.
    pub async fn job(&self, id: &str) -> Result<Value> {
        let (status, body) = self.get(&format!("/api/v1/jobs/{id}")).await?;
        ensure!(status == 200, "{status}: {body}");
        Ok(body)
    }

    /// Waits until a job has ended, however.
    pub async fn ended(&self, id: &str) -> Result<Value> {
        wait_for_async(&format!("the end of job {id}"), SOON * 2, || async {
            let job = self.job(id).await.ok()?;
            ["completed", "failed", "cancelled"]
                .contains(&job["status"].as_str()?)
                .then_some(job)
        })
        .await
    }

    /// Waits until a job has completed; an error with its reason where it failed.
    pub async fn completed(&self, id: &str) -> Result<Value> {
        let job = self.ended(id).await?;
        ensure!(
            job["status"] == "completed",
            "job {id} is {}: {}",
            job["status"],
            job["error"]
        );
        Ok(job)
    }

    /// Waits until a job runs.
    pub async fn running(&self, id: &str) -> Result<Value> {
        wait_for_async(&format!("job {id} to run"), SOON, || async {
            let job = self.job(id).await.ok()?;
            (job["status"] == "running").then_some(job)
        })
        .await
    }

    /// Waits until the backup of a job has passed its verification.
    pub async fn verified(&self, job_id: &str) -> Result<Value> {
        wait_for_async(&format!("the verification of job {job_id}"), SOON * 2, || async {
            let (_, list) = self.get("/api/v1/backup/list?limit=10000").await.ok()?;
            let backup = list["backups"]
                .as_array()?
                .iter()
                .find(|backup| backup["job_id"] == job_id)?
                .clone();
            let decided = backup["verified"] == true || !backup["verification_error"].is_null();
            decided.then_some(backup)
        })
        .await
    }

    pub(crate) async fn wait_healthy(&self) -> Result<()> {
        wait_for_async("a healthy API", SOON, || async {
            let (status, _) = self.get_without_token("/health").await.ok()?;
            (status == 200).then_some(())
        })
        .await
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Result<(u16, Value)> {
    let response = request.send().await?;
    let status = response.status().as_u16();
    let text = response.text().await?;
    let body = if text.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    };
    Ok((status, body))
}
