//! A replica whose steps are called one by one: for simulations, which decide themselves what happens when.
//!
//! It is a real database with the steps that a started [`Library`](crate::Library) runs, and nothing else: no runtime, no
//! thread, no network, no clock but the [`World`]'s. What a message comes to is returned as the messages that answer it.
//! Dropping a replica is a crash; [`crash_after`] makes one between two durable steps.

mod request;

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::config::DbConfig;
use tokio::sync::{broadcast, watch};

use self::request::Request;
pub use crate::inject::{Crash, Place, Safeguard, crash_after, limit_batches, passed, switch_off};
use crate::{
    attempt,
    conflict::{self, Choice, Conflict, ConflictId},
    dead_letter::{self, DeadLetter, DeadLetterId},
    decide,
    engine::{Driver, Pulse},
    entry::Run,
    error::Error,
    following::{self, End, Following, Heard, Pushes, Unpacked},
    gate::WriteGate,
    id::{DeviceId, Position, Seq, Term},
    library,
    model::{ModelDescriptor, Recorder},
    node,
    reassign::{self, Admission, Grant},
    row::Row,
    seal, sequence,
    serving::{self, Answer, Peer, Push, Served, Subscription},
    store::{self, Minted, Store},
    unwind::{Unwinding, Unwound},
    wire::{Message, PushStop},
    world::World,
};

/// Bytes of the write-ahead log from which on [`Replica::checkpoint`] copies it into the database.
const LOG_MAX: u64 = 256 << 10;

/// Who a replica is. Its database is in the library already, by [`LibraryBuilder::open`](crate::LibraryBuilder::open).
#[derive(Clone)]
pub struct Identity {
    /// Its key.
    pub device: DeviceId,
    /// Devices that are members if it leads.
    pub peers: Vec<DeviceId>,
    /// How much the word of devices counts.
    pub precedence: BTreeMap<DeviceId, u8>,
    /// What it syncs.
    pub models: Vec<ModelDescriptor>,
    /// Its clock and randomness.
    pub world: Arc<dyn World>,
}

/// How a replica stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// The highest term it has seen.
    pub max_seen: Term,
    /// The term that it leads.
    pub lead: Option<Term>,
    /// Top of its log.
    pub top: Position,
}

impl Standing {
    /// Whether it leads now.
    pub fn leads(&self) -> bool {
        self.lead == Some(self.max_seen)
    }
}

/// What a message came to.
#[derive(Debug, Default)]
pub struct Came {
    /// To be sent back.
    pub replies: Vec<Vec<u8>>,
    /// Why what this device follows, or serves, ended with it.
    pub ended: Option<String>,
    /// A person has to act.
    pub stopped: bool,
}

/// What a process has in memory that its database does not say.
#[derive(Clone, Copy, Debug)]
pub struct Memory(Option<Minted>);

/// A replica at work.
pub struct Replica {
    driver: Driver,
    pulse: watch::Receiver<Pulse>,
    identity: Identity,
    /// Whom it follows, with the runs of its log that were not told of.
    following: Option<(Following, Vec<Run>)>,
    /// What it pushed there.
    pushes: Pushes,
    /// Its log parts from that of whom it followed.
    unwinding: Option<Unwinding>,
    /// Who asks to follow it and has yet to tell of its log.
    asking: BTreeMap<DeviceId, Subscription>,
    served: BTreeMap<DeviceId, Follower>,
    /// Who asked it to hand over and has not been answered.
    requests: Vec<Request>,
    /// Up to where all members have confirmed, as far as it was told or has found as a leader.
    stable: Seq,
    wal: PathBuf,
}

/// A follower that is served.
struct Follower {
    served: Served,
    /// Entries up to here were sent.
    cursor: Seq,
    confirmed: Position,
    /// The lead was granted to it on this channel.
    granted: bool,
}

