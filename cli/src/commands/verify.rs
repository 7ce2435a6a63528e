//! `strongroom verify`

use strongroom_proto::api::CreateVerify;

use super::{Outcome, end_of_job, named, outcome_of, print_json};
use crate::args::VerifyArgs;
use crate::client::Client;
use crate::render;
use crate::wait::{Waited, wait_for_one};

pub(crate) async fn run(client: &Client, args: VerifyArgs) -> anyhow::Result<Outcome> {
    let backup = named::find_one(client, &args.backup).await?;
    let request = CreateVerify {
        backup_id: backup.to_string(),
    };
    let created = client.create_verify(&request).await?;
    let job = created.value.job_id;
    if !args.wait {
        if args.json {
            print_json(&created)?;
        } else {
            let expected = render::safe(&created.value.estimated_duration);
            render::print(&format!(
                "verification of {backup}: job {job}\nExpected to take: {expected}\nWait for it with: strongroom job wait {job}"
            ))?;
        }
        return Ok(Outcome::Done);
    }
    let Waited::Ended(job) = wait_for_one(client, job).await? else {
        return Ok(Outcome::Interrupted);
    };
    let outcome = outcome_of(&job.value);
    if args.json {
        print_json(&job)?;
    } else {
        render::print(&end_of_job(&job.value))?;
        if outcome == Outcome::Done {
            render::print(&format!("`strongroom receipt show {backup}` shows what was checked."))?;
        }
    }
    Ok(outcome)
}
