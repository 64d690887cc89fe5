//! What a person does with an indexed location: tags, notes, renames, a folder moved, files and a folder
//! deleted. The same choices for the same tree, made by a plan that does no IO.
//!
//! The choices overlap on purpose: some of the files that go were tagged, annotated or renamed just before,
//! so that deletions have something to take along.

use std::collections::HashMap;

use sea_orm::{
    ActiveModelTrait,
    ActiveValue::{Set, Unchanged},
    ColumnTrait, ConnectionTrait, DbErr, EntityTrait, IntoActiveModel, QueryFilter, QueryOrder, QuerySelect,
    TransactionSession, TransactionTrait,
    sea_query::Expr,
};
use uuid::Uuid;

use super::{
    entities::{entry, entry::Kind, entry_tag, location, tag, user_metadata},
    writes::Writes,
};

/// Most entries that any one kind of edit touches, however large the location is.
const MOST: usize = 500;
/// Most entries that the deleted folder may take along.
const LARGEST_DELETED: usize = 5_000;
/// Ids in one `IN (…)`.
const IDS_PER_STATEMENT: usize = 500;
/// Name and colour of the tags.
const TAGS: [(&str, &str); 4] =
    [("Red", "#d0312d"), ("To sort", "#e0a030"), ("Family", "#3a7d44"), ("Año – 写真", "#3050d0")];

/// What was edited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Edited {
    /// Tags stuck on entries.
    pub tagged: u64,
    /// Entries that got notes.
    pub annotated: u64,
    /// Entries that got another name.
    pub renamed: u64,
    /// Folders that went elsewhere.
    pub moved: u64,
    /// Entries that went, those below a deleted folder included.
    pub deleted: u64,
}

/// Edits `location`, one transaction for each kind of edit.
///
/// # Errors
/// The database's; edits of the kinds before the failing one stay.
pub async fn edit<C>(db: &C, location: Uuid, writes: Writes) -> Result<Edited, DbErr>
where
    C: ConnectionTrait + TransactionTrait,
{
    let plan = Plan::of(&Tree::load(db, location).await?);
    let edited = Edited {
        tagged: plan.tagged.len() as u64,
        annotated: plan.annotated.len() as u64,
        renamed: plan.renamed.len() as u64,
        moved: u64::from(plan.moved.is_some()),
        deleted: (plan.deleted_files.len() + plan.deleted_folder.len()) as u64,
    };

    let tx = db.begin().await?;
    stick_tags(&tx, &plan, location, writes).await?;
    tx.commit().await?;
    let tx = db.begin().await?;
    annotate(&tx, &plan, writes).await?;
    tx.commit().await?;
    let tx = db.begin().await?;
    rename_and_move(&tx, &plan).await?;
    tx.commit().await?;
    let tx = db.begin().await?;
    delete(&tx, &plan, writes).await?;
    tx.commit().await?;
    let tx = db.begin().await?;
    touch_location(&tx, location, writes).await?;
    tx.commit().await?;
    Ok(edited)
}

/// A location's entries, as far as choosing needs them.
#[derive(Debug, Default)]
struct Tree {
    nodes: Vec<Node>,
    index: HashMap<Uuid, usize>,
    children: HashMap<Uuid, Vec<usize>>,
}

#[derive(Debug)]
struct Node {
    id: Uuid,
    parent: Option<Uuid>,
    name: String,
    kind: Kind,
}

impl Tree {
    async fn load<C: ConnectionTrait>(db: &C, location: Uuid) -> Result<Self, DbErr> {
        let rows: Vec<(Uuid, Option<Uuid>, String, Kind)> = entry::Entity::find()
            .select_only()
            .columns([entry::Column::Id, entry::Column::ParentId, entry::Column::Name, entry::Column::Kind])
            .filter(entry::Column::LocationId.eq(location))
            .order_by_asc(entry::Column::Id)
            .into_tuple()
            .all(db)
            .await?;
        Ok(Self::of(rows.into_iter().map(|(id, parent, name, kind)| Node { id, parent, name, kind })))
    }