impl Replica {
    /// Opens and starts the replica.
    ///
    /// # Errors
    /// Those of a library's opening and start.
    pub fn open(path: &Path, identity: Identity) -> Result<Self, Error> {
        let lock: Arc<File> = Arc::new(library::lock(path)?);
        let models = identity.models.iter().map(|m| (m.clone(), Recorder::Trigger)).collect();
        let mut store = Store::open(path, models, Arc::clone(&identity.world))?;
        // A crash leaves the write-ahead log as it is.
        store.connection().set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let mut wal = path.as_os_str().to_owned();
        wal.push("-wal");
        let wal = PathBuf::from(wal);
        *store.synced() = std::fs::metadata(&wal).map_or(0, |wal| wal.len());
        let (mut driver, pulse) = Driver::new(store, WriteGate::of(path), lock);
        let Identity { device, peers, precedence, .. } = &identity;
        node::begin(&mut driver, *device, peers, precedence)?;
        Ok(Self {
            driver,
            pulse,
            identity,
            following: None,
            pushes: Pushes::NONE,
            unwinding: None,
            asking: BTreeMap::new(),
            served: BTreeMap::new(),
            requests: Vec::new(),
            stable: Seq(0),
            wal,
        })
    }

    /// What it has in memory.
    pub fn memory(&self) -> Memory {
        Memory(self.driver.store.minted())
    }

    /// Goes on with what it had in memory before, as on a machine that was set back as a whole.
    pub fn remember(&mut self, memory: Memory) {
        self.driver.store.set_minted(memory.0);
    }

    /// How it stands.
    ///
    /// # Errors
    /// The database's.
    pub fn standing(&self) -> Result<Standing, Error> {
        let replica = store::replica(self.driver.store.connection())?.ok_or(Error::NoLibrary)?;
        Ok(Standing { max_seen: replica.max_seen, lead: replica.lead, top: replica.top })
    }

    /// What of the write-ahead log a power failure leaves: between these two, in bytes.
    pub fn survives(&mut self) -> (u64, u64) {
        let written = std::fs::metadata(&self.wal).map_or(0, |wal| wal.len());
        (*self.driver.store.synced(), written)
    }

    /// Copies a write-ahead log that has grown long into the database: both are durable then.
    ///
    /// # Errors
    /// The database's.
    pub fn checkpoint(&mut self) -> Result<(), Error> {
        if self.survives().1 >= LOG_MAX {
            let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
            self.driver.store.connection().query_row(checkpoint, [], |_| Ok(()))?;
            *self.driver.store.synced() = 0;
        }
        Ok(())
    }

    /// One seal, as the engine makes it when it was told of a commit.
    ///
    /// # Errors
    /// The step's.
    pub fn seal(&mut self) -> Result<(), Error> {
        self.driver.round(true)?;
        // As it does when it is told of something pending while it leads, and until peers are members.
        sequence::own(&mut self.driver)?;
        let Identity { peers, precedence, .. } = &self.identity;
        reassign::lead_on(&mut self.driver, Admission { peers, precedence })?;
        Ok(())
    }

    /// Seals everything, and makes that durable: the database can be copied.
    ///
    /// # Errors
    /// The step's.
    pub fn rest(&mut self) -> Result<(), Error> {
        self.driver.transaction(seal::seal_all)?;
        self.driver.tell()?;
        self.driver.store.sync()
    }

    /// The conflicts that wait for a person.
    ///
    /// # Errors
    /// What the database says.
    pub fn conflicts(&self) -> Result<Vec<Conflict>, Error> {
        conflict::open(self.driver.store.connection(), self.driver.store.models(), (Seq(0), ""))
    }

    /// All conflicts behind an entry.
    ///
    /// # Errors
    /// What the database says.
    pub fn conflicts_since(&self, after: Seq) -> Result<Vec<Conflict>, Error> {
        conflict::since(self.driver.store.connection(), self.driver.store.models(), after)
    }

    /// All dead letters.
    ///
    /// # Errors
    /// What the database says.
    pub fn dead_letters(&self) -> Result<Vec<DeadLetter>, Error> {
        dead_letter::since(self.driver.store.connection(), Seq(0))
    }

    /// Decides a conflict.
    ///
    /// # Errors
    /// Those of [`Library::resolve`](crate::Library::resolve).
    pub fn resolve(&mut self, id: ConflictId, choice: &Choice) -> Result<(), Error> {
        decide::decide(&mut self.driver, "a conflict", |tx| decide::resolve(tx, id.0, choice))
    }

    /// Tries a dead letter once more, with these of its values changed.
    ///
    /// # Errors
    /// Those of [`Library::retry_with`](crate::Library::retry_with).
    pub fn retry(&mut self, id: DeadLetterId, edited: &Row) -> Result<(), Error> {
        decide::decide(&mut self.driver, "a dead letter", |tx| decide::retry(tx, id.0, edited))
    }

