//! Why a stream or connection was ended early: the numbers that QUIC carries, and their meaning in words.

use std::fmt;

use quinn::{ConnectionError, TransportErrorCode, VarInt};

/// A reason to end a stream or a connection before its time. The numbers are part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndCode {
    /// Stream: nobody reads any more. What QUIC sends when a receiver is dropped.
    Dropped = 0,
    /// Stream: a frame of unknown kind, empty or out of place.
    Damaged = 1,
    /// Stream: a frame or message over its limit.
    TooLarge = 2,
    /// Stream: it ended inside a frame.
    Truncated = 3,
    /// Stream: a frame did not arrive whole in time.
    TooSlow = 4,
    /// Stream: its sender gave up in the middle of a message.
    Abandoned = 5,
    /// Connection: the device closes its transport.
    Closing = 16,
    /// Connection: the device is no longer a peer.
    Removed = 17,
    /// Connection: newer ones took its place.
    Superseded = 18,
}

impl EndCode {
    pub(crate) fn parse(code: VarInt) -> Option<Self> {
        [
            Self::Dropped,
            Self::Damaged,
            Self::TooLarge,
            Self::Truncated,
            Self::TooSlow,
            Self::Abandoned,
            Self::Closing,
            Self::Removed,
            Self::Superseded,
        ]
        .into_iter()
        .find(|known| VarInt::from(*known) == code)
    }

    /// Whether one side accuses the other of breaking the protocol: worth a warning in the log.
    pub(crate) fn is_fault(self) -> bool {
        matches!(self, Self::Damaged | Self::TooLarge | Self::Truncated | Self::TooSlow)
    }
}

impl From<EndCode> for VarInt {
    fn from(code: EndCode) -> Self {
        Self::from_u32(code as u32)
    }
}

impl fmt::Display for EndCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dropped => "the peer no longer listens",
            Self::Damaged => "the peer got a damaged frame from here",
            Self::TooLarge => "the peer got a frame over its limit from here",
            Self::Truncated => "the peer got a truncated frame from here",
            Self::TooSlow => "the peer got half a frame from here and not the rest in time",
            Self::Abandoned => "the peer gave up in the middle of a message",
            Self::Closing => "the peer closed its transport",
            Self::Removed => "the peer removed this device from its peers",
            Self::Superseded => "newer connections between the two devices took its place",
        })
    }
}

/// A code from the wire in words, known or not.
pub(crate) fn describe_code(code: VarInt) -> String {
    EndCode::parse(code)
        .map_or_else(|| format!("the peer ended it with code {code}"), |known| known.to_string())
}

/// Why a connection is gone, in words.
pub(crate) fn describe_loss(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => describe_code(close.error_code),
        ConnectionError::TimedOut => "nothing was heard from the peer for too long".into(),
        ConnectionError::Reset => "the peer has forgotten the connection, it was probably restarted".into(),
        ConnectionError::LocallyClosed => "this device closed the connection".into(),
        other => other.to_string(),
    }
}

/// Whether the peer ended a handshake because it does not want this key: TLS alert 49, `access_denied`.
pub(crate) fn is_access_denied(error: &ConnectionError) -> bool {
    closed_with(error, TransportErrorCode::crypto(49))
}

/// Whether the two sides do not both speak tidelog: TLS alert 120, `no_application_protocol`.
pub(crate) fn is_other_application(error: &ConnectionError) -> bool {
    closed_with(error, TransportErrorCode::crypto(120))
}

/// Whether the peer showed a certificate and did not prove that it holds the key: TLS alert 51,
/// `decrypt_error`, given here.
pub(crate) fn is_impostor(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::TransportError(error) if error.code == TransportErrorCode::crypto(51))
}

/// Whether the peer has as many handshakes under way as it allows.
pub(crate) fn is_busy(error: &ConnectionError) -> bool {
    closed_with(error, TransportErrorCode::CONNECTION_REFUSED)
}

fn closed_with(error: &ConnectionError, code: TransportErrorCode) -> bool {
    matches!(error, ConnectionError::ConnectionClosed(close) if close.error_code == code)
        || matches!(error, ConnectionError::TransportError(error) if error.code == code)
}
