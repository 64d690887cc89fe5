//! tidelog.
pub mod behavior;
pub mod id;
pub mod model;
pub mod notice;
pub mod transport;
pub mod value;

pub use behavior::Hooks;
pub use model::Syncable;
pub use tidelog_macros::Syncable;

/// What the derive's code needs to be found under a path that the application need not know.
#[doc(hidden)]
pub mod __private {
    pub use async_trait::async_trait;
    pub use sea_orm;

    pub use crate::behavior::column_name;
}