    /// Gives a dead letter up.
    ///
    /// # Errors
    /// Those of [`Library::discard`](crate::Library::discard).
    pub fn discard(&mut self, id: DeadLetterId) -> Result<(), Error> {
        decide::decide(&mut self.driver, "a dead letter", |tx| decide::discard(tx, id.0))
    }

    /// Begins to follow `leader`: what to send there.
    ///
    /// # Errors
    /// The step's.
    pub fn subscribe(&mut self, leader: DeviceId) -> Result<Vec<u8>, Error> {
        let begun = following::subscribe(&mut self.driver)?;
        self.following = Some((Following::of(leader), begun.older));
        self.pushes = Pushes::NONE;
        self.unwinding = None;
        Ok(begun.subscribe.encode())
    }

    /// Takes a chunk of a tail that parts from the leader's log back into pending, where there is one. Whether there is
    /// more of it.
    ///
    /// # Errors
    /// The step's.
    pub fn unwind(&mut self) -> Result<bool, Error> {
        let Some(unwinding) = &mut self.unwinding else { return Ok(false) };
        let unwound = following::unwind(&mut self.driver, unwinding)?;
        if unwound == Unwound::More {
            return Ok(true);
        }
        self.unwinding = None;
        match unwound {
            Unwound::BelowFloor => Err(Error::Damaged("a tail reaches below the floor".into())),
            _ => Ok(false),
        }
    }

    /// Whether its log parts from that of whom it followed, and what parts is not pending yet.
    pub fn is_unwinding(&self) -> bool {
        self.unwinding.is_some()
    }

    /// Whom it follows, since it subscribed there.
    pub fn leader(&self) -> Option<DeviceId> {
        self.following.as_ref().map(|(following, _)| following.peer)
    }

    /// The next push to whom it follows, if there is any.
    ///
    /// # Errors
    /// The step's.
    pub fn push(&mut self) -> Result<Option<Vec<u8>>, Error> {
        if !self.following.as_ref().is_some_and(|(following, _)| following.takes_pushes()) {
            return Ok(None);
        }
        let store = &self.driver.store;
        let Some(next) = self.pushes.next(store.connection())? else { return Ok(None) };
        // What is told of is durable first (rule D).
        self.driver.store.sync()?;
        Ok(Some(self.pushes.sent(next)))
    }

    /// Says to whom it follows what it has durably.
    ///
    /// # Errors
    /// The step's.
    pub fn confirm(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let Some(max_seen) = self.following.as_ref().and_then(|(following, _)| following.lead) else {
            return Ok(None);
        };
        let position = self.standing()?.top;
        self.driver.store.sync()?;
        Ok(Some(Message::Confirm { max_seen, position }.encode()))
    }

    /// The next entries for a follower that is served, if there are any: never beyond what the engine has told of.
    ///
    /// # Errors
    /// The step's.
    pub fn serve(&mut self, follower: DeviceId) -> Result<Option<Vec<u8>>, Error> {
        let now = self.pulse.borrow().clone();
        let Some(Follower { served: Served { lead, floor, .. }, cursor, granted, .. }) =
            self.served.get_mut(&follower)
        else {
            return Ok(None);
        };
        let Some(top) = now.top.filter(|_| now.serves() == Some(*lead)) else {
            self.served.remove(&follower);
            return Ok(Some(serving::not_leader(now.max_seen).encode()));
        };
        if *cursor < top.seq {
            if let Some(tail) = now.tail.filter(|tail| tail.after == *cursor && tail.last == top.seq) {
                *cursor = tail.last;
                return Ok(Some(tail.message().to_vec()));
            }
            let conn = self.driver.store.connection();
            let (message, last) = serving::entries(conn, (*lead, *floor), *cursor, top)?;
            *cursor = last;
            return Ok(Some(message.encode()));
        }
        let is_it = |grant: &Grant| grant.to == follower && grant.position == top && !*granted;
        let Some(Grant { number, position, .. }) = now.granted.filter(is_it) else { return Ok(None) };
        *granted = true;
        Ok(Some(Message::Grant { lead: *lead, number, position }.encode()))
    }

