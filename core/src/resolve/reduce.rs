//! The reducers: one value of two that were written unseen by each other.
//!
//! All of them give the same value in whichever order the two arrive: `sum` adds what each added to the base they
//! started from, `union` takes out what either took out and puts in what either put in.

use std::{cmp::Ordering, collections::BTreeSet};

use crate::{model::Reducer, value::Value};

/// The reduced value; `None` if a value is not of the reducer's kind.
pub(crate) fn reduce(reducer: Reducer, base: Option<&Value>, now: &Value, brought: &Value) -> Option<Value> {
    match reducer {
        Reducer::Max => pick(now, brought, Ordering::Less),
        Reducer::Min => pick(now, brought, Ordering::Greater),
        Reducer::Sum => sum(base.unwrap_or(&Value::Null), now, brought),
        Reducer::Union => union(base.unwrap_or(&Value::Null), now, brought),
    }
}

/// The brought value where the present one compares to it as `gives_way`. NULL gives way to everything.
fn pick(now: &Value, brought: &Value, gives_way: Ordering) -> Option<Value> {
    let brought_stands = match (now, brought) {
        (_, Value::Null) => false,
        (Value::Null, _) => true,
        _ => compare(now, brought)? == gives_way,
    };
    Some(if brought_stands { brought.clone() } else { now.clone() })
}

fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    Some(match (a, b) {
        (Value::Integer(a), Value::Integer(b)) => a.cmp(b),
        // Numbers that are equal as such are told apart by their kind, so that the order of arrival does not.
        (Value::Integer(i), Value::Real(r)) => compare_mixed(*i, *r).then(Ordering::Less),
        (Value::Real(r), Value::Integer(i)) => compare_mixed(*i, *r).reverse().then(Ordering::Greater),
        (Value::Real(a), Value::Real(b)) => a.total_cmp(b),
        (Value::Text(a), Value::Text(b)) | (Value::Blob(a), Value::Blob(b)) => a.cmp(b),
        _ => return None,
    })
}

/// Exact: an integer beyond 2^53 is no real.
fn compare_mixed(i: i64, r: f64) -> Ordering {
    const BEYOND: f64 = 9_223_372_036_854_775_808.0;
    if r >= BEYOND {
        return Ordering::Less;
    }
    if r < -BEYOND {
        return Ordering::Greater;
    }
    // Within the range of an i64, so nothing is cut off but the fraction.
    let whole = r.trunc();
    i.cmp(&(whole as i64)).then_with(|| whole.total_cmp(&r))
}

/// `now + (brought − base)`; NULL counts as nothing.
fn sum(base: &Value, now: &Value, brought: &Value) -> Option<Value> {
    if let (Some(base), Some(now), Some(brought)) = (integer(base), integer(now), integer(brought)) {
        let sum = now + brought - base;
        // Beyond 64 bits it stays at the end of the range, wherever it came from.
        let clamped = sum.clamp(i128::from(i64::MIN), i128::from(i64::MAX));
        return i64::try_from(clamped).ok().map(Value::Integer);
    }
    Some(Value::Real(real(now)? + (real(brought)? - real(base)?)))
}

fn integer(value: &Value) -> Option<i128> {
    match value {
        Value::Null => Some(0),
        Value::Integer(i) => Some(i128::from(*i)),
        _ => None,
    }
}

fn real(value: &Value) -> Option<f64> {
    match value {
        Value::Null => Some(0.0),
        Value::Integer(i) => Some(*i as f64),
        Value::Real(r) => Some(*r),
        _ => None,
    }
}

/// What either added is in, what either took out is not. Sorted, so that the order of arrival leaves no trace.
fn union(base: &Value, now: &Value, brought: &Value) -> Option<Value> {
    let (base, now, brought) = (items(base)?, items(now)?, items(brought)?);
    let kept = now.iter().filter(|item| brought.contains(*item) || !base.contains(*item));
    let added = brought.iter().filter(|item| !base.contains(*item));
    let set: BTreeSet<&String> = kept.chain(added).collect();
    let mut text = String::from("[");
    for (i, item) in set.into_iter().enumerate() {
        if i > 0 {
            text.push(',');
        }
        text.push_str(item);
    }
    text.push(']');
    Some(Value::Text(text.into()))
}

