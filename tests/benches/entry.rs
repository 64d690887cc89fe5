//! The model that everything is measured with: a file manager's entry, fourteen columns, a key and no index but that
//! (indexes slow tidelog and its baselines alike, and so would flatter every ratio).
//!
//! There are two entities over the same table: one that is synced, and one as SeaORM has it without tidelog, whose
//! saves run none of its hooks.

use sea_orm::{
    ActiveModelBehavior, ActiveModelTrait,
    prelude::{DateTimeUtc, Uuid},
};

pub(crate) const TABLE: &str = "CREATE TABLE entries (
    id BLOB NOT NULL PRIMARY KEY,
    location_id BLOB NOT NULL,
    parent_id BLOB,
    name TEXT NOT NULL,
    extension TEXT,
    kind TEXT NOT NULL,
    size INTEGER NOT NULL,
    permissions INTEGER NOT NULL,
    is_hidden INTEGER NOT NULL,
    created_at TEXT,
    modified_at TEXT,
    indexed_at TEXT NOT NULL,
    content_id BLOB,
    inode INTEGER
)";
pub(crate) const COLUMNS: usize = 14;

/// What the measures do with either entity.
pub(crate) trait Entry: ActiveModelTrait + ActiveModelBehavior + Send + Sync {
    /// The whole row, to be inserted.
    fn whole(row: &Row) -> Self;
    /// One changed column.
    fn renamed(row: &Row, name: String) -> Self;
    /// Size and time as they are found anew, so many bytes more.
    fn written(row: &Row, found: &Row, more: i64) -> Self;
    /// Another hash of its contents.
    fn hashed(row: &Row, found: &Row) -> Self;
}

