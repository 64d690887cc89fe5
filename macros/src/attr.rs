//! `#[sync(…)]` on a model and on a field.

use proc_macro2::Span;
use syn::{
    Attribute, Expr, ExprLit, Ident, Lit, LitInt, LitStr, Meta, Path, Token,
    ext::IdentExt,
    parse::{Parse, ParseStream, Parser},
    punctuated::Punctuated,
    spanned::Spanned,
    token,
};

const MODEL_KEYS: &[&str] = &[
    "model",
    "version",
    "after",
    "merge",
    "custom",
    "owner",
    "deletes",
    "priority",
    "id",
    "tree",
    "should_sync",
    "hooks",
    "behavior",
    "capture",
    "crate",
];
const FIELD_KEYS: &[&str] = &["local", "default", "merge", "created_at", "updated_at", "soft_delete"];

const POLICIES: &[(&str, &str)] = &[
    ("lww", "LastWriteWins"),
    ("fields", "Fields"),
    ("leader_wins", "LeaderWins"),
    ("origin_wins", "OriginWins"),
    ("role", "Role"),
    ("manual", "Manual"),
];
const DELETES: &[(&str, &str)] =
    &[("delete_wins", "DeleteWins"), ("update_wins", "UpdateWins"), ("manual", "Manual")];
const PRIORITIES: &[(&str, &str)] =
    &[("critical", "Critical"), ("high", "High"), ("normal", "Normal"), ("low", "Low")];
const CAPTURES: &[(&str, &str)] = &[("trigger", "Trigger"), ("hooks", "Hooks")];
const REDUCERS: &[(&str, &str)] = &[("max", "Max"), ("min", "Min"), ("sum", "Sum"), ("union", "Union")];

#[derive(Default)]
pub(crate) struct ModelAttrs {
    pub(crate) model: Option<LitStr>,
    pub(crate) version: Option<LitInt>,
    pub(crate) after: Vec<LitStr>,
    pub(crate) merge: Option<Choice>,
    pub(crate) custom: Option<Named<Path>>,
    pub(crate) owner: Option<Named<LitStr>>,
    pub(crate) deletes: Option<Choice>,
    pub(crate) priority: Option<Choice>,
    pub(crate) id: Option<LitStr>,
    pub(crate) tree: Option<LitStr>,
    pub(crate) should_sync: Option<Path>,
    pub(crate) hooks: Option<Span>,
    pub(crate) behavior_own: Option<Span>,
    pub(crate) capture: Option<Choice>,
    pub(crate) krate: Option<Path>,
}

#[derive(Default)]
pub(crate) struct FieldAttrs {
    pub(crate) local: Option<Span>,
    pub(crate) default: Option<Named<Expr>>,
    pub(crate) merge: Option<Choice>,
    pub(crate) created_at: Option<Span>,
    pub(crate) updated_at: Option<Span>,
    pub(crate) soft_delete: Option<Span>,
}

/// A word out of a known list, as the variant that it stands for.
pub(crate) struct Choice {
    pub(crate) variant: Ident,
    pub(crate) span: Span,
}

/// A value together with the name it was given to, for mistakes that concern the name.
pub(crate) struct Named<T> {
    pub(crate) key: Span,
    pub(crate) value: T,
}

impl ModelAttrs {
    pub(crate) fn parse(attrs: &[Attribute], errors: &mut Errors) -> Self {
        let mut parsed = Self::default();
        for item in items(attrs, errors, true) {
            if let Err(error) = parsed.take(item) {
                errors.push(error);
            }
        }
        parsed
    }

