//! Bytes of a stored text or blob. A row is mostly short ones (a UUID, a name, a time), and rows pass through memory by the
//! hundred thousand: those stay within the value instead of asking for memory each.

use std::{fmt, ops::Deref};

use smallvec::SmallVec;

/// Longest bytes that are kept without an allocation: a UUID as text, or a point in time as sqlx writes it.
pub(crate) const SHORT: usize = 36;

/// Bytes of a stored text or blob, of any length. Reads as `&[u8]`; made with `into()` of texts, slices, arrays and vectors.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(SmallVec<[u8; SHORT]>);

impl Bytes {
    /// The bytes as a vector of their own.
    pub fn into_vec(self) -> Vec<u8> {
        self.0.into_vec()
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Self(SmallVec::from_slice(bytes))
    }
}

impl<const N: usize> From<[u8; N]> for Bytes {
    fn from(bytes: [u8; N]) -> Self {
        bytes.as_slice().into()
    }
}

impl<const N: usize> From<&[u8; N]> for Bytes {
    fn from(bytes: &[u8; N]) -> Self {
        bytes.as_slice().into()
    }
}

impl From<&str> for Bytes {
    fn from(text: &str) -> Self {
        text.as_bytes().into()
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        // What is short gives its memory back.
        if bytes.len() <= SHORT { bytes.as_slice().into() } else { Self(SmallVec::from_vec(bytes)) }
    }
}

impl From<String> for Bytes {
    fn from(text: String) -> Self {
        text.into_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_every_length_read_as_they_were_made_and_only_long_ones_are_allocated() {
        for length in [0, 1, SHORT - 1, SHORT, SHORT + 1, 4096] {
            let bytes: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let made = [Bytes::from(bytes.as_slice()), Bytes::from(bytes.clone())];
            for made in made {
                assert_eq!(*made, *bytes);
                assert_eq!(made.0.spilled(), length > SHORT);
                assert_eq!(made.into_vec(), bytes);
            }
        }
        assert_eq!(Bytes::from("text"), Bytes::from(String::from("text")));
        assert_eq!(Bytes::from([7; 16]), Bytes::from(&[7; 16]));
    }
}
