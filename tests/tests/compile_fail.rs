//! Mistakes that only the compiler can show: each file in `ui/` must fail with exactly the text beside it.
//!
//! The rules of the derive itself are tested on tokens, in the macro crate. After a change of a message or of the
//! compiler, `TRYBUILD=overwrite cargo test --workspace --test compile_fail` writes the texts anew: read the diff.

#[test]
fn mistakes_are_errors_that_say_what_to_write() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
