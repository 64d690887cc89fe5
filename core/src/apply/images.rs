//! Images: what a batch leaves of its records, written to their tables as it comes or once for several batches, with what is
//! pending here laid over.

use std::{collections::HashMap, ops::RangeInclusive};

use super::{Arrived, Company, deletes, make_sound, refers_to_nothing, writer::Writers};
use crate::{
    entry::{Body, Change, Entry, EntryKind},
    error::Error,
    id::{OriginSeq, Seq},
    layout::LogRows,
    overlay::{self, Layers, Overlay},
    pending,
    record::RecordId,
    store::Tx,
};

/// What is written to the tables at the end of a transaction that applies several batches: of each record the last image.
#[derive(Default)]
pub(crate) struct Images {
    /// One of each record.
    due: Vec<Image>,
    /// Of each model and record, where in `due` it is.
    places: HashMap<String, Places, foldhash::fast::RandomState>,
    has_pending: bool,
    /// Something was deleted to which pending rows may refer.
    deleted: bool,
}

type Places = HashMap<RecordId, u32, foldhash::fast::RandomState>;

struct Image {
    /// Of its entry: they are written in the order of the log.
    seq: Seq,
    change: Change,
    /// The record was changed before in the same transaction.
    again: bool,
}

/// Images that wait for the end of their transaction.
const IMAGES_MAX: usize = 8192;

impl Images {
    /// Says of each of the batch's changes whether the transaction has met its record already.
    pub(super) fn find(&self, arrived: &mut Arrived) {
        for (entry, company) in arrived.batch.entries.iter().zip(&mut arrived.company) {
            if let Body::Change(change) = &entry.body {
                let records = self.places.get(&change.shape.model);
                company.image = records.and_then(|records| records.get(&change.record)).copied();
            }
        }
    }

    /// Takes the batch's images, which were found before; those that it replaces are forgotten. Of each record that a batch has
    /// several entries of, one is enough.
    pub(super) fn take(&mut self, tx: &Tx<'_>, arrived: &mut Arrived, own: &Own, has_pending: bool) {
        self.has_pending |= has_pending;
        self.deleted |= deletes(&arrived.batch);
        arrived.rows = LogRows::default();
        for (entry, company) in arrived.batch.entries.drain(..).zip(arrived.company.drain(..)) {
            let (seq, n) = (entry.seq, entry.n);
            let Body::Change(change) = entry.body else { continue };
            if !writes(tx, &change, company) {
                continue;
            }
            let settles = own.settles(seq);
            if settles.is_shown(tx, n, &change, company) && company.image.is_none() {
                continue;
            }
            let place = match company.image {
                Some(place) => place,
                None => {
                    let records = match self.places.get_mut(&change.shape.model) {
                        Some(records) => records,
                        None => self.places.entry(change.shape.model.clone()).or_default(),
                    };
                    // There are no more than fit, and a batch.
                    let next = u32::try_from(self.due.len()).unwrap_or(u32::MAX);
                    *records.entry(change.record.clone()).or_insert(next)
                }
            };
            match self.due.get_mut(place as usize) {
                Some(image) => {
                    image.again = true;
                    // Of an entry without effect what stands is that image's, whatever stood in the table until now.
                    if change.effect() != EntryKind::Noop {
                        (image.seq, image.change) = (seq, change);
                    }
                }
                None => {
                    let again = company.again || settles != Settles::Nothing;
                    self.due.push(Image { seq, change, again });
                }
            }
        }
    }

    /// Whether there is no place for more.
    pub(super) fn is_full(&self) -> bool {
        self.due.len() >= IMAGES_MAX
    }

    /// Writes all, and begins anew.
    pub(crate) fn write(&mut self, tx: &Tx<'_>) -> Result<(), Error> {
        let Self { due, has_pending, deleted, .. } = std::mem::take(self);
        let mut due: Vec<&Image> = due.iter().collect();
        due.sort_unstable_by_key(|image| image.seq);
        let changes = due.iter().map(|image| (&image.change, image.again));
        let blocked = write_images(tx, changes, has_pending)?;
        if !has_pending {
            return Ok(());
        }
        let mut brings_orphan = false;
        for image in due {
            brings_orphan = brings_orphan || refers_to_nothing(tx, &image.change)?;
        }
        make_sound(tx, &blocked, deleted, brings_orphan)
    }
}

/// The groups of a batch, ascending, that show what was pending here until now.
#[derive(Default)]
pub(super) struct Own(pub(super) Vec<(RangeInclusive<Seq>, Settles)>);

