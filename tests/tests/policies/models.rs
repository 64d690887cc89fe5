//! One small table for each policy, all alike: a key, three fields, and who owns the record where the policy asks.

use tidelog::{
    LibraryBuilder,
    model::{DeletePolicy, Policy},
};

use crate::Who;

/// Whom the records of a table belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The column is NULL.
    Nobody,
    /// This device; of a record that several make, whoever makes it.
    Device(Who),
}

/// A table, and what its records follow.
pub(crate) struct Spec {
    /// The table's name, and the model's sync id.
    pub(crate) table: &'static str,
    pub(crate) policy: Policy,
    pub(crate) deletes: DeletePolicy,
    pub(crate) owner: Owner,
}

/// What `custom` makes of two records: of each field the value that was changed; of two changed ones the words of both.
pub(crate) fn join(base: Option<&str>, local: &str, remote: &str) -> String {
    if local == remote || base == Some(remote) {
        return local.to_owned();
    }
    if base == Some(local) {
        return remote.to_owned();
    }
    let mut words: Vec<&str> = local.split('+').chain(remote.split('+')).collect();
    words.sort_unstable();
    words.dedup();
    words.join("+")
}

macro_rules! models {
    ($($name:ident $table:tt $policy:expr, $deletes:ident, $owner:expr; [$($sync:tt)*])*) => {
        $(
            #[allow(unreachable_pub, reason = "SeaORM has entities public")]
            mod $name {
                use sea_orm::entity::prelude::*;
                use tidelog::Syncable;

                #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel, Syncable)]
                #[sea_orm(table_name = $table)]
                #[sync(model = $table, $($sync)*)]
                pub struct Model {
                    #[sea_orm(primary_key, auto_increment = false)]
                    pub id: String,
                    pub x: String,
                    pub y: String,
                    pub z: String,
                    pub owner: Option<String>,
                }

                #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
                pub enum Relation {}

                #[allow(dead_code, reason = "of one policy only")]
                fn merge(base: Option<Model>, local: Model, remote: Model) -> Model {
                    let field = |of: fn(&Model) -> &str| {
                        super::join(base.as_ref().map(of), of(&local), of(&remote))
                    };
                    let (x, y, z) = (field(|m| &m.x), field(|m| &m.y), field(|m| &m.z));
                    Model { x, y, z, ..local }
                }
            }
        )*

        pub(crate) const SPECS: &[Spec] = &[$(
            Spec { table: $table, policy: $policy, deletes: DeletePolicy::$deletes, owner: $owner }
        ),*];

        pub(crate) fn register(builder: LibraryBuilder) -> LibraryBuilder {
            builder$(.model::<$name::Entity>())*
        }
    };
}

models! {
    lww "lww" Policy::LastWriteWins, DeleteWins, Owner::Nobody; []
    lww_updates "lww_updates" Policy::LastWriteWins, UpdateWins, Owner::Nobody; [merge = "lww", deletes = "update_wins"]
    lww_asks "lww_asks" Policy::LastWriteWins, Manual, Owner::Nobody; [merge = "lww", deletes = "manual"]
    fields "fields" Policy::Fields, DeleteWins, Owner::Nobody; [merge = "fields"]
    fields_updates "fields_updates" Policy::Fields, UpdateWins, Owner::Nobody; [merge = "fields", deletes = "update_wins"]
    fields_asks "fields_asks" Policy::Fields, Manual, Owner::Nobody; [merge = "fields", deletes = "manual"]
    leader_wins "leader_wins" Policy::LeaderWins, DeleteWins, Owner::Nobody; [merge = "leader_wins"]
    origin_wins "origin_wins" Policy::OriginWins, DeleteWins, Owner::Nobody; [merge = "origin_wins"]
    role "role" Policy::Role, DeleteWins, Owner::Nobody; [merge = "role"]
    owned_by_nobody "owned_by_nobody" Policy::Owner("owner"), DeleteWins, Owner::Nobody; [owner = "owner"]
    owned_by_leader "owned_by_leader" Policy::Owner("owner"), DeleteWins, Owner::Device(Who::Leader); [owner = "owner"]
    owned_by_a "owned_by_a" Policy::Owner("owner"), DeleteWins, Owner::Device(Who::A); [owner = "owner"]
    custom "custom" Policy::Custom, DeleteWins, Owner::Nobody; [custom = "merge"]
    custom_updates "custom_updates" Policy::Custom, UpdateWins, Owner::Nobody; [custom = "merge", deletes = "update_wins"]
    manual "manual" Policy::Manual, DeleteWins, Owner::Nobody; [merge = "manual"]
    manual_asks "manual_asks" Policy::Manual, Manual, Owner::Nobody; [merge = "manual", deletes = "manual"]
    manual_updates "manual_updates" Policy::Manual, UpdateWins, Owner::Nobody; [merge = "manual", deletes = "update_wins"]
}

/// The statements that make the tables.
pub(crate) fn schema() -> String {
    let table = |spec: &Spec| {
        format!(
            "CREATE TABLE {} (id TEXT NOT NULL PRIMARY KEY, x TEXT NOT NULL, y TEXT NOT NULL, z TEXT NOT NULL, owner TEXT)",
            spec.table
        )
    };
    SPECS.iter().map(table).collect::<Vec<_>>().join("; ")
}
