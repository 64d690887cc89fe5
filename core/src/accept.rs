//! Accept: what a follower pushed goes into the log (rules S and Q). A leader step.
//!
//! Every change is decided against the log as it then is, its effect written to the tables, and one entry appended for
//! it, with those of what the database cascaded. A change that the database does not take, or that is not its author's
//! to make, has no effect; its entry keeps its values and says why. Changes of one atomic mark stand or fall together.
//!
//! Foreign keys are checked when the whole group is there, since its rows may refer to each other in a circle. A change
//! that then refers to nothing is refused, and the group is gone through once more without it. So is one that makes a circle of a tree.

use std::collections::{HashMap, HashSet};

use rusqlite::ErrorCode;

use crate::{
    apply::{Writer, Writers, is_constraint},
    attempt, below,
    entry::{Batch, Body, Change, Entry, EntryKind, Group, Outcome, Seen},
    error::Error,
    exchange::{self, SteppedOut},
    id::{DeviceId, Origin, OriginSeq, Position, Seq, Term},
    inject::{self, Safeguard},
    life::{self, Place, Sight},
    log::{self, Appender, Authors, Newest, ROW_MAX},
    park::{self, Identity},
    pushed::{Arrival, Pushed},
    resolve::{Dropped, Effect, Loser},
    seal,
    standing::Lookup,
    store::{Mode, Replica, Tx, origin_row},
    term,
    tree::{self, Moves},
    value::Value,
};

/// What accepting a push came to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Accepted {
    /// All of it is in the log, which reaches to here.
    To(Position),
    /// The change before these is not in the log: nothing from it on was taken.
    Gap {
        /// Of the changes.
        origin: Origin,
        /// The number that would come next.
        expected: OriginSeq,
    },
    /// The pusher's position is not in this log: nothing was taken.
    Diverged,
    /// This device does not lead: nothing was taken.
    NotLeader(Term),
    /// What was pushed is nothing that a follower pushes: nothing was taken.
    Unsound(&'static str),
    /// The log has another life of the origin than this change is of: nothing from it on was taken.
    Forked {
        /// The first change of its group.
        change: Seen,
    },
}

/// Sequences groups that `pusher` pushed, in their order. `position` is the top of the pusher's log. Their seqs say only
/// which entries belong to which group. It came as `message`, for putting a part aside. It `refuses` all of it
/// where it failed on it too often.
pub(crate) fn accept(
    tx: &mut Tx<'_>,
    pusher: DeviceId,
    position: Position,
    batch: &Batch,
    message: &[u8],
    refuses: bool,
) -> Result<Accepted, Error> {
    let replica = tx.replica()?;
    if !replica.is_leader() {
        return Ok(Accepted::NotLeader(replica.max_seen));
    }
    let pushed = match Arrival::of(tx, pusher, batch, message)? {
        Arrival::Whole(pushed) => pushed,
        Arrival::PutAside => return Ok(Accepted::To(replica.top)),
        Arrival::Unsound(why) => return Ok(Accepted::Unsound(why)),
    };
    seal::seal_all(tx)?;
    if !term::holds(tx.conn, position)? {
        return Ok(Accepted::Diverged);
    }
    tx.conn.execute_batch("PRAGMA defer_foreign_keys = ON")?;
    let mut stopped = None;
    for group in &batch.groups {
        match fresh_of(tx, group)? {
            Fresh::Changes { known, sight } => {
                if Some(pusher) != replica.device
                    && tx.minted.is_some_and(|m| m.origin == group.sealed_as().0)
                {
                    // The memory here is older than what was sealed with it: it may not number on from there.
                    *tx.minted = None;
                }
                accept_group(tx, &pushed, group, known, &sight, refuses.then(attempt::reason))?;
            }
            Fresh::Stopped(why) => {
                stopped = Some(why);
                break;
            }
        }
    }
    tx.set_mode(Mode::Capture)?;
    pushed.done(tx)?;
    match stopped {
        Some(why) => Ok(why),
        None => Ok(Accepted::To(tx.replica()?.top)),
    }
}

enum Fresh {
    /// All but the first ones.
    Changes {
        /// How many of the numbers the log has.
        known: u64,
        /// What its author had seen.
        sight: Sight,
    },
    Stopped(Accepted),
}

