//! Saves what a walk finds: one location with its entries and contents, in batches of one transaction each.
//!
//! The walk reads and hashes on a blocking thread while the database writes; a bounded channel between them
//! keeps the memory in use to a few batches. A content is saved once however many files have it, under an id
//! that follows from its hash. Files that cannot be read are counted and named, and the rest goes on.
//!
//! Left out: watching for changes and scanning a location again. A path that is indexed already is refused.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use sea_orm::{
    ActiveModelTrait, ActiveValue::Set, ColumnTrait, ConnectionTrait, DbErr, EntityTrait, IntoActiveModel,
    PaginatorTrait, QueryFilter, QuerySelect, TransactionSession, TransactionTrait, prelude::DateTimeUtc,
};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    entities::{content_identity, device, entry, location, volume},
    walk::{Found, OpenFile, RootError, Skipped, Step, Walk, WalkOptions},
    writes::Writes,
};

/// How many of the skipped paths are kept by name; all are counted.
pub const SKIPPED_NAMED: usize = 100;
/// Steps that the walk may be ahead of the database.
const WALK_AHEAD: usize = 1024;

/// Settings of a run.
#[derive(Clone, Debug)]
pub struct IndexOptions {
    /// The device whose directory this is. Its row is made if it is not there.
    pub device: Uuid,
    /// What its owner calls it.
    pub device_name: String,
    /// Entries after which the walk ends.
    pub limit: u64,
    /// Largest file whose content is hashed, in bytes.
    pub hash_limit: u64,
    /// Entries in one transaction.
    pub batch: usize,
    /// In bulk or row by row.
    pub writes: Writes,
    /// How files are opened.
    pub open: OpenFile,
}

impl Default for IndexOptions {
    fn default() -> Self {
        let walk = WalkOptions::default();
        Self {
            device: Uuid::now_v7(),
            device_name: "this device".to_owned(),
            limit: walk.limit,
            hash_limit: walk.hash_limit,
            batch: 500,
            writes: Writes::default(),
            open: walk.open,
        }
    }
}

/// What a run saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexed {
    /// The location that was made.
    pub location: Uuid,
    /// Entries saved, of every kind.
    pub entries: u64,
    /// Of these: directories, the location's own included.
    pub directories: u64,
    /// Of these: files.
    pub files: u64,
    /// Bytes in those files.
    pub bytes: u64,
    /// Files whose content was hashed.
    pub hashed: u64,
    /// Different contents among these that the database did not know.
    pub contents: u64,
    /// How much could not be read.
    pub skipped: u64,
    /// The first [`SKIPPED_NAMED`] of what could not be read.
    pub skipped_named: Vec<Skipped>,
    /// Whether there was more than the limit allows.
    pub limited: bool,
}

/// Why a directory was not indexed, or not to the end.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// There is nothing to walk.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The path is a location already.
    #[error("`{}` is indexed already, as location {location}. Nothing was changed; \
             delete that location first to index it anew", .path.display())]
    Known {
        /// The path.
        path: PathBuf,
        /// The location.
        location: Uuid,
    },
    /// The database said no.
    #[error("`{}` was indexed in part: the database stopped it after {saved} entries ({source}). \
             These are saved; delete the location to start again", .path.display())]
    Database {
        /// The path.
        path: PathBuf,
        /// Entries in committed transactions.
        saved: u64,
        /// What the database said.
        source: DbErr,
    },
}

/// Indexes `root` into `db`. `on_progress` is called with the entries saved so far, after each transaction.
///
/// # Errors
/// [`IndexError`]; only [`IndexError::Database`] can leave anything behind.
pub async fn index<C>(
    db: &C,
    root: &Path,
    options: &IndexOptions,
    mut on_progress: impl FnMut(u64),
) -> Result<Indexed, IndexError>
where
    C: ConnectionTrait + TransactionTrait,
{
    let walk_options =
        WalkOptions { limit: options.limit, hash_limit: options.hash_limit, open: options.open };
    let walk = Walk::new(root, walk_options)?;
    let path = walk.path().to_owned();
    let database = |saved| {
        let path = path.clone();
        move |source| IndexError::Database { path, saved, source }
    };
    if let Some(location) = known(db, options.device, &path).await.map_err(database(0))? {
        return Err(IndexError::Known { path, location });
    }

    let location = make_location(db, &walk, options).await.map_err(database(0))?;
    let mut run = Run { seen: HashSet::new(), total: Indexed { location, ..Indexed::default() } };
    let (sender, mut steps) = mpsc::channel(WALK_AHEAD);
    let walking = tokio::task::spawn_blocking(move || walk_into(walk, &sender));
    let mut batch = Vec::with_capacity(options.batch);
    loop {
        let step = steps.recv().await;
        let done = step.is_none();
        match step {
            Some(Step::Found(found)) => batch.push(*found),
            Some(Step::Skipped(skipped)) => run.skip(skipped),
            None => {}
        }
        if batch.len() >= options.batch.max(1) || (done && !batch.is_empty()) {
            let found = std::mem::take(&mut batch);
            run.save(db, options.writes, found).await.map_err(database(run.total.entries))?;
            on_progress(run.total.entries);
        }
        if done {
            break;
        }
    }
    // A walk does not panic; should it, what it had found is saved and the location says how much that is.
    run.total.limited = walking.await.unwrap_or(false);
    finish_location(db, &run.total).await.map_err(database(run.total.entries))?;
    Ok(run.total)
}

