//! tidelog.
#![allow(dead_code)]
mod apply;
mod capture;
mod entry;
mod error;
pub mod id;
mod log;
pub mod model;
mod seal;
mod store;
mod term;
pub mod transport;
pub mod value;
mod wire;
pub mod world;

pub use error::Error;