/// Which of a group's changes the log does not have yet; decided before anything of it is appended.
fn fresh_of(tx: &Tx<'_>, group: &Group) -> Result<Fresh, Error> {
    let row = origin_row(tx.conn, group.origin, group.device)?;
    let mut newest = log::newest(tx.conn, row)?;
    if inject::is_off(Safeguard::DuplicateCheck) {
        newest = Newest { n: newest.n.min(OriginSeq(group.first_n.0 - 1)), tag: None };
    }
    if let Some(why) = out_of_place(tx, group, row, newest)? {
        return Ok(Fresh::Stopped(why));
    }
    let all = Fresh::Changes { known: group.count(), sight: Sight::default() };
    if newest.n >= group.last_n || (group.was.is_some() && life::has_otherwise(tx.conn, group)?) {
        return Ok(all);
    }
    // What its author saw pending stands before it in his database, and must here.
    Ok(match Sight::of(tx, group)? {
        Ok(sight) => Fresh::Changes { known: newest.n.0 + 1 - group.first_n.0, sight },
        Err((origin, expected)) => Fresh::Stopped(Accepted::Gap { origin, expected }),
    })
}

/// Why a group cannot be in the log under its numbers: what is before it is not there, or another life of its origin is.
fn out_of_place(tx: &Tx<'_>, group: &Group, row: i64, newest: Newest) -> Result<Option<Accepted>, Error> {
    let gap = |expected| Some(Accepted::Gap { origin: group.origin, expected });
    let forked = || {
        let change = Seen { origin: group.origin, n: group.first_n, tag: group.tag };
        Some(Accepted::Forked { change })
    };
    if group.was.is_none() {
        if let Some(before) = group.before()
            && !life::is_as_sealed(tx.conn, row, newest, before)?
        {
            return Ok(match life::place(tx.conn, before)? {
                Place::Nowhere(expected) => gap(expected),
                _ => forked(),
            });
        }
        let upto = newest.n.min(group.last_n);
        if upto >= group.first_n && log::other_tag(tx.conn, row, group.first_n, upto, group.tag)?.is_some()
            || life::has_otherwise(tx.conn, group)?
        {
            return Ok(forked());
        }
    }
    Ok(gap(OriginSeq(newest.n.0 + 1)).filter(|_| group.first_n.0 > newest.n.0 + 1))
}

/// Takes a group but for its first `known` changes, or refuses all of them for a reason, going through it again for as long
/// as that shows more that cannot be.
fn accept_group(
    tx: &mut Tx<'_>,
    pushed: &Pushed<'_>,
    group: &Group,
    known: u64,
    sight: &Sight,
    refuses: Option<String>,
) -> Result<(), Error> {
    let first_n = OriginSeq(group.first_n.0 + known);
    if first_n > group.last_n {
        return Ok(());
    }
    let prev = if known > 0 { group.tag } else { group.prev };
    let group = Group { first_n, first: Seq(group.first.0 + known), prev, ..group.clone() };
    let mut refused = Fallen::new();
    if let Some(reason) = refuses {
        let all = (first_n.0..=group.last_n.0).map(OriginSeq);
        refused.extend(all.map(|n| (n, Fate::Refused(reason.clone()))));
    }
    // The changes whose rows step out before they are written.
    let mut steps_out: Option<HashSet<OriginSeq>> = None;
    loop {
        tx.conn.execute_batch("SAVEPOINT accepted")?;
        let out =
            steps_out.as_ref().map(|changes| SteppedOut::of(tx, pushed, &group, changes)).transpose()?;
        let pass = Pass::run(tx, pushed, &group, sight, &refused, out.as_ref())?;
        let mut found = Fallen::new();
        match out {
            None if pass.is_in_its_own_way() => steps_out = Some(pass.tried()),
            // Their rows have to be back before the others are written.
            Some(_) if !pass.refused.is_empty() => found = pass.refused,
            _ => {
                if let Some(out) = out {
                    out.put_back(tx, &pass.written())?;
                }
                found = pass.found_unsound(tx, &refused)?;
                if found.is_empty() {
                    tx.conn.execute_batch("RELEASE accepted")?;
                    return Ok(());
                }
            }
        }
        tx.conn.execute_batch("ROLLBACK TO accepted; RELEASE accepted")?;
        // Numbers that were made on the way are gone with it.
        tx.numbers.forget();
        if let Some(changes) = &mut steps_out {
            changes.retain(|n| !found.contains_key(n));
        }
        refused.extend(found);
    }
}

/// By number: what a change comes to, whatever it says.
type Fallen = HashMap<OriginSeq, Fate>;

/// What becomes of a change that the rest of its group brings down.
#[derive(Clone, Debug)]
enum Fate {
    /// It is refused, for this reason.
    Refused(String),
    /// It deletes what belongs to a record whose deletion did not stand: that stays too.
    Stays,
}

