//! What the simulated application is: its tables, with every policy, and what it writes into them.
//!
//! Everything is SQL on a connection of the application's own, so that the same choice is the same transaction. There are
//! few records, so that devices meet on them.

use rusqlite::Connection;
use tidelog::model::ModelDescriptor;

use crate::dice::Dice;

/// How a table's records merge, as far as the oracle must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// Field by field.
    Fields,
    /// The record counts as one.
    Record,
    /// As one, and a function makes a third row of two.
    Custom,
    /// As one, and only its owner may write.
    Owner,
}

/// A table, and what the oracle must know of it.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Its name and its model's sync id.
    pub name: &'static str,
    /// Its columns, the key first.
    pub columns: &'static [&'static str],
    /// How its records merge.
    pub merge: Merge,
    /// Whether a deletion stands against a write that had not seen it.
    pub deletes_win: bool,
    /// Index of a column that adds up.
    pub sum: Option<usize>,
    /// Index of a column that only rises.
    pub max: Option<usize>,
}

impl Table {
    /// Whether a column merges by itself.
    pub fn is_reduced(&self, column: usize) -> bool {
        self.sum == Some(column) || self.max == Some(column)
    }

    /// Index of the table with this name.
    pub fn index(name: &str) -> Option<usize> {
        TABLES.iter().position(|t| t.name == name)
    }
}

macro_rules! plain {
    ($name:literal, $merge:ident, $deletes:literal) => {
        Table {
            name: $name,
            columns: &["id", "x", "y"],
            merge: Merge::$merge,
            deletes_win: $deletes,
            sum: None,
            max: None,
        }
    };
}

/// All tables.
pub const TABLES: &[Table] = &[
    Table {
        name: "accounts",
        columns: &["id", "holder", "balance", "high"],
        merge: Merge::Fields,
        deletes_win: true,
        sum: Some(2),
        max: Some(3),
    },
    Table {
        name: "folders",
        columns: &["id", "name", "parent", "note"],
        merge: Merge::Record,
        deletes_win: true,
        sum: None,
        max: None,
    },
    Table {
        name: "docs",
        columns: &["id", "folder", "title", "body", "reads"],
        merge: Merge::Fields,
        deletes_win: true,
        sum: None,
        max: Some(4),
    },
    Table {
        name: "pins",
        columns: &["id", "doc", "place"],
        merge: Merge::Record,
        deletes_win: true,
        sum: None,
        max: None,
    },
    plain!("lasts", Record, true),
    plain!("leads", Record, false),
    plain!("origins", Record, false),
    plain!("roles", Record, false),
    plain!("customs", Custom, true),
    plain!("manuals", Record, false),
    plain!("updates", Fields, false),
    Table {
        name: "owned",
        columns: &["id", "x", "y", "owner"],
        merge: Merge::Owner,
        deletes_win: true,
        sum: None,
        max: None,
    },
];

/// Index of the column that makes a tree of folders.
pub const FOLDER_PARENT: usize = 2;

/// What all accounts hold together.
pub const TOTAL: i64 = 4_000;

const SCHEMA: &str = "
    CREATE TABLE accounts (id TEXT PRIMARY KEY NOT NULL, holder TEXT NOT NULL, balance INTEGER NOT NULL, high INTEGER NOT NULL);
    CREATE TABLE folders (id TEXT PRIMARY KEY NOT NULL, name TEXT NOT NULL UNIQUE,
        parent TEXT REFERENCES folders (id) ON DELETE SET NULL, note TEXT);
    CREATE TABLE docs (id TEXT PRIMARY KEY NOT NULL, folder TEXT NOT NULL REFERENCES folders (id) ON DELETE CASCADE,
        title TEXT NOT NULL, body TEXT, reads INTEGER NOT NULL, opened INTEGER);
    CREATE TABLE pins (id TEXT PRIMARY KEY NOT NULL, doc TEXT NOT NULL REFERENCES docs (id) ON DELETE RESTRICT,
        place TEXT UNIQUE);
    CREATE TABLE owned (id TEXT PRIMARY KEY NOT NULL, x TEXT NOT NULL, y TEXT, owner TEXT);";

