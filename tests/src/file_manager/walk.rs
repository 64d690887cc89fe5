//! Lists a directory and everything below it, parents before children, each directory in the order of its
//! names. Plain `std`, no database: the indexer runs it on a blocking thread.
//!
//! What trips up a walk is not an error here but a [`Step::Skipped`] with the reason: what cannot be read is
//! named and the rest goes on. Symlinks are listed and never followed, so a loop of them is harmless;
//! pipes, sockets and devices are listed and never opened, so none of them can block; other volumes mounted
//! below are listed and not entered. The memory in use is one directory's names and the directories still to
//! be visited, and the caller's limit on entries bounds both.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, Metadata},
    io::{self, Read},
    path::{Path, PathBuf},
    vec,
};

use chrono::{DateTime, Datelike, TimeDelta, Utc};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::entities::entry::Kind;

/// How files are opened: [`File::open`], or what a test puts in its place.
pub type OpenFile = fn(&Path) -> io::Result<File>;

/// What a walk reads and where it ends.
#[derive(Clone, Copy, Debug)]
pub struct WalkOptions {
    /// Entries after which the walk ends, the root included.
    pub limit: u64,
    /// Largest file whose content is hashed, in bytes. Zero: none is opened.
    pub hash_limit: u64,
    /// How files are opened.
    pub open: OpenFile,
}

impl Default for WalkOptions {
    fn default() -> Self {
        Self { limit: 200_000, hash_limit: 1 << 20, open: open_file }
    }
}

/// One thing that a walk came upon.
#[derive(Debug)]
pub enum Step {
    /// An entry to keep.
    Found(Box<Found>),
    /// Something that was there and could not be read, in part or at all.
    Skipped(Skipped),
}

/// What a walk left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Where.
    pub path: PathBuf,
    /// Why, as the system said it.
    pub reason: String,
}

/// A file, directory, symlink or other name.
#[derive(Clone, Debug)]
pub struct Found {
    /// Minted by the walk, so that children can name their parent.
    pub id: Uuid,
    /// The directory it is in; none for the root.
    pub parent: Option<Uuid>,
    /// For people, with replacement characters where the name is not Unicode.
    pub name: String,
    /// The name's bytes, where `name` is not the name.
    pub raw_name: Option<Vec<u8>>,
    /// Lower case, without the dot; none for directories.
    pub extension: Option<String>,
    /// What it is.
    pub kind: Kind,
    /// Size in bytes; zero for everything but files.
    pub size: u64,
    /// The twelve mode bits of Unix; elsewhere 0o444 or 0o666.
    pub permissions: u32,
    /// When it was made, where the file system keeps that.
    pub created: Option<DateTime<Utc>>,
    /// When it was last written.
    pub modified: Option<DateTime<Utc>>,
    /// The file system's number for it.
    pub inode: Option<u64>,
    /// What is in it, for files that are not empty, not over the limit, and readable.
    pub content: Option<Content>,
}

/// What is in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// SHA-256 in lower-case hexadecimal digits.
    pub hash: String,
    /// Bytes that were hashed.
    pub size: u64,
}

/// A directory that cannot be walked at all. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// Nothing there.
    #[error("`{}` cannot be indexed: there is no such directory. Nothing was changed; name a directory that exists", .0.display())]
    Missing(PathBuf),
    /// Something else there.
    #[error("`{}` cannot be indexed: it is not a directory. Nothing was changed; name the directory that it is in", .0.display())]
    NotADirectory(PathBuf),
    /// There, but closed to us.
    #[error("`{}` cannot be indexed: it cannot be read ({reason}). Nothing was changed; \
             make it readable for this user or name another directory", .path.display())]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
}

/// A walk in progress.
#[derive(Debug)]
pub struct Walk {
    options: WalkOptions,
    path: PathBuf,
    volume: Option<u64>,
    root: Option<Metadata>,
    listing: Option<Listing>,
    waiting: Vec<(PathBuf, Uuid)>,
    held: Option<Skipped>,
    found: u64,
    limited: bool,
}