    /// Takes the library over, whatever stands against it.
    ///
    /// # Errors
    /// The step's.
    pub fn take_over(&mut self) -> Result<Term, Error> {
        let Identity { peers, precedence, .. } = &self.identity;
        self.following = None;
        reassign::take_over(&mut self.driver, Admission { peers, precedence })
    }

    /// Grants the lead, if it is this replica's. Whether it was.
    ///
    /// # Errors
    /// The step's.
    pub fn grant(&mut self, to: DeviceId) -> Result<bool, Error> {
        Ok(reassign::grant(&mut self.driver, to)?.is_some())
    }

    /// Leads again where the lead was granted and nobody has answered. Whether it does.
    ///
    /// # Errors
    /// The step's.
    pub fn reclaim(&mut self) -> Result<bool, Error> {
        let Identity { peers, precedence, .. } = &self.identity;
        Ok(reassign::reclaim(&mut self.driver, Admission { peers, precedence })?.is_some())
    }

    /// Asks another device where it stands, which tells it of the highest term: what to send.
    ///
    /// # Errors
    /// The step's.
    pub fn inquire(&mut self) -> Result<Vec<u8>, Error> {
        self.driver.store.sync()?;
        Ok(Message::Inquire { max_seen: self.standing()?.max_seen }.encode())
    }

    /// Up to where all members have what its log holds, as far as it knows.
    pub fn stable(&self) -> u64 {
        self.stable.0
    }

    /// What each follower has confirmed in the present term, as its leader knows it.
    ///
    /// # Errors
    /// The database's.
    pub fn confirmed(&self) -> Result<BTreeMap<DeviceId, Position>, Error> {
        let lead = self.standing()?.max_seen;
        let followers = self.served.iter().filter(|(_, follower)| follower.served.lead == lead);
        Ok(followers.map(|(device, follower)| (*device, follower.confirmed)).collect())
    }

    /// Takes a message.
    ///
    /// # Errors
    /// The step's.
    pub fn receive(&mut self, from: DeviceId, message: &[u8]) -> Result<Came, Error> {
        let decoded = match Message::decode(message) {
            Ok(decoded) => decoded,
            Err(error) => return Ok(Came { ended: Some(error.to_string()), ..Came::default() }),
        };
        match decoded {
            Message::Subscribe { max_seen, top, history, complete } => {
                match Subscription::of(max_seen, top, history, complete) {
                    Some(asked) => self.answer(from, asked),
                    None => Ok(refused(serving::NO_HISTORY)),
                }
            }
            Message::History { runs, complete } => {
                match self.asking.remove(&from).and_then(|asked| asked.with_older(runs, complete)) {
                    Some(asked) => self.answer(from, asked),
                    None => Ok(refused(serving::NO_HISTORY)),
                }
            }
            Message::Confirm { max_seen, position } => self.take_confirmation(from, max_seen, position),
            Message::Push { max_seen, position, batch } => {
                // Without a subscription there is no channel to push on.
                let Some(lead) = self.served.get(&from).map(|follower| follower.served.lead) else {
                    return Ok(Came::default());
                };
                let Ok(batch) = batch.into_batch() else { return Ok(refused("it is damaged")) };
                let push = Push { max_seen, position, batch, message: message.to_vec() };
                let answer =
                    serving::take_push(&mut self.driver, from, lead, push, &broadcast::Sender::new(1))?;
                Ok(Came { replies: vec![answer.encode()], ..Came::default() })
            }
            Message::Inquire { max_seen } => {
                let peer = Peer { device: from, is_configured: self.identity.peers.contains(&from) };
                let answer = serving::inquire(&mut self.driver, peer, max_seen, None, None)?;
                Ok(Came { replies: vec![answer.encode()], ..Came::default() })
            }
            Message::Reassign { max_seen, to } => self.take_request(from, max_seen, to),
            Message::Standing { max_seen, .. } | Message::Reassigned { max_seen, .. } => {
                serving::adopt(&mut self.driver, max_seen)?;
                Ok(Came::default())
            }
            // On a channel of its own, as who was asked to hand over answers it.
            Message::NotLeader { max_seen, .. } if self.leader() != Some(from) => {
                serving::adopt(&mut self.driver, max_seen)?;
                Ok(Came::default())
            }
            _ => self.take_from_leader(from, message),
        }
    }

