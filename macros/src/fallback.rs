//! Impls that stand in after a mistake, so that the rest of the application is not one error per use of the model.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Data, DeriveInput, Fields};

use crate::{
    attr::{Errors, FieldAttrs, ModelAttrs},
    expand,
};

pub(crate) fn model(input: &DeriveInput, error: syn::Error) -> TokenStream {
    let error = error.into_compile_error();
    let is_entity = input.ident == "Model"
        && matches!(&input.data, Data::Struct(data) if matches!(data.fields, Fields::Named(_)));
    if !is_entity {
        return error;
    }
    let attrs = ModelAttrs::parse(&input.attrs, &mut Errors::default());
    let krate = attrs.krate.as_ref().map_or_else(|| quote!(::tidelog), |path| quote!(#path));
    let behavior = attrs.behavior_own.is_none().then(|| {
        quote! {
            #[automatically_derived]
            impl #krate::__private::sea_orm::ActiveModelBehavior for ActiveModel {}
        }
    });
    let soft_delete = match &input.data {
        Data::Struct(data) => data
            .fields
            .iter()
            .any(|field| FieldAttrs::parse(&field.attrs, &mut Errors::default()).soft_delete.is_some()),
        _ => false,
    };
    let soft_delete = soft_delete.then(|| expand::soft_delete(0, &krate));
    quote! {
        #error
        #[automatically_derived]
        impl #krate::Syncable for Model {
            const SYNC_ID: &'static str = "";
        }
        #behavior
        #soft_delete
    }
}