macro_rules! entity {
    ($module:ident, $(#[$attribute:meta])* { $($rest:item)* }) => {
        pub(crate) mod $module {
            use sea_orm::{Set, Unchanged, entity::prelude::*};

            #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
            #[sea_orm(table_name = "entries")]
            $(#[$attribute])*
            pub(crate) struct Model {
                #[sea_orm(primary_key, auto_increment = false)]
                pub(crate) id: Uuid,
                pub(crate) location_id: Uuid,
                pub(crate) parent_id: Option<Uuid>,
                pub(crate) name: String,
                pub(crate) extension: Option<String>,
                pub(crate) kind: String,
                pub(crate) size: i64,
                pub(crate) permissions: i32,
                pub(crate) is_hidden: bool,
                pub(crate) created_at: Option<DateTimeUtc>,
                pub(crate) modified_at: Option<DateTimeUtc>,
                pub(crate) indexed_at: DateTimeUtc,
                pub(crate) content_id: Option<Uuid>,
                pub(crate) inode: Option<i64>,
            }

            #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
            pub(crate) enum Relation {}

            $($rest)*

            impl super::Entry for ActiveModel {
                fn whole(row: &super::Row) -> Self {
                    Self {
                        id: Set(row.id),
                        location_id: Set(row.location_id),
                        parent_id: Set(row.parent_id),
                        name: Set(row.name.clone()),
                        extension: Set(row.extension.map(str::to_owned)),
                        kind: Set(row.kind.to_owned()),
                        size: Set(row.size),
                        permissions: Set(row.permissions),
                        is_hidden: Set(row.is_hidden),
                        created_at: Set(row.created_at),
                        modified_at: Set(row.modified_at),
                        indexed_at: Set(row.indexed_at),
                        content_id: Set(row.content_id),
                        inode: Set(row.inode),
                    }
                }

                fn renamed(row: &super::Row, name: String) -> Self {
                    Self { id: Unchanged(row.id), name: Set(name), ..Default::default() }
                }

                fn written(row: &super::Row, found: &super::Row, more: i64) -> Self {
                    Self {
                        id: Unchanged(row.id),
                        size: Set(found.size + more),
                        modified_at: Set(found.modified_at),
                        ..Default::default()
                    }
                }

                fn hashed(row: &super::Row, found: &super::Row) -> Self {
                    let hash = found.content_id.unwrap_or(found.id);
                    Self { id: Unchanged(row.id), content_id: Set(Some(hash)), ..Default::default() }
                }
            }
        }
    };
}

entity!(
    synced,
    #[derive(tidelog::Syncable)]
    #[sync(model = "entry")]
    {}
);
entity!(plain, {
    impl ActiveModelBehavior for ActiveModel {}
});

/// A row that either entity can be made of.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) id: Uuid,
    location_id: Uuid,
    parent_id: Option<Uuid>,
    pub(crate) name: String,
    extension: Option<&'static str>,
    kind: &'static str,
    size: i64,
    permissions: i32,
    is_hidden: bool,
    created_at: Option<DateTimeUtc>,
    modified_at: Option<DateTimeUtc>,
    indexed_at: DateTimeUtc,
    content_id: Option<Uuid>,
    inode: Option<i64>,
}

const EXTENSIONS: &[&str] = &["jpg", "png", "pdf", "txt", "rs", "md", "mp3", "mov", "json", "zip"];
const WORDS: &[&str] = &[
    "holiday", "invoice", "draft", "notes", "scan", "portrait", "summary", "lecture", "recipe", "backup",
    "project", "letter", "chapter", "photo", "contract", "budget",
];
/// 2026-01-01, in ms.
const BEGIN: i64 = 1_767_225_600_000;
/// Rows that a walk finds in one millisecond, at most.
const ROWS_PER_MS: u64 = 20;

/// Rows as a walk would find them, the same in every run: about twenty to a directory, keys in the order of time.
pub(crate) struct Walk {
    random: u64,
    found: u64,
    location: Uuid,
    directory: Uuid,
    left: u64,
}

impl Walk {
    /// Different seeds give different rows.
    pub(crate) fn new(seed: u64) -> Self {
        let mut walk =
            Self { random: seed, found: 0, location: Uuid::nil(), directory: Uuid::nil(), left: 0 };
        walk.location = walk.key();
        walk.directory = walk.location;
        walk
    }

    pub(crate) fn rows(&mut self, count: usize) -> Vec<Row> {
        (0..count).map(|_| self.row()).collect()
    }

    fn row(&mut self) -> Row {
        self.found += 1;
        let id = self.key();
        let is_directory = self.left == 0;
        let parent = self.directory;
        if is_directory {
            self.directory = id;
            self.left = 8 + self.below(24);
        } else {
            self.left -= 1;
        }
        let word = WORDS[self.below(WORDS.len() as u64) as usize];
        let extension = EXTENSIONS[self.below(EXTENSIONS.len() as u64) as usize];
        let number = self.below(10_000);
        let modified = self.past();
        Row {
            id,
            location_id: self.location,
            parent_id: Some(parent),
            name: if is_directory {
                format!("{word} {number}")
            } else {
                format!("{word}_{number:04}.{extension}")
            },
            extension: (!is_directory).then_some(extension),
            kind: if is_directory { "directory" } else { "file" },
            size: if is_directory { 0 } else { (self.next() >> (34 + self.below(20))) as i64 },
            permissions: if is_directory { 0o755 } else { 0o644 },
            is_hidden: self.below(50) == 0,
            created_at: Some(modified),
            modified_at: Some(modified),
            indexed_at: instant(BEGIN + (self.found / ROWS_PER_MS) as i64, 0),
            content_id: (!is_directory).then(|| {
                let bits = u128::from(self.next()) << 64 | u128::from(self.next());
                uuid::Builder::from_u128(bits).with_version(uuid::Version::Sha1).into_uuid()
            }),
            inode: Some(1_048_576 + self.found as i64),
        }
    }

    fn key(&mut self) -> Uuid {
        let random: [u8; 16] = (u128::from(self.next()) << 64 | u128::from(self.next())).to_be_bytes();
        let [bytes @ .., _, _, _, _, _, _] = random;
        let ms = BEGIN as u64 + self.found / ROWS_PER_MS;
        uuid::Builder::from_unix_timestamp_millis(ms, &bytes).into_uuid()
    }

    fn past(&mut self) -> DateTimeUtc {
        let ms = self.below(5 * 365 * 86_400_000) as i64;
        let ns = self.below(1_000_000) as u32;
        instant(BEGIN - ms, ns)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn instant(ms: i64, ns: u32) -> DateTimeUtc {
    DateTimeUtc::from_timestamp_millis(ms).unwrap_or_default() + chrono::TimeDelta::nanoseconds(ns.into())
}