    fn take(&mut self, item: Item) -> syn::Result<()> {
        match item.name.as_str() {
            "model" => once(&mut self.model, &item, item.text("\"id\"")?),
            "version" => once(&mut self.version, &item, item.version()?),
            "after" => {
                let list = item.text("\"model id\"")?;
                for id in list.value().split(',').map(str::trim) {
                    if id.is_empty() {
                        return Err(syn::Error::new(
                            list.span(),
                            "an empty model id in `after`: write `after = \"device\"` or `after = \"device, volume\"`",
                        ));
                    }
                    self.after.push(LitStr::new(id, list.span()));
                }
                Ok(())
            }
            "merge" => {
                let hint = "; or decide with `custom = \"path\"` or `owner = \"column\"`, without `merge`";
                once(&mut self.merge, &item, item.choice("policy", POLICIES, hint)?)
            }
            "custom" => {
                let value =
                    item.path("fn merge(base: Option<Model>, local: Model, remote: Model) -> Model")?;
                once(&mut self.custom, &item, Named { key: item.span, value })
            }
            "owner" => {
                let value = item.text("\"column\"")?;
                once(&mut self.owner, &item, Named { key: item.span, value })
            }
            "deletes" => once(&mut self.deletes, &item, item.choice("deletion policy", DELETES, "")?),
            "priority" => once(&mut self.priority, &item, item.choice("priority", PRIORITIES, "")?),
            "id" => once(&mut self.id, &item, item.text("\"uuid_column\"")?),
            "tree" => once(&mut self.tree, &item, item.text("\"parent_id\"")?),
            "should_sync" => {
                once(&mut self.should_sync, &item, item.path("fn should_sync(model: &Model) -> bool")?)
            }
            "hooks" => {
                item.flag()?;
                once(&mut self.hooks, &item, item.span)
            }
            "behavior" => {
                let choice = item.choice("behavior", &[("own", "Own")], "")?;
                once(&mut self.behavior_own, &item, choice.span)
            }
            "capture" => once(&mut self.capture, &item, item.choice("recorder", CAPTURES, "")?),
            "crate" => once(&mut self.krate, &item, item.path("a path to the crate `tidelog`")?),
            known if FIELD_KEYS.contains(&known) => Err(syn::Error::new(
                item.span,
                format!("`{known}` says something about one column: write #[sync({known}…)] on the field"),
            )),
            _ => Err(item.unknown(MODEL_KEYS)),
        }
    }
}

impl FieldAttrs {
    pub(crate) fn parse(attrs: &[Attribute], errors: &mut Errors) -> Self {
        let mut parsed = Self::default();
        for item in items(attrs, errors, false) {
            if let Err(error) = parsed.take(item) {
                errors.push(error);
            }
        }
        parsed
    }

    fn take(&mut self, item: Item) -> syn::Result<()> {
        match item.name.as_str() {
            "local" => {
                item.flag()?;
                once(&mut self.local, &item, item.span)
            }
            "default" => {
                let Value::Given(value) = &item.value else {
                    return Err(item.misses("an expression, such as 0 or \"none\""));
                };
                once(&mut self.default, &item, Named { key: item.span, value: value.clone() })
            }
            "merge" => {
                let hint = "; policies of the whole record, such as \"lww\", go on the struct";
                once(&mut self.merge, &item, item.choice("reducer", REDUCERS, hint)?)
            }
            "created_at" => {
                item.flag()?;
                once(&mut self.created_at, &item, item.span)
            }
            "updated_at" => {
                item.flag()?;
                once(&mut self.updated_at, &item, item.span)
            }
            "soft_delete" => {
                item.flag()?;
                once(&mut self.soft_delete, &item, item.span)
            }
            "deleted_at" | "deleted" => Err(syn::Error::new(
                item.span,
                format!("#[sync(…)] knows no `{}`: write #[sync(soft_delete)]", item.name),
            )),
            known if MODEL_KEYS.contains(&known) => Err(syn::Error::new(
                item.span,
                format!(
                    "`{known}` says something about the whole model: write #[sync({known}…)] on the struct"
                ),
            )),
            _ => Err(item.unknown(FIELD_KEYS)),
        }
    }
}

