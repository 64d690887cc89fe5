//! What an application asks of the queue, conflicts, dead letters and settlements.

use std::{io::Write, path::Path};

use uuid::Uuid;

use super::{Inner, Library};
use crate::{
    conflict::{self, Choice, Conflict, ConflictId},
    dead_letter::{self, DeadLetter, DeadLetterId},
    decide,
    engine::Driver,
    error::Error,
    id::{DeviceId, Position, Seq},
    queue::{self, Queued},
    row::Row,
    seal,
    settlement::{self, Settlement, Settlements},
    store::Tx,
    why::{self, Why},
};

impl Library {
    /// The conflicts that wait for a person, oldest first, at most [`PAGE_MAX`](crate::conflict::PAGE_MAX): those of models
    /// with the policy `manual`, on every device the same. [`Status::conflicts`](crate::Status::conflicts) counts all.
    ///
    /// # Errors
    /// What the database says.
    pub async fn conflicts(&self) -> Result<Vec<Conflict>, Error> {
        self.inner.readers.run(|conn, models| conflict::open(conn, models, (Seq(0), ""))).await
    }

    /// All conflicts behind an entry, decided ones too, oldest first: those of at most some
    /// [`PAGE_MAX`](crate::conflict::PAGE_MAX) entries. Ask again with the last one's seq for more.
    ///
    /// # Errors
    /// What the database says.
    pub async fn conflicts_since(&self, after: Seq) -> Result<Vec<Conflict>, Error> {
        self.inner.readers.run(move |conn, models| conflict::since(conn, models, after)).await
    }

    /// A conflict by its id; `None` if this device knows none.
    ///
    /// # Errors
    /// What the database says.
    pub async fn conflict(&self, id: ConflictId) -> Result<Option<Conflict>, Error> {
        let found = self.inner.readers.run(move |conn, models| conflict::by_id(conn, models, id.0)).await?;
        Ok(found.map(|found| found.conflict))
    }

    /// Decides a conflict: one that waits for a person, or one that the policy decided otherwise.
    ///
    /// The record is here as decided at once, and on all devices when the leader has sequenced it. If somebody else has
    /// written the same meanwhile without this device having seen it, nothing is decided: the conflict goes on waiting,
    /// with what the log has then. If somebody else has decided it, that stands. [`Library::settled`] says which.
    ///
    /// # Errors
    /// [`Error::NotDecided`]: there is no such conflict, it is decided already, the row is another record's, or the
    /// database here does not take it.
    pub async fn resolve(&self, id: ConflictId, choice: Choice) -> Result<(), Error> {
        self.inner.decide(format!("conflict {id}"), move |tx| decide::resolve(tx, id.0, &choice)).await
    }

    /// The dead letters that wait to be retried or discarded, oldest first, at most
    /// [`PAGE_MAX`](crate::conflict::PAGE_MAX). [`Status::dead_letters`](crate::Status::dead_letters) counts all.
    ///
    /// # Errors
    /// What the database says.
    pub async fn dead_letters(&self) -> Result<Vec<DeadLetter>, Error> {
        self.inner.readers.run(|conn, _| dead_letter::open(conn)).await
    }

    /// A dead letter by its id; `None` if this device knows none.
    ///
    /// # Errors
    /// What the database says.
    pub async fn dead_letter(&self, id: DeadLetterId) -> Result<Option<DeadLetter>, Error> {
        let found = self.inner.readers.run(move |conn, _| dead_letter::by_id(conn, id.0)).await?;
        Ok(found.map(|found| found.letter))
    }

    /// Tries a dead letter once more, over the record as it is now. What is refused again is a new dead letter.
    ///
    /// Of an [`atomic`](crate::Connection::atomic) scope all dead letters that wait ([`DeadLetter::together`]) are tried again, in one
    /// transaction and as one scope: the leader takes all or none of them, also where another person has decided about one
    /// meanwhile.
    ///
    /// # Errors
    /// [`Error::NotDecided`]: there is no such dead letter, it is decided already, or the database here does not take
    /// it, or one of its scope, either. It says which and why, and nothing was done.
    pub async fn retry(&self, id: DeadLetterId) -> Result<(), Error> {
        self.retry_with(id, Row::default()).await
    }

    /// [`Library::retry`] with some of its values changed: those of the columns that `edited` holds. The others of its scope are
    /// tried as they were.
    ///
    /// # Errors
    /// Those of [`Library::retry`]; and a column that the model does not have, or another record's key.
    pub async fn retry_with(&self, id: DeadLetterId, edited: Row) -> Result<(), Error> {
        self.inner.decide(format!("dead letter {id}"), move |tx| decide::retry(tx, id.0, &edited)).await
    }

    /// Gives a dead letter up, and with it all of its scope that wait. Their values stay in the log and can be looked at there.
    ///
    /// # Errors
    /// [`Error::NotDecided`]: there is no such dead letter, or it is decided already.
    pub async fn discard(&self, id: DeadLetterId) -> Result<(), Error> {
        self.inner.decide(format!("dead letter {id}"), move |tx| decide::discard(tx, id.0)).await
    }

