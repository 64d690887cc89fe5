//! The resolver alone: changes of a file manager's entry that meet one which their author had not seen, decided one after
//! the other. Every second one is in conflict.

use std::{hint::black_box, time::Instant};

use sea_orm::{EntityTrait, Iterable, ModelTrait, TryIntoModel};
use tidelog::{
    id::{DeviceId, Origin, OriginSeq},
    model::{ModelDescriptor, Policy},
    resolve::{Action, Arriving, Author, Rules, Standing, Written, Wrote, resolve},
    value::{self, Value},
};

use crate::{
    Failure,
    args::Options,
    entry::{Entry, Walk, synced},
    report::{Bar, Row},
    rounds::median,
};

pub(crate) const NAMES: &[&str] = &["resolver/lww", "resolver/fields"];

const ROUNDS: usize = 5;
const DECISIONS: usize = 200_000;
/// Different records that take turns.
const RECORDS: usize = 1000;
const AT_LEAST: f64 = 500_000.0;

pub(crate) async fn run(options: &Options) -> Result<Vec<Row>, Failure> {
    let mut lines = Vec::new();
    for (name, policy) in [(NAMES[0], Policy::LastWriteWins), (NAMES[1], Policy::Fields)] {
        if !options.wants(name) {
            continue;
        }
        eprintln!("{name} …");
        let mut model = ModelDescriptor::of::<synced::Model>()?;
        model.options.policy = policy;
        let records: Vec<Record> =
            Walk::new(9).rows(RECORDS).iter().map(Record::of).collect::<Result<_, _>>()?;
        let count = options.scaled(DECISIONS);
        let speeds = (0..ROUNDS).map(|_| decide(&model, &records, count)).collect::<Result<_, _>>()?;
        lines.push(Row::new(name, "1/s", (median(speeds), None, None), Bar::ValueAtLeast(AT_LEAST)));
    }
    Ok(lines)
}

/// A row at three places: as both authors found it, as the log has it now, and as the change leaves it.
struct Record {
    before: Vec<Value>,
    now: Vec<Value>,
    row: Vec<Value>,
}

const NAME: usize = 3;
const SIZE: usize = 6;
const FIELDS: &[u16] = &[NAME as u16, SIZE as u16];

impl Record {
    fn of(row: &crate::entry::Row) -> Result<Self, Failure> {
        let model = synced::ActiveModel::whole(row).try_into_model()?;
        let before: Vec<Value> = <synced::Entity as EntityTrait>::Column::iter()
            .map(|column| value::from_sea(&model.get(column)))
            .collect();
        let (mut now, mut changed) = (before.clone(), before.clone());
        now[NAME] = Value::Text(b"renamed on the leader.txt".into());
        changed[NAME] = Value::Text(b"renamed on the follower.txt".into());
        changed[SIZE] = Value::Integer(4711);
        Ok(Self { before, now, row: changed })
    }
}

/// Decisions per second.
fn decide(model: &ModelDescriptor, records: &[Record], count: usize) -> Result<f64, Failure> {
    let rules = Rules::of(model);
    let author = |rank, device| Author {
        rank,
        origin: Origin(sea_orm::prelude::Uuid::from_u128(u128::from(device))),
        n: OriginSeq(1),
        device: DeviceId([device; 32]),
        role: 0,
    };
    let began = Instant::now();
    for (i, record) in records.iter().cycle().take(count).enumerate() {
        // Seen or not, earlier or later: each in turn.
        let (seen, rank) = (i % 2 == 0, 100 + (i as u64 & 2));
        let since = [Written { by: author(101, 1), seen, wrote: Wrote::Fields(&FIELDS[..1]) }];
        let standing = Standing { row: Some(&record.now), since: &since, may_be_forgotten: false };
        let change = Arriving {
            by: author(rank, 2),
            existed: true,
            action: Action::Upsert { row: &record.row, fields: Some(FIELDS) },
            before: Some(&record.before),
        };
        black_box(resolve(&rules, &standing, &change)?);
    }
    Ok(count as f64 / began.elapsed().as_secs_f64())
}