impl Fate {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Refused(reason) => Outcome::refused(reason.clone()),
            Self::Stays => Outcome {
                dropped: vec![Dropped { field: None, loser: Loser::Remote, open: false }],
                ..Outcome::nothing()
            },
        }
    }

    fn reason(&self) -> Option<&str> {
        match self {
            Self::Refused(reason) => Some(reason),
            Self::Stays => None,
        }
    }
}

/// One way through a group.
#[derive(Default)]
struct Pass {
    /// Refused on the way: by the database, or, of an atomic scope, by whatever else.
    refused: Fallen,
    /// Those of them that met a value that another row has.
    met_taken: HashSet<OriginSeq>,
    /// Deletions that did not stand, and those that did.
    stays: Vec<Change>,
    gone: Vec<(OriginSeq, Change)>,
    /// Top of the log before it.
    before: Seq,
    /// Changes that wrote or deleted their row.
    wrote: Vec<Wrote>,
    /// Those that have an atomic mark, and those that followed from a decision that has one.
    marks: Vec<(OriginSeq, String)>,
    /// Those of them that fall with others without being refused themselves: decisions that came too late, and what followed
    /// from a decision.
    without_own: HashSet<OriginSeq>,
    /// Marks of which one decision came too late.
    late: HashSet<String>,
    /// What came below another row of a tree.
    moves: Moves,
    /// How writes are captured now.
    mode: Option<Mode>,
}

/// What is asked of a change once the whole group is there.
pub(crate) struct Wrote {
    pub(crate) n: OriginSeq,
    /// Index of its model.
    model: usize,
    key: Vec<Value>,
    effect: EntryKind,
    /// Columns beside which others may have referred to it; empty where it was not there before.
    columns: Vec<String>,
}

impl Pass {
    fn run(
        tx: &mut Tx<'_>,
        pushed: &Pushed<'_>,
        group: &Group,
        sight: &Sight,
        refused: &Fallen,
        out: Option<&SteppedOut>,
    ) -> Result<Self, Error> {
        let Replica { max_seen: term, top, clock, .. } = tx.replica()?;
        let mut pass = Self { before: top.seq, ..Self::default() };
        let (mut lookup, mut writers, mut authors) =
            (Lookup::default(), Writers::default(), Authors::default());
        let (mut seq, mut clock) = (top.seq, clock);
        let now = tx.world.now();
        // The group's row stands before its entries do: what one of them wrote is looked up by it for the next.
        let row = origin_row(tx.conn, group.origin, group.device)?;
        let open = Group { first: seq.next(), last: Seq(i64::MAX as u64), ..group.clone() };
        log::push_group(tx.conn, &open, row, clock)?;
        let mut appender = Appender::new(tx, top)?;
        // A decision without effect takes what followed from it with it: each is a group of its own.
        let mut fell = false;
        let mut decided: Option<String> = None;
        pushed.each(tx, group, |n, body| {
            let Body::Change(change) = body else {
                seq = seq.next();
                return appender.push(&Entry { seq, term, n: Some(n), body: body.clone() });
            };
            let mut change = change.clone();
            change.rank_at(now);
            lookup.has_entry = false;
            let follows = change.decides.is_none();
            let outcome = match refused.get(&n) {
                // Where its author's database cascaded.
                _ if fell && follows => Some(Outcome::nothing()),
                Some(fate) => Some(fate.outcome()),
                None => {
                    let outcome = lookup.outcome(tx, group, n, &change, sight)?.map(or_too_large);
                    if lookup.is_late
                        && let Some(mark) = &change.mark
                    {
                        pass.without_own.insert(n);
                        pass.late.insert(mark.clone());
                    }
                    outcome
                }
            };
            if !follows {
                decided.clone_from(&change.mark);
            }
            if let Some(mark) = change.mark.as_ref().or(decided.as_ref()) {
                if change.mark.is_none() {
                    pass.without_own.insert(n);
                }
                // Not the database alone refuses: an owner does, and a merge that fails.
                if let Some(reason) = outcome.as_ref().and_then(|outcome| outcome.refused.as_ref())
                    && !refused.contains_key(&n)
                {
                    pass.refused.insert(n, Fate::Refused(reason.clone()));
                }
                pass.marks.push((n, mark.clone()));
            }
            change.outcome = outcome.map(Box::new);
            if let Some(out) = out {
                out.enforce(tx, n)?;
            }
            let derived = pass.write(tx, &mut writers, n, &mut change)?;
            match (change.kind, change.effect()) {
                (EntryKind::Delete, EntryKind::Noop) => pass.stays.push(change.clone()),
                (EntryKind::Delete, _) => pass.gone.push((n, change.clone())),
                _ => {}
            }
            if change.decides.is_some() {
                fell = change.kind != EntryKind::Noop && change.effect() == EntryKind::Noop;
            }
            clock = clock.max(change.ranking_stamp());
            seq = seq.next();
            let entry = Entry { seq, term, n: Some(n), body: Body::Change(change) };
            if let Body::Change(change) = &entry.body {
                let image = change.before.as_deref().filter(|_| !lookup.has_entry);
                appender.push_change(&entry, change, None, image)?;
                if park::concerns(change) {
                    park::park(tx, &mut authors, Identity::of(group, Some(n)), group.device, seq, change)?;
                }
            }
            for change in derived {
                seq = seq.next();
                appender.push(&Entry { seq, term, n: None, body: Body::Change(change) })?;
            }
            Ok(())
        })?;
        log::close_group(tx.conn, open.first, seq, clock)?;
        tx.enforce(true)?;
        Ok(pass)
    }

