//! Reassign: who leads next (rules T and H). Each way is one step: a takeover opens the next number; a leader that grants
//! its lead stops sequencing and says to whom it goes, at which position; who is granted it opens the number, if its log is
//! that far and nobody else has opened it; a granter that is not answered opens the number behind.

use std::collections::BTreeMap;

use crate::{
    engine::Driver,
    error::Error,
    id::{DeviceId, Incarnation, Position, Seq, Term},
    seal, sequence,
    store::{Replica, Tx},
    term,
};

/// A lead that was granted: durable, so that a granter that is started again knows that it has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    /// Number of the term that may be opened.
    pub(crate) number: u64,
    /// By whom.
    pub(crate) to: DeviceId,
    /// The top of the log that it has to have.
    pub(crate) position: Position,
}

impl Grant {
    /// As the database keeps it: `number/to/seq/term`.
    pub(crate) fn to_text(self) -> String {
        format!("{}/{}/{}/{}", self.number, self.to, self.position.seq, self.position.term.to_text())
    }

    /// Reads [`Grant::to_text`].
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, '/');
        let (number, to) = (parts.next()?.parse().ok()?, DeviceId::parse(parts.next()?)?);
        let (seq, term) = (Seq(parts.next()?.parse().ok()?), Term::from_text(parts.next()?)?);
        Some(Self { number, to, position: Position { term, seq } })
    }
}

/// Who is made a member when this device opens a term, and with which role.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Admission<'a> {
    pub(crate) peers: &'a [DeviceId],
    pub(crate) precedence: &'a BTreeMap<DeviceId, u8>,
}

/// Takes the library over: opens the next number, durably. To be followed by [`lead_on`] until that is all.
pub(crate) fn take_over(driver: &mut Driver, admission: Admission<'_>) -> Result<Term, Error> {
    let term = driver.transaction(|tx| {
        seal::seal_all(tx)?;
        let Replica { max_seen, .. } = tx.replica()?;
        open(tx, max_seen.number + 1)
    })?;
    lead_on(driver, admission)?;
    Ok(term)
}

/// Grants the lead: nothing is sequenced here any more. `None` on a device that does not lead.
pub(crate) fn grant(driver: &mut Driver, to: DeviceId) -> Result<Option<Grant>, Error> {
    sequence::own(driver)?;
    let granted = driver.transaction(|tx| {
        seal::seal_all(tx)?;
        let replica = tx.replica()?;
        if !replica.is_leader() || replica.has_pending {
            return Ok(None);
        }
        let grant = Grant { number: replica.max_seen.number + 1, to, position: replica.top };
        tx.set_terms(replica.max_seen, None)?;
        tx.set_granted(Some(grant))?;
        Ok(Some(grant))
    })?;
    // Told of only when it cannot be forgotten (rule D).
    driver.store.sync()?;
    driver.publish()?;
    Ok(granted)
}

/// Opens the term that was granted, by the leader of `lead`, if the log here is what was granted. `None` where it is not,
/// or somebody else has opened that number or a higher one.
pub(crate) fn take_grant(
    driver: &mut Driver,
    lead: Term,
    grant: Grant,
    admission: Admission<'_>,
) -> Result<Option<Term>, Error> {
    let opened = driver.transaction(|tx| {
        seal::seal_all(tx)?;
        let replica = tx.replica()?;
        let may = Some(grant.to) == replica.device
            && replica.lead.is_none()
            && lead >= replica.max_seen
            && replica.max_seen.number < grant.number
            && replica.top == grant.position;
        if may { open(tx, grant.number).map(Some) } else { Ok(None) }
    })?;
    if opened.is_some() {
        lead_on(driver, admission)?;
    }
    Ok(opened)
}

/// Leads again, where what was granted has not been answered. `None` where there is no such grant.
pub(crate) fn reclaim(driver: &mut Driver, admission: Admission<'_>) -> Result<Option<Term>, Error> {
    let opened = driver.transaction(|tx| {
        seal::seal_all(tx)?;
        match unanswered(&tx.replica()?) {
            Some(grant) => open(tx, grant.number + 1).map(Some),
            None => Ok(None),
        }
    })?;
    if opened.is_some() {
        lead_on(driver, admission)?;
    }
    Ok(opened)
}

/// What this device granted, as long as no term of that number or a higher one was seen.
pub(crate) fn unanswered(replica: &Replica) -> Option<Grant> {
    replica.granted.filter(|grant| replica.lead.is_none() && replica.max_seen.number < grant.number)
}

fn open(tx: &mut Tx<'_>, number: u64) -> Result<Term, Error> {
    let leader =
        tx.replica()?.device.ok_or_else(|| Error::Damaged("a replica without a device leads".into()))?;
    let incarnation = Incarnation { counter: 1, nonce: tx.world.random() };
    let term = Term { number, leader, incarnation };
    term::open_term(tx, term)?;
    Ok(term)
}

/// What a device does once its term stands: it is durable before anybody hears of it (rule D), then what is pending is
/// sequenced, then peers become members. A batch at a time, so that others have their turn: whether that was all.
pub(crate) fn lead_on(driver: &mut Driver, admission: Admission<'_>) -> Result<bool, Error> {
    driver.publish()?;
    sequence::own_batch(driver)?;
    let all = driver.transaction(|tx| {
        let replica = tx.replica()?;
        if replica.is_leader() && replica.has_pending {
            return Ok(false);
        }
        term::admit(tx, admission.peers, admission.precedence)?;
        term::set_roles(tx, admission.precedence)?;
        Ok(true)
    })?;
    driver.publish()?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_reads_back_what_the_database_keeps() {
        let leader = DeviceId([3; 32]);
        let term = Term { number: 4, leader, incarnation: Incarnation { counter: 2, nonce: 9 } };
        let grant = Grant { number: 5, to: DeviceId([0xcd; 32]), position: Position { term, seq: Seq(77) } };
        assert_eq!(Grant::from_text(&grant.to_text()), Some(grant));
        for bad in ["", "1", "1/2/3/4", "x/y/z"] {
            assert_eq!(Grant::from_text(bad), None, "{bad:?}");
        }
    }
}