/// Sends every step of a walk, until the end or until nobody takes them any more. Says whether it was limited.
fn walk_into(mut walk: Walk, sender: &mpsc::Sender<Step>) -> bool {
    for step in walk.by_ref() {
        if sender.blocking_send(step).is_err() {
            break;
        }
    }
    walk.limited()
}

async fn known<C: ConnectionTrait>(db: &C, device: Uuid, path: &Path) -> Result<Option<Uuid>, DbErr> {
    let location = location::Entity::find()
        .filter(location::Column::DeviceId.eq(device))
        .filter(location::Column::Path.eq(path.to_string_lossy()))
        .one(db)
        .await?;
    Ok(location.map(|l| l.id))
}

/// Makes the location, and its device and volume where they are not there yet, in one transaction.
async fn make_location<C>(db: &C, walk: &Walk, options: &IndexOptions) -> Result<Uuid, DbErr>
where
    C: ConnectionTrait + TransactionTrait,
{
    let now = chrono::Utc::now();
    let root = walk.path();
    let tx = db.begin().await?;
    if device::Entity::find_by_id(options.device).count(&tx).await? == 0 {
        device::ActiveModel {
            id: Set(options.device),
            name: Set(options.device_name.clone()),
            os: Set(std::env::consts::OS.to_owned()),
            last_seen: Set(now),
        }
        .insert(&tx)
        .await?;
    }
    let fingerprint = fingerprint(options.device, walk.volume());
    let volume = match volume::Entity::find()
        .filter(volume::Column::Fingerprint.eq(fingerprint.as_str()))
        .one(&tx)
        .await?
    {
        Some(volume) => volume.id,
        None => {
            let id = Uuid::now_v7();
            volume::ActiveModel {
                id: Set(id),
                device_id: Set(options.device),
                name: Set(format!("Volume {}", &fingerprint[..8])),
                fingerprint: Set(fingerprint),
                capacity: Set(capacity_of(root)),
                mount_point: Set(Some(root.to_string_lossy().into_owned())),
                is_online: Set(true),
            }
            .insert(&tx)
            .await?;
            id
        }
    };
    let id = Uuid::now_v7();
    location::ActiveModel {
        id: Set(id),
        volume_id: Set(volume),
        device_id: Set(options.device),
        path: Set(root.to_string_lossy().into_owned()),
        name: Set(root.file_name().unwrap_or(root.as_os_str()).to_string_lossy().into_owned()),
        created_at: Set(now),
        updated_at: Set(now),
        scanned_entries: Set(0),
    }
    .insert(&tx)
    .await?;
    tx.commit().await?;
    Ok(id)
}

async fn finish_location<C: ConnectionTrait>(db: &C, total: &Indexed) -> Result<(), DbErr> {
    let Some(location) = location::Entity::find_by_id(total.location).one(db).await? else {
        return Err(DbErr::RecordNotFound(format!("location {}", total.location)));
    };
    let mut location = location.into_active_model();
    location.scanned_entries = Set(signed(total.entries));
    location.updated_at = Set(chrono::Utc::now());
    location.update(db).await?;
    Ok(())
}

/// A run's memory: what it saved, and the contents it need not save again.
struct Run {
    seen: HashSet<Uuid>,
    total: Indexed,
}

impl Run {
    fn skip(&mut self, skipped: Skipped) {
        self.total.skipped += 1;
        if self.total.skipped_named.len() < SKIPPED_NAMED {
            self.total.skipped_named.push(skipped);
        }
    }