    fn of(nodes: impl IntoIterator<Item = Node>) -> Self {
        let mut tree = Self::default();
        for (i, node) in nodes.into_iter().enumerate() {
            tree.index.insert(node.id, i);
            if let Some(parent) = node.parent {
                tree.children.entry(parent).or_default().push(i);
            }
            tree.nodes.push(node);
        }
        tree
    }

    fn children(&self, id: Uuid) -> impl Iterator<Item = &Node> {
        self.children.get(&id).into_iter().flatten().map(|&i| &self.nodes[i])
    }

    fn folders(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|n| n.kind == Kind::Directory)
    }

    /// Whether `id` is `above` or somewhere below it.
    fn is_within(&self, id: Uuid, above: Uuid) -> bool {
        let mut at = Some(id);
        while let Some(id) = at {
            if id == above {
                return true;
            }
            at = self.index.get(&id).and_then(|&i| self.nodes[i].parent);
        }
        false
    }

    /// `id` and all below it, children before parents. `None` if that is more than `most`.
    fn subtree(&self, id: Uuid, most: usize) -> Option<Vec<Uuid>> {
        let mut found = vec![id];
        let mut next = 0;
        while let Some(&id) = found.get(next) {
            next += 1;
            found.extend(self.children(id).map(|n| n.id));
            if found.len() > most {
                return None;
            }
        }
        found.reverse();
        Some(found)
    }
}

/// Who is edited and how.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Entry and number of the tag.
    tagged: Vec<(Uuid, usize)>,
    annotated: Vec<Uuid>,
    /// Entry and its new name.
    renamed: Vec<(Uuid, String)>,
    /// Folder and where it goes.
    moved: Option<(Uuid, Uuid)>,
    deleted_files: Vec<Uuid>,
    /// A folder with all below it, children before parents.
    deleted_folder: Vec<Uuid>,
}

impl Plan {
    fn of(tree: &Tree) -> Self {
        let files: Vec<&Node> = tree.nodes.iter().filter(|n| n.kind == Kind::File).collect();
        let every = |step: usize, from: usize| files.iter().skip(from).step_by(step).take(MOST);
        let moved = choose_move(tree);
        let deleted_folder = choose_deleted_folder(tree, moved);
        Self {
            tagged: every(3, 0).enumerate().map(|(i, n)| (n.id, i % TAGS.len())).collect(),
            annotated: every(5, 1).map(|n| n.id).collect(),
            renamed: every(7, 2).map(|n| (n.id, new_name(n))).collect(),
            moved,
            deleted_files: every(10, 6).map(|n| n.id).filter(|id| !deleted_folder.contains(id)).collect(),
            deleted_folder,
        }
    }
}

/// A name that no other entry has, since nobody else has the id.
fn new_name(node: &Node) -> String {
    let id = node.id.simple().to_string();
    format!("renamed {} {}", &id[20..], node.name)
}

/// The first folder with something in it that can go to the location's root, or else into another folder.
fn choose_move(tree: &Tree) -> Option<(Uuid, Uuid)> {
    tree.folders().filter(|n| n.parent.is_some() && tree.children(n.id).next().is_some()).find_map(|folder| {
        let fits = |target: &&Node| {
            Some(target.id) != folder.parent
                && !tree.is_within(target.id, folder.id)
                && tree.children(target.id).all(|n| n.name != folder.name)
        };
        tree.folders().find(fits).map(|target| (folder.id, target.id))
    })
}

