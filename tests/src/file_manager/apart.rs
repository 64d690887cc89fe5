//! What three people do to the same things while their devices cannot reach each other: tags, notes, renames, a deletion
//! against an edit. Row by row through `ActiveModel`, so that every recorder of changes sees it.

use sea_orm::{
    ActiveModelTrait,
    ActiveValue::{Set, Unchanged},
    ColumnTrait, ConnectionTrait, DbErr, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
    TransactionSession, TransactionTrait,
    sea_query::Query,
};
use uuid::Uuid;

use super::{
    edit,
    entities::{entry, entry::Kind, tag, user_metadata},
};

/// The tag whose colour two change.
pub const TAG: &str = "Red";
/// The tag that two make.
pub const NEW_TAG: &str = "Holiday";

/// Entries that are looked through for ones to edit.
const LOOKED_THROUGH: u64 = 2_000;
/// Longest name, in characters, of an entry that is edited: a report has columns.
const NAME_MAX: usize = 24;

/// What they edit. In a location with few files there is less.
#[derive(Clone, Debug)]
pub struct Subjects {
    /// [`TAG`].
    pub tag: Uuid,
    /// All three give it another name.
    pub renamed: Option<File>,
    /// All three say something of it, each something else.
    pub described: Option<Noted>,
    /// One deletes it, one renames it, one writes a note on it.
    pub deleted: Option<File>,
    /// One deletes the note on it, one writes it anew.
    pub noted: Option<Noted>,
}

/// A file.
#[derive(Clone, Debug)]
pub struct File {
    /// Id of the entry.
    pub id: Uuid,
    /// What it is called.
    pub name: String,
}

/// A file with a note.
#[derive(Clone, Debug)]
pub struct Noted {
    /// The file.
    pub file: File,
    /// Id of the note.
    pub note: Uuid,
}

/// Records that came to be while they were apart.
#[derive(Clone, Debug)]
pub struct Made {
    /// [`NEW_TAG`], by whoever makes it.
    pub tag: Option<Uuid>,
    /// The note on the file that somebody else deletes.
    pub note: Option<Uuid>,
    /// A tag of the device's own; the last thing that it writes.
    pub last: Uuid,
}

impl Subjects {
    /// Chooses among the files of `location`, the same for the same location, and puts notes on two of them.
    ///
    /// # Errors
    /// The database's; no tag is called [`TAG`] if [`edit::edit`] was not there before.
    pub async fn prepare<C: ConnectionTrait>(db: &C, location: Uuid) -> Result<Self, DbErr> {
        let tag = tag::Entity::find().filter(tag::Column::Name.eq(TAG)).one(db).await?;
        let tag = tag.ok_or_else(|| DbErr::RecordNotFound(format!("tag {TAG}")))?.id;
        let with_notes =
            Query::select().column(user_metadata::Column::EntryId).from(user_metadata::Entity).take();
        let found: Vec<(Uuid, String)> = entry::Entity::find()
            .select_only()
            .columns([entry::Column::Id, entry::Column::Name])
            .filter(entry::Column::LocationId.eq(location))
            .filter(entry::Column::Kind.eq(Kind::File))
            .filter(entry::Column::Id.not_in_subquery(with_notes))
            .order_by_asc(entry::Column::Name)
            .order_by_asc(entry::Column::Id)
            .limit(LOOKED_THROUGH)
            .into_tuple()
            .all(db)
            .await?;
        let is_plain =
            |name: &str| name.len() <= NAME_MAX && name.chars().all(|c| c.is_ascii_graphic() || c == ' ');
        let mut files =
            found.into_iter().filter(|(_, name)| is_plain(name)).map(|(id, name)| File { id, name });
        let (renamed, described, deleted, noted) = (files.next(), files.next(), files.next(), files.next());
        Ok(Self {
            tag,
            renamed,
            described: put_note(db, described, "a first note").await?,
            deleted,
            noted: put_note(db, noted, "not needed any more").await?,
        })
    }
}

async fn put_note<C: ConnectionTrait>(
    db: &C,
    file: Option<File>,
    text: &str,
) -> Result<Option<Noted>, DbErr> {
    let Some(file) = file else { return Ok(None) };
    let note = insert_note(db, file.id, text).await?;
    Ok(Some(Noted { file, note }))
}

