//! The WAL of a vault: every object against its name and, with an identity, its signature, its place and its bytes.

use std::sync::Arc;

use futures::StreamExt;

use super::Run;
use crate::error::ReadError;
use crate::layout::{self, WalObject};
use crate::wal::{limit_bytes, open_object};

/// Objects read at the same time.
const WAL_READS: usize = 4;

impl Run<'_> {
    /// Reads every object among the WAL that was listed.
    pub(super) async fn check_wal(&mut self, listed: &[(String, u64)]) -> Result<(), ReadError> {
        let found: Vec<_> = listed
            .iter()
            .filter_map(|(path, _)| layout::wal_object(path).map(|(object, digest)| (path, object, digest)))
            .collect();
        self.progress.expect(found.len());
        let (vault, identity) = (self.vault, self.identity.map(|identity| Arc::new(identity.clone())));
        let mut outcomes = futures::stream::iter(found)
            .map(|(path, object, digest)| {
                let identity = identity.clone();
                async move {
                    let checked = async {
                        let failed = |source| ReadError::store(format!("check {path}"), source);
                        let Some(identity) = identity else {
                            return match vault.store().digest(path).await.map_err(failed)? {
                                Some((found, bytes)) if found == digest => Ok(Some(bytes)),
                                Some(_) => Err(ReadError::Damaged {
                                    object: path.clone(),
                                    problem: "does not match its digest",
                                }),
                                None => Ok(None),
                            };
                        };
                        let found = vault.store().get(path, limit_bytes(&object)).await;
                        // It expired since the vault was listed.
                        let Some(sealed) = found.map_err(failed)? else {
                            return Ok(None);
                        };
                        let bytes = sealed.len() as u64;
                        open_object(vault, &object, &digest, sealed, &identity).await?;
                        Ok(Some(bytes))
                    };
                    let checked = checked.await;
                    (path, object, checked)
                }
            })
            .buffer_unordered(WAL_READS);
        while let Some((path, object, checked)) = outcomes.next().await {
            self.objects.documents.insert(path.clone());
            match checked {
                Ok(bytes) => {
                    self.count(bytes.unwrap_or(0));
                    self.report.wal_objects += 1;
                }
                Err(error) => {
                    self.take_error(error)?;
                    self.say_what_is_hit(path, &object);
                }
            }
        }
        Ok(())
    }

    /// Adds to the damage of an object what cannot be recovered without it.
    fn say_what_is_hit(&mut self, path: &str, object: &WalObject) {
        if let Some(damaged) = self.damaged.get_mut(path) {
            damaged.problem = match object {
                WalObject::Piece(_) => format!("{}: recovery ends before {object}", damaged.problem),
                WalObject::History { .. } => format!("{}: it is {object}", damaged.problem),
            };
        }
    }
}
