//! What the policies promise, on a log that is no more than a record and those who wrote it.

#![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

use sea_orm::sea_query::ArrayType;
use uuid::Uuid;

use super::*;
use crate::model::{Field, SyncOptions};

const KEY: usize = 0;
const A: u16 = 1;
const B: u16 = 2;
const COUNT: u16 = 3;
const FIELDS: usize = 4;

fn model(policy: Policy, deletes: DeletePolicy) -> ModelDescriptor {
    let field = |name: &str, reducer| Field {
        name: name.to_owned(),
        kind: ArrayType::BigInt,
        nullable: true,
        default: None,
        reducer,
    };
    ModelDescriptor {
        id: "note",
        table: "notes".into(),
        fields: vec![
            field("id", None),
            field("a", None),
            field("b", None),
            field("count", Some(Reducer::Sum)),
        ],
        key: vec![KEY],
        local: Vec::new(),
        references: Vec::new(),
        options: SyncOptions { policy, deletes, ..SyncOptions::default() },
        should_sync: None,
        merge: (policy == Policy::Custom).then_some(larger_of_each),
    }
}

/// A custom merge: of each field the larger value.
fn larger_of_each(
    _: &ModelDescriptor,
    _: Option<&[Value]>,
    local: &[Value],
    remote: &[Value],
) -> Result<Vec<Value>, String> {
    let larger = |(a, b): (&Value, &Value)| match (a, b) {
        (Value::Integer(a), Value::Integer(b)) => Ok(Value::Integer(*a.max(b))),
        _ => Err("no integer".to_owned()),
    };
    local.iter().zip(remote).map(larger).collect()
}

fn integers(values: [i64; FIELDS]) -> Vec<Value> {
    values.into_iter().map(Value::Integer).collect()
}

/// What a device does to the record that it sees.
#[derive(Clone, Debug, PartialEq)]
enum Does {
    Set(Vec<(u16, i64)>),
    Delete,
    Create([i64; FIELDS]),
}

/// A change of a device that had seen the base and nothing since.
#[derive(Clone, Debug)]
struct Sealed {
    by: Author,
    does: Does,
    before: Option<Vec<Value>>,
    row: Vec<Value>,
    fields: Option<Vec<u16>>,
}

fn author(number: u8, rank: u64) -> Author {
    Author {
        rank,
        origin: Origin(Uuid::from_u128(u128::from(number))),
        n: OriginSeq(1),
        device: DeviceId([number; 32]),
        role: number,
    }
}

fn seal(by: Author, base: Option<&[Value]>, does: &Does) -> Sealed {
    let before = base.map(<[Value]>::to_vec);
    let (row, fields) = match does {
        Does::Create(row) => (integers(*row), None),
        Does::Delete => (before.clone().unwrap(), None),
        Does::Set(set) => {
            let mut row = before.clone().unwrap();
            for (field, value) in set {
                row[usize::from(*field)] = Value::Integer(*value);
            }
            (row, Some(set.iter().map(|(field, _)| *field).collect()))
        }
    };
    Sealed { by, does: does.clone(), before, row, fields }
}

/// One record of a log.
struct Log {
    model: ModelDescriptor,
    row: Option<Vec<Value>>,
    /// Who wrote since the base: author, whether it is a deletion, fields.
    since: Vec<(Author, bool, Option<Vec<u16>>)>,
}

impl Log {
    fn new(model: ModelDescriptor, base: Option<&[Value]>) -> Self {
        Self { model, row: base.map(<[Value]>::to_vec), since: Vec::new() }
    }

