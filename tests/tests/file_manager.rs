//! The file manager on a plain SeaORM connection: what the indexer saves and skips, what the edits do, and
//! whether the digest sees every bit. Nothing here knows tidelog; the example runs the same code over it.

#![allow(clippy::unwrap_used)]

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sea_orm::{
    ColumnTrait, ConnectOptions, Database, DatabaseConnection, EntityTrait, PaginatorTrait, QueryFilter,
};
use sea_orm_migration::MigratorTrait;
use tempfile::TempDir;
use tidelog_tests::file_manager::{
    apart::{self, File, Subjects},
    digest::{self, MODELS, TableDigest},
    edit,
    entities::{content_identity, device, entry, entry_tag, location, tag, user_metadata, volume},
    fixture::Fixture,
    index::{self, IndexError, IndexOptions, Indexed, SKIPPED_NAMED},
    migration::Migrator,
    walk::RootError,
    writes::Writes,
};

/// A folder with a database, a directory to index, and nothing else.
struct Bench {
    folder: TempDir,
    db: DatabaseConnection,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}?mode=rwc", folder.path().join("plain.db").display());
        let db = Database::connect(ConnectOptions::new(url).sqlx_logging(false).to_owned()).await.unwrap();
        Migrator::up(&db, None).await.unwrap();
        Self { folder, db }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn fixture(&self) -> (PathBuf, Fixture) {
        let root = self.path("fixture");
        let fixture = Fixture::write(&root).unwrap();
        (root, fixture)
    }

    async fn index(&self, root: &Path, options: &IndexOptions) -> Result<Indexed, IndexError> {
        index::index(&self.db, root, options, |_| {}).await
    }

    async fn rows(&self) -> [u64; 8] {
        [
            device::Entity::find().count(&self.db).await.unwrap(),
            volume::Entity::find().count(&self.db).await.unwrap(),
            location::Entity::find().count(&self.db).await.unwrap(),
            content_identity::Entity::find().count(&self.db).await.unwrap(),
            entry::Entity::find().count(&self.db).await.unwrap(),
            tag::Entity::find().count(&self.db).await.unwrap(),
            entry_tag::Entity::find().count(&self.db).await.unwrap(),
            user_metadata::Entity::find().count(&self.db).await.unwrap(),
        ]
    }

    /// Closes the database, digests it, and opens it anew.
    async fn digest(&mut self) -> Vec<TableDigest> {
        let url = format!("sqlite://{}", self.path("plain.db").display());
        self.db.clone().close().await.unwrap();
        let found = digest::digest(&self.path("plain.db")).unwrap();
        self.db = Database::connect(ConnectOptions::new(url).sqlx_logging(false).to_owned()).await.unwrap();
        found
    }

    /// Another one with the same rows.
    async fn copy(&mut self) -> Self {
        self.digest().await;
        let folder = tempfile::tempdir().unwrap();
        fs::copy(self.path("plain.db"), folder.path().join("plain.db")).unwrap();
        let url = format!("sqlite://{}", folder.path().join("plain.db").display());
        let db = Database::connect(ConnectOptions::new(url).sqlx_logging(false).to_owned()).await.unwrap();
        Self { folder, db }
    }

    async fn sql(&self, sql: &str) {
        use sea_orm::ConnectionTrait;
        self.db.execute_unprepared(sql).await.unwrap();
    }
}

/// Refuses the fixture's closed file to root too, and says that another one is gone.
fn open_as_nobody(path: &Path) -> io::Result<fs::File> {
    match path.file_name().and_then(|n| n.to_str()) {
        Some("closed") => Err(io::ErrorKind::PermissionDenied.into()),
        Some("at the bottom") => Err(io::ErrorKind::NotFound.into()),
        _ => fs::File::open(path),
    }
}

