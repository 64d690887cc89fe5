//! What a device does that granted its lead and is not answered: after a while it leads again, under a number of its own, so
//! that a lost message or a device that is gone leaves nobody waiting (rule H).

use std::sync::Arc;

use tokio::time::sleep;

use super::Shared;
use crate::reassign;

/// Waits for grants, and for what becomes of them, until the node stops.
pub(super) async fn reclaim(shared: Arc<Shared>) {
    let watching = async {
        let mut pulse = shared.library.engine.pulse();
        while let Ok(granted) =
            pulse.wait_for(|pulse| pulse.granted.is_some()).await.map(|pulse| pulse.granted)
        {
            let answered = async { pulse.clone().wait_for(|pulse| pulse.granted != granted).await.map(drop) };
            tokio::select! {
                _ = answered => continue,
                () = sleep(shared.library.grant_timeout) => {}
            }
            let led = shared.with_admission(reassign::reclaim).await;
            match led {
                Ok(Some(term)) => {
                    if let Err(error) = shared.lead_on().await {
                        tracing::warn!(library = %shared.library.id, %error, "leading again was not completed, which the engine will");
                    }
                    tracing::warn!(library = %shared.library.id, %term, ?granted, "nobody took the lead that was granted: leading again");
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(library = %shared.library.id, %error, "leading again failed and will be tried again");
                }
            }
        }
    };
    tokio::select! {
        () = watching => {}
        () = shared.stopped() => {}
    }
}
