//! Both followers go offline, all three devices edit, the followers come back: what an application asks tidelog then.
//!
//! What became of a device's own changes it is told by `Library::settlements`, what met what by
//! `Library::conflicts_since`, why a record is as it is by `Library::why`, and a conflict that waits for a person it
//! decides with `Library::resolve`.

use std::{collections::BTreeSet, error::Error};

use sea_orm::EntityTrait;
use tidelog::{
    Choice, Conflict, Outcome, Row, Settlement,
    id::{DeviceId, Position, Seq},
    value::Value,
    why::Why,
};
use tidelog_tests::file_manager::{
    apart::{self, Made, NEW_TAG, Noted, Subjects, TAG},
    entities::tag,
    reunion::{Decision, Exchange, Fate, Reunion},
};
use uuid::Uuid;

use crate::devices::{Device, Ring};

/// What the person makes of the two colours.
const DECIDED: &str = "#d82838";

type Failed = Box<dyn Error + Send + Sync>;

/// The whole time apart, and what came of it.
pub(crate) async fn apart(ring: &mut Ring, location: Uuid) -> Result<Reunion, Failed> {
    let subjects = Subjects::prepare(&ring.leader.db, location).await?;
    let before = ring.level().await?;
    let level = ring.leader.library.position().await?;
    for follower in &mut ring.followers {
        follower.go_offline().await?;
    }

    let [first, second] = ring.followers.as_mut_slice() else { return Err("there are two followers".into()) };
    let made = [
        apart::on_leader(&ring.leader.db, &subjects, &ring.leader.name).await?,
        apart::on_first(&first.db, &subjects, &first.name).await?,
        apart::on_second(&second.db, &subjects, &second.name).await?,
    ];
    for follower in [first, second] {
        follower.come_back().await?;
        follower.is_level().await?;
    }
    let top = ring.level().await?;

    let people = People::of(ring);
    let conflicts = ring.leader.library.conflicts_since(before).await?;
    let mut reunion = Reunion::default();
    for (device, made) in people.devices.iter().zip(&made) {
        reunion.devices.push(exchange(device, made, level, top, &conflicts).await?);
    }
    reunion.fates = fates(&people, &subjects, &made, before).await?;
    reunion.decision = decide(&people).await?;
    Ok(reunion)
}

/// The three devices, the leader first.
struct People<'r> {
    devices: Vec<&'r Device>,
}

impl<'r> People<'r> {
    fn of(ring: &'r Ring) -> Self {
        Self { devices: std::iter::once(&ring.leader).chain(&ring.followers).collect() }
    }

    fn name(&self, id: Option<DeviceId>) -> String {
        let device = self.devices.iter().find(|device| device.id() == id);
        device.map_or_else(|| "nobody".to_owned(), |device| device.name.clone())
    }
}

/// What a device gave and got between two entries.
async fn exchange(
    device: &Device,
    made: &Made,
    before: Position,
    top: Seq,
    conflicts: &[Conflict],
) -> Result<Exchange, Failed> {
    let mut settlements = device.library.settlements(before);
    let mut settled: Vec<Settlement> = Vec::new();
    // Changes settle in the order in which they were made, so this one is the last.
    let last = made.last.to_string();
    while settled.last().is_none_or(|settlement| settlement.record != last) {
        settled.push(settlements.next().await?);
    }
    let count = |is: fn(&Outcome) -> bool| settled.iter().filter(|s| is(&s.outcome)).count() as u64;
    let sent = settled.len() as u64;
    let has_part = |c: &&Conflict| [c.local.device, c.remote.device].contains(&device.id());
    Ok(Exchange {
        name: device.name.clone(),
        sent,
        received: top.0 - before.seq.0 - sent,
        merged: count(|outcome| matches!(outcome, Outcome::Merged { .. })),
        conflicts: conflicts.iter().filter(has_part).count() as u64,
        rejected: count(|outcome| matches!(outcome, Outcome::Rejected { .. })),
    })
}

