//! `#[derive(Syncable)]`, and nothing else; its documentation stands where it is re-exported, in the crate `tidelog`.
//!
//! A pipeline whose stages are its files: [`attr`] reads one `#[sync(…)]`, [`ast`] the whole model, [`valid`] says
//! what cannot be, [`expand`] writes the impls, and [`fallback`] stands in for them after a mistake. Names and types
//! of columns are not worked out here: the emitted code asks SeaORM's own metadata for them.

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

mod ast;
mod attr;
mod expand;
mod fallback;
#[cfg(test)]
mod tests;
mod valid;

/// Makes a SeaORM model follow its owner from device to device. See `tidelog::Syncable` for the attributes.
#[proc_macro_derive(Syncable, attributes(sync))]
pub fn derive_syncable(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    derive(&input).into()
}

fn derive(input: &DeriveInput) -> proc_macro2::TokenStream {
    // What `#[sea_orm::model]` generates from `Model`: the derives are copied to it, the work is done on `Model`.
    if input.ident == "ModelEx" {
        return valid::relations(input).map_or_else(syn::Error::into_compile_error, |()| Default::default());
    }
    match parse(input) {
        Ok(model) => expand::model(&model),
        Err(error) => fallback::model(input, error),
    }
}

fn parse(input: &DeriveInput) -> syn::Result<ast::Model<'_>> {
    let model = ast::Model::parse(input)?;
    valid::model(&model)?;
    Ok(model)
}
