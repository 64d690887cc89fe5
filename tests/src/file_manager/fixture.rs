//! Writes a directory with everything in it that trips up an indexer: more than five hundred files in nested
//! folders, contents that many files share, symlinks in a loop and into nowhere, a pipe, a file that may not
//! be read, an empty and a large one, and names that are not Unicode or hardly are.
//!
//! What a platform cannot hold (a name that is not Unicode on macOS, symlinks and pipes on Windows) is left
//! out there, and the counts say so. Root can read a file that nobody may read: a test that must see one
//! refused gives the indexer its own way of opening files.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Files with generated contents.
const FILES: usize = 600;
/// Different contents among them.
const CONTENTS: usize = 150;
/// Files in one folder.
const FILES_PER_FOLDER: usize = 25;
/// Folders inside one another.
const DEPTH: usize = 40;
/// Size of the one file that is over the example's limit for hashing, in bytes.
const LARGE: usize = (1 << 20) + 1;
/// Names that are Unicode and still awkward. Not on Windows, which forbids some of their characters.
const AWKWARD: [&str; 5] =
    ["it's \"quoted\"", "two\nlines", "emoji 🌊.txt", ".hidden", "percent % and \\ back"];

/// What was written, root folder included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fixture {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symlinks.
    pub symlinks: u64,
    /// Pipes.
    pub others: u64,
    /// Different contents of files that are neither empty nor large.
    pub contents: u64,
    /// Files that are neither empty nor large.
    pub hashable: u64,
    /// The file that nobody may read (mode 000). It counts as a file, not as hashable.
    pub closed: Option<PathBuf>,
    /// The bytes of the one name that is not Unicode. It counts as a file.
    pub raw_name: Option<Vec<u8>>,
}

impl Fixture {
    /// All of them.
    pub fn entries(&self) -> u64 {
        self.files + self.directories + self.symlinks + self.others
    }

    /// Writes the directory at `root`, which may exist if it is empty.
    ///
    /// # Errors
    /// The file system's; what was written until then stays. A `root` that is not empty is refused.
    pub fn write(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        if fs::read_dir(root)?.next().is_some() {
            return Err(io::Error::other("it is not empty, and was left as it is; name a new directory"));
        }
        let mut fixture = Self { directories: 1, contents: CONTENTS as u64, ..Self::default() };
        fixture.write_folders(root)?;
        fixture.write_depth(root)?;
        fixture.write_sizes(root)?;
        #[cfg(unix)]
        fixture.write_unix(root)?;
        Ok(fixture)
    }

    fn write_folders(&mut self, root: &Path) -> io::Result<()> {
        let extensions = ["txt", "jpg", "PDF", "rs", "tar.gz", "unknown"];
        for year in 0..FILES / FILES_PER_FOLDER / 4 {
            let year_folder = root.join(format!("year {}", 2018 + year));
            self.make_folder(&year_folder)?;
            for quarter in 0..4 {
                let folder = year_folder.join(format!("quarter {}", quarter + 1));
                self.make_folder(&folder)?;
                for file in 0..FILES_PER_FOLDER {
                    let number = (year * 4 + quarter) * FILES_PER_FOLDER + file;
                    let name = format!("file {number:04}.{}", extensions[number % extensions.len()]);
                    let content = format!("content {}\n", number % CONTENTS).repeat(1 + number % CONTENTS);
                    fs::write(folder.join(name), content)?;
                    self.files += 1;
                    self.hashable += 1;
                }
            }
        }
        Ok(())
    }

    fn write_depth(&mut self, root: &Path) -> io::Result<()> {
        let mut folder = root.to_owned();
        for level in 0..DEPTH {
            folder.push(format!("level {level}"));
            self.make_folder(&folder)?;
        }
        self.write_file(&folder.join("at the bottom"), b"deep")
    }

    fn write_sizes(&mut self, root: &Path) -> io::Result<()> {
        fs::write(root.join("empty"), b"")?;
        fs::write(root.join("large"), vec![b'x'; LARGE])?;
        self.files += 2;
        Ok(())
    }

    #[cfg(unix)]
    fn write_unix(&mut self, root: &Path) -> io::Result<()> {
        use std::os::unix::{ffi::OsStrExt, fs::PermissionsExt, fs::symlink};

        let folder = root.join("awkward");
        self.make_folder(&folder)?;
        for name in AWKWARD {
            self.write_file(&folder.join(name), name.as_bytes())?;
        }
        let raw = b"latin-1 \xe9t\xe9.txt";
        let path = folder.join(std::ffi::OsStr::from_bytes(raw));
        // macOS refuses such a name, which is as good as not having one.
        if fs::write(&path, b"content 0\n").is_ok() {
            self.files += 1;
            self.hashable += 1;
            self.raw_name = Some(raw.to_vec());
        }

        symlink("..", folder.join("loop to the parent"))?;
        symlink("second", folder.join("first"))?;
        symlink("first", folder.join("second"))?;
        symlink("nowhere", folder.join("dangling"))?;
        self.symlinks += 4;

        rustix::fs::mkfifoat(rustix::fs::CWD, folder.join("pipe"), rustix::fs::Mode::RUSR)?;
        self.others += 1;

        let closed = folder.join("closed");
        fs::write(&closed, b"nobody may read this")?;
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000))?;
        self.files += 1;
        self.closed = Some(closed);
        Ok(())
    }

    fn make_folder(&mut self, path: &Path) -> io::Result<()> {
        self.directories += 1;
        fs::create_dir(path)
    }

    /// A file with a content of its own.
    fn write_file(&mut self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.files += 1;
        self.hashable += 1;
        self.contents += 1;
        fs::write(path, content)
    }
}