/// The items of a JSON array, each as its text; NULL is empty.
fn items(value: &Value) -> Option<BTreeSet<String>> {
    match value {
        Value::Null => Some(BTreeSet::new()),
        Value::Text(text) => {
            let array: Vec<serde_json::Value> = serde_json::from_slice(text).ok()?;
            Some(array.iter().map(serde_json::Value::to_string).collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

    use super::*;

    fn text(text: &str) -> Value {
        Value::Text(text.into())
    }

    /// Both arrive in either order over the same base.
    fn both(reducer: Reducer, base: &Value, a: &Value, b: &Value) -> Value {
        let forth = reduce(reducer, Some(base), a, b).unwrap();
        let back = reduce(reducer, Some(base), b, a).unwrap();
        assert_eq!(forth, back, "{reducer:?} of {a:?} and {b:?}");
        forth
    }

    #[test]
    fn the_larger_and_the_smaller_are_found_among_numbers_of_both_kinds() {
        use Value::{Integer, Null, Real};
        let base = Null;
        let ordered = [
            Integer(i64::MIN),
            Real(-2.5),
            Integer(-2),
            Integer(0),
            Real(0.5),
            Integer(1),
            Integer((1 << 53) + 1),
            Integer(i64::MAX),
            Real(9.3e18),
            Real(f64::INFINITY),
        ];
        for (i, smaller) in ordered.iter().enumerate() {
            assert_eq!(both(Reducer::Max, &base, smaller, &Null), *smaller);
            for larger in &ordered[i..] {
                assert_eq!(both(Reducer::Max, &base, smaller, larger), *larger);
                assert_eq!(both(Reducer::Min, &base, smaller, larger), *smaller);
            }
        }
        assert_eq!(both(Reducer::Max, &base, &text("2026-01-02"), &text("2025-12-31")), text("2026-01-02"));
        both(Reducer::Max, &base, &Integer(1), &Real(1.0));
        assert_eq!(reduce(Reducer::Max, None, &Integer(1), &text("1")), None, "no order between them");
    }

    #[test]
    fn a_sum_holds_what_each_added() {
        use Value::{Integer, Null, Real};
        assert_eq!(both(Reducer::Sum, &Integer(10), &Integer(15), &Integer(7)), Integer(12));
        assert_eq!(both(Reducer::Sum, &Null, &Integer(2), &Integer(3)), Integer(5));
        assert_eq!(both(Reducer::Sum, &Real(1.0), &Real(1.5), &Real(3.0)), Real(3.5));
        let near_the_end = Integer(i64::MAX - 1);
        assert_eq!(
            both(Reducer::Sum, &Integer(0), &near_the_end, &near_the_end),
            Integer(i64::MAX),
            "it does not wrap round"
        );
        assert_eq!(reduce(Reducer::Sum, Some(&Null), &text("1"), &Integer(1)), None);
    }

    #[test]
    fn a_union_holds_what_either_put_in_and_not_what_either_took_out() {
        let of = |base: &str, a: &str, b: &str| both(Reducer::Union, &text(base), &text(a), &text(b));
        assert_eq!(of("[]", r#"["b"]"#, r#"["a"]"#), text(r#"["a","b"]"#));
        assert_eq!(of(r#"["x","y"]"#, r#"["x"]"#, r#"["x","y","z"]"#), text(r#"["x","z"]"#));
        assert_eq!(of("[]", r#"[{"n":1}, 2]"#, "[2,2]"), text(r#"[2,{"n":1}]"#));
        assert_eq!(both(Reducer::Union, &Value::Null, &Value::Null, &text("[1]")), text("[1]"));
        assert_eq!(reduce(Reducer::Union, None, &text("no array"), &text("[]")), None);
    }
}
