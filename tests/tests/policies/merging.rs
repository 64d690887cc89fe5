//! Reducers, whatever the policy of the other fields; and custom merges that do not come to an end.

use std::collections::BTreeSet;

use tidelog::{
    LibraryBuilder,
    conflict::{ConflictState, Winner},
    id::Seq,
};
use tidelog_tests::{
    scene::{assert_says, text},
    trio::{Trio, Who},
};

use crate::PERMUTATIONS;

macro_rules! tallies {
    ($($name:ident $table:tt $policy:tt),*) => {
        $(
            #[allow(unreachable_pub, reason = "SeaORM has entities public")]
            mod $name {
                use sea_orm::entity::prelude::*;
                use tidelog::Syncable;

                #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
                #[sea_orm(table_name = $table)]
                #[sync(model = $table, merge = $policy)]
                pub struct Model {
                    #[sea_orm(primary_key, auto_increment = false)]
                    pub id: String,
                    pub title: String,
                    #[sync(merge = "max")]
                    pub highest: i64,
                    #[sync(merge = "min")]
                    pub lowest: i64,
                    #[sync(merge = "sum")]
                    pub total: i64,
                    #[sync(merge = "union")]
                    pub words: Json,
                }

                #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
                pub enum Relation {}
            }
        )*

        const TALLIES: &[&str] = &[$($table),*];

        fn register_tallies(builder: LibraryBuilder) -> LibraryBuilder {
            builder$(.model::<$name::Entity>())*
        }
    };
}

tallies!(lww "lww" "lww", fields "fields" "fields", leader_wins "leader_wins" "leader_wins", origin_wins "origin_wins" "origin_wins", manual "manual" "manual");

/// What one device adds. The base is 10, 10, 10, `["base", "old"]`.
struct Adds {
    who: Who,
    value: i64,
    amount: i64,
    word: &'static str,
}

const ADDS: [Adds; 3] = [
    Adds { who: Who::Leader, value: 12, amount: 5, word: "L" },
    Adds { who: Who::A, value: 7, amount: -30, word: "A" },
    Adds { who: Who::B, value: 15, amount: 100, word: "B" },
];

fn add(table: &str, record: &str, adds: &Adds, also: &str) -> String {
    let Adds { value, amount, word, .. } = adds;
    format!(
        "UPDATE {table} SET highest = max(highest, {value}), lowest = min(lowest, {value}), total = total + {amount},
            words = json_insert((SELECT json_group_array(value) FROM json_each(words)
                WHERE '{word}' <> 'A' OR value <> 'old'), '$[#]', '{word}') {also}
         WHERE id = '{record}'"
    )
}

#[tokio::test]
async fn both_sides_go_into_a_field_with_a_reducer_in_every_order() {
    let tables: Vec<String> = TALLIES
        .iter()
        .map(|table| {
            format!(
                "CREATE TABLE {table} (id TEXT NOT NULL PRIMARY KEY, title TEXT NOT NULL, highest INTEGER NOT NULL,
                    lowest INTEGER NOT NULL, total INTEGER NOT NULL, words TEXT NOT NULL)"
            )
        })
        .collect();
    let trio = Trio::set(&tables.join("; "), register_tallies).await;
    for (round, order) in PERMUTATIONS.into_iter().enumerate() {
        let begin = (round as i64 + 1) * 10_000;
        trio.it_is(begin + 9999);
        let (plain, titled) = (format!("{round} plain"), format!("{round} titled"));
        let both = [&plain, &titled];
        let base = TALLIES.iter().flat_map(|table| {
            both.map(|id| {
                format!("INSERT INTO {table} VALUES ('{id}', 'title', 10, 10, 10, '[\"base\",\"old\"]')")
            })
        });
        trio.write(Who::Leader, begin, &base.collect::<Vec<_>>()).await;
        trio.level().await;
        let before = trio.device(Who::Leader).library.position().await.unwrap().seq;
        let statements = |who: Who| -> Vec<String> {
            let adds = &ADDS[who as usize];
            assert_eq!(adds.who, who);
            let titles = format!(", title = '{}'", adds.word);
            let of = |table: &&str| [add(table, &plain, adds, ""), add(table, &titled, adds, &titles)];
            TALLIES.iter().flat_map(of).collect()
        };
        for who in [Who::A, Who::B] {
            trio.cut_off(who);
            trio.write(who, begin + 1000 * (who as i64), &statements(who)).await;
        }
        for who in order {
            if who == Who::Leader {
                trio.write(who, begin + 5000, &statements(who)).await;
                trio.barrier(who).await;
            } else {
                trio.let_back(who).await;
            }
        }
        trio.level().await;
        let file = trio.device(Who::B).file();
        for table in TALLIES {
            for id in both {
                let about = format!("{table}, {id}, in the order {order:?}");
                let numbers =
                    format!("SELECT highest || ' ' || lowest || ' ' || total FROM {table} WHERE id = '{id}'");
                assert_eq!(text(&file, &numbers), "15 7 85", "{about}");
                let words = text(&file, &format!("SELECT words FROM {table} WHERE id = '{id}'"));
                let words: BTreeSet<String> = serde_json::from_str(&words).unwrap();
                assert_eq!(words, ["A", "B", "L", "base"].map(str::to_owned).into(), "{about}");
            }
        }
        let conflicts = trio.device(Who::A).library.conflicts_since(before).await.unwrap();
        assert!(!conflicts.is_empty());
        for conflict in conflicts {
            assert_eq!(
                (conflict.record, conflict.field.as_deref()),
                (titled.clone(), Some("title")),
                "order {order:?}"
            );
        }
    }
    trio.assert_same(TALLIES);
}