#[tokio::test]
async fn the_index_holds_what_is_there_and_names_what_it_could_not_read() {
    for writes in [Writes::Bulk, Writes::OneByOne] {
        let bench = Bench::new().await;
        let (root, fixture) = bench.fixture();
        let options = IndexOptions { writes, open: open_as_nobody, ..IndexOptions::default() };
        let mut progress = Vec::new();
        let indexed = index::index(&bench.db, &root, &options, |saved| progress.push(saved)).await.unwrap();

        assert!(fixture.files >= 500);
        assert_eq!(indexed.entries, fixture.entries());
        assert_eq!(indexed.files, fixture.files);
        assert_eq!(indexed.directories, fixture.directories);
        // The file at the bottom has a content of its own.
        assert_eq!((indexed.hashed, indexed.contents), (fixture.hashable - 1, fixture.contents - 1));
        assert!(!indexed.limited);
        assert_eq!(bench.rows().await, [1, 1, 1, indexed.contents, indexed.entries, 0, 0, 0]);
        assert_eq!(progress.last(), Some(&indexed.entries));
        assert!(progress.len() > 1 && progress.is_sorted());

        let skipped: Vec<_> = indexed
            .skipped_named
            .iter()
            .map(|s| (s.path.file_name().unwrap().to_str().unwrap(), s.reason.as_str()))
            .collect();
        let expected: &[(&str, &str)] = if cfg!(unix) {
            &[("closed", "permission denied"), ("at the bottom", "entity not found")]
        } else {
            &[("at the bottom", "entity not found")]
        };
        assert_eq!(indexed.skipped, expected.len() as u64);
        assert!(expected.iter().all(|e| skipped.contains(e)), "{skipped:?}");

        let saved = location::Entity::find_by_id(indexed.location).one(&bench.db).await.unwrap().unwrap();
        assert_eq!(saved.scanned_entries, i64::try_from(indexed.entries).unwrap());
    }
}

#[cfg(unix)]
#[tokio::test]
async fn names_that_are_not_unicode_and_links_and_pipes_are_kept_as_they_are() {
    let bench = Bench::new().await;
    let (root, fixture) = bench.fixture();
    bench.index(&root, &IndexOptions::default()).await.unwrap();

    let of_kind = |kind: entry::Kind| entry::Entity::find().filter(entry::Column::Kind.eq(kind));
    assert_eq!(of_kind(entry::Kind::Symlink).count(&bench.db).await.unwrap(), fixture.symlinks);
    assert_eq!(
        of_kind(entry::Kind::Other).count(&bench.db).await.unwrap(),
        1,
        "a pipe is listed, not opened"
    );
    let unreadable_names =
        entry::Entity::find().filter(entry::Column::RawName.is_not_null()).all(&bench.db).await.unwrap();
    let raw: Vec<_> = unreadable_names.iter().map(|e| e.raw_name.clone()).collect();
    assert_eq!(raw, fixture.raw_name.iter().cloned().map(Some).collect::<Vec<_>>());
    assert!(unreadable_names.iter().all(|e| e.name == "latin-1 \u{fffd}t\u{fffd}.txt"));
    let awkward = entry::Entity::find().filter(entry::Column::Name.eq("two\nlines")).one(&bench.db).await;
    assert!(awkward.unwrap().unwrap().content_id.is_some());
}

#[tokio::test]
async fn the_same_content_is_the_same_record_whoever_finds_it() {
    let (one, other) = (Bench::new().await, Bench::new().await);
    for bench in [&one, &other] {
        let root = bench.path("files");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("a.txt"), "same").unwrap();
        fs::write(root.join("b.txt"), "same").unwrap();
        bench.index(&root, &IndexOptions::default()).await.unwrap();
    }
    let id = |bench: &Bench| {
        let db = bench.db.clone();
        async move { content_identity::Entity::find().one(&db).await.unwrap().unwrap().id }
    };
    assert_eq!(id(&one).await, id(&other).await);
    // A second location finds the content in the database.
    let second = one.path("more files");
    fs::create_dir(&second).unwrap();
    fs::write(second.join("c.txt"), "same").unwrap();
    let device = device::Entity::find().one(&one.db).await.unwrap().unwrap().id;
    let indexed = one.index(&second, &IndexOptions { device, ..IndexOptions::default() }).await.unwrap();
    assert_eq!((indexed.hashed, indexed.contents), (1, 0));
    let files = entry::Entity::find().filter(entry::Column::ContentId.eq(id(&one).await));
    assert_eq!(files.count(&one.db).await.unwrap(), 3);
}

