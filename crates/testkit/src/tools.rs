//! Where the test servers are: one folder, filled by `deploy/bootstrap --tests`.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

/// The folder of tools: `STRONGROOM_TOOLS`, or the place where `deploy/bootstrap --tests` puts them by default.
pub fn tools_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("STRONGROOM_TOOLS").filter(|dir| !dir.is_empty()) {
        return Ok(PathBuf::from(dir));
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/strongroom/tools"));
    }
    let state = match std::env::var_os("XDG_STATE_HOME").filter(|dir| !dir.is_empty()) {
        Some(state) => PathBuf::from(state),
        None => {
            let home = std::env::var_os("HOME").context("find the folder of tools: HOME is not set")?;
            PathBuf::from(home).join(".local/state")
        }
    };
    Ok(state.join("strongroom/tools"))
}

/// The tool at `relative` in the folder of tools, for example `nats-server` or `pg18/bin/pg_dump`.
pub fn tool(relative: &str) -> Result<PathBuf> {
    let path = tools_dir()?.join(relative);
    if !path.exists() {
        bail!("{} is missing: run deploy/bootstrap --tests", path.display());
    }
    Ok(path)
}