/// The smallest folder with something in it that has nothing to do with the move.
fn choose_deleted_folder(tree: &Tree, moved: Option<(Uuid, Uuid)>) -> Vec<Uuid> {
    let apart = |id: Uuid| match moved {
        Some((folder, target)) => {
            !tree.is_within(folder, id) && !tree.is_within(target, id) && !tree.is_within(id, folder)
        }
        None => true,
    };
    let mut best: Option<Vec<Uuid>> = None;
    for folder in tree.folders().filter(|n| n.parent.is_some() && apart(n.id)) {
        let most = best.as_ref().map_or(LARGEST_DELETED, |b| b.len() - 1);
        match tree.subtree(folder.id, most) {
            Some(subtree) if subtree.len() > 1 => best = Some(subtree),
            _ => {}
        }
    }
    best.unwrap_or_default()
}

async fn stick_tags<C: ConnectionTrait>(
    db: &C,
    plan: &Plan,
    location: Uuid,
    writes: Writes,
) -> Result<(), DbErr> {
    let mut ids = Vec::new();
    for (name, color) in TAGS {
        let known = tag::Entity::find().filter(tag::Column::Name.eq(name)).one(db).await?;
        let id = match known {
            Some(tag) => tag.id,
            // A tag belongs to no location, but its id should follow from something that is the same tomorrow.
            None => {
                let id = Uuid::new_v5(&location, name.as_bytes());
                tag::ActiveModel { id: Set(id), name: Set(name.to_owned()), color: Set(color.to_owned()) }
                    .insert(db)
                    .await?;
                id
            }
        };
        ids.push(id);
    }
    let now = chrono::Utc::now();
    let rows = plan.tagged.iter().map(|&(entry_id, tag)| {
        entry_tag::Model { entry_id, tag_id: ids[tag], created_at: now }.into_active_model()
    });
    writes.insert::<entry_tag::ActiveModel, _>(db, rows.collect()).await
}

async fn annotate<C: ConnectionTrait>(db: &C, plan: &Plan, writes: Writes) -> Result<(), DbErr> {
    let now = chrono::Utc::now();
    let rows = plan.annotated.iter().enumerate().map(|(i, &entry_id)| {
        user_metadata::Model {
            id: Uuid::now_v7(),
            entry_id,
            notes: (i % 2 == 0).then(|| format!("Note {i}: \"quoted\", and\na second line")),
            favorite: i % 4 == 0,
            rating: (i % 3 == 0).then_some(1 + (i % 5) as i32),
            custom: Some(serde_json::json!({ "width": i, "ratio": i as f64 / 3.0, "people": ["Zoë", null] })),
            updated_at: now,
        }
        .into_active_model()
    });
    writes.insert::<user_metadata::ActiveModel, _>(db, rows.collect()).await?;
    match writes {
        Writes::Bulk => {
            db.execute_unprepared("UPDATE user_metadata SET rating = 5 WHERE favorite").await?;
        }
        Writes::OneByOne => {
            let favorites = user_metadata::Entity::find().filter(user_metadata::Column::Favorite.eq(true));
            for favorite in favorites.all(db).await? {
                let mut favorite = favorite.into_active_model();
                favorite.rating = Set(Some(5));
                favorite.update(db).await?;
            }
        }
    }
    Ok(())
}

/// Row by row under both ways of writing, as a person does it.
async fn rename_and_move<C: ConnectionTrait>(db: &C, plan: &Plan) -> Result<(), DbErr> {
    for (id, name) in &plan.renamed {
        entry::ActiveModel {
            id: Unchanged(*id),
            name: Set(name.clone()),
            raw_name: Set(None),
            ..Default::default()
        }
        .update(db)
        .await?;
    }
    if let Some((folder, target)) = plan.moved {
        entry::ActiveModel { id: Unchanged(folder), parent_id: Set(Some(target)), ..Default::default() }
            .update(db)
            .await?;
    }
    Ok(())
}