/// Tables of one shape, one for each other policy.
const PLAIN: [&str; 7] = ["lasts", "leads", "origins", "roles", "customs", "manuals", "updates"];

/// Makes the tables.
pub fn create_tables(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch(SCHEMA)?;
    for table in PLAIN {
        conn.execute_batch(&format!(
            "CREATE TABLE {table} (id TEXT PRIMARY KEY NOT NULL, x TEXT NOT NULL, y TEXT)"
        ))?;
    }
    Ok(())
}

/// The statements of the first transaction of the library.
pub const FOUNDING: &str =
    "INSERT INTO accounts VALUES ('a0', 'nobody', 1000, 0), ('a1', 'nobody', 1000, 0), ('a2', 'nobody', 1000, 0),
     ('a3', 'nobody', 1000, 0);
     INSERT INTO folders VALUES ('f0', 'root', NULL, NULL);";

macro_rules! entity {
    ($module:ident $table:literal [$($sync:tt)*] { $($(#[$attribute:meta])* $field:ident: $type:ty,)* } $($rest:item)*) => {
        #[allow(missing_docs, unreachable_pub, reason = "the entity's generated items are SeaORM's")]
        mod $module {
            use sea_orm::entity::prelude::*;
            use tidelog::Syncable;

            #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
            #[sea_orm(table_name = $table)]
            #[sync(model = $table, $($sync)*)]
            pub struct Model {
                #[sea_orm(primary_key, auto_increment = false)]
                pub id: String,
                $($(#[$attribute])* pub $field: $type,)*
            }

            #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
            pub enum Relation {}

            $($rest)*
        }
    };
}

entity! { account "accounts" [merge = "fields"] {
    holder: String, #[sync(merge = "sum")] balance: i64, #[sync(merge = "max")] high: i64,
} }
entity! { folder "folders" [merge = "lww", tree = "parent"] { name: String, parent: Option<String>, note: Option<String>, } }
entity! { doc "docs" [merge = "fields", after = "folders"] {
    folder: String, title: String, body: Option<String>, #[sync(merge = "max")] reads: i64, #[sync(local)] opened: Option<i64>,
} }
entity! { pin "pins" [merge = "lww", after = "docs"] { doc: String, place: Option<String>, } }
entity! { last "lasts" [merge = "lww"] { x: String, y: Option<String>, } }
entity! { lead "leads" [merge = "leader_wins"] { x: String, y: Option<String>, } }
entity! { origin "origins" [merge = "origin_wins"] { x: String, y: Option<String>, } }
entity! { role "roles" [merge = "role"] { x: String, y: Option<String>, } }
entity! { custom "customs" [custom = "merge"] { x: String, y: Option<String>, }
    fn merge(_base: Option<Model>, local: Model, remote: Model) -> Model {
        let (low, high) = if local.x < remote.x { (local.x, remote.x) } else { (remote.x, local.x) };
        let x = if low == high { low } else { format!("{low}+{high}").chars().take(40).collect() };
        Model { x, y: remote.y, id: local.id }
    }
}
entity! { manual "manuals" [merge = "manual", deletes = "manual"] { x: String, y: Option<String>, } }
entity! { update "updates" [merge = "fields", deletes = "update_wins"] { x: String, y: Option<String>, } }
entity! { owned "owned" [owner = "owner"] { x: String, y: Option<String>, owner: Option<String>, } }

/// What the library syncs, in the order of [`TABLES`].
///
/// # Panics
/// If a model does not describe itself, which is a mistake here.
pub fn models() -> Vec<ModelDescriptor> {
    let models = [
        ModelDescriptor::of::<account::Model>(),
        ModelDescriptor::of::<folder::Model>(),
        ModelDescriptor::of::<doc::Model>(),
        ModelDescriptor::of::<pin::Model>(),
        ModelDescriptor::of::<last::Model>(),
        ModelDescriptor::of::<lead::Model>(),
        ModelDescriptor::of::<origin::Model>(),
        ModelDescriptor::of::<role::Model>(),
        ModelDescriptor::of::<custom::Model>(),
        ModelDescriptor::of::<manual::Model>(),
        ModelDescriptor::of::<update::Model>(),
        ModelDescriptor::of::<owned::Model>(),
    ];
    models.into_iter().map(|model| model.expect("the models of the workload describe themselves")).collect()
}

/// Registers the same models with a library.
pub fn register(builder: tidelog::LibraryBuilder) -> tidelog::LibraryBuilder {
    builder
        .model::<account::Entity>()
        .model::<folder::Entity>()
        .model::<doc::Entity>()
        .model::<pin::Entity>()
        .model::<last::Entity>()
        .model::<lead::Entity>()
        .model::<origin::Entity>()
        .model::<role::Entity>()
        .model::<custom::Entity>()
        .model::<manual::Entity>()
        .model::<update::Entity>()
        .model::<owned::Entity>()
}

/// Choices from here on are transactions on few records.
pub const HOT: u64 = 1 << 40;

/// A transaction of the application.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// Statements; one that fails takes the transaction with it.
    pub statements: Vec<String>,
    /// Whether it has an atomic mark.
    pub atomic: bool,
}

impl Transaction {
    /// The transaction of a choice. `number` counts transactions: what it writes is like nothing before it, mostly.
    pub fn choose(choice: u64, number: u64, me: &str) -> Self {
        let mut dice = Dice(choice);
        let mut transaction = Self { statements: Vec::new(), atomic: false };
        if choice >= HOT {
            transaction.add_hot(&mut dice, &format!("v{number}"));
            return transaction;
        }
        let parts = 1 + dice.roll(6) / 4 + dice.roll(8) / 7;
        transaction.atomic = dice.roll(3) == 0;
        for part in 0..parts {
            transaction.add(&mut dice, number, part, me);
        }
        transaction
    }

    fn add(&mut self, dice: &mut Dice, number: u64, part: u64, me: &str) {
        // Now and then two devices say the same.
        let value =
            if dice.roll(8) == 0 { format!("same{}", dice.roll(2)) } else { format!("v{number}.{part}") };
        match dice.roll(20) {
            0..=3 => {
                let (from, by, amount) = (dice.roll(4), 1 + dice.roll(3), 1 + dice.roll(100));
                let to = (from + by) % 4;
                self.atomic = true;
                self.say(format!("UPDATE accounts SET balance = balance - {amount} WHERE id = 'a{from}'"));
                self.say(format!("UPDATE accounts SET balance = balance + {amount}, high = max(high, {amount}) WHERE id = 'a{to}'"));
            }
            4 => self.say(format!("UPDATE accounts SET holder = '{value}' WHERE id = 'a{}'", dice.roll(4))),
            5..=7 => self.add_folder(dice, &value),
            8..=10 => self.add_doc(dice, &value),
            11 => {
                let pin = dice.roll(3);
                match dice.roll(4) {
                    0 => self.say(format!("DELETE FROM pins WHERE id = 'p{pin}'")),
                    _ => self.say(format!(
                        "INSERT INTO pins VALUES ('p{pin}', 'd{}', 'place{}')
                         ON CONFLICT (id) DO UPDATE SET doc = excluded.doc, place = excluded.place",
                        dice.roll(4),
                        dice.roll(4)
                    )),
                }
            }
            12 => {
                let id = dice.roll(3);
                let owner = if dice.roll(3) == 0 { "NULL".to_owned() } else { format!("'{me}'") };
                match dice.roll(5) {
                    0 => self.say(format!("DELETE FROM owned WHERE id = 'o{id}'")),
                    1 => self.say(format!("UPDATE owned SET owner = {owner} WHERE id = 'o{id}'")),
                    _ => self.say(format!(
                        "INSERT INTO owned VALUES ('o{id}', '{value}', NULL, {owner})
                         ON CONFLICT (id) DO UPDATE SET x = excluded.x"
                    )),
                }
            }
            _ => {
                let table = PLAIN[dice.roll(PLAIN.len() as u64) as usize];
                self.add_plain(dice, table, &value);
            }
        }
    }

    fn add_folder(&mut self, dice: &mut Dice, value: &str) {
        let id = 1 + dice.roll(4);
        match dice.roll(8) {
            0 => self.say(format!("DELETE FROM folders WHERE id = 'f{id}'")),
            1 => {
                let parent = dice.roll(5);
                // No further than the application sees: two devices may well make a circle of it together.
                self.say(format!(
                    "UPDATE folders SET parent = 'f{parent}' WHERE id = 'f{id}' AND id NOT IN (
                        WITH RECURSIVE above (id) AS (VALUES ('f{parent}') UNION
                            SELECT parent FROM folders JOIN above USING (id) WHERE parent IS NOT NULL)
                        SELECT id FROM above)"
                ));
            }
            2 => self.say(format!("UPDATE folders SET note = '{value}' WHERE id = 'f{id}'")),
            // A name that others may take too.
            3 => self.say(format!("UPDATE folders SET name = 'name{}' WHERE id = 'f{id}'", dice.roll(4))),
            _ => self.say(format!(
                "INSERT INTO folders VALUES ('f{id}', 'name{}', 'f0', '{value}')
                 ON CONFLICT (id) DO UPDATE SET note = excluded.note",
                dice.roll(5)
            )),
        }
    }

    fn add_doc(&mut self, dice: &mut Dice, value: &str) {
        let id = dice.roll(4);
        match dice.roll(8) {
            0 => self.say(format!("DELETE FROM docs WHERE id = 'd{id}'")),
            1 => self.say(format!("UPDATE docs SET folder = 'f{}' WHERE id = 'd{id}'", dice.roll(5))),
            2 => self.say(format!("UPDATE docs SET title = '{value}' WHERE id = 'd{id}'")),
            3 => self.say(format!("UPDATE docs SET body = '{value}' WHERE id = 'd{id}'")),
            // When it was opened here is nobody else's business.
            4 => self.say(format!(
                "UPDATE docs SET reads = reads + 1, opened = {} WHERE id = 'd{id}'",
                dice.0 >> 33
            )),
            _ => self.say(format!(
                "INSERT INTO docs (id, folder, title, body, reads) VALUES ('d{id}', 'f{}', '{value}', NULL, 0)
                 ON CONFLICT (id) DO UPDATE SET title = excluded.title",
                dice.roll(5)
            )),
        }
    }

    fn add_plain(&mut self, dice: &mut Dice, table: &str, value: &str) {
        let id = dice.roll(2);
        match dice.roll(8) {
            0 | 1 => self.say(format!("DELETE FROM {table} WHERE id = 's{id}'")),
            2 => {
                self.say(format!("DELETE FROM {table} WHERE id = 's{id}'"));
                self.say(format!("INSERT INTO {table} VALUES ('s{id}', '{value}', 'anew')"));
            }
            3 | 4 => self.say(format!("UPDATE {table} SET y = '{value}' WHERE id = 's{id}'")),
            _ => self.say(format!(
                "INSERT INTO {table} VALUES ('s{id}', '{value}', NULL) ON CONFLICT (id) DO UPDATE SET x = excluded.x"
            )),
        }
    }

    /// To a record that everybody writes to, mostly one of which a person is to decide.
    fn add_hot(&mut self, dice: &mut Dice, value: &str) {
        let table = ["manuals", "manuals", "updates", "lasts"][dice.roll(4) as usize];
        match dice.roll(8) {
            0 => self.say(format!("DELETE FROM {table} WHERE id = 's0'")),
            1..=3 => self.say(format!("UPDATE {table} SET y = '{value}' WHERE id = 's0'")),
            _ => self.say(format!(
                "INSERT INTO {table} VALUES ('s0', '{value}', NULL) ON CONFLICT (id) DO UPDATE SET x = excluded.x"
            )),
        }
    }

    fn say(&mut self, statement: String) {
        self.statements.push(statement);
    }
}
