//! Asking the application's resolver: each conflict that waits is put to it once, and again when the record has moved.

use std::{collections::HashMap, sync::Arc};

use super::Shared;
use crate::{
    conflict::{self, Conflict, ConflictId, Resolver},
    decide,
    error::Error,
    id::Seq,
};

/// Asks until the node stops.
pub(super) async fn decide(shared: Arc<Shared>, resolver: Arc<dyn Resolver>) {
    tokio::select! {
        () = ask(&shared, &resolver) => {}
        () = shared.stopped() => {}
    }
}

async fn ask(shared: &Shared, resolver: &Arc<dyn Resolver>) {
    let mut status = shared.library.status.subscribe();
    // What was asked, and as of which entry of the record.
    let mut asked: HashMap<ConflictId, Option<Seq>> = HashMap::new();
    loop {
        if status.wait_for(|status| status.conflicts > 0).await.is_err() {
            return;
        }
        let position = status.borrow_and_update().position;
        match shared.library.readers.run(conflict::open).await {
            Ok(conflicts) => {
                // Bounded by a page: what is decided is forgotten.
                asked.retain(|id, _| conflicts.iter().any(|conflict| conflict.id == *id));
                for conflict in conflicts {
                    let is_new = asked.get(&conflict.id) != Some(&conflict.local.seq);
                    if is_new && !conflict.being_decided {
                        asked.insert(conflict.id, conflict.local.seq);
                        put(shared, resolver, conflict).await;
                    }
                }
            }
            Err(error) => tracing::warn!(library = %shared.library.id, %error, "listing conflicts failed"),
        }
        // Until the log has grown or there are others.
        let count = status.borrow().conflicts;
        if status.wait_for(|s| s.position != position || s.conflicts != count).await.is_err() {
            return;
        }
    }
}

/// Puts one conflict to the resolver. Whatever goes wrong there leaves the conflict waiting.
async fn put(shared: &Shared, resolver: &Arc<dyn Resolver>, conflict: Conflict) {
    let (id, resolver) = (conflict.id, Arc::clone(resolver));
    // On a task of its own: a panic ends that one.
    let choice = match tokio::spawn(async move { resolver.resolve(&conflict).await }).await {
        Ok(Some(choice)) => choice,
        Ok(None) => return,
        Err(error) => {
            told(shared, &format!("the resolver failed on conflict {id}, which goes on waiting: {error}"));
            return;
        }
    };
    let decided = shared.library.decide(move |tx| decide::resolve(tx, id.0, &choice)).await;
    match decided {
        Ok(()) | Err(Error::Stopped { .. }) => {}
        Err(error) => told(shared, &error.to_string()),
    }
}

fn told(shared: &Shared, text: &str) {
    tracing::warn!(library = %shared.library.id, "{text}");
    shared.library.status.send_modify(|status| status.last_error = Some(text.to_owned()));
}
