//! A small but real file manager's core: the schema, the indexer and the edits that the example, the
//! scenarios and the benches run on.
//!
//! The parts, in the order in which the example uses them:
//!
//! | module | what it does |
//! |---|---|
//! | [`entities`], [`migration`] | eight tables that belong together, as SeaORM entities and as a migration |
//! | [`writes`] | the two ways in which an application writes: in bulk, or row by row |
//! | [`walk`] | lists a directory with sizes, times, permissions and content hashes; plain `std`, no database |
//! | [`index`] | saves what the walk found |
//! | [`edit`] | what a person then does: tags, renames, notes, a moved folder, deletions |
//! | [`apart`] | what three people do to the same things while they cannot reach each other |
//! | [`digest`] | reads a closed SQLite file and says what is in it, by code that shares nothing with tidelog |
//! | [`fixture`] | writes a directory with everything in it that trips up an indexer |
//! | [`args`], [`report`], [`reunion`] | the example's command line, its closing table, and what it says of the time apart |
//!
//! Everything here but the derive on the entities works on any SeaORM connection: `tests/file_manager.rs`
//! runs it on a plain one, the example on tidelog's.

pub mod apart;
pub mod args;
pub mod digest;
pub mod edit;
pub mod entities;
pub mod fixture;
pub mod index;
pub mod migration;
pub mod report;
pub mod reunion;
pub mod succession;
pub mod walk;
pub mod writes;
