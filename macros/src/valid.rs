//! What the parts of a model must not say together.

use proc_macro2::Span;
use quote::ToTokens;
use syn::{Data, DeriveInput, GenericArgument, PathArguments, Type, ext::IdentExt};

use crate::{
    ast::{Field, Model, type_text},
    attr::{Errors, is_present},
};

pub(crate) fn model(model: &Model<'_>) -> syn::Result<()> {
    let mut errors = Errors::default();
    sync_id(model, &mut errors);
    key(model, &mut errors);
    policies(model, &mut errors);
    tree(model, &mut errors);
    behavior(model, &mut errors);
    fields(model, &mut errors);
    metadata(model, &mut errors);
    errors.finish()
}

fn sync_id(model: &Model<'_>, errors: &mut Errors) {
    let id = model.attrs.model.as_ref().or(model.sea_orm.table_name.as_ref());
    let Some(id) = id else {
        errors.at(
            model.ident.span(),
            "the model has no id: write #[sync(model = \"…\")], or #[sea_orm(table_name = \"…\")] to take the table's name",
        );
        return;
    };
    let text = id.value();
    if text.is_empty() || text.trim() != text || text.contains(',') {
        errors.at(
            id.span(),
            "a model id is not empty and has no comma and no space around it: write for instance #[sync(model = \"location\")]",
        );
    }
    for (i, after) in model.attrs.after.iter().enumerate() {
        if after.value() == text {
            errors.at(
                after.span(),
                "a model cannot come after itself: remove it; parents of the same model are put first anyway",
            );
        }
        if model.attrs.after.iter().take(i).any(|earlier| earlier.value() == after.value()) {
            errors.at(
                after.span(),
                format!("`after` names \"{}\" twice: remove one of the two", after.value()),
            );
        }
    }
}

fn key(model: &Model<'_>, errors: &mut Errors) {
    if model.primary_key().next().is_none() {
        errors.at(
            model.ident.span(),
            "the model has no primary key, so other devices could not name its records: \
             write #[sea_orm(primary_key, auto_increment = false)] on the key's field",
        );
        return;
    }
    let Some(id) = &model.attrs.id else {
        if let Some(field) = model.auto_increment_key() {
            errors.at(
                field.ident.span(),
                format!(
                    "two devices would give out the same `{}`, since the database counts it up: \
                     make it a `Uuid`, or add a unique UUID column and write #[sync(id = \"that_column\")] on the struct, \
                     or write `auto_increment = false` if the application chooses the keys",
                    field.ident.unraw()
                ),
            );
        }
        return;
    };
    match model.field_named(&id.value()) {
        None => errors.at(id.span(), no_such_field(model, "id", &id.value())),
        Some(field) if field.sea_orm.primary_key => errors.at(
            id.span(),
            format!(
                "`{}` is the primary key, which names the record anyway: remove `id`, or name a unique UUID column beside the key",
                id.value()
            ),
        ),
        Some(_) => {}
    }
}

fn policies(model: &Model<'_>, errors: &mut Errors) {
    let attrs = &model.attrs;
    let given: Vec<(&str, Span)> = [
        ("merge", attrs.merge.as_ref().map(|choice| choice.span)),
        ("custom", attrs.custom.as_ref().map(|custom| custom.key)),
        ("owner", attrs.owner.as_ref().map(|owner| owner.key)),
    ]
    .into_iter()
    .filter_map(|(name, span)| Some((name, span?)))
    .collect();
    if let [(first, _), (second, span), ..] = given.as_slice() {
        errors
            .at(*span, format!("`{first}` and `{second}` both say who wins a conflict: keep one of the two"));
    }
    if let Some(owner) = &attrs.owner {
        match model.field_named(&owner.value.value()) {
            None => errors.at(owner.value.span(), no_such_field(model, "owner", &owner.value.value())),
            Some(field) if field.attrs.local.is_some() => errors.at(
                owner.value.span(),
                format!(
                    "`{}` is local, so no other device knows the owner: remove #[sync(local)] from it",
                    owner.value.value()
                ),
            ),
            Some(_) => {}
        }
    }
}

fn tree(model: &Model<'_>, errors: &mut Errors) {
    let Some(tree) = &model.attrs.tree else { return };
    let name = tree.value();
    let Some(parent) = model.field_named(&name) else {
        errors.at(tree.span(), no_such_field(model, "tree", &name));
        return;
    };
    let mut key = model.fields.iter().filter(|field| is_sync_key(model, field));
    // That there is none is told elsewhere.
    let Some(first) = key.next() else { return };
    let mistake = if std::ptr::eq(parent, first) || key.any(|field| std::ptr::eq(parent, field)) {
        format!("`{name}` names the record itself: name the column that holds the key of its parent")
    } else if model.fields.iter().filter(|field| is_sync_key(model, field)).count() > 1 {
        format!("`{name}` is one column, and the key has several, so it names no parent: remove `tree`")
    } else if parent.attrs.local.is_some() {
        format!("`{name}` is local, so no other device knows the parent: remove #[sync(local)] from it")
    } else if parent.attrs.merge.is_some() {
        format!("`{name}` names a parent, which cannot be reduced: remove #[sync(merge = \"…\")] from it")
    } else if optional(parent.ty).is_none_or(|ty| last_name(ty) != last_name(first.ty)) {
        let key = type_text(first.ty);
        format!(
            "`{name}` is `{}`, and a parent is named by its key, a root by none: make it `Option<{key}>`",
            type_text(parent.ty)
        )
    } else {
        return;
    };
    errors.at(tree.span(), mistake);
}

