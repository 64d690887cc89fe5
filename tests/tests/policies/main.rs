//! The matrix: every policy, in every case that two or three writers can bring about, in every order in which they reach
//! the leader, whoever's clock is ahead.
//!
//! Three devices write the same records without seeing each other: the leader, and two followers that are cut off. In
//! each of the six orders of arrival all cases of all policies are played for each of the six orders of their clocks, and
//! all three devices must end with the same rows, log, conflicts and dead letters; with the rows that the policy
//! promises (`oracle.rs`); and with every value that anybody saved in the row, in a conflict, or in a dead letter, unless
//! somebody who had seen it wrote over it.
//!
//! And what a device wrote over knowingly, its own or another's, is in no conflict, whatever the policy and the clock.
//!
//! - `models.rs`: one table for each policy, all alike
//! - `oracle.rs`: what the policies promise
//! - `merging.rs`: reducers, and custom merges that fail

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{HashMap, HashSet},
    fmt::Write,
};

use tidelog::{
    Conflict, DeadLetter, Row as Columns,
    conflict::{ConflictState, Version, Winner},
    id::{DeviceId, Seq},
    model::{DeletePolicy, Policy},
    value::Value,
};
use tidelog_tests::{
    devices::eventually,
    scene::{Device, text},
    trio::{Trio, Who},
};

use crate::{
    models::{Owner, SPECS, Spec},
    oracle::{Change, Row, Story, play},
};

mod merging;
mod models;
mod oracle;

const FIELDS: [&str; 3] = ["x", "y", "z"];
const X: usize = 0;
const Y: usize = 1;
const Z: usize = 2;

