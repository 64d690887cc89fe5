//! tidelog.
pub mod id;
pub mod model;
pub mod transport;
pub mod value;