    /// Sequences a change whose author had seen those of `seen`.
    fn sequence(&mut self, change: &Sealed, seen: &[Author]) -> Resolution {
        let since: Vec<Written<'_>> = self
            .since
            .iter()
            .map(|(by, deleted, fields)| Written {
                by: *by,
                seen: seen.contains(by),
                wrote: match (deleted, fields) {
                    (true, _) => Wrote::Nothing,
                    (false, None) => Wrote::All,
                    (false, Some(fields)) => Wrote::Fields(fields),
                },
            })
            .collect();
        let action = match change.does {
            Does::Delete => Action::Delete,
            _ => Action::Upsert { row: &change.row, fields: change.fields.as_deref() },
        };
        let arriving = Arriving {
            by: change.by,
            existed: change.before.is_some(),
            action,
            before: change.before.as_deref(),
        };
        let standing = Standing { row: self.row.as_deref(), since: &since, may_be_forgotten: false };
        let resolution = resolve(&Rules::of(&self.model), &standing, &arriving).unwrap();
        match &resolution.effect {
            Effect::None => {}
            Effect::Gone => {
                self.row = None;
                self.since.push((change.by, true, None));
            }
            Effect::Row { row, fields } => {
                self.row = Some(row.clone());
                self.since.push((change.by, false, fields.clone()));
            }
        }
        resolution
    }
}

const BASE: [i64; FIELDS] = [7, 0, 0, 10];

/// Sequences both, unseen by each other, the first ranked lower. The row at the end, and what the second came to.
fn meet(
    policy: Policy,
    deletes: DeletePolicy,
    first: Does,
    second: Does,
) -> (Option<Vec<Value>>, Resolution) {
    let base = integers(BASE);
    let created = matches!(first, Does::Create(_));
    let base = (!created).then_some(base.as_slice());
    let mut log = Log::new(model(policy, deletes), base);
    log.sequence(&seal(author(1, 100), base, &first), &[]);
    let resolution = log.sequence(&seal(author(2, 200), base, &second), &[]);
    (log.row, resolution)
}

fn set(field: u16, value: i64) -> Does {
    Does::Set(vec![(field, value)])
}

fn lost(field: u16, loser: Loser) -> Vec<Dropped> {
    vec![Dropped { field: Some(field), loser, open: false }]
}

#[test]
fn fields_that_do_not_overlap_merge_only_where_each_field_counts_by_itself() {
    let (row, resolution) = meet(Policy::Fields, DeletePolicy::DeleteWins, set(A, 1), set(B, 2));
    assert_eq!(row, Some(integers([7, 1, 2, 10])));
    assert_eq!(resolution.dropped, []);
    let (row, resolution) = meet(Policy::LastWriteWins, DeletePolicy::DeleteWins, set(A, 1), set(B, 2));
    assert_eq!(row, Some(integers([7, 0, 2, 10])), "the later change's whole row");
    // Its `a` is older than what it wrote over: that is told.
    assert_eq!(
        resolution.dropped,
        [
            Dropped { field: Some(A), loser: Loser::Local, open: false },
            Dropped { field: Some(B), loser: Loser::Local, open: false }
        ]
    );
}

#[test]
fn the_same_value_twice_is_no_conflict() {
    for policy in [
        Policy::LastWriteWins,
        Policy::Fields,
        Policy::LeaderWins,
        Policy::OriginWins,
        Policy::Role,
        Policy::Custom,
        Policy::Manual,
    ] {
        let (row, resolution) = meet(policy, DeletePolicy::DeleteWins, set(A, 1), set(A, 1));
        assert_eq!(row, Some(integers([7, 1, 0, 10])), "{policy:?}");
        assert_eq!(resolution.dropped, [], "{policy:?}");
    }
}

#[test]
fn different_values_of_one_field_are_decided_by_the_policy() {
    let decided = |policy| {
        let (row, resolution) = meet(policy, DeletePolicy::DeleteWins, set(A, 5), set(A, 3));
        (row.unwrap()[usize::from(A)].clone(), resolution.dropped)
    };
    let (old, new) = (Value::Integer(5), Value::Integer(3));
    assert_eq!(decided(Policy::LastWriteWins), (new.clone(), lost(A, Loser::Local)));
    assert_eq!(decided(Policy::Fields), (new.clone(), lost(A, Loser::Local)));
    assert_eq!(decided(Policy::LeaderWins), (old.clone(), lost(A, Loser::Remote)));
    assert_eq!(decided(Policy::OriginWins), (new.clone(), lost(A, Loser::Local)));
    assert_eq!(decided(Policy::Role), (new, lost(A, Loser::Local)), "device 2 has the higher role");
    assert_eq!(decided(Policy::Custom), (old.clone(), lost(A, Loser::Remote)), "the larger of each");
    let (stands, dropped) = decided(Policy::Manual);
    assert_eq!((stands, dropped[0].open, dropped[0].loser), (old, true, Loser::Remote));
}