    fn answer(&mut self, device: DeviceId, asked: Subscription) -> Result<Came, Error> {
        let peer = Peer { device, is_configured: self.identity.peers.contains(&device) };
        self.served.remove(&device);
        let answer = serving::subscribe(&mut self.driver, peer, &self.identity.precedence, &asked)?;
        let reply = match answer {
            Answer::Serve(served) => {
                let (cursor, confirmed) = (served.from.seq, served.from);
                let lead = served.lead;
                self.served.insert(device, Follower { served, cursor, confirmed, granted: false });
                // The heartbeat, without which a follower that is level would not know that it is.
                let top = Message::Top {
                    lead,
                    position: self.standing()?.top,
                    clock: self.identity.world.now(),
                    answers: 0,
                    stable: self.stable,
                };
                let mut replies = vec![top.encode()];
                replies.extend(self.serve(device)?);
                return Ok(Came { replies, ..Came::default() });
            }
            Answer::With(message) => message,
            Answer::MoreHistory => {
                self.asking.insert(device, asked);
                Message::MoreHistory
            }
        };
        Ok(Came { replies: vec![reply.encode()], ..Came::default() })
    }

    fn take_confirmation(
        &mut self,
        from: DeviceId,
        max_seen: Term,
        position: Position,
    ) -> Result<Came, Error> {
        let top = self.standing()?.top.seq;
        let Some(follower) = self.served.get_mut(&from) else { return Ok(Came::default()) };
        if !follower.served.holds(top, position) {
            self.served.remove(&from);
            return Ok(Came { ended: Some("it confirmed what it cannot have".into()), ..Came::default() });
        }
        if max_seen > follower.served.lead {
            serving::adopt(&mut self.driver, max_seen)?;
        }
        follower.confirmed = position;
        let confirmed = self.confirmed()?;
        let members = Arc::clone(&self.pulse.borrow().members);
        let of = |member: DeviceId| confirmed.get(&member).map(|position| position.seq);
        let stable = serving::stable(&members, self.identity.device, of);
        self.stable = self.stable.max(stable);
        serving::note(&mut self.driver, from, position)?;
        Ok(Came::default())
    }

    /// What only a leader sends.
    fn take_from_leader(&mut self, from: DeviceId, message: &[u8]) -> Result<Came, Error> {
        let Some((following, older)) = self.following.as_mut().filter(|(f, _)| f.peer == from) else {
            return Ok(Came::default());
        };
        let driver = &mut self.driver;
        let changes = broadcast::Sender::new(1);
        let heard = match Unpacked::of(message.to_vec(), &changes) {
            Err(error) => Heard::End(End::Lost(error.to_string())),
            // Some as what comes in a row is taken, others as what comes by itself.
            Ok(Unpacked::Entries(received)) if received.arrived.last().0 % 2 == 1 => {
                let mut rest = in_two(message).into_iter();
                let mut next = || match Unpacked::of(rest.next()?, &changes) {
                    Ok(Unpacked::Entries(received)) => Some(received),
                    _ => None,
                };
                following.take_together(driver, next().unwrap_or(received), &mut |_| next())?.0
            }
            Ok(Unpacked::Entries(mut received)) => match following.take_entries(driver, &mut received)? {
                Heard::Again => following.take_entries(driver, &mut received)?,
                heard => heard,
            },
            Ok(Unpacked::Other(message)) => match following.take_at_once(&message, older) {
                Some(heard) => heard,
                None => following.take(driver, message)?,
            },
        };
        let mut came = Came::default();
        match heard {
            Heard::Granted { lead, number, position } => {
                let grant = Grant { number, position, to: self.identity.device };
                let Identity { peers, precedence, .. } = &self.identity;
                let admission = Admission { peers, precedence };
                if let Some(term) = reassign::take_grant(driver, lead, grant, admission)? {
                    self.following = None;
                    came.replies.push(Message::Confirm { max_seen: term, position }.encode());
                }
            }
            Heard::Reply(message) => came.replies.push(message.encode()),
            Heard::Pushed if self.pushes.answered(from).is_some() => {
                self.following = None;
                came.ended = Some("it answers a push that was not made".into());
            }
            Heard::Top { stable, .. } => {
                self.stable = self.stable.max(stable.min(self.standing()?.top.seq));
            }
            Heard::End(end) => {
                self.following = None;
                came.stopped = matches!(end, End::Stopped(_) | End::BelowFloor { .. });
                came.ended = Some(match end {
                    End::NotLeader(leader) => format!("not the leader, that is {leader:?}"),
                    End::Lost(reason) | End::Stopped(reason) => reason,
                    End::BelowFloor { common, floor } => format!("compacted from {common} to {floor}"),
                    End::Diverged { unwinding, .. } => {
                        let reason = format!("{unwinding:?}");
                        self.unwinding = Some(unwinding);
                        reason
                    }
                });
            }
            _ => {}
        }
        Ok(came)
    }
}