/// Who stands where more than one had edited.
async fn fates(
    people: &People<'_>,
    subjects: &Subjects,
    made: &[Made],
    before: Seq,
) -> Result<Vec<Fate>, Failed> {
    let library = &people.devices[0].library;
    let mut fates = Vec::new();
    let mut tell = |what: String, why: &Why, show: &[&str]| {
        let Told { stands, now } = tell(people, why, before, show);
        fates.push(Fate { what, stands, now });
    };
    if let Some(file) = &subjects.renamed {
        let why = library.why("entry", &file.id.to_string()).await?;
        tell(format!("`{}`, renamed by all three", file.name), &why, &["name"]);
    }
    if let Some(Noted { file, note }) = &subjects.described {
        let why = library.why("user_metadata", &note.to_string()).await?;
        tell(format!("`{}`, described by all three", file.name), &why, &["notes", "rating", "favorite"]);
    }
    if let Some(file) = &subjects.deleted {
        let why = library.why("entry", &file.id.to_string()).await?;
        tell(format!("`{}`, deleted and renamed", file.name), &why, &["name"]);
        for note in made.iter().filter_map(|made| made.note) {
            let why = library.why("user_metadata", &note.to_string()).await?;
            tell(format!("a note on `{}`", file.name), &why, &["notes"]);
        }
    }
    if let Some(Noted { file, note }) = &subjects.noted {
        let why = library.why("user_metadata", &note.to_string()).await?;
        tell(format!("the note on `{}`, deleted and rewritten", file.name), &why, &["notes"]);
    }
    for (device, tag) in
        people.devices.iter().zip(made).filter_map(|(device, made)| Some((device, made.tag?)))
    {
        let why = library.why("tag", &tag.to_string()).await?;
        tell(format!("tag `{NEW_TAG}`, made on {}", device.name), &why, &["color"]);
    }
    let why = library.why("tag", &subjects.tag.to_string()).await?;
    tell(format!("tag `{TAG}`, given two colors"), &why, &["color"]);
    Ok(fates)
}

struct Told {
    stands: String,
    now: String,
}

/// Whose edits stand in a record, and what some of its columns hold.
fn tell(people: &People<'_>, why: &Why, before: Seq, show: &[&str]) -> Told {
    let changes = || why.changes.iter().filter(|change| change.seq > before);
    let Some(row) = &why.row else {
        let reason = changes().find_map(|change| match &change.outcome {
            Outcome::Rejected { reason, .. } => Some(reason.clone()),
            _ => None,
        });
        if let Some(reason) = reason {
            return Told { stands: "refused".to_owned(), now: reason };
        }
        let deleted = changes().find(|change| matches!(change.outcome, Outcome::Applied));
        return Told { stands: people.name(deleted.map(|change| change.device)), now: "gone".to_owned() };
    };
    let waits = changes().any(|change| matches!(change.outcome, Outcome::Conflict { .. }));
    // Not every column: when a note was last touched, say, is the latest of all.
    let wrote = |column: &&str| {
        let seq = why.written_by.get(*column)?;
        changes().find(|change| change.seq == *seq).map(|change| change.device)
    };
    let writers: BTreeSet<DeviceId> = show.iter().filter_map(wrote).collect();
    let in_order = people.devices.iter().filter(|device| device.id().is_some_and(|id| writers.contains(&id)));
    let names: Vec<&str> = in_order.map(|device| device.name.as_str()).collect();
    let value = |column: &&str| match (plain(row.get(column)?), show.len()) {
        (value, 1) => Some(value),
        (value, _) => Some(format!("{column} {value}")),
    };
    let values: Vec<String> = show.iter().filter_map(value).collect();
    Told {
        stands: match names.len() {
            _ if waits => "to be decided".to_owned(),
            3 => "all three".to_owned(),
            _ => names.join(" and "),
        },
        now: values.join(", "),
    }
}

/// Decides the conflict that waits, on the last follower.
async fn decide(people: &People<'_>) -> Result<Option<Decision>, Failed> {
    let by = people.devices[people.devices.len() - 1];
    let Some(waits) = by.library.conflicts().await?.into_iter().next() else { return Ok(None) };
    let field = waits.field.clone().unwrap_or_default();
    let side = |version: &tidelog::conflict::Version| {
        let value =
            version.row.as_ref().and_then(|row| row.get(&field)).map_or_else(|| "gone".to_owned(), plain);
        (people.name(version.device), value)
    };
    let merged: Row = [(field.clone(), Value::Text(DECIDED.into()))].into_iter().collect();
    by.library.resolve(waits.id, Choice::Merged(merged)).await?;
    by.is_level().await?;
    let mut now = Vec::new();
    for device in &people.devices {
        device.is_level().await?;
        let id = Uuid::try_parse(&waits.record)?;
        let color = tag::Entity::find_by_id(id).one(&device.db).await?.map(|tag| tag.color);
        now.push((device.name.clone(), color.unwrap_or_else(|| "gone".to_owned())));
    }
    Ok(Some(Decision {
        what: format!("{field} of tag `{TAG}`"),
        local: side(&waits.local),
        remote: side(&waits.remote),
        by: by.name.clone(),
        choice: "merged".to_owned(),
        decided: DECIDED.to_owned(),
        now,
    }))
}

/// A value as a person reads it.
fn plain(value: &Value) -> String {
    match value {
        Value::Text(text) => String::from_utf8_lossy(text).into_owned(),
        other => {
            let mut text = String::new();
            other.write_json(&mut text);
            text
        }
    }
}
