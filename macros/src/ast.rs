//! The model as the derive sees it.

use proc_macro2::Ident;
use quote::ToTokens;
use syn::{Data, DeriveInput, Fields, ext::IdentExt};

use crate::attr::{Errors, FieldAttrs, ModelAttrs, SeaOrm, is_present};

pub(crate) struct Model<'a> {
    pub(crate) ident: &'a Ident,
    pub(crate) attrs: ModelAttrs,
    pub(crate) sea_orm: SeaOrm,
    pub(crate) fields: Vec<Field<'a>>,
}

pub(crate) struct Field<'a> {
    pub(crate) ident: &'a Ident,
    pub(crate) ty: &'a syn::Type,
    /// Its place among the entity's columns; the emitted code finds the column's name by it.
    pub(crate) column: usize,
    pub(crate) attrs: FieldAttrs,
    pub(crate) sea_orm: SeaOrm,
}

impl<'a> Model<'a> {
    pub(crate) fn parse(input: &'a DeriveInput) -> syn::Result<Self> {
        let named = named_fields(input)?;
        let mut errors = Errors::default();
        let attrs = ModelAttrs::parse(&input.attrs, &mut errors);
        let mut fields = Vec::new();
        for field in &named.named {
            let Some(ident) = &field.ident else { continue };
            let sea_orm = SeaOrm::parse(&field.attrs);
            if sea_orm.ignore {
                if let Some(span) = is_present(&field.attrs) {
                    errors.at(
                        span,
                        format!("`{ident}` is no column (#[sea_orm(ignore)]), so it is never synced: remove #[sync(…)]"),
                    );
                }
                continue;
            }
            let attrs = FieldAttrs::parse(&field.attrs, &mut errors);
            fields.push(Field { ident, ty: bare(&field.ty), column: fields.len(), attrs, sea_orm });
        }
        let model = Self { ident: &input.ident, attrs, sea_orm: SeaOrm::parse(&input.attrs), fields };
        errors.finish().map(|()| model)
    }

    pub(crate) fn primary_key(&self) -> impl Iterator<Item = &Field<'a>> {
        self.fields.iter().filter(|field| field.sea_orm.primary_key)
    }

    /// The field that an attribute names, by its Rust name or by its column's.
    pub(crate) fn field_named(&self, name: &str) -> Option<&Field<'a>> {
        self.fields
            .iter()
            .find(|field| field.ident.unraw() == name)
            .or_else(|| self.fields.iter().find(|field| field.sea_orm.column_name.as_deref() == Some(name)))
    }

    /// The key's field, if SeaORM takes the database to count it up. The same rule as in `DeriveEntityModel`.
    pub(crate) fn auto_increment_key(&self) -> Option<&Field<'a>> {
        let mut key = self.primary_key();
        let (Some(field), None) = (key.next(), key.next()) else { return None };
        let explicit = self.fields.iter().rev().find_map(|field| field.sea_orm.auto_increment);
        let counts = explicit.unwrap_or_else(|| {
            let ty = type_text(field.ty);
            !(ty.ends_with("String") || ty.ends_with("Uuid"))
        });
        counts.then_some(field)
    }
}

/// A type as it is written: what a macro was given as one comes in a group without delimiters.
fn bare(ty: &syn::Type) -> &syn::Type {
    match ty {
        syn::Type::Group(group) => bare(&group.elem),
        ty => ty,
    }
}

pub(crate) fn type_text(ty: &syn::Type) -> String {
    ty.to_token_stream().to_string().split_whitespace().collect()
}

fn named_fields(input: &DeriveInput) -> syn::Result<&syn::FieldsNamed> {
    let remedy = "write it on `pub struct Model { … }` of a SeaORM entity";
    let what = match &input.data {
        Data::Struct(data) => match &data.fields {
            Fields::Named(_) if input.ident != "Model" => {
                return Err(syn::Error::new(
                    input.ident.span(),
                    format!(
                        "derive(Syncable) is for the entity's `Model`, not for `{}`: {remedy}",
                        input.ident
                    ),
                ));
            }
            Fields::Named(fields) => return Ok(fields),
            Fields::Unnamed(_) => "a tuple struct",
            Fields::Unit => "a struct without fields",
        },
        Data::Enum(_) => "an enum",
        Data::Union(_) => "a union",
    };
    Err(syn::Error::new(input.ident.span(), format!("derive(Syncable) cannot sync {what}: {remedy}")))
}