/// The message of entries as two: its first group, and the rest. As it is, where it has one group or is none.
fn in_two(message: &[u8]) -> Vec<Vec<u8>> {
    let whole = || vec![message.to_vec()];
    let Ok(Message::Entries { lead, floor, top, batch }) = Message::decode(message) else { return whole() };
    let Ok(batch) = batch.into_batch() else { return whole() };
    let (first, rest) = attempt::split(batch, 1);
    let Some(mut rest) = rest else { return whole() };
    if let Some(last) = first.entries.last() {
        rest.after.term = last.term;
    }
    [first, rest].map(|half| Message::entries(lead, floor, top, &half).encode()).into()
}

fn refused(reason: &str) -> Came {
    let message = Message::Refused { reason: reason.to_owned() };
    Came { replies: vec![message.encode()], ended: Some(reason.to_owned()), stopped: false }
}

/// The term in whose name a leader sends entries; `None` of other messages.
pub fn lead(message: &[u8]) -> Option<Term> {
    match Message::decode(message) {
        Ok(Message::Entries { lead, .. }) => Some(lead),
        _ => None,
    }
}

/// The term that a message shows its sender to have seen.
pub fn shows(message: &[u8]) -> Option<Term> {
    match Message::decode(message).ok()? {
        Message::Subscribe { max_seen, .. }
        | Message::Confirm { max_seen, .. }
        | Message::Push { max_seen, .. }
        | Message::Inquire { max_seen }
        | Message::Standing { max_seen, .. }
        | Message::Reassign { max_seen, .. }
        | Message::Reassigned { max_seen, .. }
        | Message::NotLeader { max_seen, .. } => Some(max_seen),
        Message::Pushed { lead, .. }
        | Message::PushStopped { lead, .. }
        | Message::Entries { lead, .. }
        | Message::Top { lead, .. }
        | Message::Diverged { lead, .. }
        | Message::Grant { lead, .. }
        | Message::BelowFloor { lead, .. } => Some(lead),
        _ => None,
    }
}

/// [`kind`] of what no device that keeps to the protocol sends.
pub const UNREADABLE: &str = "unreadable";

/// What a message is, for counting.
pub fn kind(message: &[u8]) -> &'static str {
    match Message::decode(message) {
        Ok(Message::Push { batch, .. } | Message::Entries { batch, .. })
            if batch.clone().into_batch().is_err() =>
        {
            UNREADABLE
        }
        Ok(Message::Subscribe { .. }) => "subscribe",
        Ok(Message::History { .. }) => "history",
        Ok(Message::Confirm { .. }) => "confirm",
        Ok(Message::Ask { .. }) => "ask",
        Ok(Message::Push { .. }) => "push",
        Ok(Message::Pushed { .. }) => "pushed",
        Ok(Message::PushStopped { why: PushStop::Forked { .. }, .. }) => "push stopped, forked",
        Ok(Message::PushStopped { why: PushStop::Gap { .. }, .. }) => "push stopped, gap",
        Ok(Message::PushStopped { .. }) => "push stopped, diverged",
        Ok(Message::Grant { .. }) => "grant",
        Ok(Message::Inquire { .. }) => "inquire",
        Ok(Message::Standing { .. }) => "standing",
        Ok(Message::Reassign { .. }) => "reassign",
        Ok(Message::Reassigned { failed: None, .. }) => "reassigned",
        Ok(Message::Reassigned { .. }) => "reassigned, not done",
        Ok(Message::Entries { .. }) => "entries",
        Ok(Message::Top { .. }) => "top",
        Ok(Message::MoreHistory) => "more history",
        Ok(Message::Diverged { .. }) => "diverged",
        Ok(Message::BelowFloor { .. }) => "below floor",
        Ok(Message::NotLeader { .. }) => "not leader",
        Ok(Message::Refused { .. }) => "refused",
        Err(_) => UNREADABLE,
    }
}