/// A directory whose names are being looked at.
#[derive(Debug)]
struct Listing {
    path: PathBuf,
    id: Uuid,
    names: vec::IntoIter<OsString>,
}

impl Walk {
    /// Starts a walk at `root`, which may be a symlink to a directory.
    ///
    /// # Errors
    /// [`RootError`] if there is nothing to walk.
    pub fn new(root: &Path, options: WalkOptions) -> Result<Self, RootError> {
        let unreadable = |reason: io::Error| match reason.kind() {
            io::ErrorKind::NotFound => RootError::Missing(root.to_owned()),
            io::ErrorKind::NotADirectory => RootError::NotADirectory(root.to_owned()),
            _ => RootError::Unreadable { path: root.to_owned(), reason },
        };
        let path = fs::canonicalize(root).map_err(unreadable)?;
        let metadata = fs::metadata(&path).map_err(unreadable)?;
        if !metadata.is_dir() {
            return Err(RootError::NotADirectory(root.to_owned()));
        }
        fs::read_dir(&path).map_err(unreadable)?;
        Ok(Self {
            options,
            path,
            volume: volume_of(&metadata),
            root: Some(metadata),
            listing: None,
            waiting: Vec::new(),
            held: None,
            found: 0,
            limited: false,
        })
    }

    /// The root, absolute and without symlinks.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file system's number for the volume that the walk stays on.
    pub fn volume(&self) -> Option<u64> {
        self.volume
    }

    /// Whether the walk ended at its limit with more to see.
    pub fn limited(&self) -> bool {
        self.limited
    }

    /// How many entries a walk would find, without opening any file.
    ///
    /// # Errors
    /// As [`Walk::new`].
    pub fn count(root: &Path, limit: u64) -> Result<u64, RootError> {
        let walk = Self::new(root, WalkOptions { limit, hash_limit: 0, ..WalkOptions::default() })?;
        Ok(walk.filter(|step| matches!(step, Step::Found(_))).count() as u64)
    }

    fn list(&self, path: &Path) -> io::Result<vec::IntoIter<OsString>> {
        // One more than may be kept: enough to know that the limit cut something off.
        let most = usize::try_from(self.options.limit - self.found).unwrap_or(usize::MAX).saturating_add(1);
        let names: io::Result<Vec<OsString>> =
            fs::read_dir(path)?.take(most).map(|entry| entry.map(|e| e.file_name())).collect();
        let mut names = names?;
        names.sort_unstable();
        Ok(names.into_iter())
    }

    /// An entry, or why there is none. What could not be read of it is held back for the step after it.
    fn look_at(&mut self, path: PathBuf, parent: Uuid) -> Step {
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(e) => return Step::Skipped(Skipped { path, reason: e.to_string() }),
        };
        let mut found = describe(&path, &metadata, Some(parent));
        self.found += 1;
        match found.kind {
            Kind::Directory if volume_of(&metadata) == self.volume => self.waiting.push((path, found.id)),
            Kind::Directory => {
                let reason =
                    "another volume is mounted here, which would be a location of its own".to_owned();
                self.held = Some(Skipped { path, reason });
            }
            // An empty file has nothing to hash; and the files of /proc, which may block, claim to be empty.
            Kind::File if found.size > 0 && found.size <= self.options.hash_limit => {
                match (self.options.open)(&path).and_then(|file| hash(file, self.options.hash_limit)) {
                    Ok(content) => found.content = content,
                    Err(e) => self.held = Some(Skipped { path, reason: e.to_string() }),
                }
            }
            _ => {}
        }
        Step::Found(Box::new(found))
    }
}

