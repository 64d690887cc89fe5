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
    let mut asked = HashMap::new();
    loop {
        if status.wait_for(|status| status.conflicts > 0).await.is_err() {
            return;
        }
        let position = status.borrow_and_update().position;
        if let Err(error) = ask_all(shared, resolver, &mut asked).await {
            tracing::warn!(library = %shared.library.id, %error, "listing conflicts failed");
        }
        // Until the log has grown or there are others.
        let count = status.borrow().conflicts;
        if status.wait_for(|s| s.position != position || s.conflicts != count).await.is_err() {
            return;
        }
    }
}

/// Which conflicts were asked about, and as of which entry of the record: as many as wait.
type Asked = HashMap<ConflictId, Option<Seq>>;

/// Puts all conflicts that wait to the resolver, a page at a time, but those that are as they were when it was asked.
async fn ask_all(shared: &Shared, resolver: &Arc<dyn Resolver>, asked: &mut Asked) -> Result<(), Error> {
    let mut waiting = Asked::new();
    let mut after = (Seq(0), String::new());
    loop {
        let (seq, field) = after.clone();
        let page = shared
            .library
            .readers
            .run(move |conn, models| conflict::open(conn, models, (seq, &field)))
            .await?;
        let Some(last) = page.last() else { break };
        after = (last.seq, last.field.clone().unwrap_or_default());
        for conflict in page {
            // Whether what is being decided comes too late is not known yet.
            let before = asked.get(&conflict.id).copied();
            let now = if conflict.being_decided { before } else { Some(conflict.local.seq) };
            waiting.extend(now.map(|seq| (conflict.id, seq)));
            if now != before {
                put(shared, resolver, conflict).await;
            }
        }
    }
    // What is decided is forgotten.
    *asked = waiting;
    Ok(())
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
    let decided =
        shared.library.decide(format!("conflict {id}"), move |tx| decide::resolve(tx, id.0, &choice)).await;
    match decided {
        Ok(()) | Err(Error::Stopped { .. }) => {}
        Err(error) => told(shared, &error.to_string()),
    }
}

fn told(shared: &Shared, text: &str) {
    tracing::warn!(library = %shared.library.id, "{text}");
    shared.library.status.send_modify(|status| status.last_error = Some(text.to_owned()));
}