/// What a device does to a record as it sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Nothing,
    /// Sets these fields, if the record is there.
    Set(&'static [(usize, &'static str)]),
    /// Deletes it, if it is there.
    Delete,
    /// Makes it, or makes it this where it is there.
    Create([&'static str; 3]),
}

/// What the leader, A and B do to one record.
struct Case {
    name: &'static str,
    does: [Does; 3],
}

const fn case(name: &'static str, leader: Does, a: Does, b: Does) -> Case {
    Case { name, does: [leader, a, b] }
}

use Does::{Create, Delete, Nothing, Set};

const CASES: &[Case] = &[
    case("disjoint fields", Set(&[(X, "L")]), Set(&[(Y, "A")]), Set(&[(Z, "B")])),
    case(
        "overlapping fields",
        Set(&[(X, "L"), (Y, "L")]),
        Set(&[(Y, "A"), (Z, "A")]),
        Set(&[(Z, "B"), (X, "B")]),
    ),
    case("same field, same value", Set(&[(X, "same")]), Set(&[(X, "same")]), Set(&[(X, "same")])),
    case("same field, three values", Set(&[(X, "L")]), Set(&[(X, "A")]), Set(&[(X, "B")])),
    case("same field, the leader differs", Set(&[(X, "L")]), Set(&[(X, "same")]), Set(&[(X, "same")])),
    case("same field, A differs", Set(&[(X, "same")]), Set(&[(X, "A")]), Set(&[(X, "same")])),
    case("same field, B differs", Set(&[(X, "same")]), Set(&[(X, "same")]), Set(&[(X, "B")])),
    case("same field, the followers only", Nothing, Set(&[(X, "A")]), Set(&[(X, "B")])),
    case("nobody but A", Nothing, Set(&[(X, "A")]), Nothing),
    case("the leader deletes", Delete, Set(&[(X, "A")]), Set(&[(Y, "B")])),
    case("A deletes", Set(&[(X, "L")]), Delete, Set(&[(Y, "B")])),
    case("B deletes", Set(&[(X, "L")]), Set(&[(X, "A")]), Delete),
    case("all but the leader delete", Set(&[(X, "L")]), Delete, Delete),
    case("all but A delete", Delete, Set(&[(X, "A")]), Delete),
    case("all but B delete", Delete, Delete, Set(&[(X, "B")])),
    case("all delete", Delete, Delete, Delete),
    case("all make another", Create(["L", "L", "one"]), Create(["A", "A", "one"]), Create(["B", "B", "one"])),
    case("all make the same", Create(["one"; 3]), Create(["one"; 3]), Create(["one"; 3])),
    case("the followers make another", Nothing, Create(["A", "A", "one"]), Create(["B", "A", "one"])),
];

impl Case {
    /// The record before anybody does anything.
    fn base(&self) -> Option<Row> {
        let is_made = self.does.iter().any(|does| matches!(does, Create(_)));
        (!is_made).then(|| ["x", "y", "z"].map(str::to_owned))
    }

    /// What a device does to this record of this table.
    fn does(&self, who: Who) -> Does {
        self.does[who as usize]
    }

    fn record(&self, round: usize) -> String {
        format!("{round}: {}", self.name)
    }
}

/// The statement with which a device does it.
fn sql(does: Does, spec: &Spec, record: &str, who: Who) -> Option<String> {
    let table = spec.table;
    Some(match does {
        Nothing => return None,
        Set(set) => {
            let set: Vec<String> =
                set.iter().map(|(f, value)| format!("{} = '{value}'", FIELDS[*f])).collect();
            format!("UPDATE {table} SET {} WHERE id = '{record}'", set.join(", "))
        }
        Delete => format!("DELETE FROM {table} WHERE id = '{record}'"),
        Create([x, y, z]) => {
            let owner = match spec.owner {
                Owner::Nobody => "NULL".to_owned(),
                Owner::Device(_) => format!("'{}'", who.device()),
            };
            format!(
                "INSERT INTO {table} VALUES ('{record}', '{x}', '{y}', '{z}', {owner})
                 ON CONFLICT (id) DO UPDATE SET x = excluded.x, y = excluded.y, z = excluded.z"
            )
        }
    })
}

/// All records of a round, each with its table and case.
fn records(round: usize) -> impl Iterator<Item = (&'static Spec, &'static Case, String)> {
    SPECS.iter().flat_map(move |spec| CASES.iter().map(move |case| (spec, case, case.record(round))))
}

const PERMUTATIONS: [[Who; 3]; 6] = [
    [Who::Leader, Who::A, Who::B],
    [Who::Leader, Who::B, Who::A],
    [Who::A, Who::Leader, Who::B],
    [Who::A, Who::B, Who::Leader],
    [Who::B, Who::Leader, Who::A],
    [Who::B, Who::A, Who::Leader],
];

/// Between two rounds and between two clocks, ms.
const ROUND: i64 = 10_000;
const STEP: i64 = 1000;

/// Plays all cases of all policies for each order of the clocks; the changes reach the leader in this order.
async fn in_order(order: [Who; 3]) {
    let trio = Trio::set(&models::schema(), models::register).await;
    for (round, clocks) in PERMUTATIONS.into_iter().enumerate() {
        let begin = (round as i64 + 1) * ROUND;
        let wall = |who: Who| begin + STEP * (1 + clocks.iter().position(|c| *c == who).unwrap() as i64);
        trio.it_is(begin + ROUND - 1);
        let before = trio.device(Who::Leader).library.position().await.unwrap().seq;
        play_out(&trio, round, begin, order, wall).await;
        let found = Found::behind(&trio, before).await;
        for (spec, case, record) in records(round) {
            let story = play(spec, case, order, wall);
            let about = format!("{}, {record}, in the order {order:?}, clocks {clocks:?}", spec.table);
            found.assert_as_told(spec, &record, &story, &about);
        }
    }
    let tables: Vec<&str> = SPECS.iter().map(|spec| spec.table).collect();
    trio.assert_same(&tables);
    // The tables are the same; so is what the application is told of them.
    let told = async |who: Who| {
        let device = trio.device(who);
        (conflicts_behind(device, Seq(0)).await, device.library.dead_letters().await.unwrap())
    };
    let by_the_leader = told(Who::Leader).await;
    assert!(by_the_leader == told(Who::A).await && by_the_leader == told(Who::B).await);
}

/// Has everybody write, unseen by each other but for what the leader has by then.
async fn play_out(trio: &Trio, round: usize, begin: i64, order: [Who; 3], wall: impl Fn(Who) -> i64) {
    // Who owns a record makes it.
    for who in [Who::Leader, Who::A, Who::B] {
        let base = records(round).filter_map(|(spec, case, record)| {
            let [x, y, z] = case.base()?;
            let (maker, owner) = match spec.owner {
                Owner::Nobody => (Who::Leader, "NULL".to_owned()),
                Owner::Device(owner) => (owner, format!("'{}'", owner.device())),
            };
            (maker == who).then(|| {
                format!("INSERT INTO {} VALUES ('{record}', '{x}', '{y}', '{z}', {owner})", spec.table)
            })
        });
        trio.write(who, begin, &base.collect::<Vec<_>>()).await;
        trio.device(who).library.barrier().await.unwrap();
    }
    trio.level().await;
    let statements = |who: Who| -> Vec<String> {
        let does = |(spec, case, record): (&Spec, &Case, String)| sql(case.does(who), spec, &record, who);
        records(round).filter_map(does).collect()
    };
    for follower in [Who::A, Who::B] {
        trio.cut_off(follower);
        trio.write(follower, wall(follower), &statements(follower)).await;
    }
    for who in order {
        if who == Who::Leader {
            trio.write(who, wall(who), &statements(who)).await;
            trio.barrier(who).await;
        } else {
            trio.let_back(who).await;
        }
    }
    trio.level().await;
}

/// What a round left: rows, conflicts and dead letters, each by table and record.
struct Found {
    rows: HashMap<(&'static str, String), Row>,
    conflicts: HashMap<(String, String), Vec<Conflict>>,
    letters: HashMap<(String, String), Vec<DeadLetter>>,
    /// Entries that are deletions.
    deletions: HashSet<u64>,
}

impl Found {
    /// What is behind an entry on the leader.
    async fn behind(trio: &Trio, after: Seq) -> Self {
        let device = trio.device(Who::Leader);
        let file = device.file();
        let mut found = Self {
            rows: HashMap::new(),
            conflicts: HashMap::new(),
            letters: HashMap::new(),
            deletions: HashSet::new(),
        };
        for spec in SPECS {
            let mut statement = file.prepare(&format!("SELECT id, x, y, z FROM {}", spec.table)).unwrap();
            let read =
                statement.query_map([], |row| Ok((row.get(0)?, [row.get(1)?, row.get(2)?, row.get(3)?])));
            for (id, row) in read.unwrap().map(Result::unwrap) {
                found.rows.insert((spec.table, id), row);
            }
        }
        let mut statement = file.prepare("SELECT seq FROM sync_log WHERE kind = 'delete'").unwrap();
        found.deletions = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        for conflict in conflicts_behind(device, after).await {
            let key = (conflict.model.clone(), conflict.record.clone());
            found.conflicts.entry(key).or_default().push(conflict);
        }
        for letter in device.library.dead_letters().await.unwrap() {
            if letter.seq > after {
                let key = (letter.model.clone(), letter.record.clone());
                found.letters.entry(key).or_default().push(letter);
            }
        }
        found
    }

    fn assert_as_told(&self, spec: &Spec, record: &str, story: &Story, about: &str) {
        let key = (spec.table.to_owned(), record.to_owned());
        let row = self.rows.get(&(spec.table, record.to_owned()));
        let conflicts = self.conflicts.get(&key).map_or(&[][..], Vec::as_slice);
        let letters = self.letters.get(&key).map_or(&[][..], Vec::as_slice);
        let about = format!("{about}\n{story}{}", told(conflicts, letters));
        assert_eq!(row, story.row.as_ref(), "{about}");
        let is_contested = story.is_contested(spec.policy);
        assert_eq!(!conflicts.is_empty(), is_contested, "there is a conflict where there is one: {about}");
        for conflict in conflicts {
            assert_sound(spec, story, conflict, &about);
            // A value is of somebody who wrote it, not of who deleted the record before it came back. Where it is gone by
            // now, there is none.
            let by_deletion = conflict.local.row.is_some()
                && conflict.local.seq.is_some_and(|seq| self.deletions.contains(&seq.0));
            assert!(
                conflict.field.is_none() || !by_deletion,
                "{}",
                told(std::slice::from_ref(conflict), &[])
            );
        }
        let refused: Vec<DeviceId> = story.refused.iter().map(|c| c.who.device()).collect();
        let dead: Vec<DeviceId> = letters.iter().map(|letter| letter.device).collect();
        assert_eq!(dead, refused, "{about}");
        for letter in letters {
            assert!(letter.reason.contains("may not write it"), "{about}");
        }
        for change in &story.changes {
            assert_kept(story, change, conflicts, &about);
        }
        for (change, letter) in story.refused.iter().zip(letters) {
            let kept = |&field: &usize| holds(Some(&letter.values), field, change.value(field));
            assert!(change.after.is_none() || change.wrote.iter().all(kept), "{about}");
        }
    }
}

/// For whoever reads why a case failed.
fn told(conflicts: &[Conflict], letters: &[DeadLetter]) -> String {
    let mut told = String::new();
    for Conflict { field, local, remote, winner, state, .. } in conflicts {
        let side = |side: &Version| match &side.row {
            Some(row) => format!("{row} of {:?}", side.device),
            None => format!("deleted by {:?}", side.device),
        };
        let field = field.as_deref().unwrap_or("presence");
        let _ = writeln!(
            told,
            "  conflict over {field}: {} / {}, {winner:?}, {state:?}",
            side(local),
            side(remote)
        );
    }
    for letter in letters {
        let _ = writeln!(told, "  dead letter: {}", letter.to_json());
    }
    told
}

async fn conflicts_behind(device: &Device, after: Seq) -> Vec<Conflict> {
    let mut conflicts: Vec<Conflict> = Vec::new();
    loop {
        let from = conflicts.last().map_or(after, |last| last.seq);
        let page = device.library.conflicts_since(from).await.unwrap();
        if page.is_empty() {
            return conflicts;
        }
        conflicts.extend(page);
    }
}

/// A conflict is one: two who had not seen each other want different things, and the policy's word stands.
fn assert_sound(spec: &Spec, story: &Story, conflict: &Conflict, about: &str) {
    let about = format!("{} of {about}", told(std::slice::from_ref(conflict), &[]));
    assert_eq!(conflict.policy, Some(spec.policy), "{about}");
    let remote = Who::ALL.into_iter().find(|who| Some(who.device()) == conflict.remote.device).unwrap();
    assert_ne!(remote, Who::Leader, "the leader has seen all that is in the log: {about}");
    let (local_row, remote_row) = (conflict.local.row.as_ref(), conflict.remote.row.as_ref());
    // One that waits shows what the log has by now: whoever saw both may have written since.
    let waits = conflict.state == ConflictState::Open;
    let Some(field) = &conflict.field else {
        assert!(waits || local_row.is_none() != remote_row.is_none(), "one of them deleted it: {about}");
        let (winner, state) = match (spec.policy, spec.deletes) {
            (Policy::LeaderWins, _) => (Winner::Local, ConflictState::Auto),
            (Policy::OriginWins, _) => (Winner::Remote, ConflictState::Auto),
            (_, DeletePolicy::Manual) => (Winner::Local, ConflictState::Open),
            (_, deletes) => {
                let local_stands = local_row.is_none() == (deletes == DeletePolicy::DeleteWins);
                (if local_stands { Winner::Local } else { Winner::Remote }, ConflictState::Auto)
            }
        };
        assert_eq!((conflict.winner, conflict.state), (winner, state), "{about}");
        return;
    };
    let value = |row: Option<&Columns>| row.and_then(|row| row.get(field)).cloned();
    assert!(waits || value(local_row) != value(remote_row), "{about}");
    let open = if spec.policy == Policy::Manual { ConflictState::Open } else { ConflictState::Auto };
    assert_eq!(conflict.state, open, "{about}");
    let at = FIELDS.iter().position(|name| name == field).unwrap();
    let remote_stands = match spec.policy {
        Policy::LeaderWins | Policy::Manual => Some(false),
        Policy::OriginWins => Some(true),
        Policy::Custom => None,
        Policy::Fields => Some(story.is_later(remote, Some(at))),
        Policy::LastWriteWins | Policy::Role | Policy::Owner(_) => Some(story.is_later(remote, None)),
    };
    let winner = remote_stands.map(|stands| if stands { Winner::Remote } else { Winner::Local });
    assert!(winner.is_none_or(|winner| conflict.winner == winner), "{winner:?} wins: {about}");
}

/// Nothing of what somebody saved is lost.
fn assert_kept(story: &Story, change: &Change, conflicts: &[Conflict], about: &str) {
    let is_about =
        |conflict: &&Conflict, name: &str| conflict.field.as_ref().is_none_or(|field| field == name);
    if change.after.is_none() {
        let told = conflicts.iter().filter(|c| c.field.is_none());
        let kept =
            story.row.is_none() || told.clone().any(|c| c.local.row.is_none() || c.remote.row.is_none());
        assert!(kept, "the deletion of {:?} is told of: {about}", change.who);
        return;
    }
    for &field in &change.wrote {
        let (name, saved) = (FIELDS[field], change.value(field));
        let in_row = story.row.as_ref().is_some_and(|row| row[field].split('+').any(|word| word == saved));
        let mut told = conflicts.iter().filter(|conflict| is_about(conflict, name));
        let kept = in_row
            || story.is_overwritten(change, field)
            || told.any(|c| [&c.local, &c.remote].iter().any(|side| holds(side.row.as_ref(), field, saved)));
        assert!(kept, "{name} = {saved} of {:?} is lost: {about}", change.who);
    }
}

/// Whether a row says this of a field.
fn holds(row: Option<&Columns>, field: usize, saved: &str) -> bool {
    match row.and_then(|row| row.get(FIELDS[field])) {
        Some(Value::Text(text)) => std::str::from_utf8(text).unwrap().split('+').any(|word| word == saved),
        _ => false,
    }
}

#[tokio::test]
async fn who_has_seen_a_change_writes_over_it_under_every_policy() {
    let trio = Trio::set(&models::schema(), models::register).await;
    trio.it_is(100_000);
    let all = || SPECS.iter().filter(|spec| spec.owner == Owner::Nobody).map(|spec| spec.table);
    let each = |statements: &[&str]| -> Vec<String> {
        all().flat_map(|table| statements.iter().map(move |sql| sql.replace("TABLE", table))).collect()
    };
    let records = ["twice", "gone", "again", "over", "taken"];
    let base = records.map(|id| format!("INSERT INTO TABLE VALUES ('{id}', 'x', 'y', 'z', NULL)"));
    trio.write(Who::Leader, 1000, &each(&base.each_ref().map(String::as_str))).await;
    trio.level().await;

    // A changes its mind before the leader hears of it, and its clock is set back meanwhile.
    trio.cut_off(Who::A);
    let first = [
        "UPDATE TABLE SET x = 'one' WHERE id IN ('twice', 'gone', 'over', 'taken')",
        "DELETE FROM TABLE WHERE id = 'again'",
    ];
    trio.write(Who::A, 5000, &each(&first)).await;
    eventually("that is sealed", async || (trio.device(Who::A).outbox() == 0).then_some(())).await;
    let second = [
        "UPDATE TABLE SET x = 'two' WHERE id = 'twice'",
        "DELETE FROM TABLE WHERE id = 'gone'",
        "INSERT INTO TABLE VALUES ('again', 'two', 'y', 'z', NULL)",
    ];
    trio.write(Who::A, 4000, &each(&second)).await;
    trio.let_back(Who::A).await;
    trio.level().await;
    // B sees that, and its clock is behind.
    let third = ["UPDATE TABLE SET x = 'three' WHERE id = 'over'", "DELETE FROM TABLE WHERE id = 'taken'"];
    trio.write(Who::B, 2000, &each(&third)).await;
    trio.level().await;

    let tables: Vec<&str> = all().collect();
    trio.assert_same(&tables);
    for table in tables {
        let rows =
            format!("SELECT group_concat(id || ' ' || x) FROM (SELECT id, x FROM {table} ORDER BY id)");
        assert_eq!(text(&trio.device(Who::B).file(), &rows), "again two,over three,twice two", "{table}");
    }
    let library = &trio.device(Who::Leader).library;
    let conflicts = library.conflicts_since(Seq(0)).await.unwrap();
    assert!(conflicts.is_empty(), "{}", told(&conflicts, &[]));
    assert_eq!(library.dead_letters().await.unwrap(), []);
}

macro_rules! orders {
    ($($name:ident: $first:ident $second:ident $third:ident;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            in_order([Who::$first, Who::$second, Who::$third]).await;
        }
    )*};
}

orders! {
    the_leader_then_a_then_b: Leader A B;
    the_leader_then_b_then_a: Leader B A;
    a_then_the_leader_who_sees_it_then_b: A Leader B;
    a_then_b_then_the_leader_who_sees_both: A B Leader;
    b_then_the_leader_who_sees_it_then_a: B Leader A;
    b_then_a_then_the_leader_who_sees_both: B A Leader;
}