impl Iterator for Walk {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if let Some(skipped) = self.held.take() {
            return Some(Step::Skipped(skipped));
        }
        if self.limited || self.options.limit == 0 {
            return None;
        }
        if let Some(metadata) = self.root.take() {
            let found = describe(&self.path, &metadata, None);
            self.found = 1;
            self.waiting.push((self.path.clone(), found.id));
            return Some(Step::Found(Box::new(found)));
        }
        loop {
            if let Some(listing) = &mut self.listing
                && let Some(name) = listing.names.next()
            {
                if self.found == self.options.limit {
                    self.limited = true;
                    return None;
                }
                let (path, parent) = (listing.path.join(name), listing.id);
                return Some(self.look_at(path, parent));
            }
            let (path, id) = self.waiting.pop()?;
            match self.list(&path) {
                Ok(names) => self.listing = Some(Listing { path, id, names }),
                Err(e) => {
                    self.listing = None;
                    return Some(Step::Skipped(Skipped { path, reason: e.to_string() }));
                }
            }
        }
    }
}

fn describe(path: &Path, metadata: &Metadata, parent: Option<Uuid>) -> Found {
    let os_name = path.file_name().unwrap_or(path.as_os_str());
    let kind = match metadata.file_type() {
        t if t.is_dir() => Kind::Directory,
        t if t.is_file() => Kind::File,
        t if t.is_symlink() => Kind::Symlink,
        _ => Kind::Other,
    };
    Found {
        id: Uuid::now_v7(),
        parent,
        name: os_name.to_string_lossy().into_owned(),
        raw_name: raw_name(os_name),
        extension: match kind {
            Kind::Directory => None,
            _ => path.extension().and_then(OsStr::to_str).map(str::to_lowercase),
        },
        kind,
        size: if kind == Kind::File { metadata.len() } else { 0 },
        permissions: permissions_of(metadata),
        created: metadata.created().ok().and_then(instant),
        modified: metadata.modified().ok().and_then(instant),
        inode: inode_of(metadata),
        content: None,
    }
}

fn raw_name(name: &OsStr) -> Option<Vec<u8>> {
    match name.to_str() {
        Some(_) => None,
        None => Some(name.as_encoded_bytes().to_vec()),
    }
}

/// File systems can hold times that no calendar can print: those are left out.
fn instant(time: std::time::SystemTime) -> Option<DateTime<Utc>> {
    let epoch = std::time::UNIX_EPOCH;
    let since = match time.duration_since(epoch) {
        Ok(after) => TimeDelta::from_std(after).ok()?,
        Err(before) => -TimeDelta::from_std(before.duration()).ok()?,
    };
    DateTime::UNIX_EPOCH.checked_add_signed(since).filter(|t| (0..=9999).contains(&t.year()))
}

/// Opens for reading what a moment ago was a regular file: should a pipe or a symlink have taken its place,
/// neither waits for a writer nor follows.
#[cfg(unix)]
fn open_file(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
    fs::OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

#[cfg(not(unix))]
fn open_file(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// Hashes what is in a file of up to `limit` bytes. `None` for an empty one, and for one that grew past the
/// limit meanwhile.
fn hash(mut file: File, limit: u64) -> io::Result<Option<Content>> {
    let mut hasher = Sha256::new();
    let size = io::copy(&mut file.by_ref().take(limit.saturating_add(1)), &mut hasher)?;
    if size == 0 || size > limit {
        return Ok(None);
    }
    let hash = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Some(Content { hash, size }))
}

#[cfg(unix)]
fn permissions_of(metadata: &Metadata) -> u32 {
    std::os::unix::fs::MetadataExt::mode(metadata) & 0o7777
}

#[cfg(not(unix))]
fn permissions_of(metadata: &Metadata) -> u32 {
    if metadata.permissions().readonly() { 0o444 } else { 0o666 }
}

#[cfg(unix)]
fn inode_of(metadata: &Metadata) -> Option<u64> {
    Some(std::os::unix::fs::MetadataExt::ino(metadata))
}

#[cfg(not(unix))]
fn inode_of(_: &Metadata) -> Option<u64> {
    None
}

#[cfg(unix)]
fn volume_of(metadata: &Metadata) -> Option<u64> {
    Some(std::os::unix::fs::MetadataExt::dev(metadata))
}

#[cfg(not(unix))]
fn volume_of(_: &Metadata) -> Option<u64> {
    None
}
