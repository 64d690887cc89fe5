//! For an application's own tests: a leader and a follower in one process, and a way to wait until they are level.
//!
//! ```
//! # mod note {
//! #     use sea_orm::entity::prelude::*;
//! #     use tidelog::Syncable;
//! #     #[derive(Clone, Debug, PartialEq, DeriveEntityModel, Syncable)]
//! #     #[sea_orm(table_name = "notes")]
//! #     pub struct Model {
//! #         #[sea_orm(primary_key, auto_increment = false)]
//! #         pub id: Uuid,
//! #         pub text: String,
//! #     }
//! #     #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
//! #     pub enum Relation {}
//! # }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use sea_orm::{ActiveModelTrait, EntityTrait, Set};
//!
//! let pair = tidelog::testing::pair::<(note::Entity,)>().await?;
//! note::ActiveModel { text: Set("hello".into()), ..Default::default() }.save(&pair.leader.db).await?;
//! pair.level().await?;
//! let notes = note::Entity::find().all(&pair.follower.db).await?;
//! assert_eq!(notes[0].text, "hello");
//! # Ok(())
//! # }
//! ```

pub mod replica;

pub use crate::inject::watch_steps;

use std::{sync::Arc, time::Duration};

use sea_orm::{ConnectionTrait, EntityTrait, Schema, TryIntoModel};
use tempfile::TempDir;

use crate::{
    Connection, Library, Syncable, connect,
    id::{DeviceId, LibraryId},
    library::LibraryBuilder,
    transport::MemoryNetwork,
};

/// The entities that a test syncs: a tuple of up to eight.
pub trait Entities {
    /// Registers them all.
    fn register(builder: LibraryBuilder) -> LibraryBuilder;
    /// Statements that create their tables, in the order of the tuple.
    fn create(schema: &Schema) -> Vec<sea_orm::sea_query::TableCreateStatement>;
}

macro_rules! entities {
    ($($entity:ident),+) => {
        impl<$($entity),+> Entities for ($($entity,)+)
        where
            $($entity: EntityTrait, $entity::Model: Syncable<Entity = $entity>,
              $entity::ActiveModel: TryIntoModel<$entity::Model>,)+
        {
            fn register(builder: LibraryBuilder) -> LibraryBuilder {
                builder$(.model::<$entity>())+
            }
            fn create(schema: &Schema) -> Vec<sea_orm::sea_query::TableCreateStatement> {
                vec![$(schema.create_table_from_entity($entity::default())),+]
            }
        }
    };
}

entities!(A);
entities!(A, B);
entities!(A, B, C);
entities!(A, B, C, D);
entities!(A, B, C, D, E);
entities!(A, B, C, D, E, F);
entities!(A, B, C, D, E, F, G);
entities!(A, B, C, D, E, F, G, H);

/// How long [`Pair::level`] waits before it fails and tells how both devices stand.
pub const LEVEL_MAX: Duration = Duration::from_secs(60);

/// What went wrong while a pair was set up or became level, in words. An error like any other, so that `?` takes it
/// wherever a test takes errors.
#[derive(Debug)]
pub struct SetupError(String);

impl std::fmt::Display for SetupError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SetupError {}

/// One device of a [`Pair`].
pub struct Device {
    /// The application's connection.
    pub db: Connection,
    /// The started library.
    pub library: Library,
}

/// A leader and a follower over an in-memory network, their databases in a temporary folder that goes with the pair.
pub struct Pair {
    /// Leads.
    pub leader: Device,
    /// Follows.
    pub follower: Device,
    /// The network both are plugged into.
    pub network: MemoryNetwork,
    folder: TempDir,
}

/// Sets up a pair with empty tables for `E`, both started.
///
/// # Errors
/// Whatever prevents it, for the test to fail with.
pub async fn pair<E: Entities>() -> Result<Pair, SetupError> {
    set_up::<E>().await.map_err(|error| SetupError(format!("setting up the pair failed: {error}")))
}

async fn set_up<E: Entities>() -> Result<Pair, Box<dyn std::error::Error + Send + Sync>> {
    let folder = tempfile::tempdir()?;
    let network = MemoryNetwork::new();
    let id = LibraryId::random();
    let device = async |name: &str, number: u8, builder: fn(LibraryBuilder, LibraryId) -> LibraryBuilder| {
        let file = folder.path().join(name);
        let db = connect(&format!("sqlite://{}?mode=rwc", file.display())).await?;
        let schema = Schema::new(db.get_database_backend());
        for statement in E::create(&schema) {
            db.execute(&statement).await?;
        }
        // Who leads stays so, whoever is shut down first.
        let library = builder(E::register(Library::builder(&db).hands_over(false)), id).open().await?;
        let transport = network.plug(DeviceId([number; 32]));
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((Device { db, library }, Arc::new(transport)))
    };
    let (leader, leading) = device("leader.sqlite", 1, LibraryBuilder::create).await?;
    let (follower, following) = device("follower.sqlite", 2, LibraryBuilder::join).await?;
    leader.library.start(leading).await?;
    follower.library.start(following).await?;
    Ok(Pair { leader, follower, network, folder })
}

impl Pair {
    /// Waits until what is committed on the leader now is on the follower.
    ///
    /// # Errors
    /// Why it would wait for ever.
    pub async fn level(&self) -> Result<(), SetupError> {
        let level = async {
            self.leader.library.barrier().await?;
            self.follower.library.barrier().await
        };
        match tokio::time::timeout(LEVEL_MAX, level).await {
            Ok(level) => {
                level.map_err(|error| SetupError(format!("the pair does not become level: {error}")))
            }
            Err(_) => Err(SetupError(format!(
                "the pair is not level after {} s; leader: {:?}; follower: {:?}",
                LEVEL_MAX.as_secs(),
                *self.leader.library.status().borrow(),
                *self.follower.library.status().borrow()
            ))),
        }
    }

    /// The folder with the two databases, `leader.sqlite` and `follower.sqlite`.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }
}
