//! The rules of the derive on tokens, without a compiler: every mistake is found, once, and says what to write.

use quote::{ToTokens, quote};
use syn::{DeriveInput, parse_quote};

/// What the derive says of this input; empty if it is content.
fn mistakes(input: &DeriveInput) -> Vec<String> {
    if input.ident == "ModelEx" {
        return crate::valid::relations(input).err().into_iter().flatten().map(|e| e.to_string()).collect();
    }
    crate::parse(input).err().into_iter().flatten().map(|error| error.to_string()).collect()
}

#[track_caller]
fn one_mistake(input: &DeriveInput, parts: &[&str]) {
    let mistakes = mistakes(input);
    let [only] = mistakes.as_slice() else {
        panic!("one mistake was expected in\n{}\nbut there are: {mistakes:#?}", input.to_token_stream());
    };
    for part in parts {
        assert!(only.contains(part), "`{only}`\ndoes not say `{part}`");
    }
    // A mistake never leaves the model without the impls that other code relies on.
    let expanded = crate::derive(input).to_string();
    assert!(expanded.contains("compile_error"), "{expanded}");
}

#[track_caller]
fn expanded(input: &DeriveInput) -> String {
    let mistakes = mistakes(input);
    assert!(mistakes.is_empty(), "{mistakes:#?}");
    crate::derive(input).to_string()
}

/// A model that is right but for what stands in `#[sync(…)]`.
fn with(sync: &proc_macro2::TokenStream) -> DeriveInput {
    parse_quote! {
        #[sea_orm(table_name = "locations")]
        #[sync(#sync)]
        pub struct Model {
            #[sea_orm(primary_key, auto_increment = false)]
            pub id: Uuid,
            pub name: String,
            #[sea_orm(column_name = "seen_at")]
            pub last_seen: Option<DateTimeUtc>,
            #[sync(local)]
            pub mount_point: Option<String>,
            pub inside: Option<uuid::Uuid>,
        }
    }
}

fn with_field(field: &proc_macro2::TokenStream) -> DeriveInput {
    parse_quote! {
        #[sea_orm(table_name = "locations")]
        pub struct Model {
            #[sea_orm(primary_key, auto_increment = false)]
            pub id: Uuid,
            #field
        }
    }
}

fn with_key(sync: &proc_macro2::TokenStream, key: &proc_macro2::TokenStream) -> DeriveInput {
    parse_quote! {
        #[sea_orm(table_name = "locations")]
        #sync
        pub struct Model {
            #key
            pub uuid: Uuid,
            pub name: String,
        }
    }
}

#[test]
fn every_attribute_of_a_model_is_known() {
    for sync in [
        quote!(),
        quote!(model = "location"),
        quote!(version = 3, after = "device", after = "volume, tag"),
        quote!(merge = "lww"),
        quote!(merge = "fields"),
        quote!(merge = "leader_wins"),
        quote!(merge = "origin_wins"),
        quote!(merge = "role"),
        quote!(merge = "manual"),
        quote!(custom = "crate::sync::merge"),
        quote!(owner = "name"),
        quote!(owner = "seen_at"),
        quote!(deletes = "delete_wins"),
        quote!(deletes = "update_wins"),
        quote!(deletes = "manual"),
        quote!(priority = "critical"),
        quote!(priority = "high"),
        quote!(priority = "normal"),
        quote!(priority = "low"),
        quote!(should_sync = "Self::is_shared", capture = "hooks"),
        quote!(capture = "trigger"),
        quote!(tree = "inside"),
        quote!(hooks),
        quote!(behavior = "own"),
        quote!(crate = "crate::reexport"),
    ] {
        let mut input = with(&sync);
        if sync.is_empty() {
            input.attrs.retain(|attr| !attr.path().is_ident("sync"));
        }
        assert_eq!(mistakes(&input), [""; 0], "#[sync({sync})]");
    }
}

