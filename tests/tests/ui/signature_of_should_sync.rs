//! A function of another shape, on its path.

mod location {
    use sea_orm::entity::prelude::*;
    use tidelog::Syncable;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel, Syncable)]
    #[sea_orm(table_name = "location")]
    #[sync(should_sync = "Model::is_shared")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub name: String,
    }

    impl Model {
        fn is_shared(self) -> bool {
            !self.name.is_empty()
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