    /// Writes all dead letters, decided ones too, to a new file: one JSON object ([`DeadLetter::to_json`]) a line. How many.
    ///
    /// # Errors
    /// [`Error::File`] if the file is there already or cannot be written; what the database says.
    pub async fn export_dead_letters(&self, to: &Path) -> Result<u64, Error> {
        let path = to.to_owned();
        let failed = {
            let path = path.clone();
            move |source| Error::File { what: "exporting dead letters to", path: path.clone(), source }
        };
        self.inner
            .readers
            .run(move |conn, _| {
                let file = std::fs::File::options().write(true).create_new(true).open(&path);
                let mut file = std::io::BufWriter::new(file.map_err(&failed)?);
                let mut write = || {
                    let (mut after, mut count) = (Seq(0), 0);
                    loop {
                        let page = dead_letter::since(conn, after)?;
                        let Some(last) = page.last() else { break };
                        after = last.seq;
                        count += page.len() as u64;
                        for letter in &page {
                            writeln!(file, "{}", letter.to_json()).map_err(&failed)?;
                        }
                    }
                    file.flush().map_err(&failed)?;
                    Ok(count)
                };
                // Half a file would be taken for all of it, and be in the way of the next.
                write().inspect_err(|_| drop(std::fs::remove_file(&path)))
            })
            .await
    }

    /// What this device has changed and the leader's log does not show yet, behind a place in that queue (`i64::MIN`: from
    /// the beginning), in order, at most [`PAGE_MAX`](crate::conflict::PAGE_MAX). [`Status::pending`](crate::Status::pending) counts
    /// all. What was committed a moment ago may not be sealed yet.
    ///
    /// # Errors
    /// What the database says.
    pub async fn queue(&self, after: i64) -> Result<Vec<Queued>, Error> {
        self.inner.readers.run(move |conn, models| queue::read(conn, models, after)).await
    }

    /// Waits until the leader has answered all that is pending on a record here, and says what became of each change, in
    /// their order; nothing where nothing was pending. `record` is its canonical id: of a UUID key the hyphenated text.
    ///
    /// It waits as long as the leader cannot be reached: [`Library::status`] says why.
    ///
    /// # Errors
    /// [`Error::Stopped`] and [`Error::LinkStopped`] when it would wait for ever.
    pub async fn settled(&self, model: &str, record: &str) -> Result<Vec<Settlement>, Error> {
        let (model, record) = (model.to_owned(), record.to_owned());
        let of = (model.clone(), record.clone());
        let waiting = self
            .inner
            .engine
            .step(move |driver| {
                driver.transaction(seal::seal_all)?;
                driver.publish()?;
                settlement::pending_on(driver.store.connection(), &of.0, &of.1)
            })
            .await?;
        if let Some(last) = waiting.last() {
            self.settled_up_to(last.id).await?;
        }
        self.inner.readers.run(move |conn, _| settlement::of_waiting(conn, &model, &record, &waiting)).await
    }

    /// What becomes of this device's changes, from behind an entry on: those that the log shows already, then each as it is
    /// settled. Keep the position of the last one that was dealt with, and nothing is missed or told twice, whatever restarts.
    /// Only what a device had to take back out of its log, since it had led or followed another, is told once more when it is
    /// in the log again. [`Position::EMPTY`] is before all.
    pub fn settlements(&self, after: Position) -> Settlements {
        Settlements::new(self.clone(), after)
    }

    pub(crate) async fn read_settlements(
        &self,
        device: DeviceId,
        after: Position,
    ) -> Result<(std::collections::VecDeque<Settlement>, Position), Error> {
        self.inner.readers.run(move |conn, _| settlement::read(conn, device, after)).await
    }

    /// Explains how a record came to be what it is: its changes, what they met, who won by which policy. `record` is its
    /// canonical id: of a UUID key the hyphenated text, of a composite key a JSON array.
    ///
    /// # Errors
    /// What the database says.
    pub async fn why(&self, model: &str, record: &str) -> Result<Why, Error> {
        let (model, record) = (model.to_owned(), record.to_owned());
        self.inner.readers.run(move |conn, models| why::explain(conn, models, &model, &record)).await
    }
}

impl Inner {
    /// Makes a decision ([`decide::decide`]).
    pub(crate) async fn decide(
        &self,
        what: String,
        step: impl FnOnce(&mut Tx<'_>) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        self.engine.step(move |driver: &mut Driver| decide::decide(driver, &what, step)).await
    }
}

impl From<ConflictId> for Uuid {
    fn from(id: ConflictId) -> Self {
        id.0
    }
}

impl From<DeadLetterId> for Uuid {
    fn from(id: DeadLetterId) -> Self {
        id.0
    }
}
