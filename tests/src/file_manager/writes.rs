//! The two ways in which an application writes through SeaORM, so that one indexer and one list of edits
//! serve both recorders of changes.

use sea_orm::{ActiveModelBehavior, ActiveModelTrait, ConnectionTrait, DbErr, EntityTrait, IntoActiveModel};

/// Rows in one `INSERT`. SQLite takes 32,766 values in a statement; the widest model here has 15.
const ROWS_PER_INSERT: usize = 500;

/// How the indexer and the edits write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writes {
    /// As an application would that cares for speed: `insert_many`, `update_many`, raw SQL, foreign-key
    /// cascades. Only a trigger sees all of these.
    #[default]
    Bulk,
    /// Every row through its own `ActiveModel`, deletions leaf first: all that SeaORM's hooks see.
    OneByOne,
}

impl Writes {
    /// Inserts `rows`, in order.
    ///
    /// # Errors
    /// The database's; rows before the failing one may have been inserted, so call this in a transaction.
    pub async fn insert<A, C>(self, db: &C, rows: Vec<A>) -> Result<(), DbErr>
    where
        A: ActiveModelTrait + ActiveModelBehavior + Send,
        <A::Entity as EntityTrait>::Model: IntoActiveModel<A>,
        C: ConnectionTrait,
    {
        match self {
            Self::Bulk => {
                let mut rows = rows.into_iter().peekable();
                while rows.peek().is_some() {
                    let chunk: Vec<A> = rows.by_ref().take(ROWS_PER_INSERT).collect();
                    A::Entity::insert_many(chunk).exec_without_returning(db).await?;
                }
            }
            Self::OneByOne => {
                for row in rows {
                    row.insert(db).await?;
                }
            }
        }
        Ok(())
    }
}
