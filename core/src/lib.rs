//! tidelog.
mod apply;
mod capture;
pub mod connection;
mod engine;
mod entry;
mod error;
pub mod gate;
pub mod id;
mod library;
mod log;
pub mod model;
mod node;
mod seal;
pub mod status;
mod store;
mod term;
pub mod transport;
pub mod value;
mod wire;
pub mod world;

pub use connection::{
    ConnectError, ConnectOptions, Connection, Durability, Transaction, connect, connect_with, force_record,
};
pub use error::Error;
pub use gate::WriteGate;
pub use library::{Builder, Library};
pub use model::Recorder;