impl FieldAttrs {
    /// What the field is to hold of the record's history: each attribute that says so, with its span.
    pub(crate) fn metadata(&self) -> impl Iterator<Item = (&'static str, Span)> {
        [("created_at", self.created_at), ("updated_at", self.updated_at), ("soft_delete", self.soft_delete)]
            .into_iter()
            .filter_map(|(name, span)| Some((name, span?)))
    }
}

/// Mistakes found so far; all are shown, not only the first.
#[derive(Default)]
pub(crate) struct Errors(Option<syn::Error>);

impl Errors {
    pub(crate) fn push(&mut self, error: syn::Error) {
        match &mut self.0 {
            Some(all) => all.combine(error),
            none => *none = Some(error),
        }
    }

    pub(crate) fn at(&mut self, span: Span, message: impl std::fmt::Display) {
        self.push(syn::Error::new(span, message));
    }

    pub(crate) fn finish(self) -> syn::Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}

/// One `name` or `name = value`.
struct Item {
    name: String,
    span: Span,
    value: Value,
}

enum Value {
    Absent,
    Empty,
    Given(Expr),
}

impl Parse for Item {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let key = input.call(Ident::parse_any)?;
        let value = if input.peek(token::Paren) {
            let key_text = key.unraw();
            return Err(syn::Error::new(
                input.span(),
                format!("`{key_text}` takes no parentheses: write `{key_text} = \"…\"`"),
            ));
        } else if !input.peek(Token![=]) {
            Value::Absent
        } else {
            input.parse::<Token![=]>()?;
            if input.is_empty() || input.peek(Token![,]) {
                Value::Empty
            } else {
                Value::Given(input.parse()?)
            }
        };
        Ok(Self { name: key.unraw().to_string(), span: key.span(), value })
    }
}

impl Item {
    fn text(&self, example: &str) -> syn::Result<LitStr> {
        match &self.value {
            Value::Given(Expr::Lit(ExprLit { lit: Lit::Str(text), .. })) => Ok(text.clone()),
            Value::Given(Expr::Group(group)) => {
                Item { name: self.name.clone(), span: self.span, value: Value::Given((*group.expr).clone()) }
                    .text(example)
            }
            Value::Given(other) => Err(syn::Error::new(
                other.span(),
                format!("`{}` takes a text: write `{} = {example}`", self.name, self.name),
            )),
            Value::Absent | Value::Empty => Err(self.misses(example)),
        }
    }

    fn path(&self, what: &str) -> syn::Result<Path> {
        let text = self.text("\"path\"")?;
        text.parse_with(Path::parse_mod_style).map_err(|_| {
            syn::Error::new(
                text.span(),
                format!("`{}` takes the path of {what}, such as \"crate::sync::name\"", self.name),
            )
        })
    }

    fn version(&self) -> syn::Result<LitInt> {
        match &self.value {
            Value::Given(Expr::Lit(ExprLit { lit: Lit::Int(number), .. }))
                if number.base10_parse::<u32>().is_ok_and(|n| n > 0) =>
            {
                Ok(number.clone())
            }
            Value::Given(other) => Err(syn::Error::new(
                other.span(),
                "a version is a whole number from 1 to 4294967295: write `version = 2`",
            )),
            Value::Absent | Value::Empty => Err(self.misses("2")),
        }
    }

    fn choice(&self, kind: &str, known: &[(&str, &str)], hint: &str) -> syn::Result<Choice> {
        let text = self.text(&format!("\"{}\"", known.first().map_or("", |(word, _)| word)))?;
        let Some((_, variant)) = known.iter().find(|(word, _)| *word == text.value()) else {
            let list = known.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
            return Err(syn::Error::new(
                text.span(),
                format!("there is no {kind} \"{}\": write one of {list}{hint}", text.value()),
            ));
        };
        Ok(Choice { variant: Ident::new(variant, Span::call_site()), span: text.span() })
    }

