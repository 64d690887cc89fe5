//! Frames: how messages lie on a stream.
//!
//! ```text
//! length: u32, big endian   bytes that follow: the kind and the payload
//! kind:   u8                see [`Kind`]
//! payload
//! ```
//! A whole frame has at most [`FRAME_MAX`] bytes; a longer message travels as [`Kind::More`] frames and a
//! last [`Kind::Complete`] one, at most [`MESSAGE_MAX`] bytes in all. The decoder is a function of the bytes
//! alone: it checks a length before it takes memory, its buffer grows only as bytes really arrive, and it
//! hands on nothing but what is whole. Reading from the network and deadlines are in `channel.rs`.

use bytes::Bytes;
use tidelog::transport::{FRAME_MAX, MESSAGE_MAX};

use crate::limits::CONTROL_MAX;

/// Bytes of a frame before its payload.
const HEADER: usize = 5;
/// Bytes of a message that one frame takes.
const PAYLOAD_MAX: usize = FRAME_MAX - HEADER;
/// Bytes of a message that are put into one: fewer, since a frame has to be here whole within
/// [`FRAME_TIMEOUT`](crate::limits::FRAME_TIMEOUT). So a line need only carry some 6 KiB a second.
const PAYLOAD: usize = FRAME_MAX / 16 - HEADER;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The rest of a message, most often all of it.
    Complete = 1,
    /// A part of a message; never empty, and another frame follows.
    More = 2,
    /// First frame of a stream, from the side that opened it: [`crate::preface::Preface`].
    Preface = 3,
    /// Answer to it: the channel is open; the payload is the protocol version.
    Accepted = 4,
    /// Answer to it: no; the payload is the reason, for people.
    Refused = 5,
}

impl Kind {
    fn parse(byte: u8) -> Option<Self> {
        [Self::Complete, Self::More, Self::Preface, Self::Accepted, Self::Refused]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }

    fn is_control(self) -> bool {
        matches!(self, Self::Preface | Self::Accepted | Self::Refused)
    }
}

/// Something whole that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Message(Vec<u8>),
    Preface(Vec<u8>),
    Accepted(Vec<u8>),
    Refused(Vec<u8>),
}

/// What is wrong with the bytes of a stream. Nothing of the item they were to be is handed on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a damaged frame: it announces {size} bytes, over the limit of {limit}")]
    TooLarge { size: usize, limit: usize },
    #[error("a damaged frame: it is of unknown kind {0}")]
    UnknownKind(u8),
    #[error("a damaged frame: it is empty where it must not be")]
    Empty,
    #[error("a frame that has no place here ({0:?})")]
    Misplaced(Kind),
    #[error("a truncated frame: the stream ended in the middle of it")]
    Truncated,
}

/// The frames of one message and their bytes on the wire. The message is not copied.
pub(crate) fn encode_message(message: Vec<u8>) -> (Vec<Bytes>, u64) {
    let mut rest = Bytes::from(message);
    let mut chunks = Vec::with_capacity(2 * rest.len().div_ceil(PAYLOAD).max(1));
    let mut wire = 0;
    loop {
        let payload = rest.split_to(rest.len().min(PAYLOAD));
        let kind = if rest.is_empty() { Kind::Complete } else { Kind::More };
        wire += (HEADER + payload.len()) as u64;
        chunks.push(Bytes::copy_from_slice(&header(kind, payload.len())));
        if !payload.is_empty() {
            chunks.push(payload);
        }
        if kind == Kind::Complete {
            return (chunks, wire);
        }
    }
}

/// One control frame. The payload is ours and short.
pub(crate) fn encode_control(kind: Kind, payload: &[u8]) -> Vec<u8> {
    debug_assert!(kind.is_control() && payload.len() <= CONTROL_MAX);
    [&header(kind, payload.len())[..], payload].concat()
}

fn header(kind: Kind, payload: usize) -> [u8; HEADER] {
    let [a, b, c, d] = (payload as u32 + 1).to_be_bytes();
    [a, b, c, d, kind as u8]
}

/// Turns the bytes of a stream into items.
#[derive(Default)]
pub(crate) struct Decoder {
    header: [u8; HEADER],
    header_filled: usize,
    /// Frames of which a byte is here.
    begun: u64,
    /// The frame whose header is complete, and the bytes of it still to come.
    frame: Option<(Kind, usize)>,
    /// The item so far: over several frames for a long message.
    item: Vec<u8>,
    /// Whether `item` waits for another frame.
    more: bool,
}