async fn delete<C: ConnectionTrait>(db: &C, plan: &Plan, writes: Writes) -> Result<(), DbErr> {
    match writes {
        Writes::Bulk => {
            for ids in plan.deleted_files.chunks(IDS_PER_STATEMENT) {
                entry::Entity::delete_many()
                    .filter(entry::Column::Id.is_in(ids.iter().copied()))
                    .exec(db)
                    .await?;
            }
            // The foreign keys take along what is below.
            if let Some(&folder) = plan.deleted_folder.last() {
                entry::Entity::delete_by_id(folder).exec(db).await?;
            }
        }
        Writes::OneByOne => {
            for &id in plan.deleted_files.iter().chain(&plan.deleted_folder) {
                delete_entry(db, id).await?;
            }
        }
    }
    Ok(())
}

/// Deletes an entry without children so that no cascade has anything to do: hooks do not see cascades.
pub(super) async fn delete_entry<C: ConnectionTrait>(db: &C, id: Uuid) -> Result<(), DbErr> {
    for row in entry_tag::Entity::find().filter(entry_tag::Column::EntryId.eq(id)).all(db).await? {
        row.into_active_model().delete(db).await?;
    }
    for row in user_metadata::Entity::find().filter(user_metadata::Column::EntryId.eq(id)).all(db).await? {
        row.into_active_model().delete(db).await?;
    }
    entry::ActiveModel { id: Unchanged(id), ..Default::default() }.delete(db).await?;
    Ok(())
}

async fn touch_location<C: ConnectionTrait>(db: &C, id: Uuid, writes: Writes) -> Result<(), DbErr> {
    let now = chrono::Utc::now();
    match writes {
        Writes::Bulk => {
            location::Entity::update_many()
                .col_expr(location::Column::Name, Expr::cust("name || ' (sorted)'"))
                .col_expr(location::Column::UpdatedAt, Expr::value(now))
                .filter(location::Column::Id.eq(id))
                .exec(db)
                .await?;
        }
        Writes::OneByOne => {
            if let Some(location) = location::Entity::find_by_id(id).one(db).await? {
                let name = format!("{} (sorted)", location.name);
                let mut location = location.into_active_model();
                location.name = Set(name);
                location.updated_at = Set(now);
                location.update(db).await?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u128, parent: Option<u128>, name: &str, kind: Kind) -> Node {
        Node { id: Uuid::from_u128(id), parent: parent.map(Uuid::from_u128), name: name.to_owned(), kind }
    }

    #[test]
    fn a_folder_never_moves_into_itself_nor_onto_a_name_that_is_taken() {
        let tree = Tree::of([
            node(1, None, "root", Kind::Directory),
            node(2, Some(1), "a", Kind::Directory),
            node(3, Some(2), "a", Kind::Directory),
            node(4, Some(3), "f", Kind::File),
        ]);
        // 2 has only its own subtree to go to; 3 may not go to the root, where a sibling has its name.
        assert_eq!(choose_move(&tree), None);
        let tree = Tree::of([
            node(1, None, "root", Kind::Directory),
            node(2, Some(1), "a", Kind::Directory),
            node(3, Some(2), "b", Kind::Directory),
            node(4, Some(3), "f", Kind::File),
        ]);
        assert_eq!(choose_move(&tree), Some((Uuid::from_u128(3), Uuid::from_u128(1))));
    }

    #[test]
    fn the_deleted_folder_comes_children_first_and_spares_the_moved_one() {
        let tree = Tree::of([
            node(1, None, "root", Kind::Directory),
            node(2, Some(1), "moved", Kind::Directory),
            node(3, Some(2), "f", Kind::File),
            node(4, Some(1), "gone", Kind::Directory),
            node(5, Some(4), "below", Kind::Directory),
            node(6, Some(5), "f", Kind::File),
            node(7, Some(1), "target", Kind::Directory),
        ]);
        let gone = choose_deleted_folder(&tree, Some((Uuid::from_u128(2), Uuid::from_u128(7))));
        assert_eq!(gone, [6, 5].map(Uuid::from_u128), "the smallest folder with something in it");
    }

    #[test]
    fn an_empty_location_has_nothing_to_edit() {
        let tree = Tree::of([node(1, None, "root", Kind::Directory)]);
        assert_eq!(Plan::of(&tree), Plan::default());
    }
}
