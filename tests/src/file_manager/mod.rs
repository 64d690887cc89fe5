//! A small but real file manager's core: the schema, the indexer and the edits that the example, the
//! scenarios and the benches run on.
//!
//! The parts, in the order in which the example uses them:
//!
//! | module | what it does |
//! |---|---|
//! | [`entities`], [`migration`] | eight tables that belong together, as SeaORM entities and as a migration |
//!
//! Everything here but the derive on the entities works on any SeaORM connection: `tests/file_manager.rs`
//! runs it on a plain one, the example on tidelog's.

pub mod entities;
pub mod migration;