    fn flag(&self) -> syn::Result<()> {
        match &self.value {
            Value::Absent => Ok(()),
            Value::Empty | Value::Given(_) => Err(syn::Error::new(
                self.span,
                format!("`{}` takes no value: write #[sync({})]", self.name, self.name),
            )),
        }
    }

    fn misses(&self, example: &str) -> syn::Error {
        syn::Error::new(
            self.span,
            format!("`{}` needs a value: write `{} = …`, {example}", self.name, self.name),
        )
    }

    fn unknown(&self, known: &[&str]) -> syn::Error {
        let list = known.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
        syn::Error::new(self.span, format!("#[sync(…)] knows no `{}` here: write one of {list}", self.name))
    }
}

fn once<T>(slot: &mut Option<T>, item: &Item, value: T) -> syn::Result<()> {
    if slot.is_some() {
        return Err(syn::Error::new(
            item.span,
            format!("`{}` stands here for the second time: remove one of the two", item.name),
        ));
    }
    *slot = Some(value);
    Ok(())
}

fn items(attrs: &[Attribute], errors: &mut Errors, on_model: bool) -> Vec<Item> {
    let mut all = Vec::new();
    for attr in attrs.iter().filter(|attr| attr.path().is_ident("sync")) {
        let example = if on_model { "#[sync(model = \"id\")]" } else { "#[sync(local)]" };
        let Meta::List(list) = &attr.meta else {
            errors
                .at(attr.path().span(), format!("#[sync] alone says nothing: write for instance {example}"));
            continue;
        };
        match Punctuated::<Item, Token![,]>::parse_terminated.parse2(list.tokens.clone()) {
            Ok(items) if items.is_empty() => {
                errors
                    .at(attr.path().span(), format!("#[sync()] says nothing: write for instance {example}"));
            }
            Ok(items) => all.extend(items),
            Err(error) => errors.push(error),
        }
    }
    all
}

/// Whether `#[sync(…)]` stands among the attributes.
pub(crate) fn is_present(attrs: &[Attribute]) -> Option<Span> {
    attrs.iter().find(|attr| attr.path().is_ident("sync")).map(|attr| attr.path().span())
}

/// What `#[sea_orm(…)]` says on a model or a field, as far as the derive needs it.
#[derive(Default)]
pub(crate) struct SeaOrm {
    pub(crate) table_name: Option<LitStr>,
    pub(crate) primary_key: bool,
    pub(crate) auto_increment: Option<bool>,
    pub(crate) column_name: Option<String>,
    pub(crate) ignore: bool,
}

impl SeaOrm {
    /// Skips what it does not know or understand: SeaORM reports its own mistakes.
    pub(crate) fn parse(attrs: &[Attribute]) -> Self {
        let mut parsed = Self::default();
        for attr in attrs.iter().filter(|attr| attr.path().is_ident("sea_orm")) {
            let Meta::List(list) = &attr.meta else { continue };
            let parser = Punctuated::<Meta, Token![,]>::parse_terminated;
            for meta in parser.parse2(list.tokens.clone()).into_iter().flatten() {
                parsed.take(&meta);
            }
        }
        parsed
    }

    fn take(&mut self, meta: &Meta) {
        let literal = match meta {
            Meta::NameValue(pair) => match &pair.value {
                Expr::Lit(ExprLit { lit, .. }) => Some(lit),
                _ => None,
            },
            Meta::Path(_) | Meta::List(_) => None,
        };
        let Some(name) = meta.path().get_ident() else { return };
        match (name.to_string().as_str(), literal) {
            ("primary_key", _) => self.primary_key = true,
            ("ignore", _) => self.ignore = true,
            ("auto_increment", Some(Lit::Bool(value))) => self.auto_increment = Some(value.value),
            ("table_name", Some(Lit::Str(value))) => self.table_name = Some(value.clone()),
            ("column_name", Some(Lit::Str(value))) => self.column_name = Some(value.value()),
            _ => {}
        }
    }
}
