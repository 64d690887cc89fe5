//! The impls.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::{LitStr, spanned::Spanned};

use crate::ast::{Field, Model};

pub(crate) fn model(model: &Model<'_>) -> TokenStream {
    let krate = model.attrs.krate.as_ref().map_or_else(|| quote!(::tidelog), |path| quote!(#path));
    let syncable = syncable(model, &krate);
    let behavior = model.attrs.behavior_own.is_none().then(|| behavior(model, &krate));
    let metadata = metadata(model, &krate);
    quote!(#syncable #behavior #metadata)
}

/// Has the compiler check the types of the fields that are filled, and implements `SoftDelete`.
fn metadata(model: &Model<'_>, krate: &TokenStream) -> TokenStream {
    let checks = model.fields.iter().flat_map(|field| {
        field.attrs.metadata().map(move |(what, _)| {
            let kind = if what == "soft_delete" { quote!(DeletedMark) } else { quote!(Timestamp) };
            let ty = field.ty;
            quote_spanned! {ty.span()=>
                const _: () = {
                    const fn holds<T: #krate::metadata::#kind>() {}
                    holds::<#ty>()
                };
            }
        })
    });
    let soft_delete =
        model.fields.iter().find(|f| f.attrs.soft_delete.is_some()).map(|f| soft_delete(f.column, krate));
    quote!(#(#checks)* #soft_delete)
}

pub(crate) fn soft_delete(column: usize, krate: &TokenStream) -> TokenStream {
    quote! {
        #[automatically_derived]
        impl #krate::metadata::SoftDelete for Model {
            const SOFT_DELETE: usize = #column;
        }
    }
}

fn syncable(model: &Model<'_>, krate: &TokenStream) -> TokenStream {
    let id = model.attrs.model.as_ref().or(model.sea_orm.table_name.as_ref());
    let options = options(model, krate);
    let should_sync = model.attrs.should_sync.as_ref().map(|path| {
        // Named here: the path may come out of a macro of the application's, whose names are its own.
        let ask = format_ident!("ask");
        let set = quote_spanned!(path.span()=> let #ask: fn(&Self) -> bool = #path;);
        quote! {
            fn should_sync(&self) -> bool {
                #set
                #ask(self)
            }
        }
    });
    let merge = model.attrs.custom.as_ref().map(|custom| {
        let path = &custom.value;
        let option = quote!(::core::option::Option<Self>);
        let decide = format_ident!("decide");
        let set = quote_spanned!(path.span()=> let #decide: fn(#option, Self, Self) -> Self = #path;);
        quote! {
            fn merge(base: #option, local: Self, remote: Self) -> Self {
                #set
                #decide(base, local, remote)
            }
        }
    });
    quote! {
        #[automatically_derived]
        impl #krate::Syncable for Model {
            const SYNC_ID: &'static str = #id;
            #options
            #should_sync
            #merge
        }
    }
}

fn options(model: &Model<'_>, krate: &TokenStream) -> TokenStream {
    let attrs = &model.attrs;
    let of = quote!(#krate::model);
    let column = |field: &Field<'_>| {
        let index = field.column;
        quote!(#krate::__private::column_name::<Model>(#index))
    };
    let named = |name: &LitStr| model.field_named(&name.value()).map(column);

    let version = attrs.version.as_ref().map(|version| quote!(options.version = #version;));
    let after = (!attrs.after.is_empty()).then(|| {
        let after = &attrs.after;
        quote!(options.after = &[#(#after),*];)
    });
    let policy = match (&attrs.merge, &attrs.custom, attrs.owner.as_ref().and_then(|o| named(&o.value))) {
        (Some(choice), ..) => {
            let variant = &choice.variant;
            Some(quote!(options.policy = #of::Policy::#variant;))
        }
        (None, Some(_), _) => Some(quote!(options.policy = #of::Policy::Custom;)),
        (None, None, Some(owner)) => Some(quote!(options.policy = #of::Policy::Owner(#owner);)),
        (None, None, None) => None,
    };
    let deletes = attrs.deletes.as_ref().map(|choice| {
        let variant = &choice.variant;
        quote!(options.deletes = #of::DeletePolicy::#variant;)
    });
    let priority = attrs.priority.as_ref().map(|choice| {
        let variant = &choice.variant;
        quote!(options.priority = #of::Priority::#variant;)
    });
    let recorder = attrs.capture.as_ref().map(|choice| {
        let variant = &choice.variant;
        quote!(options.recorder = #of::Recorder::#variant;)
    });
    let id =
        attrs.id.as_ref().and_then(named).map(|id| quote!(options.id = ::core::option::Option::Some(#id);));
    let tree = attrs
        .tree
        .as_ref()
        .and_then(named)
        .map(|column| quote!(options.tree = ::core::option::Option::Some(#column);));
    let asks = attrs.should_sync.is_some().then(|| quote!(options.asks_should_sync = true;));

    let local: Vec<_> = model.fields.iter().filter(|f| f.attrs.local.is_some()).map(column).collect();
    let local = (!local.is_empty()).then(|| {
        let list = kept(quote!(&'static str), &local);
        quote!(options.local = #list;)
    });
    let reducers: Vec<_> = model
        .fields
        .iter()
        .filter_map(|field| {
            let variant = &field.attrs.merge.as_ref()?.variant;
            let column = column(field);
            Some(quote!((#column, #of::Reducer::#variant)))
        })
        .collect();
    let reducers = (!reducers.is_empty()).then(|| {
        let list = kept(quote!((&'static str, #of::Reducer)), &reducers);
        quote!(options.reducers = #list;)
    });
    let defaults = model.fields.iter().filter_map(|field| {
        let expr = &field.attrs.default.as_ref()?.value;
        let column = column(field);
        let value = quote_spanned!(expr.span()=> ::core::convert::Into::into(#expr));
        Some(quote!(options.defaults.push((#column, #value));))
    });
    let metadata = model.fields.iter().flat_map(|field| {
        field.attrs.metadata().map(move |(what, _)| {
            let (place, column) = (format_ident!("{what}"), column(field));
            quote!(options.metadata.#place = ::core::option::Option::Some(#column);)
        })
    });
    let settings = [version, after, policy, deletes, priority, recorder, id, tree, asks, local, reducers];
    let settings: Vec<_> = settings.into_iter().flatten().chain(defaults).chain(metadata).collect();
    if settings.is_empty() {
        return TokenStream::new();
    }
    quote! {
        fn options() -> #of::SyncOptions {
            let mut options = <#of::SyncOptions as ::core::default::Default>::default();
            #(#settings)*
            options
        }
    }
}

/// A list that is worked out at the first use and kept.
fn kept(item: TokenStream, list: &[TokenStream]) -> TokenStream {
    quote! {{
        static LIST: ::std::sync::LazyLock<::std::vec::Vec<#item>> =
            ::std::sync::LazyLock::new(|| ::std::vec![#(#list),*]);
        LIST.as_slice()
    }}
}

fn behavior(model: &Model<'_>, krate: &TokenStream) -> TokenStream {
    let sea_orm = quote!(#krate::__private::sea_orm);
    let ours = quote!(#krate::behavior);
    let hooks = model.attrs.hooks.map(|span| quote_spanned!(span=> <ActiveModel as #krate::Hooks>));
    let new = hooks.as_ref().map(|hooks| quote!(fn new() -> Self { #hooks::new() }));
    let user = |name: TokenStream, tail: TokenStream, value: &TokenStream| {
        hooks.as_ref().map(|hooks| quote!(let #value = #hooks::#name(#value, db #tail).await?;))
    };
    let (this, row) = (quote!(active), quote!(model));
    let before_save = user(quote!(before_save), quote!(, insert), &this);
    let after_save = user(quote!(after_save), quote!(, insert), &row);
    let before_delete = user(quote!(before_delete), quote!(), &this);
    let after_delete = user(quote!(after_delete), quote!(), &this);
    quote! {
        #[#krate::__private::async_trait]
        #[automatically_derived]
        impl #sea_orm::ActiveModelBehavior for ActiveModel {
            #new

            async fn before_save<C>(self, db: &C, insert: bool) -> ::core::result::Result<Self, #sea_orm::DbErr>
            where
                C: #sea_orm::ConnectionTrait,
            {
                let active = self;
                #before_save
                #ours::before_save::<Model, C>(active, db, insert).await
            }

            async fn after_save<C>(
                model: Model,
                db: &C,
                insert: bool,
            ) -> ::core::result::Result<Model, #sea_orm::DbErr>
            where
                C: #sea_orm::ConnectionTrait,
            {
                let model = #ours::after_save::<Model, C>(model, db, insert).await?;
                #after_save
                ::core::result::Result::Ok(model)
            }

            async fn before_delete<C>(self, db: &C) -> ::core::result::Result<Self, #sea_orm::DbErr>
            where
                C: #sea_orm::ConnectionTrait,
            {
                let active = self;
                #before_delete
                #ours::before_delete::<Model, C>(active, db).await
            }

            async fn after_delete<C>(self, db: &C) -> ::core::result::Result<Self, #sea_orm::DbErr>
            where
                C: #sea_orm::ConnectionTrait,
            {
                let active = #ours::after_delete::<Model, C>(self, db).await?;
                #after_delete
                ::core::result::Result::Ok(active)
            }
        }
    }
}
