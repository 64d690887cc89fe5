//! Cut markers: rows of the outbox that say "all rows before me are whole transactions".
//!
//! With them the sealer can split a large backlog without tearing a transaction. A marker is a transaction of
//! its own, written after a commit, so that SQLite's own order makes it true. It is a convenience for the
//! sealer and never the user's business: it waits for little and it fails silently.

use std::time::Duration;

use sea_orm::ConnectionTrait;

use super::Inner;

/// Rows after which a marker is due. A backlog without markers is one group.
pub(super) const CUT_EVERY: u64 = 1000;

/// How long a marker may take. In a wrapped pool whose connections are all in use it is then left to the next
/// commit.
const PATIENCE: Duration = Duration::from_millis(50);

/// Not over an empty outbox, and not twice in a row: there is nothing to cut.
const MARK: &str = "INSERT INTO sync_outbox (kind) \
    SELECT 0 WHERE (SELECT kind FROM sync_outbox ORDER BY id DESC LIMIT 1) <> 0";

/// Writes a marker when `CUT_EVERY` rows were committed since the last, `rows` of them just now. Call it in
/// one's turn.
pub(super) async fn mark_if_due(inner: &Inner, rows: u64) {
    if inner.gate.uncut() + rows < CUT_EVERY {
        return;
    }
    match tokio::time::timeout(PATIENCE, inner.writer.execute_unprepared(MARK)).await {
        // Also when it failed, most likely for want of sync tables: the next try is as many rows away.
        Ok(outcome) => {
            inner.gate.start_counting_anew();
            if let Err(error) = outcome {
                tracing::trace!(%error, "no cut marker written");
            }
        }
        Err(_) => tracing::debug!("no connection was free for a cut marker"),
    }
}