#[tokio::test]
async fn a_limit_is_kept_and_said() {
    let bench = Bench::new().await;
    let (root, fixture) = bench.fixture();
    let limited = IndexOptions { limit: 100, batch: 7, ..IndexOptions::default() };
    let indexed = bench.index(&root, &limited).await.unwrap();
    assert_eq!((indexed.entries, indexed.limited), (100, true));
    assert_eq!(bench.rows().await[4], 100);

    // Exactly as many as there are is no limit reached.
    let bench = Bench::new().await;
    let exact = IndexOptions { limit: fixture.entries(), ..IndexOptions::default() };
    let indexed = bench.index(&root, &exact).await.unwrap();
    assert_eq!((indexed.entries, indexed.limited), (fixture.entries(), false));
}

#[tokio::test]
async fn what_cannot_be_read_is_all_counted_and_the_first_of_it_named() {
    let bench = Bench::new().await;
    let (root, fixture) = bench.fixture();
    let options = IndexOptions { open: |_| Err(io::Error::other("no")), ..IndexOptions::default() };
    let indexed = bench.index(&root, &options).await.unwrap();
    let closed = u64::from(fixture.closed.is_some());
    assert_eq!((indexed.skipped, indexed.hashed), (fixture.hashable + closed, 0));
    assert_eq!(indexed.skipped_named.len(), SKIPPED_NAMED);
    assert_eq!(indexed.entries, fixture.entries(), "a file that cannot be read is still a file");
}

#[tokio::test]
async fn a_directory_that_cannot_be_indexed_is_a_clear_error_and_changes_nothing() {
    let bench = Bench::new().await;
    let file = bench.path("a file");
    fs::write(&file, "x").unwrap();
    let missing = bench.path("missing");
    let options = IndexOptions::default();

    let error = bench.index(&missing, &options).await.unwrap_err();
    assert!(matches!(error, IndexError::Root(RootError::Missing(_))));
    assert_eq!(
        error.to_string(),
        format!(
            "`{}` cannot be indexed: there is no such directory. \
             Nothing was changed; name a directory that exists",
            missing.display()
        )
    );
    let error = bench.index(&file, &options).await.unwrap_err().to_string();
    assert!(error.contains("a file` cannot be indexed: it is not a directory. Nothing was changed; name"));
    let error = bench.index(&file.join("below"), &options).await.unwrap_err().to_string();
    assert!(error.contains("it is not a directory. Nothing was changed"), "{error}");
    let unreadable =
        RootError::Unreadable { path: missing, reason: io::Error::from(io::ErrorKind::PermissionDenied) };
    let error = unreadable.to_string();
    assert!(error.contains("cannot be read (permission denied). Nothing was changed; make it readable"));
    assert_eq!(bench.rows().await, [0; 8]);

    let root = bench.path("files");
    fs::create_dir(&root).unwrap();
    bench.index(&root, &options).await.unwrap();
    let before = bench.rows().await;
    let error = bench.index(&root, &options).await.unwrap_err().to_string();
    assert!(error.contains("is indexed already, as location ") && error.contains("Nothing was changed"));
    assert_eq!(bench.rows().await, before);
}

#[tokio::test]
async fn a_database_that_stops_the_index_is_named_with_what_was_saved() {
    let bench = Bench::new().await;
    let (root, _) = bench.fixture();
    bench
        .sql(
            "CREATE TRIGGER full AFTER INSERT ON entries WHEN (SELECT count(*) FROM entries) > 250 \
             BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
        )
        .await;
    let options = IndexOptions { batch: 100, ..IndexOptions::default() };
    let error = bench.index(&root, &options).await.unwrap_err().to_string();
    assert!(error.contains("was indexed in part: the database stopped it after 200 entries"), "{error}");
    assert!(error.contains("the disk is full") && error.contains("delete the location to start again"));
    assert_eq!(bench.rows().await[4], 200, "whole batches only");
}