/// How much of what was pending here an entry's group settles. What stood in the tables of it may have lain over other pending
/// changes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Settles {
    Nothing,
    Some,
    /// All its changes were pending here, before all others, and they stood in the tables.
    All,
}

impl Own {
    fn settles(&self, seq: Seq) -> Settles {
        let at = self.0.partition_point(|(group, _)| *group.end() < seq);
        self.0
            .get(at)
            .filter(|(group, _)| group.contains(&seq))
            .map_or(Settles::Nothing, |(_, settles)| *settles)
    }
}

impl Settles {
    /// Whether the table shows the record as it is with an entry of such a group: its change stood there with all that is
    /// pending behind it, over what the log said before; and it came to the very row that its author made, by writing the very
    /// fields. The `company` tells of what was there before it and was not written.
    fn is_shown(self, tx: &Tx<'_>, n: Option<OriginSeq>, change: &Change, company: Company) -> bool {
        self == Self::All
            && n.is_some()
            && !company.again
            && change.kind == EntryKind::Upsert
            && change.effect() == EntryKind::Upsert
            && change.written() == change.fields.as_deref()
            && change.row_after() == change.row
            && !overlay::adds_up(tx, change)
    }
}

/// Writes a part's images: of each record the last. Those that show what was pending may have lain over what still is: they
/// count as changed before. Records of which something is blocked are returned.
pub(super) fn write_part(
    tx: &Tx<'_>,
    part: &Arrived,
    own: &Own,
    has_pending: bool,
) -> Result<Vec<Change>, Error> {
    let images = lasting(tx, part).filter_map(|(entry, change, company)| {
        let settles = own.settles(entry.seq);
        let is_shown = settles.is_shown(tx, entry.n, change, *company);
        (!is_shown).then_some((change, company.again || settles != Settles::Nothing))
    });
    write_images(tx, images, has_pending)
}

/// The entries of a part whose images no later one of it replaces.
pub(super) fn lasting<'p>(
    tx: &'p Tx<'_>,
    part: &'p Arrived,
) -> impl Iterator<Item = (&'p Entry, &'p Change, &'p Company)> {
    part.batch.entries.iter().zip(&part.company).filter_map(|(entry, company)| match &entry.body {
        Body::Change(change) if writes(tx, change, *company) => Some((entry, change, company)),
        _ => None,
    })
}

/// Whether a change of a batch has an image to be written.
fn writes(tx: &Tx<'_>, change: &Change, company: Company) -> bool {
    !company.replaced && (change.effect() != EntryKind::Noop || !has_other_key(tx, change))
}

/// Writes images, with what is pending laid over them. Of each, whether its record was changed before in the same go.
pub(super) fn write_images<'i>(
    tx: &Tx<'_>,
    images: impl Iterator<Item = (&'i Change, bool)>,
    has_pending: bool,
) -> Result<Vec<Change>, Error> {
    let mut blocked = Vec::new();
    let (mut writers, mut overlay) = (Writers::default(), Overlay::default());
    // What these very entries settled does not lie over them any more.
    let lies_over = has_pending && pending::is_any(tx.conn)?;
    for (change, again) in images {
        // A model that this release does not have stays in the log until one has it.
        let Some(writer) = writers.of(tx, &change.shape)? else { continue };
        let layers = if lies_over { overlay.layers(tx, change)? } else { Layers::default() };
        if !again && layers.hide(tx, change) {
            continue;
        }
        // An entry without effect may be of a change that stood in this table until now.
        let logged = match change.effect() {
            EntryKind::Noop => Some(overlay.logged(tx, change)?),
            _ => None,
        };
        let image = logged.as_ref().unwrap_or(change);
        if layers.are_blocked() {
            // Whether it fits now is tried when all is written.
            writer.replace(image)?;
            blocked.push(overlay::key_of(change));
            continue;
        }
        match layers.over(tx, image)? {
            Some(overlaid) => writer.replace(&overlaid)?,
            // What this device made itself is here already, and so may be what was deleted and is there again.
            None if logged.is_some() || has_pending || again => writer.replace(image)?,
            None => writer.write(image)?,
        }
    }
    Ok(blocked)
}

/// Whether the change was refused for what no table here could show: its records have another key.
fn has_other_key(tx: &Tx<'_>, change: &Change) -> bool {
    let model = tx.models.iter().find(|m| m.descriptor.id == change.shape.model);
    model.is_some_and(|model| !change.shape.has_key_of(&model.shape))
}