macro_rules! merged_by {
    ($($name:ident $table:tt $function:tt),*) => {$(
        #[allow(unreachable_pub, reason = "SeaORM has entities public")]
        mod $name {
            use sea_orm::entity::prelude::*;
            use tidelog::Syncable;

            #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
            #[sea_orm(table_name = $table)]
            #[sync(model = $table, custom = $function)]
            pub struct Model {
                #[sea_orm(primary_key, auto_increment = false)]
                pub id: String,
                pub text: String,
            }

            #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
            pub enum Relation {}
        }
    )*};
}

merged_by!(joined "joined" "super::join", clumsy "clumsy" "super::panic", mistaken "mistaken" "super::rename");

fn join(_: Option<joined::Model>, local: joined::Model, remote: joined::Model) -> joined::Model {
    joined::Model { text: format!("{} and {}", local.text, remote.text), ..local }
}

fn panic(_: Option<clumsy::Model>, local: clumsy::Model, remote: clumsy::Model) -> clumsy::Model {
    panic!("no idea what {} and {} have in common", local.text, remote.text)
}

fn rename(_: Option<mistaken::Model>, local: mistaken::Model, _: mistaken::Model) -> mistaken::Model {
    mistaken::Model { id: "another".into(), ..local }
}

fn register_merged(builder: LibraryBuilder) -> LibraryBuilder {
    builder.model::<joined::Entity>().model::<clumsy::Entity>().model::<mistaken::Entity>()
}

const MERGED: [&str; 3] = ["joined", "clumsy", "mistaken"];

/// What the three tables hold, in one line.
fn texts(trio: &Trio, who: Who) -> String {
    let all = MERGED.map(|table| format!("SELECT '{table} ' || id || ': ' || text AS line FROM {table}"));
    text(
        &trio.device(who).file(),
        &format!(
            "SELECT group_concat(line, ', ') FROM (SELECT line FROM ({}) ORDER BY line)",
            all.join(" UNION ALL ")
        ),
    )
}

#[tokio::test]
async fn a_custom_merge_that_fails_refuses_its_change_and_nothing_beside_it() {
    let tables = MERGED
        .map(|table| format!("CREATE TABLE {table} (id TEXT NOT NULL PRIMARY KEY, text TEXT NOT NULL)"));
    let trio = Trio::set(&tables.join("; "), register_merged).await;
    trio.it_is(100_000);
    let owned = |statements: &[&str]| statements.iter().map(|sql| (*sql).to_owned()).collect::<Vec<_>>();
    let each = |sql: &dyn Fn(&str) -> String| MERGED.map(sql).to_vec();
    trio.write(Who::Leader, 1000, &each(&|table| format!("INSERT INTO {table} VALUES ('r', 'first')"))).await;
    trio.level().await;

    // All that A writes is one transaction.
    trio.cut_off(Who::A);
    let mut by_a = owned(&["INSERT INTO clumsy VALUES ('before', 'A')"]);
    by_a.extend(each(&|table| format!("UPDATE {table} SET text = 'A' WHERE id = 'r'")));
    by_a.extend(owned(&[
        "INSERT INTO mistaken VALUES ('after', 'A')",
        "INSERT INTO joined VALUES ('last', 'A')",
    ]));
    trio.write(Who::A, 3000, &by_a).await;
    trio.write(Who::Leader, 2000, &each(&|table| format!("UPDATE {table} SET text = 'L' WHERE id = 'r'")))
        .await;
    trio.let_back(Who::A).await;
    trio.level().await;
    for who in Who::ALL {
        assert_eq!(
            texts(&trio, who),
            "clumsy before: A, clumsy r: L, joined last: A, joined r: L and A, mistaken after: A, mistaken r: L"
        );
        let library = &trio.device(who).library;
        let letters = library.dead_letters().await.unwrap();
        let [panicked, renamed] = letters.as_slice() else { panic!("{letters:?}") };
        assert_says(
            &panicked.reason,
            &["merge function failed", "it panicked: no idea what L and A have in common"],
        );
        assert_says(&renamed.reason, &["merge function failed", "another record"]);
        for (letter, model) in [(panicked, "clumsy"), (renamed, "mistaken")] {
            assert_eq!((letter.model.as_str(), letter.record.as_str()), (model, "r"));
            assert_says(
                &letter.to_json(),
                &[r#""values":{"id":"r","text":"A"}"#, r#""base":{"text":"first"}"#],
            );
        }
        let conflicts = library.conflicts_since(Seq(0)).await.unwrap();
        let merged: Vec<_> = conflicts.iter().map(|c| (c.model.as_str(), c.winner, c.state)).collect();
        assert_eq!(merged, [("joined", Winner::Merged, ConflictState::Auto)]);
    }

    // And on it goes, with the same records too.
    trio.write(Who::A, 4000, &each(&|table| format!("UPDATE {table} SET text = 'A again' WHERE id = 'r'")))
        .await;
    trio.write(Who::B, 5000, &owned(&["INSERT INTO clumsy VALUES ('new', 'B')"])).await;
    trio.level().await;
    assert_eq!(text(&trio.device(Who::Leader).file(), "SELECT text FROM clumsy WHERE id = 'r'"), "A again");
    // What was refused can be written once more by whoever looks at it.
    let letter = trio.device(Who::B).library.dead_letters().await.unwrap().remove(0);
    trio.device(Who::B).library.retry(letter.id).await.unwrap();
    trio.level().await;
    assert_eq!(text(&trio.device(Who::Leader).file(), "SELECT text FROM clumsy WHERE id = 'r'"), "A");
    trio.assert_same(&MERGED);
}
