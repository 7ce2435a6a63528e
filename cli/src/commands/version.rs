//! `strongroom version`

use serde_json::json;
use strongroom_proto::api::Health;

use super::Outcome;
use crate::args::JsonArgs;
use crate::client::Client;
use crate::render;

const CLIENT: &str = env!("CARGO_PKG_VERSION");

/// The program knows its own version whether or not anybody answers, so that is no failure.
pub(crate) async fn run(client: &Client, args: &JsonArgs) -> anyhow::Result<Outcome> {
    let health = client.get::<Health>(&["health"]).await.map(|answer| answer.value);
    if args.json {
        let (api, error) = match &health {
            Ok(health) => (
                json!({ "url": client.url(), "version": health.version, "status": health.status }),
                None,
            ),
            Err(error) => (
                json!({ "url": client.url(), "version": null, "status": null }),
                Some(error.to_string()),
            ),
        };
        let document = json!({ "client": CLIENT, "api": api, "error": error });
        render::print(&serde_json::to_string_pretty(&document)?)?;
        return Ok(Outcome::Done);
    }
    let api = match health {
        Ok(health) => format!("{} at {} ({})", health.version, client.url(), health.status),
        Err(error) => format!("unknown: {error}"),
    };
    render::print(&render::facts([("strongroom", CLIENT.to_owned()), ("api", api)]))?;
    Ok(Outcome::Done)
}