    /// Writes what the change comes to; what the database does not take is refused. What it cascaded.
    fn write<'c>(
        &mut self,
        tx: &Tx<'c>,
        writers: &mut Writers<'c>,
        n: OriginSeq,
        change: &mut Change,
    ) -> Result<Vec<Change>, Error> {
        if change.effect() == EntryKind::Noop {
            return Ok(Vec::new());
        }
        let model = tx.models.iter().position(|m| m.descriptor.id == change.shape.model);
        let (Some(model), Some(writer)) = (model, writers.of(tx, &change.shape)?) else {
            return Ok(Vec::new());
        };
        let parent = tree::parent(tx, change)?;
        // What else the database does along with it is part of what was pushed.
        let more_follows = tx.foreign_triggers || tx.models[model].references.cascade();
        self.capture(tx, if more_follows { Mode::Derived } else { Mode::Off })?;
        let mut derived = Vec::new();
        match if more_follows { replace_whole(tx, writer, change) } else { writer.replace(change) } {
            Ok(()) if more_follows => derived = seal::derived(tx, &change.shape.model, &change.record)?,
            Ok(()) => {}
            // A trigger that took the whole transaction back left nothing to go on with.
            Err(error) if is_the_rows_fault(&error) && !tx.conn.is_autocommit() => {
                let reason = not_taken(&error);
                if exchange::is_taken(&error) {
                    self.met_taken.insert(n);
                }
                self.refused.insert(n, Fate::Refused(reason.clone()));
                change.outcome = Some(Box::new(Outcome::refused(reason)));
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        }
        for derived in &mut derived {
            (derived.stamp, derived.rank) = (change.stamp, change.rank);
            derived.actor.clone_from(&change.actor);
        }
        self.moves.note(tx, n, change, parent.as_ref(), &derived)?;
        self.wrote.push(Wrote::of(tx, n, model, change));
        // What the database cascaded may have left others without what they refer to.
        for derived in &derived {
            let model = tx.models.iter().position(|m| m.descriptor.id == derived.shape.model);
            self.wrote.extend(model.map(|model| Wrote::of(tx, n, model, derived)));
        }
        Ok(derived)
    }

    /// Whether what was refused for another row's value may have met a row that the group itself changes.
    fn is_in_its_own_way(&self) -> bool {
        !self.met_taken.is_empty() && self.tried().len() > 1
    }

    /// The changes that wrote their rows.
    fn written(&self) -> HashSet<OriginSeq> {
        self.wrote.iter().map(|wrote| wrote.n).collect()
    }

    /// Those, and the ones that would have but for another row's value.
    fn tried(&self) -> HashSet<OriginSeq> {
        self.written().union(&self.met_taken).copied().collect()
    }

    /// Sees to it that what is written from here on is captured like this.
    fn capture(&mut self, tx: &Tx<'_>, mode: Mode) -> Result<(), Error> {
        if self.mode != Some(mode) {
            tx.set_mode(mode)?;
            self.mode = Some(mode);
        }
        Ok(())
    }

    /// What this way through has shown that must come to something else in the next: rows that refer to nothing, rows
    /// above themselves, what shares an atomic mark with a change that is refused, and what belongs to a record that stays.
    fn found_unsound(&self, tx: &Tx<'_>, fallen: &Fallen) -> Result<Fallen, Error> {
        let mut found = Fallen::new();
        for wrote in &self.wrote {
            if let Some(reason) = wrote.left_unsound(tx)? {
                found.insert(wrote.n, Fate::Refused(reason));
            }
        }
        for (n, reason) in self.moves.found_unsound(tx)? {
            found.entry(n).or_insert(Fate::Refused(reason));
        }
        for n in below::found(tx, self.before, &self.stays, &self.gone)? {
            found.entry(n).or_insert(Fate::Stays);
        }
        let all = |n: &OriginSeq| {
            let fate = found.get(n).or_else(|| self.refused.get(n)).or_else(|| fallen.get(n));
            fate.and_then(Fate::reason)
        };
        let mut marked: HashMap<&str, String> = HashMap::new();
        for (n, mark) in &self.marks {
            if let Some(reason) = all(n) {
                let says = || format!("a change that it stands or falls with was refused: {reason}");
                marked.entry(mark).or_insert_with(says);
            }
        }
        for mark in &self.late {
            let says = "a dead letter that it is tried again with was decided about before".to_owned();
            marked.entry(mark).or_insert(says);
        }
        let mut with_them = Fallen::new();
        for (n, mark) in &self.marks {
            if let Some(reason) = marked.get(mark.as_str())
                && all(n).is_none()
                && !self.without_own.contains(n)
            {
                with_them.insert(*n, Fate::Refused(reason.clone()));
            }
        }
        found.extend(with_them);
        // Refused on the way alone is done with, unless others fall with it: then both must hold in the next pass.
        if !found.is_empty() {
            found.extend(self.refused.clone());
        }
        Ok(found)
    }
}

