//! tidelog.
mod entry;
mod error;
pub mod id;
pub mod model;
pub mod transport;
pub mod value;
mod wire;
pub mod world;

pub use error::Error;
