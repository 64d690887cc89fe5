//! The eight entities, one file each. Half are in SeaORM's compact format and half in its
//! `#[sea_orm::model]` format, since applications have both. (One in the latter can only name others of
//! its kind, so relations between the halves stand in the compact one.)
//!
//! | entity | key | refers to |
//! |---|---|---|
//! | [`device`] | UUID | – |
//! | [`volume`] | UUID | device; two columns are of this device alone |
//! | [`location`] | UUID | volume, device |
//! | [`content_identity`] | UUIDv5 of the content's hash, so equal on every device | – |
//! | [`entry`] | UUID | location, parent entry, content |
//! | [`tag`] | UUID | – |
//! | [`entry_tag`] | entry and tag | entry, tag |
//! | [`user_metadata`] | UUID | entry, one to one |

// What SeaORM's derives generate (columns, relations) has nowhere to put documentation.
#![allow(missing_docs)]

pub mod content_identity;
pub mod device;
pub mod entry;
pub mod entry_tag;
pub mod location;
pub mod tag;
pub mod user_metadata;
pub mod volume;