/// What is edited on the leader. One transaction, like the others.
///
/// # Errors
/// The database's; nothing is changed then.
pub async fn on_leader<C>(db: &C, subjects: &Subjects, name: &str) -> Result<Made, DbErr>
where
    C: ConnectionTrait + TransactionTrait,
{
    let tx = db.begin().await?;
    color(&tx, subjects.tag, "#b00020").await?;
    rename(&tx, subjects.renamed.as_ref(), name).await?;
    if let Some(Noted { note, .. }) = &subjects.described {
        let notes = Set(Some(format!("`written on {name}`")));
        user_metadata::ActiveModel { notes, ..changed(*note) }.update(&tx).await?;
    }
    if let Some(file) = &subjects.deleted {
        edit::delete_entry(&tx, file.id).await?;
    }
    if let Some(Noted { note, .. }) = &subjects.noted {
        user_metadata::ActiveModel { id: Unchanged(*note), ..Default::default() }.delete(&tx).await?;
    }
    let last = insert_tag(&tx, &format!("Seen on {name}"), "#404040").await?;
    tx.commit().await?;
    Ok(Made { tag: None, note: None, last })
}

/// What is edited on the first follower.
///
/// # Errors
/// The database's; nothing is changed then.
pub async fn on_first<C>(db: &C, subjects: &Subjects, name: &str) -> Result<Made, DbErr>
where
    C: ConnectionTrait + TransactionTrait,
{
    let tx = db.begin().await?;
    color(&tx, subjects.tag, "#ff5050").await?;
    rename(&tx, subjects.renamed.as_ref(), name).await?;
    if let Some(Noted { note, .. }) = &subjects.described {
        user_metadata::ActiveModel { rating: Set(Some(4)), ..changed(*note) }.update(&tx).await?;
    }
    let mut made_note = None;
    if let Some(file) = &subjects.deleted {
        made_note = Some(insert_note(&tx, file.id, "to be looked at again").await?);
    }
    if let Some(Noted { note, .. }) = &subjects.noted {
        let notes = Set(Some("still needed".to_owned()));
        user_metadata::ActiveModel { notes, ..changed(*note) }.update(&tx).await?;
    }
    let made_tag = insert_tag(&tx, NEW_TAG, "#00a070").await?;
    let last = insert_tag(&tx, &format!("Seen on {name}"), "#404040").await?;
    tx.commit().await?;
    Ok(Made { tag: Some(made_tag), note: made_note, last })
}

/// What is edited on the second follower.
///
/// # Errors
/// The database's; nothing is changed then.
pub async fn on_second<C>(db: &C, subjects: &Subjects, name: &str) -> Result<Made, DbErr>
where
    C: ConnectionTrait + TransactionTrait,
{
    let tx = db.begin().await?;
    rename(&tx, subjects.renamed.as_ref(), name).await?;
    if let Some(Noted { note, .. }) = &subjects.described {
        user_metadata::ActiveModel { favorite: Set(true), ..changed(*note) }.update(&tx).await?;
    }
    rename(&tx, subjects.deleted.as_ref(), name).await?;
    let made_tag = insert_tag(&tx, NEW_TAG, "#f0a000").await?;
    let last = insert_tag(&tx, &format!("Seen on {name}"), "#404040").await?;
    tx.commit().await?;
    Ok(Made { tag: Some(made_tag), note: None, last })
}

async fn color<C: ConnectionTrait>(db: &C, tag: Uuid, color: &str) -> Result<(), DbErr> {
    let tag = tag::ActiveModel { id: Unchanged(tag), color: Set(color.to_owned()), ..Default::default() };
    tag.update(db).await.map(drop)
}

async fn rename<C: ConnectionTrait>(db: &C, file: Option<&File>, by: &str) -> Result<(), DbErr> {
    let Some(file) = file else { return Ok(()) };
    let name = Set(format!("{} ({by})", file.name));
    entry::ActiveModel { id: Unchanged(file.id), name, ..Default::default() }.update(db).await.map(drop)
}

async fn insert_tag<C: ConnectionTrait>(db: &C, name: &str, color: &str) -> Result<Uuid, DbErr> {
    let id = Uuid::now_v7();
    tag::ActiveModel { id: Set(id), name: Set(name.to_owned()), color: Set(color.to_owned()) }
        .insert(db)
        .await?;
    Ok(id)
}

async fn insert_note<C: ConnectionTrait>(db: &C, entry: Uuid, text: &str) -> Result<Uuid, DbErr> {
    let id = Uuid::now_v7();
    let note = user_metadata::ActiveModel {
        id: Set(id),
        entry_id: Set(entry),
        notes: Set(Some(text.to_owned())),
        favorite: Set(false),
        rating: Set(None),
        custom: Set(None),
        updated_at: Set(chrono::Utc::now()),
    };
    note.insert(db).await?;
    Ok(id)
}

/// A note of which something is about to be changed.
fn changed(note: Uuid) -> user_metadata::ActiveModel {
    user_metadata::ActiveModel {
        id: Unchanged(note),
        updated_at: Set(chrono::Utc::now()),
        ..Default::default()
    }
}
