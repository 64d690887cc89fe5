//! What the scenarios, the example and the benches of tidelog share: [`file_manager`], a schema and the work on it that
//! a real application would have.
//!
//! Not a library for applications: those test with `tidelog::testing`. The scenarios themselves are in `tests/tests`,
//! each file readable by itself; the example in `tests/examples`.

pub mod apart;
pub mod cabinet;
pub mod claims;
pub mod counted;
pub mod devices;
pub mod dice;
pub mod file_manager;
#[cfg(unix)]
pub mod processes;
pub mod scene;
pub mod sim;
pub mod small;
pub mod trio;

/// Keeps the code in the README compiling.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

/// Keeps the code in the docs compiling.
#[cfg(doctest)]
#[doc = include_str!("../../docs/existing-data.md")]
pub struct ExistingData;

/// The same.
#[cfg(doctest)]
#[doc = include_str!("../../docs/conflicts.md")]
pub struct Conflicts;

/// The same.
#[cfg(doctest)]
#[doc = include_str!("../../docs/leadership.md")]
pub struct Leadership;
