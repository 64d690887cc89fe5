//! The oracle: what each process said of its application's transactions, in a file of its own that no database knows of.
//!
//! A line goes to the system before the next thing is done, so that it is there whenever the process is killed; the machine
//! is not, so nothing need be synced.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// What a transaction does to one record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrote {
    /// The table.
    pub table: String,
    /// The record's key.
    pub record: String,
    /// What becomes of it.
    pub value: Value,
}

/// What becomes of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Value {
    /// Its row has this text in it, which is like nothing before it.
    Says(String),
    /// It is deleted.
    Gone,
    /// It is changed, by how much the account's total says.
    Moved,
}

/// A transaction that is about to be committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deed {
    /// Its name, which is its actor in the log and its row in the journal.
    pub name: String,
    /// All that it writes and that the log must say by itself: nothing that may be folded with another's.
    pub wrote: Vec<Wrote>,
    /// From which account to which, and how much.
    pub transfer: Option<(String, String, i64)>,
}

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Line {
    /// The transaction of this name has begun.
    Begun(String),
    /// All its statements have run.
    Commits(Deed),
    /// It is committed.
    Committed(String),
    /// It was rolled back.
    GivenUp(String),
}

/// The process's side.
#[derive(Debug)]
pub struct Notes(File);

impl Notes {
    /// Goes on with a file, or makes it.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let mut file = File::options().create(true).append(true).read(true).open(path)?;
        // A line whose end was never written is none.
        let end = file.seek(SeekFrom::End(0))?;
        if end > 0 {
            file.seek(SeekFrom::End(-1))?;
            let mut last = [0];
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        Ok(Self(file))
    }

    /// Says something.
    ///
    /// # Errors
    /// The file system's.
    pub fn say(&mut self, line: &Line) -> std::io::Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        self.0.write_all(text.as_bytes())
    }
}

/// How a transaction ended, as far as its process said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It may be there, all of it, or not at all.
    InDoubt,
    /// It is there.
    Committed,
    /// It is not.
    GivenUp,
}

/// The reader's side: all that one process has said.
#[derive(Debug)]
pub struct Oracle {
    path: PathBuf,
    read: u64,
    /// Of the line that is yet to end.
    rest: Vec<u8>,
    /// Transactions that were about to be committed, by name.
    pub deeds: BTreeMap<String, (Deed, Fate)>,
    /// How many were committed.
    pub committed: usize,
    /// Whether one is open.
    pub is_open: bool,
}

impl Oracle {
    /// Of a file that may be made later.
    pub fn of(path: PathBuf) -> Self {
        let (deeds, rest) = (BTreeMap::new(), Vec::new());
        Self { path, read: 0, rest, deeds, committed: 0, is_open: false }
    }

    /// Reads what was said since.
    ///
    /// # Panics
    /// If a line is none.
    pub fn listen(&mut self) {
        let Ok(mut file) = File::open(&self.path) else { return };
        let mut said = std::mem::take(&mut self.rest);
        let before = said.len() as u64;
        let read = file.seek(SeekFrom::Start(self.read)).and_then(|_| file.read_to_end(&mut said));
        read.expect("the oracle's file can be read");
        self.read += said.len() as u64 - before;
        let whole = said.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.rest = said.split_off(whole);
        for line in said.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(line) => self.note(line),
                // Its process was killed while it wrote it; the next has ended it.
                Err(error) if error.is_eof() => self.is_open = true,
                Err(error) => panic!("{}: {error}: {}", self.path.display(), String::from_utf8_lossy(line)),
            }
        }
    }

    fn note(&mut self, line: Line) {
        self.is_open = matches!(line, Line::Begun(_) | Line::Commits(_));
        let (name, fate) = match line {
            Line::Begun(_) => return,
            Line::Commits(deed) => {
                let former = self.deeds.insert(deed.name.clone(), (deed, Fate::InDoubt));
                assert_eq!(former, None, "a name is used once");
                return;
            }
            Line::Committed(name) => (name, Fate::Committed),
            Line::GivenUp(name) => (name, Fate::GivenUp),
        };
        self.committed += usize::from(fate == Fate::Committed);
        // What failed before its last statement was never about to be committed.
        if let Some((_, known)) = self.deeds.get_mut(&name) {
            *known = fate;
        }
    }
}
