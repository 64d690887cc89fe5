//! The copy of the database file, byte for byte, that is made before anything is changed.
//!
//! Neither SQLite's backup API nor `VACUUM INTO`: the first counts up the copy's schema version, the second packs the
//! pages anew, and neither copy could show that a rollback left every byte as it was. While the migration holds the
//! exclusive lock and the write-ahead log is empty, the file is the whole database, and nobody writes it.
//!
//! The copy is written under a name of its own, synced, and gets its real name right before the commit. So a file
//! with the real name is whole, and a process that is killed leaves at most what the next run replaces.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use super::error::KeysError;

/// What is put behind the database's name.
pub(super) const SUFFIX: &str = ".before-uuid-keys";
/// And behind that while it is being written.
const UNFINISHED: &str = ".unfinished";
/// How much of two files is compared at a time.
const CHUNK: usize = 64 * 1024;

/// A database file and its copy.
pub(super) struct Backup {
    /// Opened when SQLite has the file locked, and closed behind SQLite's own handle: see [`Taken`](super::Taken).
    database: File,
    unfinished: PathBuf,
    pub(super) path: PathBuf,
    state: State,
}

/// How far the copy has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    None,
    Begun,
    Whole,
}

impl Backup {
    pub(super) fn of(database: &Path) -> Result<Self, KeysError> {
        let beside = |suffix: &str| {
            let mut name = database.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        let failed = |source| KeysError::File { what: "opening", path: database.to_owned(), source };
        Ok(Self {
            database: File::open(database).map_err(failed)?,
            unfinished: beside(&format!("{SUFFIX}{UNFINISHED}")),
            path: beside(SUFFIX),
            state: State::None,
        })
    }

    /// Refuses a copy that is there already, unless it is of the database as it is: then a run was killed before its
    /// commit, and nothing is lost when it is replaced.
    pub(super) fn refuse_other(&self) -> Result<(), KeysError> {
        if !self.path.try_exists().map_err(self.failed("looking for"))? {
            return Ok(());
        }
        if self.is_copy(&self.path).map_err(self.failed("reading"))? {
            return Ok(());
        }
        Err(KeysError::BackupExists { path: self.path.clone() })
    }

    /// Writes the copy, and reads it again.
    pub(super) fn write(&mut self) -> Result<(), KeysError> {
        self.state = State::Begun;
        let path = self.unfinished.clone();
        let failed = |what| move |source| KeysError::File { what, path: path.clone(), source };
        self.copy().map_err(failed.clone()("writing the backup"))?;
        if !self.is_copy(&self.unfinished).map_err(failed.clone()("reading the backup"))? {
            let differs = io::Error::other("it does not hold what was written to it");
            return Err(failed("writing the backup")(differs));
        }
        self.state = State::Whole;
        Ok(())
    }

    fn copy(&self) -> io::Result<()> {
        let mut database = &self.database;
        database.seek(SeekFrom::Start(0))?;
        let mut copy = File::create(&self.unfinished)?;
        // Whoever may not read the database may not read its copy.
        copy.set_permissions(database.metadata()?.permissions())?;
        io::copy(&mut database, &mut copy)?;
        copy.sync_all()
    }

    /// Gives the copy its name, for good.
    pub(super) fn place(&self) -> Result<(), KeysError> {
        fs::rename(&self.unfinished, &self.path).map_err(self.failed("placing the backup"))?;
        self.sync_folder().map_err(self.failed("placing the backup"))
    }

    /// A name survives a power failure once its folder is synced; Windows syncs it by itself.
    fn sync_folder(&self) -> io::Result<()> {
        #[cfg(unix)]
        if let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }

    /// After a rollback: removes the copy if the database is what it was. Otherwise keeps it, and says so.
    pub(super) fn undo(&self, cause: KeysError, path: &Path) -> KeysError {
        let copy = if self.unfinished.exists() { &self.unfinished } else { &self.path };
        match self.state {
            State::None => return cause,
            State::Whole if !self.is_copy(copy).unwrap_or(false) => {
                let (path, backup) = (path.to_owned(), copy.clone());
                return KeysError::NotAsBefore { path, backup, cause: Box::new(cause) };
            }
            // Nothing is changed before the copy is whole.
            State::Begun | State::Whole => {}
        }
        // One that stays is replaced by the next run.
        let _ = fs::remove_file(copy);
        cause
    }

    /// Whether a file holds what the database does.
    fn is_copy(&self, path: &Path) -> io::Result<bool> {
        let other = File::open(path)?;
        if other.metadata()?.len() != self.database.metadata()?.len() {
            return Ok(false);
        }
        let mut database = &self.database;
        database.seek(SeekFrom::Start(0))?;
        let (mut one, mut other) =
            (BufReader::with_capacity(CHUNK, database), BufReader::with_capacity(CHUNK, other));
        loop {
            let (a, b) = (one.fill_buf()?, other.fill_buf()?);
            let both = a.len().min(b.len());
            if both == 0 {
                return Ok(a.len() == b.len());
            }
            if a[..both] != b[..both] {
                return Ok(false);
            }
            one.consume(both);
            other.consume(both);
        }
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> KeysError {
        let path = self.path.clone();
        move |source| KeysError::File { what, path, source }
    }
}
