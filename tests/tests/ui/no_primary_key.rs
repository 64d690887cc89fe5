//! Without a key no other device can name a record. Where the attribute is missing in SeaORM's compact format, SeaORM
//! says so too; in its expanded format, where the key is an enum of its own, only the derive does.

mod location {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Copy, Clone, Default, Debug, DeriveEntity)]
    pub struct Entity;

    impl EntityName for Entity {
        fn table_name(&self) -> &'static str {
            "location"
        }
    }

    #[derive(Clone, Debug, PartialEq, DeriveModel, DeriveActiveModel, Syncable)]
    #[sync(model = "location")]
    pub struct Model {
        pub id: Uuid,
        pub name: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveColumn)]
    pub enum Column {
        Id,
        Name,
    }

    impl ColumnTrait for Column {
        type EntityName = Entity;
        fn def(&self) -> ColumnDef {
            match self {
                Self::Id => ColumnType::Uuid.def(),
                Self::Name => ColumnType::Text.def(),
            }
        }
    }

    #[derive(Copy, Clone, Debug, EnumIter, DerivePrimaryKey)]
    pub enum PrimaryKey {
        Id,
    }

    impl PrimaryKeyTrait for PrimaryKey {
        type ValueType = Uuid;
        fn auto_increment() -> bool {
            false
        }
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

/// What the rest of an application needs of the model: no error may follow from its absence.
fn main() {
    use sea_orm::ActiveModelBehavior;
    fn is_synced<M: tidelog::Syncable>() {}
    is_synced::<location::Model>();
    let _ = location::ActiveModel::new();
}
