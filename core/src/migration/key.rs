//! What becomes of an integer key: a UUID that follows from it, on every device the same.
//!
//! Version 8 of RFC 9562, whose 122 free bits are, from the first on:
//!
//! | bits | what | why |
//! |---|---|---|
//! | 8 | zero | sorts before every UUIDv7 made since 2004, so rows written later come after those migrated |
//! | 64 | the old key, sign bit flipped | keys keep their order, so indexes grow at their end and neighbours stay neighbours; no two keys of a table can meet; the old key can be read back |
//! | 50 | the end of the UUIDv5 of `table:key` in the caller's namespace | the same key of two tables, or of two unrelated databases, does not meet |

use uuid::Uuid;

/// Free bits that are the hash's.
const HASH_BITS: u32 = 50;
/// Free bits behind the variant.
const TAIL_BITS: u32 = 62;
/// Free bits between version and variant.
const MIDDLE_BITS: u32 = 12;
const SIGN: u64 = 1 << 63;
const VERSION: u128 = 8 << 76;
const VARIANT: u128 = 2 << TAIL_BITS;

/// The UUID that [`integer_keys_to_uuids`](super::integer_keys_to_uuids) makes of an integer key: for references that
/// are kept outside of the database, such as in a settings file. `table` is spelled as the database spells it.
///
/// ```
/// use tidelog::migration::uuid_for;
///
/// let namespace = uuid::uuid!("0198c0de-0000-7000-8000-000000000001");
/// assert!(uuid_for(namespace, "entries", 7) < uuid_for(namespace, "entries", 8));
/// assert_ne!(uuid_for(namespace, "entries", 7), uuid_for(namespace, "tags", 7));
/// ```
pub fn uuid_for(namespace: Uuid, table: &str, key: i64) -> Uuid {
    let hash = Uuid::new_v5(&namespace, format!("{table}:{key}").as_bytes()).as_u128();
    let free = u128::from(key.cast_unsigned() ^ SIGN) << HASH_BITS | hash & low(HASH_BITS);
    let first = free >> (TAIL_BITS + MIDDLE_BITS);
    let middle = free >> TAIL_BITS & low(MIDDLE_BITS);
    Uuid::from_u128(first << 80 | VERSION | middle << 64 | VARIANT | free & low(TAIL_BITS))
}

/// The integer key that a UUID was made of; `None` if [`uuid_for`] did not make it.
pub(super) fn key_of(namespace: Uuid, table: &str, uuid: &[u8]) -> Option<i64> {
    let uuid = Uuid::from_slice(uuid).ok()?;
    let bits = uuid.as_u128();
    let free = (bits >> 80) << (TAIL_BITS + MIDDLE_BITS)
        | (bits >> 64 & low(MIDDLE_BITS)) << TAIL_BITS
        | bits & low(TAIL_BITS);
    let key = (u64::try_from(free >> HASH_BITS).ok()? ^ SIGN).cast_signed();
    (uuid_for(namespace, table, key) == uuid).then_some(key)
}

const fn low(bits: u32) -> u128 {
    (1 << bits) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMESPACE: Uuid = Uuid::from_u128(0x0198_c0de_0000_7000_8000_0000_0000_0001);
    const KEYS: [i64; 12] = [i64::MIN, -4096, -1, 0, 1, 2, 3, 4095, 4096, 100_000, 1 << 40, i64::MAX];

    #[test]
    fn the_layout_is_frozen_since_devices_must_agree_across_releases() {
        assert_eq!(uuid_for(NAMESPACE, "entries", 1).to_string(), "00800000-0000-8000-8004-2c66ee68971a",);
    }

    #[test]
    fn keys_keep_their_order_and_can_be_read_back() {
        let made: Vec<Uuid> = KEYS.iter().map(|&key| uuid_for(NAMESPACE, "entries", key)).collect();
        assert!(made.is_sorted_by(|a, b| a < b), "{made:?}");
        for (uuid, key) in made.iter().zip(KEYS) {
            assert_eq!(key_of(NAMESPACE, "entries", uuid.as_bytes()), Some(key));
            assert_eq!(uuid.get_version_num(), 8);
            assert_eq!(uuid.get_variant(), uuid::Variant::RFC4122);
            assert!(*uuid < Uuid::now_v7(), "rows that are written later come later");
        }
    }

    #[test]
    fn tables_and_namespaces_keep_apart() {
        let made = uuid_for(NAMESPACE, "entries", 7);
        assert_eq!(key_of(NAMESPACE, "tags", made.as_bytes()), None);
        assert_eq!(key_of(Uuid::nil(), "entries", made.as_bytes()), None);
        assert_eq!(key_of(NAMESPACE, "entries", Uuid::now_v7().as_bytes()), None);
        assert_eq!(key_of(NAMESPACE, "entries", b"short"), None);
    }
}