impl Decoder {
    /// Takes bytes off the front of `input` until an item is whole or the input is used up.
    ///
    /// After an error the decoder must not be used again.
    pub(crate) fn read(&mut self, input: &mut &[u8]) -> Result<Option<Item>, FrameError> {
        loop {
            let Some((kind, missing)) = self.frame else {
                self.begun += u64::from(self.header_filled == 0 && !input.is_empty());
                self.header_filled += take(input, &mut self.header[self.header_filled..]);
                if self.header_filled < HEADER {
                    return Ok(None);
                }
                self.frame = Some(self.check_header()?);
                continue;
            };
            let (payload, rest) = input.split_at(missing.min(input.len()));
            self.item.extend_from_slice(payload);
            *input = rest;
            if payload.len() < missing {
                self.frame = Some((kind, missing - payload.len()));
                return Ok(None);
            }
            self.frame = None;
            self.header_filled = 0;
            self.more = kind == Kind::More;
            if !self.more {
                let item = std::mem::take(&mut self.item);
                return Ok(Some(match kind {
                    Kind::Complete | Kind::More => Item::Message(item),
                    Kind::Preface => Item::Preface(item),
                    Kind::Accepted => Item::Accepted(item),
                    Kind::Refused => Item::Refused(item),
                }));
            }
        }
    }

    /// Whether the bytes so far end inside an item.
    pub(crate) fn inside(&self) -> bool {
        self.more || self.frame.is_some() || self.header_filled > 0
    }

    /// How many frames have begun.
    pub(crate) fn begun(&self) -> u64 {
        self.begun
    }

    /// Whether the bytes so far end between two frames, of one message or not.
    pub(crate) fn between_frames(&self) -> bool {
        self.frame.is_none() && self.header_filled == 0
    }

    fn check_header(&self) -> Result<(Kind, usize), FrameError> {
        let [a, b, c, d, kind] = self.header;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let Some(payload) = length.checked_sub(1) else { return Err(FrameError::Empty) };
        if payload > PAYLOAD_MAX {
            return Err(FrameError::TooLarge { size: payload.saturating_add(HEADER), limit: FRAME_MAX });
        }
        let kind = Kind::parse(kind).ok_or(FrameError::UnknownKind(kind))?;
        if kind.is_control() && self.more {
            return Err(FrameError::Misplaced(kind));
        }
        if kind.is_control() && payload > CONTROL_MAX {
            return Err(FrameError::TooLarge { size: payload, limit: CONTROL_MAX });
        }
        if kind == Kind::More && payload == 0 {
            return Err(FrameError::Empty);
        }
        let size = self.item.len() + payload;
        if size > MESSAGE_MAX {
            return Err(FrameError::TooLarge { size, limit: MESSAGE_MAX });
        }
        Ok((kind, payload))
    }
}