#[test]
fn an_unknown_attribute_is_told_the_known_ones() {
    one_mistake(&with(&quote!(modle = "x")), &["`modle`", "`model`", "`priority`", "`crate`"]);
    one_mistake(
        &with_field(&quote!(#[sync(skip)] pub a: String)),
        &["`skip`", "`local`", "`default`", "`merge`", "`created_at`", "`updated_at`", "`soft_delete`"],
    );
}

#[test]
fn an_attribute_in_the_wrong_place_is_told_the_right_one() {
    one_mistake(&with(&quote!(local)), &["`local`", "on the field"]);
    one_mistake(
        &with_field(&quote!(#[sync(priority = "low")] pub a: String)),
        &["`priority`", "on the struct"],
    );
    one_mistake(
        &with_field(&quote!(#[sync(merge = "lww")] pub a: i32)),
        &["\"lww\"", "\"max\"", "on the struct"],
    );
    one_mistake(&with(&quote!(merge = "max")), &["\"max\"", "\"lww\"", "custom = \"path\""]);
}

#[test]
fn a_word_that_is_not_in_the_list_is_told_the_list() {
    one_mistake(
        &with(&quote!(merge = "newest")),
        &["policy \"newest\"", "\"lww\", \"fields\", \"leader_wins\""],
    );
    one_mistake(
        &with(&quote!(deletes = "never")),
        &["\"never\"", "\"delete_wins\", \"update_wins\", \"manual\""],
    );
    one_mistake(
        &with(&quote!(priority = "urgent")),
        &["\"urgent\"", "\"critical\", \"high\", \"normal\", \"low\""],
    );
    one_mistake(&with(&quote!(capture = "poll")), &["\"poll\"", "\"trigger\", \"hooks\""]);
    one_mistake(&with(&quote!(behavior = "none")), &["\"none\"", "\"own\""]);
    one_mistake(
        &with_field(&quote!(#[sync(merge = "avg")] pub a: i32)),
        &["reducer \"avg\"", "\"max\", \"min\", \"sum\", \"union\""],
    );
}

#[test]
fn an_attribute_stands_once() {
    one_mistake(&with(&quote!(model = "a", model = "b")), &["`model`", "second time"]);
    one_mistake(&with(&quote!(hooks, hooks)), &["`hooks`", "second time"]);
    one_mistake(
        &with_field(&quote!(#[sync(local)] #[sync(local)] pub a: String)),
        &["`local`", "second time"],
    );
    one_mistake(&with(&quote!(after = "device", after = "device")), &["\"device\" twice"]);
}

#[test]
fn a_value_is_there_and_of_its_kind() {
    one_mistake(&with(&quote!(model)), &["`model` needs a value", "model = …"]);
    one_mistake(&with(&quote!(model =)), &["`model` needs a value"]);
    one_mistake(&with(&quote!(model = 7)), &["`model` takes a text"]);
    one_mistake(&with(&quote!(model("a"))), &["no parentheses", "model = "]);
    one_mistake(&with(&quote!(hooks = "yes")), &["`hooks` takes no value", "#[sync(hooks)]"]);
    one_mistake(&with(&quote!(version = 0)), &["from 1", "version = 2"]);
    one_mistake(&with(&quote!(version = "2")), &["whole number", "version = 2"]);
    one_mistake(&with(&quote!(version)), &["`version` needs a value"]);
    one_mistake(&with(&quote!(after = "device,, tag")), &["empty model id", "\"device, volume\""]);
    one_mistake(
        &with(&quote!(should_sync = "a b")),
        &["`should_sync` takes the path of fn should_sync(model: &Model) -> bool"],
    );
    one_mistake(&with(&quote!(custom = "")), &["`custom` takes the path", "base: Option<Model>"]);
    one_mistake(
        &with_field(&quote!(#[sync(default)] pub a: i32)),
        &["`default` needs a value", "default = …"],
    );
    one_mistake(&with_field(&quote!(#[sync(default =)] pub a: i32)), &["`default` needs a value"]);
    one_mistake(&with_field(&quote!(#[sync(local = true)] pub a: i32)), &["`local` takes no value"]);
    one_mistake(&with_field(&quote!(#[sync] pub a: i32)), &["says nothing", "#[sync(local)]"]);
    one_mistake(&with(&quote!()), &["says nothing", "#[sync(model = \"id\")]"]);
}

#[test]
fn a_model_has_an_id() {
    one_mistake(&with(&quote!(model = "")), &["not empty", "#[sync(model = \"location\")]"]);
    one_mistake(&with(&quote!(model = " a")), &["no space around"]);
    one_mistake(&with(&quote!(model = "a,b")), &["no comma"]);
    one_mistake(&with(&quote!(model = "location", after = "location")), &["after itself"]);
    one_mistake(&with(&quote!(after = "locations")), &["after itself"]);
    let mut input = with(&quote!(hooks));
    input.attrs.retain(|attr| attr.path().is_ident("sync"));
    one_mistake(&input, &["no id", "model = ", "table_name"]);
}

#[test]
fn a_model_has_a_key_that_no_two_devices_give_out() {
    one_mistake(
        &with_key(&quote!(), &quote!()),
        &["no primary key", "#[sea_orm(primary_key, auto_increment = false)]"],
    );
    one_mistake(
        &with_key(&quote!(), &quote!(#[sea_orm(primary_key)] pub id: i64,)),
        &["`id`", "`Uuid`", "#[sync(id = \"that_column\")]", "auto_increment = false"],
    );
    for right in [
        quote!(#[sea_orm(primary_key)] pub id: Uuid,),
        quote!(#[sea_orm(primary_key)] pub id: uuid::Uuid,),
        quote!(#[sea_orm(primary_key)] pub id: String,),
        quote!(#[sea_orm(primary_key, auto_increment = false)] pub id: i64,),
        quote!(#[sea_orm(primary_key)] pub a: i64, #[sea_orm(primary_key)] pub b: i64,),
    ] {
        assert_eq!(mistakes(&with_key(&quote!(), &right)), [""; 0], "{right}");
    }
    let counted = quote!(#[sea_orm(primary_key)] pub id: i64,);
    assert_eq!(mistakes(&with_key(&quote!(#[sync(id = "uuid")]), &counted)), [""; 0]);
    one_mistake(
        &with_key(&quote!(#[sync(id = "uid")]), &counted),
        &["`id`", "`uid`", "`id`, `uuid`, `name`"],
    );
    one_mistake(
        &with_key(&quote!(#[sync(id = "id")]), &counted),
        &["is the primary key", "unique UUID column"],
    );
}

#[test]
fn a_key_is_neither_local_nor_merged_nor_guessed() {
    let key = |sync| with_key(&quote!(), &quote!(#sync #[sea_orm(primary_key)] pub id: Uuid,));
    one_mistake(&key(quote!(#[sync(local)])), &["`id`", "remove `local`"]);
    one_mistake(&key(quote!(#[sync(merge = "max")])), &["`id`", "remove `merge`"]);
    one_mistake(&key(quote!(#[sync(default = "x")])), &["`id`", "remove `default`"]);
    let beside: DeriveInput = parse_quote! {
        #[sea_orm(table_name = "t")]
        #[sync(id = "uuid")]
        pub struct Model {
            #[sync(local)]
            #[sea_orm(primary_key)]
            pub id: i32,
            #[sync(local)]
            pub uuid: Uuid,
        }
    };
    one_mistake(&beside, &["`uuid`", "remove `local`"]);
}

#[test]
fn one_thing_says_who_wins() {
    one_mistake(&with(&quote!(merge = "lww", custom = "merge")), &["`merge` and `custom`", "keep one"]);
    one_mistake(&with(&quote!(owner = "name", merge = "lww")), &["`merge` and `owner`"]);
    one_mistake(&with(&quote!(custom = "merge", owner = "name")), &["`custom` and `owner`"]);
    one_mistake(&with(&quote!(owner = "device")), &["`owner`", "`device`", "`name`"]);
    one_mistake(&with(&quote!(owner = "mount_point")), &["`mount_point`", "local"]);
    one_mistake(
        &with_field(&quote!(#[sync(local, merge = "max")] pub a: i32)),
        &["`a`", "local", "remove `merge`"],
    );
}

fn kept(what: &str, more: &proc_macro2::TokenStream, field: &proc_macro2::TokenStream) -> DeriveInput {
    let what = proc_macro2::Ident::new(what, proc_macro2::Span::call_site());
    with_field(&quote!(#[sync(#what #more)] #field))
}

#[test]
fn what_is_known_of_a_record_has_a_field_each_that_others_get() {
    let time = quote!(pub at: DateTimeUtc);
    for what in ["created_at", "updated_at", "soft_delete"] {
        assert_eq!(mistakes(&kept(what, &quote!(), &time)), [""; 0]);
        assert_eq!(mistakes(&kept(what, &quote!(, merge = "max"), &time)), [""; 0]);
        one_mistake(&kept(what, &quote!(= "yes"), &time), &["takes no value", what]);
        let key = with_key(&quote!(), &quote!());
        let key: DeriveInput = {
            let what = proc_macro2::Ident::new(what, proc_macro2::Span::call_site());
            let mut key = key;
            if let syn::Data::Struct(data) = &mut key.data
                && let Some(first) = data.fields.iter_mut().next()
            {
                first.attrs.push(parse_quote!(#[sea_orm(primary_key, auto_increment = false)]));
                first.attrs.push(parse_quote!(#[sync(#what)]));
            }
            key
        };
        one_mistake(&key, &["`uuid` names the record", "field of its own", what]);
        one_mistake(&kept(what, &quote!(, merge = "sum"), &time), &[what, "cannot be added up", "\"max\""]);
        let ident = proc_macro2::Ident::new(what, proc_macro2::Span::call_site());
        let twice = quote!(#[sync(#ident)] pub a: DateTimeUtc, #[sync(#ident)] pub b: DateTimeUtc);
        one_mistake(&with_field(&twice), &["`a` is", what, "already", "keep one"]);
        one_mistake(&with(&quote!(#ident)), &[what, "on the field"]);
    }
    one_mistake(
        &kept("created_at", &quote!(, local), &time),
        &["`at` is local", "rows of other devices", "remove `local` or `created_at`"],
    );
    one_mistake(
        &kept("soft_delete", &quote!(, local), &time),
        &["`at` is local", "never leave this device", "remove `local` or `soft_delete`"],
    );
    assert_eq!(mistakes(&kept("updated_at", &quote!(, local), &time)), [""; 0], "when it was changed here");
    one_mistake(
        &kept("created_at", &quote!(, updated_at), &time),
        &["both `created_at` and `updated_at`", "field of its own"],
    );
    one_mistake(&kept("deleted_at", &quote!(), &time), &["`deleted_at`", "#[sync(soft_delete)]"]);
}

#[test]
fn fields_that_are_filled_are_named_and_their_types_left_to_the_compiler() {
    let deleted = expanded(&kept("soft_delete", &quote!(), &quote!(pub at: Option<DateTimeUtc>)));
    assert!(deleted.contains("impl :: tidelog :: metadata :: SoftDelete for Model"), "{deleted}");
    assert!(deleted.contains("const SOFT_DELETE : usize = 1usize"), "{deleted}");
    assert!(deleted.contains("DeletedMark"), "{deleted}");
    let created = expanded(&kept("created_at", &quote!(), &quote!(pub at: DateTimeUtc)));
    assert!(!created.contains("SoftDelete"), "{created}");
    assert!(created.contains("options . metadata . created_at"), "{created}");
    assert!(created.contains("holds :: < DateTimeUtc >"), "{created}");

    let own = with_key(
        &quote!(#[sync(behavior = "own")]),
        &quote!(
            #[sync(soft_delete, merge = "avg")] pub gone: bool,
            #[sea_orm(primary_key, auto_increment = false)]
        ),
    );
    let stand_in = crate::derive(&own).to_string();
    assert!(stand_in.contains("SoftDelete for Model"), "a mistake is not one error per query: {stand_in}");
}

#[test]
fn a_tree_is_named_by_the_column_of_the_parents_key() {
    one_mistake(&with(&quote!(tree = "parent")), &["`tree`", "`parent`", "`inside`"]);
    one_mistake(&with(&quote!(tree = "id")), &["`id`", "the record itself", "its parent"]);
    one_mistake(&with(&quote!(tree = "name")), &["`name` is `String`", "`Option<Uuid>`"]);
    one_mistake(&with(&quote!(tree = "seen_at")), &["`Option<DateTimeUtc>`", "`Option<Uuid>`"]);
    one_mistake(&with(&quote!(tree = "mount_point")), &["`mount_point`", "local"]);
    one_mistake(&with(&quote!(tree = 7)), &["`tree` takes a text", "tree = \"parent_id\""]);
    one_mistake(&with(&quote!(tree = "inside", tree = "inside")), &["`tree`", "second time"]);
    one_mistake(
        &with_field(&quote!(#[sync(tree = "parent")] pub parent: Option<Uuid>)),
        &["`tree`", "on the struct"],
    );
    let tree = quote!(#[sync(tree = "name")]);
    let several = quote!(#[sea_orm(primary_key)] pub a: i64, #[sea_orm(primary_key)] pub b: i64,);
    one_mistake(&with_key(&tree, &several), &["`name`", "several"]);
    let counted: DeriveInput = parse_quote! {
        #[sea_orm(table_name = "t")]
        #[sync(id = "uuid", tree = "parent")]
        pub struct Model {
            #[sea_orm(primary_key)]
            pub id: i32,
            pub uuid: Uuid,
            pub parent: Option<i32>,
        }
    };
    one_mistake(&counted, &["`parent` is `Option<i32>`", "`Option<Uuid>`"]);
    let reduced: DeriveInput = parse_quote! {
        #[sea_orm(table_name = "t")]
        #[sync(tree = "parent")]
        pub struct Model {
            #[sea_orm(primary_key, auto_increment = false)]
            pub id: i64,
            #[sync(merge = "max")]
            pub parent: Option<i64>,
        }
    };
    one_mistake(&reduced, &["`parent`", "cannot be reduced"]);
    let right = expanded(&with(&quote!(tree = "inside")));
    assert!(right.contains("options . tree = :: core :: option :: Option :: Some"), "{right}");
}

#[test]
fn own_behavior_leaves_no_place_for_hooks() {
    one_mistake(&with(&quote!(hooks, behavior = "own")), &["`hooks`", "behavior = \"own\"", "keep one"]);
}

#[test]
fn only_the_model_of_an_entity_is_synced() {
    one_mistake(
        &parse_quote!(
            enum Model {
                A,
            }
        ),
        &["an enum", "pub struct Model"],
    );
    one_mistake(
        &parse_quote!(
            struct Model(Uuid);
        ),
        &["a tuple struct", "pub struct Model"],
    );
    one_mistake(
        &parse_quote!(
            struct Model;
        ),
        &["without fields"],
    );
    one_mistake(
        &parse_quote!(
            struct Location {
                id: Uuid,
            }
        ),
        &["`Location`", "pub struct Model"],
    );
    one_mistake(
        &with_field(&quote!(#[sea_orm(ignore)] #[sync(local)] pub cache: String)),
        &["`cache`", "no column", "remove #[sync(…)]"],
    );
}

#[test]
fn all_mistakes_are_shown_at_once() {
    let input: DeriveInput = parse_quote! {
        #[sea_orm(table_name = "t")]
        #[sync(merge = "newest", priority = "urgent")]
        pub struct Model {
            #[sea_orm(primary_key)]
            pub id: Uuid,
            #[sync(skip)]
            pub name: String,
        }
    };
    assert_eq!(mistakes(&input).len(), 3);
}

#[test]
fn the_generated_model_ex_gets_nothing_and_its_relations_no_attributes() {
    let copied: DeriveInput = parse_quote! {
        #[sea_orm(table_name = "t")]
        #[sync(model = "t")]
        pub struct ModelEx {
            #[sea_orm(primary_key)]
            pub id: Uuid,
            #[sync(local)]
            pub name: String,
            pub posts: HasMany<super::post::Entity>,
        }
    };
    assert_eq!(expanded(&copied), "");
    for relation in [
        quote!(HasMany<super::post::Entity>),
        quote!(HasOne<super::post::Entity>),
        quote!(sea_orm::BelongsTo<Option<super::post::Entity>>),
    ] {
        let marked: DeriveInput = parse_quote! {
            pub struct ModelEx {
                pub id: Uuid,
                #[sync(local)]
                pub posts: #relation,
            }
        };
        one_mistake(&marked, &["relation", "foreign key"]);
    }
}

#[test]
fn columns_are_found_by_their_place_among_the_columns() {
    let input: DeriveInput = parse_quote! {
        #[sea_orm(table_name = "t")]
        pub struct Model {
            #[sea_orm(primary_key)]
            pub id: Uuid,
            #[sea_orm(ignore)]
            pub cache: String,
            #[sync(local)]
            pub r#type: String,
        }
    };
    let expanded = expanded(&input);
    assert!(expanded.contains("column_name :: < Model > (1usize)"), "{expanded}");
}

#[test]
fn what_is_emitted_follows_the_attributes() {
    let plain = expanded(&with(&quote!(model = "location")));
    assert!(plain.contains("const SYNC_ID : & 'static str = \"location\""), "{plain}");
    assert!(plain.contains("ActiveModelBehavior for ActiveModel"));
    assert!(plain.contains(":: tidelog :: behavior :: before_save"));
    assert!(!plain.contains("Hooks >"));

    let own = expanded(&with(&quote!(behavior = "own")));
    assert!(!own.contains("ActiveModelBehavior"));
    assert!(own.contains("SYNC_ID : & 'static str = \"locations\""), "the table's name is the default");

    let hooks = expanded(&with(&quote!(hooks, crate = "crate::reexport")));
    assert!(hooks.contains("< ActiveModel as crate :: reexport :: Hooks > :: before_delete"));
    assert!(!hooks.contains(":: tidelog"), "every path goes through the given crate: {hooks}");
}

#[test]
fn the_stand_in_keeps_the_given_crate_and_behavior() {
    let renamed = crate::derive(&with(&quote!(merge = "newest", crate = "reexport"))).to_string();
    assert!(renamed.contains("impl reexport :: Syncable for Model"), "{renamed}");
    assert!(renamed.contains("ActiveModelBehavior for ActiveModel"));
    let own = crate::derive(&with(&quote!(merge = "newest", behavior = "own"))).to_string();
    assert!(!own.contains("ActiveModelBehavior"), "{own}");
    let no_entity = crate::derive(&parse_quote!(
        enum Model {
            A,
        }
    ))
    .to_string();
    assert!(!no_entity.contains("Syncable for"), "{no_entity}");
}
