//! What the scenarios, the example and the benches of tidelog share. Not a library for applications.

pub mod devices;
pub mod file_manager;
pub mod small;
