//! Fields that are to hold times, or whether a record is deleted, and cannot, on their types.

mod location {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "location")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        #[sync(created_at)]
        pub created_at: String,
        #[sync(soft_delete)]
        pub deleted_at: DateTimeUtc,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}
}

/// What the rest of an application needs of the model: no error may follow from its absence.
fn main() {
    use sea_orm::ActiveModelBehavior;
    use tidelog::FindLive;
    fn is_synced<M: tidelog::Syncable>() {}
    is_synced::<location::Model>();
    let _ = location::ActiveModel::new();
    let _ = location::Entity::find_live();
}