#[test]
fn a_deletion_and_an_update_are_decided_by_their_own_policy() {
    let there = |deletes, first, second| {
        let (row, resolution) = meet(Policy::Fields, deletes, first, second);
        (row.is_some(), resolution.dropped.iter().map(|d| (d.loser, d.open)).collect::<Vec<_>>())
    };
    let (update, delete) = (|| set(A, 1), || Does::Delete);
    assert_eq!(there(DeletePolicy::DeleteWins, update(), delete()), (false, vec![(Loser::Local, false)]));
    assert_eq!(there(DeletePolicy::DeleteWins, delete(), update()), (false, vec![(Loser::Remote, false)]));
    assert_eq!(there(DeletePolicy::UpdateWins, update(), delete()), (true, vec![(Loser::Remote, false)]));
    assert_eq!(there(DeletePolicy::UpdateWins, delete(), update()), (true, vec![(Loser::Local, false)]));
    assert_eq!(there(DeletePolicy::Manual, update(), delete()), (true, vec![(Loser::Remote, true)]));
    assert_eq!(there(DeletePolicy::Manual, delete(), update()), (false, vec![(Loser::Remote, true)]));
    assert_eq!(there(DeletePolicy::DeleteWins, delete(), delete()), (false, vec![]), "both wanted the same");
}

#[test]
fn a_record_that_two_create_is_one_record() {
    let create = |a, b| Does::Create([7, a, b, 1]);
    let (row, resolution) = meet(Policy::Fields, DeletePolicy::DeleteWins, create(1, 1), create(2, 1));
    assert_eq!(row, Some(integers([7, 2, 1, 2])), "both counts are in the sum");
    assert_eq!(resolution.dropped, lost(A, Loser::Local));
}

#[test]
fn a_deletion_that_was_seen_does_not_keep_a_record_from_coming_back() {
    let base = integers(BASE);
    let mut log = Log::new(model(Policy::LastWriteWins, DeletePolicy::DeleteWins), Some(&base));
    let deletion = seal(author(1, 100), Some(&base), &Does::Delete);
    log.sequence(&deletion, &[]);
    let again = seal(author(2, 50), None, &Does::Create([7, 9, 9, 0]));
    let resolution = log.sequence(&again, &[deletion.by]);
    assert_eq!(resolution.dropped, []);
    assert_eq!(log.row, Some(integers([7, 9, 9, 0])), "whatever the clocks say");
}

#[test]
fn a_forgotten_deletion_counts_as_one_that_was_not_seen() {
    let model = model(Policy::LastWriteWins, DeletePolicy::DeleteWins);
    let base = integers(BASE);
    let resolved = |existed: bool, may_be_forgotten: bool| {
        let row = integers([7, 1, 0, 10]);
        let arriving = Arriving {
            by: author(1, 1),
            existed,
            action: Action::Upsert { row: &row, fields: Some(&[A]) },
            before: Some(&base),
        };
        let standing = Standing { row: None, since: &[], may_be_forgotten };
        resolve(&Rules::of(&model), &standing, &arriving).unwrap().effect
    };
    assert_eq!(resolved(true, true), Effect::None);
    assert!(matches!(resolved(true, false), Effect::Row { .. }), "no deletion can be hidden there");
    assert!(matches!(resolved(false, true), Effect::Row { .. }), "its author made it anew");
}

