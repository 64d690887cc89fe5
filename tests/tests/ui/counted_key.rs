//! Two devices would count up to the same key.

mod location {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "location")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i32,
        pub name: String,
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