#[tokio::test]
async fn edits_touch_every_kind_and_both_ways_of_writing_end_alike() {
    let mut rows = Vec::new();
    for writes in [Writes::Bulk, Writes::OneByOne] {
        let bench = Bench::new().await;
        let (root, fixture) = bench.fixture();
        let indexed = bench.index(&root, &IndexOptions { writes, ..IndexOptions::default() }).await.unwrap();
        let edited = edit::edit(&bench.db, indexed.location, writes).await.unwrap();

        assert!(edited.tagged > 100 && edited.annotated > 100 && edited.renamed > 50, "{edited:?}");
        assert!(edited.deleted > 50 && edited.moved == 1, "{edited:?}");
        let after = bench.rows().await;
        assert_eq!(after[4], fixture.entries() - edited.deleted);
        assert!(after[6] < edited.tagged, "some of the tagged files went: {after:?}");
        assert!(after[7] < edited.annotated, "some of the annotated files went: {after:?}");
        let renamed = entry::Entity::find().filter(entry::Column::Name.starts_with("renamed "));
        assert!((1..edited.renamed).contains(&renamed.count(&bench.db).await.unwrap()));
        let favorites = user_metadata::Entity::find().filter(user_metadata::Column::Favorite.eq(true));
        let favorites = favorites.all(&bench.db).await.unwrap();
        assert!(!favorites.is_empty() && favorites.iter().all(|f| f.rating == Some(5)));
        let location = location::Entity::find().one(&bench.db).await.unwrap().unwrap();
        assert_eq!(location.name, "fixture (sorted)");
        rows.push((edited, after));
    }
    assert_eq!(rows[0], rows[1]);
}

/// What three people made of the same location, each for himself: names that begin with the file's, notes, colours of the
/// tag.
async fn made_of(
    bench: &Bench,
    subjects: &Subjects,
) -> (Option<String>, Option<String>, Option<String>, String) {
    let of = |file: &File| entry::Entity::find_by_id(file.id).one(&bench.db);
    let name = of(subjects.renamed.as_ref().unwrap()).await.unwrap().map(|entry| entry.name);
    let deleted = of(subjects.deleted.as_ref().unwrap()).await.unwrap().map(|entry| entry.name);
    let noted = subjects.noted.as_ref().unwrap().note;
    let noted = user_metadata::Entity::find_by_id(noted).one(&bench.db).await.unwrap();
    let tag = tag::Entity::find_by_id(subjects.tag).one(&bench.db).await.unwrap().unwrap();
    (name, deleted, noted.and_then(|noted| noted.notes), tag.color)
}

#[tokio::test]
async fn what_three_edit_apart_is_partly_the_same() {
    let mut leader = Bench::new().await;
    let (root, _) = leader.fixture();
    let indexed = leader.index(&root, &IndexOptions::default()).await.unwrap();
    edit::edit(&leader.db, indexed.location, Writes::Bulk).await.unwrap();
    let subjects = Subjects::prepare(&leader.db, indexed.location).await.unwrap();
    let (first, second) = (leader.copy().await, leader.copy().await);
    let made = [
        apart::on_leader(&leader.db, &subjects, "L").await.unwrap(),
        apart::on_first(&first.db, &subjects, "A").await.unwrap(),
        apart::on_second(&second.db, &subjects, "B").await.unwrap(),
    ];
    let (renamed, deleted) = (subjects.renamed.clone().unwrap().name, subjects.deleted.clone().unwrap().name);
    let (named, red) = (|by: &str| Some(format!("{renamed} ({by})")), "#d0312d".to_owned());
    assert_eq!(made_of(&leader, &subjects).await, (named("L"), None, None, "#b00020".to_owned()));
    let rewritten = Some("still needed".to_owned());
    assert_eq!(
        made_of(&first, &subjects).await,
        (named("A"), Some(deleted.clone()), rewritten, "#ff5050".to_owned())
    );
    let kept = Some("not needed any more".to_owned());
    assert_eq!(made_of(&second, &subjects).await, (named("B"), Some(format!("{deleted} (B)")), kept, red));
    assert_eq!(made.iter().filter(|made| made.tag.is_some()).count(), 2, "two make the same tag");
    assert_eq!(made.iter().filter(|made| made.note.is_some()).count(), 1);
}

#[tokio::test]
async fn where_there_are_no_files_the_tags_are_edited() {
    let bench = Bench::new().await;
    let root = bench.path("files");
    fs::create_dir(&root).unwrap();
    let indexed = bench.index(&root, &IndexOptions::default()).await.unwrap();
    edit::edit(&bench.db, indexed.location, Writes::Bulk).await.unwrap();
    let subjects = Subjects::prepare(&bench.db, indexed.location).await.unwrap();
    assert!(subjects.renamed.is_none() && subjects.noted.is_none());
    let made = apart::on_first(&bench.db, &subjects, "A").await.unwrap();
    assert!(made.tag.is_some() && made.note.is_none());
}