#[test]
fn only_the_owner_writes_under_owner() {
    let model = model(Policy::Owner("a"), DeletePolicy::DeleteWins);
    let owned_by = |owner: Value| vec![Value::Integer(7), owner, Value::Integer(0), Value::Integer(0)];
    let write = |now: Option<&[Value]>, row: &[Value], number: u8| {
        let arriving = Arriving {
            by: author(number, 1),
            existed: now.is_some(),
            action: Action::Upsert { row, fields: now.map(|_| [B].as_slice()) },
            before: now,
        };
        resolve(&Rules::of(&model), &Standing { row: now, since: &[], may_be_forgotten: false }, &arriving)
    };
    let mine = owned_by(Value::Text(DeviceId([1; 32]).to_string().into()));
    let as_bytes = owned_by(Value::Blob([1; 32].into()));
    let nobodys = owned_by(Value::Null);
    assert!(write(Some(&mine), &mine, 1).is_ok());
    assert!(write(Some(&as_bytes), &as_bytes, 1).is_ok());
    assert!(write(Some(&nobodys), &mine, 2).is_ok());
    assert!(write(None, &mine, 1).is_ok());
    for (now, row) in [(Some(mine.as_slice()), &mine), (Some(mine.as_slice()), &nobodys), (None, &mine)] {
        let text = write(now, row, 2).unwrap_err().to_string();
        assert!(text.contains(&DeviceId([1; 32]).to_string()), "{text}");
        assert!(text.contains("may not write it"), "{text}");
    }
}