fn take(input: &mut &[u8], into: &mut [u8]) -> usize {
    let (head, rest) = input.split_at(into.len().min(input.len()));
    into[..head.len()].copy_from_slice(head);
    *input = rest;
    head.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(message: &[u8]) -> Vec<u8> {
        let (chunks, wire) = encode_message(message.to_vec());
        let bytes = chunks.concat();
        assert_eq!(bytes.len() as u64, wire, "the announced size is the real one");
        bytes
    }

    fn decode_in_steps_of(step: usize, bytes: &[u8]) -> Result<Vec<Item>, FrameError> {
        let mut decoder = Decoder::default();
        let mut items = Vec::new();
        for mut chunk in bytes.chunks(step) {
            while !chunk.is_empty() {
                items.extend(decoder.read(&mut chunk)?);
            }
        }
        if decoder.inside() { Err(FrameError::Truncated) } else { Ok(items) }
    }

    fn raw(length: u32, kind: u8) -> Vec<u8> {
        [&length.to_be_bytes()[..], &[kind]].concat()
    }

    #[test]
    fn messages_come_back_whatever_the_packets() {
        let bytes = [encoded(b""), encoded(b"x"), encoded(&[7; 3000]), encoded(b"")].concat();
        let sent = vec![
            Item::Message(vec![]),
            Item::Message(b"x".to_vec()),
            Item::Message(vec![7; 3000]),
            Item::Message(vec![]),
        ];
        for step in [1, 2, 4, 5, 6, 1200, bytes.len()] {
            assert_eq!(decode_in_steps_of(step, &bytes).as_ref(), Ok(&sent), "in steps of {step}");
        }
    }

    #[test]
    fn a_message_takes_as_many_frames_as_it_needs() {
        for (size, frames) in [
            (0, 1),
            (1, 1),
            (PAYLOAD, 1),
            (PAYLOAD + 1, 2),
            (2 * PAYLOAD, 2),
            (MESSAGE_MAX, MESSAGE_MAX / PAYLOAD + 1),
        ] {
            let message: Vec<u8> = (0..size).map(|i| (i / 251) as u8).collect();
            let bytes = encoded(&message);
            assert_eq!(bytes.len(), size + frames * HEADER, "{size} bytes");
            assert_eq!(decode_in_steps_of(70_000, &bytes), Ok(vec![Item::Message(message)]), "{size} bytes");
        }
    }

    #[test]
    fn a_length_is_refused_before_memory_is_taken() {
        for length in [FRAME_MAX as u32 - HEADER as u32 + 2, u32::MAX] {
            let mut decoder = Decoder::default();
            let error = decoder.read(&mut &raw(length, Kind::Complete as u8)[..]).unwrap_err();
            assert!(matches!(error, FrameError::TooLarge { limit: FRAME_MAX, .. }), "{error}");
            assert_eq!(decoder.item.capacity(), 0);
        }
        let mut decoder = Decoder::default();
        let at_the_bound = raw((PAYLOAD_MAX + 1) as u32, Kind::Complete as u8);
        assert_eq!(decoder.read(&mut &at_the_bound[..]), Ok(None));
        assert_eq!(decoder.item.capacity(), 0, "a promise of a megabyte takes no memory yet");
    }

    #[test]
    fn a_message_over_the_limit_is_refused_at_the_header_that_would_pass_it() {
        let part = [raw((PAYLOAD_MAX + 1) as u32, Kind::More as u8), vec![0; PAYLOAD_MAX]].concat();
        let mut decoder = Decoder::default();
        for _ in 0..MESSAGE_MAX / PAYLOAD_MAX {
            assert_eq!(decoder.read(&mut &part[..]), Ok(None));
        }
        let left = MESSAGE_MAX % PAYLOAD_MAX;
        let error = decoder.read(&mut &raw(left as u32 + 2, Kind::Complete as u8)[..]).unwrap_err();
        assert_eq!(error, FrameError::TooLarge { size: MESSAGE_MAX + 1, limit: MESSAGE_MAX });
    }

    #[test]
    fn a_stream_that_ends_inside_an_item_is_truncated() {
        let mut whole = encoded(b"four");
        whole.extend(raw(5, Kind::More as u8));
        whole.extend(b"part");
        for length in 1..whole.len() + 1 {
            let at_a_boundary = length == HEADER + 4;
            let result = decode_in_steps_of(3, &whole[..length]);
            assert_eq!(result.is_ok(), at_a_boundary, "{length} bytes: {result:?}");
        }
    }

    #[test]
    fn frames_that_nobody_sends_are_errors() {
        for kind in [0, 6, 0xff] {
            assert_eq!(decode_in_steps_of(9, &raw(1, kind)), Err(FrameError::UnknownKind(kind)));
        }
        assert_eq!(decode_in_steps_of(9, &raw(0, Kind::Complete as u8)), Err(FrameError::Empty));
        assert_eq!(decode_in_steps_of(9, &raw(1, Kind::More as u8)), Err(FrameError::Empty));
        let large = raw(CONTROL_MAX as u32 + 2, Kind::Refused as u8);
        assert!(matches!(
            decode_in_steps_of(9, &large),
            Err(FrameError::TooLarge { limit: CONTROL_MAX, .. })
        ));
        let inside = [raw(2, Kind::More as u8), vec![1], raw(1, Kind::Preface as u8)].concat();
        assert_eq!(decode_in_steps_of(99, &inside), Err(FrameError::Misplaced(Kind::Preface)));
    }

    #[test]
    fn arbitrary_bytes_never_panic_nor_grow_beyond_what_arrived() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for round in 0..2000 {
            let bytes: Vec<u8> = (0..64)
                .map(|i| {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    // Small lengths and real kinds often enough to get past the header.
                    let byte = (state >> 33) as u8;
                    if round % 2 == 0 && i % 8 < 3 { 0 } else { byte % 9 }
                })
                .collect();
            let mut decoder = Decoder::default();
            let mut input = &bytes[..];
            while !input.is_empty() && decoder.read(&mut input).is_ok() {}
            assert!(decoder.item.len() <= 64);
        }
    }
}