    /// Saves a batch in one transaction: new contents first, then the entries that refer to them.
    async fn save<C>(&mut self, db: &C, writes: Writes, found: Vec<Found>) -> Result<(), DbErr>
    where
        C: ConnectionTrait + TransactionTrait,
    {
        let now = chrono::Utc::now();
        let tx = db.begin().await?;
        let contents = self.new_contents(&tx, &found, now).await?;
        let ids: Vec<Uuid> = contents.iter().map(|content| content.id).collect();
        let rows = contents.into_iter().map(IntoActiveModel::into_active_model).collect();
        writes.insert::<content_identity::ActiveModel, _>(&tx, rows).await?;
        let entries =
            found.iter().map(|f| entry_of(f, self.total.location, now).into_active_model()).collect();
        writes.insert::<entry::ActiveModel, _>(&tx, entries).await?;
        tx.commit().await?;

        self.total.contents += ids.len() as u64;
        self.seen.extend(ids);
        self.count(&found);
        Ok(())
    }

    fn count(&mut self, found: &[Found]) {
        for f in found {
            self.total.entries += 1;
            self.total.bytes += f.size;
            self.total.directories += u64::from(f.kind == entry::Kind::Directory);
            self.total.files += u64::from(f.kind == entry::Kind::File);
            self.total.hashed += u64::from(f.content.is_some());
        }
    }

    /// The contents of a batch that are neither from this run nor in the database from an earlier one.
    async fn new_contents<C: ConnectionTrait>(
        &mut self,
        db: &C,
        found: &[Found],
        now: DateTimeUtc,
    ) -> Result<Vec<content_identity::Model>, DbErr> {
        let mut batch = HashSet::new();
        let mut contents = Vec::new();
        for f in found {
            let Some(content) = &f.content else { continue };
            let id = content_identity::id_of(&content.hash);
            if self.seen.contains(&id) || !batch.insert(id) {
                continue;
            }
            let mime = f.extension.as_deref().and_then(mime_of);
            contents.push(content_identity::Model {
                id,
                hash: content.hash.clone(),
                size: signed(content.size),
                kind: mime.and_then(|m| m.split('/').next()).unwrap_or("unknown").to_owned(),
                mime: mime.map(str::to_owned),
                first_seen: now,
            });
        }
        let known: Vec<Uuid> = content_identity::Entity::find()
            .select_only()
            .column(content_identity::Column::Id)
            .filter(content_identity::Column::Id.is_in(contents.iter().map(|c| c.id)))
            .into_tuple()
            .all(db)
            .await?;
        self.seen.extend(known);
        contents.retain(|c| !self.seen.contains(&c.id));
        Ok(contents)
    }
}

fn entry_of(found: &Found, location_id: Uuid, now: DateTimeUtc) -> entry::Model {
    entry::Model {
        id: found.id,
        location_id,
        parent_id: found.parent,
        name: found.name.clone(),
        raw_name: found.raw_name.clone(),
        extension: found.extension.clone(),
        kind: found.kind,
        size: signed(found.size),
        permissions: found.permissions.cast_signed(),
        is_hidden: found.name.starts_with('.'),
        created_at: found.created,
        modified_at: found.modified,
        indexed_at: now,
        content_id: found.content.as_ref().map(|c| content_identity::id_of(&c.hash)),
        inode: found.inode.map(u64::cast_signed),
    }
}

/// Sizes and counts as SQLite holds them; nothing real is beyond 2⁶³.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn fingerprint(device: Uuid, volume: Option<u64>) -> String {
    let mut hasher = Sha256::new();
    hasher.update(device.as_bytes());
    hasher.update(volume.unwrap_or_default().to_be_bytes());
    hasher.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(unix)]
fn capacity_of(path: &Path) -> Option<i64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    i64::try_from(stat.f_blocks.checked_mul(stat.f_frsize)?).ok()
}

#[cfg(not(unix))]
fn capacity_of(_: &Path) -> Option<i64> {
    None
}

/// Media type of the extensions that are common; a file manager would look inside as well.
fn mime_of(extension: &str) -> Option<&'static str> {
    Some(match extension {
        "txt" | "log" | "conf" => "text/plain",
        "md" => "text/markdown",
        "htm" | "html" => "text/html",
        "css" => "text/css",
        "csv" => "text/csv",
        "rs" => "text/x-rust",
        "c" | "h" => "text/x-c",
        "py" => "text/x-python",
        "sh" => "text/x-shellscript",
        "js" => "text/javascript",
        "json" => "application/json",
        "xml" => "application/xml",
        "pdf" => "application/pdf",
        "zip" => "application/zip",
        "gz" => "application/gzip",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "svg" => "image/svg+xml",
        "mp3" => "audio/mpeg",
        "ogg" => "audio/ogg",
        "mp4" => "video/mp4",
        "ttf" => "font/ttf",
        "woff2" => "font/woff2",
        _ => return None,
    })
}