#[tokio::test]
async fn the_digest_is_stable_and_sees_one_bit() {
    let mut bench = Bench::new().await;
    let (root, _) = bench.fixture();
    let indexed = bench.index(&root, &IndexOptions::default()).await.unwrap();
    edit::edit(&bench.db, indexed.location, Writes::Bulk).await.unwrap();

    let before = bench.digest().await;
    assert_eq!(before.iter().map(|d| d.rows).collect::<Vec<_>>(), bench.rows().await);
    assert_eq!(before.iter().map(|d| d.model.as_str()).collect::<Vec<_>>(), MODELS.map(|m| m.0));
    assert_eq!(bench.digest().await, before);
    bench.sql("UPDATE volumes SET mount_point = 'elsewhere', is_online = NOT is_online").await;
    bench.sql("VACUUM").await;
    assert_eq!(bench.digest().await, before, "local columns and the file's layout are left out");

    // What SQL calls equal, or the eye, is not: one bit, a storage class, NULL and nothing.
    for (model, there, back) in [
        ("entry", "UPDATE entries SET size = size + 1 WHERE rowid = 9", "size = size - 1"),
        ("tag", "UPDATE tags SET color = CAST(color AS BLOB) WHERE rowid = 1", "color = CAST(color AS TEXT)"),
        ("entry", "UPDATE entries SET extension = '' WHERE rowid = 1", "extension = NULL"),
        ("user_metadata", "UPDATE user_metadata SET notes = notes || char(0) WHERE rowid = 1", ""),
    ] {
        bench.sql(there).await;
        let after = bench.digest().await;
        let differing: Vec<_> =
            before.iter().zip(&after).filter(|(b, a)| b != a).map(|(b, _)| b.model.as_str()).collect();
        assert_eq!(differing, [model], "{there}");
        if let (Some((update, _)), Some((_, filter))) =
            (there.split_once(" SET "), there.split_once(" WHERE "))
            && !back.is_empty()
        {
            bench.sql(&format!("{update} SET {back} WHERE {filter}")).await;
            assert_eq!(bench.digest().await, before, "{back}");
        }
    }
}

#[tokio::test]
async fn a_digest_of_what_is_not_the_database_is_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.db");
    let error = digest::digest(&missing).unwrap_err().to_string();
    assert!(error.contains("missing.db` cannot be read for its digest: opening it: "), "{error}");
    assert!(error.contains("Nothing was changed; check that the file is there"), "{error}");
    assert!(!missing.exists(), "reading makes no file");
    fs::write(&missing, "").unwrap();
    let error = digest::digest(&missing).unwrap_err().to_string();
    assert!(error.contains("table `devices`"), "{error}");
}

#[test]
fn a_fixture_is_not_written_over_anything() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("precious"), "x").unwrap();
    let error = Fixture::write(folder.path()).unwrap_err().to_string();
    assert!(error.contains("it is not empty, and was left as it is"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn what_the_entities_say_of_themselves_is_what_the_tables_are() {
    use tidelog::model::ModelDescriptor;
    let models = [
        ModelDescriptor::of::<device::Model>().unwrap(),
        ModelDescriptor::of::<volume::Model>().unwrap(),
        ModelDescriptor::of::<location::Model>().unwrap(),
        ModelDescriptor::of::<content_identity::Model>().unwrap(),
        ModelDescriptor::of::<entry::Model>().unwrap(),
        ModelDescriptor::of::<tag::Model>().unwrap(),
        ModelDescriptor::of::<entry_tag::Model>().unwrap(),
        ModelDescriptor::of::<user_metadata::Model>().unwrap(),
    ];
    for (model, (id, table, local)) in models.iter().zip(MODELS) {
        assert_eq!((model.id, model.table.as_str()), (id, table));
        assert_eq!(model.local, local);
    }
    let references = |i: usize| models[i].references.iter().map(|r| r.table.as_str()).collect::<Vec<_>>();
    assert_eq!(references(4), ["locations", "entries", "content_identities"]);
    assert_eq!(references(6), ["entries", "tags"]);
    assert_eq!(models[6].key, [0, 1]);
}
