//! tidelog.
pub mod connection;
pub mod gate;
pub mod id;
pub mod model;
pub mod transport;
pub mod value;

pub use connection::{
    ConnectError, ConnectOptions, Connection, Durability, Transaction, connect, connect_with, force_record,
};
pub use gate::WriteGate;