#[test]
fn a_merge_function_that_fails_refuses_the_change_and_nothing_else() {
    fn failing(
        _: &ModelDescriptor,
        _: Option<&[Value]>,
        _: &[Value],
        _: &[Value],
    ) -> Result<Vec<Value>, String> {
        Err("it panicked: no idea".into())
    }
    fn other_record(
        _: &ModelDescriptor,
        _: Option<&[Value]>,
        _: &[Value],
        _: &[Value],
    ) -> Result<Vec<Value>, String> {
        Ok(integers([8, 0, 0, 0]))
    }
    let base = integers(BASE);
    for (merge, says) in [(failing as AskMerge, "no idea"), (other_record as AskMerge, "another record")] {
        let mut model = model(Policy::Custom, DeletePolicy::DeleteWins);
        model.merge = Some(merge);
        let by = author(1, 1);
        let written = [Written { by, seen: false, wrote: Wrote::Fields(&[A]) }];
        let (now, row) = (integers([7, 1, 0, 10]), integers([7, 2, 0, 10]));
        let arriving = Arriving {
            by: author(2, 2),
            existed: true,
            action: Action::Upsert { row: &row, fields: Some(&[A]) },
            before: Some(&base),
        };
        let standing = Standing { row: Some(&now), since: &written, may_be_forgotten: false };
        let text = resolve(&Rules::of(&model), &standing, &arriving).unwrap_err().to_string();
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn what_an_unseen_change_added_stays_in_the_sum_through_the_authors_own_later_changes() {
    let base = integers(BASE);
    let mut log = Log::new(model(Policy::LastWriteWins, DeletePolicy::DeleteWins), Some(&base));
    log.sequence(&seal(author(1, 100), Some(&base), &set(COUNT, 15)), &[]);
    let first = seal(author(2, 200), Some(&base), &set(COUNT, 11));
    log.sequence(&first, &[]);
    let mut second = seal(author(2, 201), Some(&first.row), &set(COUNT, 12));
    second.by.n = OriginSeq(2);
    log.sequence(&second, &[first.by]);
    assert_eq!(log.row.unwrap()[usize::from(COUNT)], Value::Integer(10 + 5 + 1 + 1));
}

#[test]
fn what_a_row_writes_over_that_its_author_had_not_touched_is_named_as_written() {
    let base = integers(BASE);
    let mut log = Log::new(model(Policy::Manual, DeletePolicy::DeleteWins), Some(&base));
    let theirs = seal(author(1, 100), Some(&base), &set(B, 1));
    log.sequence(&theirs, &[]);
    let mine = seal(author(2, 200), Some(&base), &set(A, 2));
    assert_eq!(log.sequence(&mine, &[]).effect, Effect::None, "a person is asked");
    // Goes on from what stayed in its author's own table, theirs pulled meanwhile.
    let mut next = seal(author(2, 201), Some(&mine.row), &set(A, 3));
    next.by.n = OriginSeq(2);
    let Effect::Row { row, fields } = log.sequence(&next, &[theirs.by, mine.by]).effect else {
        panic!("it is no conflict")
    };
    assert_eq!((row, fields), (next.row, Some(vec![A, B])));
}

/// All that one of three devices may do to a record.
fn universe() -> Vec<Does> {
    vec![
        set(A, 1),
        set(A, 2),
        set(B, 1),
        Does::Set(vec![(A, 2), (B, 2)]),
        set(COUNT, 11),
        Does::Set(vec![(A, 1), (COUNT, 15)]),
        Does::Delete,
    ]
}

const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

fn each_trio(mut check: impl FnMut([&Sealed; 3])) {
    let base = integers(BASE);
    for first in &universe() {
        for second in &universe() {
            for third in &universe() {
                let sealed = [(1, 300, first), (2, 100, second), (3, 200, third)]
                    .map(|(number, rank, does)| seal(author(number, rank), Some(&base), does));
                check(sealed.each_ref());
            }
        }
    }
}

#[test]
fn what_does_not_ask_who_came_first_comes_to_the_same_in_every_order() {
    let base = integers(BASE);
    for policy in [Policy::LastWriteWins, Policy::Fields, Policy::Role] {
        for deletes in [DeletePolicy::DeleteWins, DeletePolicy::UpdateWins] {
            each_trio(|changes| {
                let deletions = changes.iter().filter(|c| c.does == Does::Delete).count();
                if policy == Policy::Role && deletions > 0 {
                    // There a deletion of a higher role stands, and one of a lower does not: who meets whom counts.
                    return;
                }
                let ends: Vec<_> = ORDERS
                    .iter()
                    .map(|order| {
                        let mut log = Log::new(model(policy, deletes), Some(&base));
                        order.iter().for_each(|&i| drop(log.sequence(changes[i], &[])));
                        log.row
                    })
                    .collect();
                assert!(
                    ends.iter().all(|end| *end == ends[0]),
                    "{policy:?}, {deletes:?}, {changes:#?}: {ends:?}"
                );
            });
        }
    }
}

#[test]
fn no_value_goes_without_being_named() {
    let base = integers(BASE);
    let policies = [
        Policy::LastWriteWins,
        Policy::Fields,
        Policy::LeaderWins,
        Policy::OriginWins,
        Policy::Role,
        Policy::Custom,
        Policy::Manual,
    ];
    for policy in policies {
        for deletes in [DeletePolicy::DeleteWins, DeletePolicy::UpdateWins, DeletePolicy::Manual] {
            each_trio(|changes| {
                let mut log = Log::new(model(policy, deletes), Some(&base));
                for change in changes {
                    let before = log.row.clone();
                    let resolution = log.sequence(change, &[]);
                    assert_named(&base, before.as_deref(), change, log.row.as_deref(), &resolution);
                }
            });
        }
    }
}

/// Of every plain field: what the change brought, and what others had written before it, stands or is named.
fn assert_named(
    base: &[Value],
    before: Option<&[Value]>,
    change: &Sealed,
    after: Option<&[Value]>,
    resolution: &Resolution,
) {
    let named = |field: u16, side: Loser| {
        resolution
            .dropped
            .iter()
            .any(|d| d.field.is_none_or(|f| f == field) && (d.loser == side || d.loser == Loser::Both))
    };
    for field in [A, B] {
        let i = usize::from(field);
        let brought = change.fields.as_ref().is_some_and(|fields| fields.contains(&field));
        if brought && after.is_none_or(|after| after[i] != change.row[i]) {
            assert!(named(field, Loser::Remote), "{field} of {change:?}: {resolution:?}");
        }
        if let Some(before) = before
            && before[i] != base[i]
            && after.is_none_or(|after| after[i] != before[i])
        {
            assert!(named(field, Loser::Local), "{field} under {change:?}: {resolution:?}");
        }
    }
    if change.does == Does::Delete && after.is_some() {
        assert!(named(u16::MAX, Loser::Remote), "{change:?}: {resolution:?}");
    }
}