/// Writes the change's row, or nothing: a trigger of the application may end a statement and leave what it did so far.
fn replace_whole(tx: &Tx<'_>, writer: &mut Writer<'_>, change: &Change) -> Result<(), Error> {
    tx.conn.prepare_cached("SAVEPOINT written")?.execute([])?;
    let written = writer.replace(change);
    if tx.conn.is_autocommit() {
        return written;
    }
    if written.is_err() {
        tx.conn.prepare_cached("ROLLBACK TO written")?.execute([])?;
    }
    tx.conn.prepare_cached("RELEASE written")?.execute([])?;
    written
}

/// What two changes of a record come to together must be sent like any other row.
fn or_too_large(outcome: Outcome) -> Outcome {
    let Effect::Row { row, .. } = &outcome.effect else { return outcome };
    let size = seal::size(row);
    if size <= ROW_MAX {
        return outcome;
    }
    Outcome::refused(format!(
        "with what others wrote its row comes to {size} bytes, over the limit of {ROW_MAX} bytes for one row"
    ))
}

/// Whether the database refused a row for what the row is, and would again.
fn is_the_rows_fault(error: &Error) -> bool {
    let by_itself = |source: &rusqlite::Error| {
        matches!(
            source.sqlite_error_code(),
            Some(ErrorCode::TypeMismatch | ErrorCode::TooBig | ErrorCode::Unknown)
        )
    };
    is_constraint(error) || matches!(error, Error::Database { source, .. } if by_itself(source))
}

fn not_taken(error: &Error) -> String {
    match error {
        Error::Database { source, .. } => format!("the leader's database does not take it: {source}"),
        other => other.to_string(),
    }
}

impl Wrote {
    pub(crate) fn of(tx: &Tx<'_>, n: OriginSeq, model: usize, change: &Change) -> Self {
        let fields = &change.shape.fields;
        let columns = match change.written() {
            _ if !change.existed => Vec::new(),
            Some(written) => written.iter().filter_map(|&f| fields.get(usize::from(f)).cloned()).collect(),
            None => fields.clone(),
        };
        let key = change.key_in(&tx.models[model].shape);
        Self { n, model, key, effect: change.effect(), columns }
    }

    /// Why what the change did to its record cannot stay, now that the whole group is there; `None` if it can.
    pub(crate) fn left_unsound(&self, tx: &Tx<'_>) -> Result<Option<String>, Error> {
        let references = &tx.models[self.model].references;
        match self.effect {
            EntryKind::Upsert => match references.refers_to_nothing(tx.conn, &self.key)? {
                Some(reason) => Ok(Some(reason)),
                None => {
                    let is_written =
                        |column: &str| self.columns.iter().any(|c| c.eq_ignore_ascii_case(column));
                    references.was_referred_to(tx.conn, &self.key, is_written)
                }
            },
            EntryKind::Delete => references.is_referred_to(tx.conn, &self.key),
            _ => Ok(None),
        }
    }
}