/// What an `Option` holds.
fn optional(ty: &Type) -> Option<&Type> {
    let Type::Path(path) = ty else { return None };
    let last = path.path.segments.last().filter(|last| last.ident == "Option")?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    match arguments.args.first()? {
        GenericArgument::Type(ty) => Some(ty),
        _ => None,
    }
}

/// A type without the path to it, which may be written in several ways.
fn last_name(ty: &Type) -> String {
    match ty {
        Type::Path(path) => path.path.segments.last().map(|last| last.to_token_stream().to_string()),
        _ => None,
    }
    .unwrap_or_else(|| type_text(ty))
}

fn behavior(model: &Model<'_>, errors: &mut Errors) {
    if let (Some(span), Some(_)) = (model.attrs.hooks, model.attrs.behavior_own) {
        errors.at(
            span,
            "`hooks` adds yours to the generated ActiveModelBehavior, which `behavior = \"own\"` leaves out: keep one of the two",
        );
    }
}

fn fields(model: &Model<'_>, errors: &mut Errors) {
    for field in &model.fields {
        let name = field.ident.unraw();
        let is_key = is_sync_key(model, field);
        if let (true, Some(span)) = (is_key, field.attrs.local) {
            errors.at(
                span,
                format!(
                    "`{name}` names the record on all devices, so it cannot stay on this one: remove `local`"
                ),
            );
        }
        if let (true, Some(default)) = (is_key, &field.attrs.default) {
            errors.at(
                default.key,
                format!("`{name}` names the record, so every row has its own: remove `default`"),
            );
        }
        if let Some(merge) = &field.attrs.merge {
            if is_key {
                errors.at(
                    merge.span,
                    format!("`{name}` names the record, so there is nothing to merge: remove `merge`"),
                );
            } else if field.attrs.local.is_some() {
                errors.at(
                    merge.span,
                    format!("`{name}` is local, so there is nothing to merge: remove `merge` or `local`"),
                );
            }
        }
    }
}

fn metadata(model: &Model<'_>, errors: &mut Errors) {
    for (i, field) in model.fields.iter().enumerate() {
        let name = field.ident.unraw();
        let attrs = &field.attrs;
        let given: Vec<_> = attrs.metadata().collect();
        if let [(first, _), (second, span), ..] = given.as_slice() {
            errors.at(
                *span,
                format!("`{name}` cannot be both `{first}` and `{second}`: give each a field of its own"),
            );
            continue;
        }
        let Some(&(what, span)) = given.first() else { continue };
        let earlier =
            model.fields.iter().take(i).find(|f| f.attrs.metadata().any(|(other, _)| other == what));
        if let Some(earlier) = earlier {
            errors.at(span, format!("`{}` is `{what}` already: keep one of the two", earlier.ident.unraw()));
        } else if field.sea_orm.primary_key || is_sync_key(model, field) {
            errors.at(
                span,
                format!(
                    "`{name}` names the record and never changes: write #[sync({what})] on a field of its own"
                ),
            );
        } else if attrs.local.is_some() && what != "updated_at" {
            let why = match what {
                "soft_delete" => "the deletion would never leave this device",
                _ => "rows of other devices would have none",
            };
            errors.at(span, format!("`{name}` is local, so {why}: remove `local` or `{what}`"));
        } else if let Some(merge) =
            attrs.merge.as_ref().filter(|m| m.variant == "Sum" || m.variant == "Union")
        {
            errors.at(
                merge.span,
                format!("`{name}` is `{what}`, which cannot be added up: write `merge = \"max\"` or \"min\", or remove `merge`"),
            );
        }
    }
}

fn is_sync_key(model: &Model<'_>, field: &Field<'_>) -> bool {
    match &model.attrs.id {
        None => field.sea_orm.primary_key,
        Some(id) => model.field_named(&id.value()).is_some_and(|named| std::ptr::eq(named, field)),
    }
}

fn no_such_field(model: &Model<'_>, attribute: &str, name: &str) -> String {
    let known =
        model.fields.iter().map(|field| format!("`{}`", field.ident.unraw())).collect::<Vec<_>>().join(", ");
    format!("`{attribute}` names the field `{name}`, which the model does not have: write one of {known}")
}

/// The fields that only `ModelEx` has are relations, where `#[sync(…)]` would be lost without a word.
pub(crate) fn relations(input: &DeriveInput) -> syn::Result<()> {
    let mut errors = Errors::default();
    if let Data::Struct(data) = &input.data {
        for field in data.fields.iter().filter(|field| is_relation(&field.ty)) {
            if let Some(span) = is_present(&field.attrs) {
                errors.at(
                    span,
                    format!(
                        "a relation (`{}`) is no column, so there is nothing to sync: write #[sync(…)] on the column that holds the foreign key, or remove it",
                        type_text(&field.ty)
                    ),
                );
            }
        }
    }
    errors.finish()
}

fn is_relation(ty: &Type) -> bool {
    let Type::Path(path) = ty else { return false };
    path.path
        .segments
        .last()
        .is_some_and(|last| ["HasOne", "HasMany", "BelongsTo"].iter().any(|name| last.ident == name))
}
