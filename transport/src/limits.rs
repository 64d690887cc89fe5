//! Every bound of this crate: what it limits, and what happens there.

use std::time::Duration;

/// Channels that one side may have open on one connection. The next [`open`](tidelog::transport::Transport::open)
/// waits up to [`SLOT_TIMEOUT`] for one of them to end.
pub const STREAMS_PER_CONNECTION: u32 = 8;

/// What QUIC is told of it. quinn announces ended streams only once more than an eighth of the limit has
/// ended, so up to an eighth can be unusable for ever on a connection whose other channels stay open. With
/// as many more, [`STREAMS_PER_CONNECTION`] are always usable, and never more than these.
pub(crate) const STREAMS_ALLOWED: u32 = STREAMS_PER_CONNECTION + STREAMS_PER_CONNECTION.div_ceil(8);

/// Connections kept with one device. Both sides may dial at once, so two is the normal most; a third closes
/// the oldest, whose channels break.
pub const CONNECTIONS_PER_DEVICE: usize = 2;

/// Handshakes that strangers may have under way here. One more is refused at once and may try again; from
/// half of it on, a dialler first has to prove that its address is its own (a QUIC Retry), so forged
/// addresses cannot fill the places.
pub const HANDSHAKES_PENDING: usize = 64;

/// A handshake that takes longer is given up by the side that notices.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a way there and back is taken to last until it is known. A first packet that is lost is sent anew after three times this,
/// and a dial that nobody answers takes nine times this to end when the transport is closed; until then the port is not free.
/// QUIC's own guess, 333 ms, is more than a device that looks for a leader waits for an answer.
pub(crate) const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Time for the peer to answer the first frame of a channel; then `open` tries once on a fresh connection.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// An older connection on which nothing at all arrives for this long, or four round trips, while an answer is awaited on
/// it is doubted: `open` goes on with a fresh one. A peer that is there but busy has its packets confirmed by then.
pub const DOUBT_AFTER: Duration = Duration::from_millis(250);

/// Time that `open` waits for one of the [`STREAMS_PER_CONNECTION`]; then it fails and says so.
pub const SLOT_TIMEOUT: Duration = Duration::from_secs(5);

/// A frame must be here whole this long after its first byte; otherwise the channel is broken off.
pub const FRAME_TIMEOUT: Duration = Duration::from_secs(10);

/// An idle connection says this often that it lives. Well below [`IDLE_TIMEOUT`], so that lost packets do
/// not end a connection.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A connection on which nothing at all arrives for this long is gone.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long [`Quic::close`](crate::Quic::close) waits for what was sent to arrive, and then for peers to
/// hear of the end.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Bytes that a peer may send on one channel before they are taken: more than a frame, so that a frame that
/// has begun can always arrive whole. The peer's sender waits beyond it.
pub const STREAM_WINDOW: u32 = 2 << 20;

/// The same for a whole connection: the windows of all its streams, so that channels nobody reads cannot
/// hold up the others. It is the most memory that one connection takes for what has not been read.
pub const CONNECTION_WINDOW: u32 = 2 * STREAMS_ALLOWED * STREAM_WINDOW;

/// Bytes sent on a connection and not yet confirmed; senders wait beyond it.
pub const SEND_WINDOW: u64 = 4 << 20;

/// Bytes that the system is asked to hold for the endpoint's socket, each way, while the process is busy with something else: as
/// many as a channel's sender may be ahead. Linux grants no more than `net.core.rmem_max` and `wmem_max`.
pub const SOCKET_BUFFER: usize = STREAM_WINDOW as usize;

/// Largest first frame or answer, in bytes of payload; a longer one breaks the channel off.
pub const CONTROL_MAX: usize = 1024;

/// Largest key file that is read, in bytes; a larger one is not a key. An Ed25519 key takes 85 at most.
pub const KEY_FILE_MAX: u64 = 4096;

const _: () = assert!(3 * KEEP_ALIVE.as_secs() <= IDLE_TIMEOUT.as_secs());
// What was said above of quinn, and: a frame that fits no window could never arrive.
const _: () = assert!(STREAMS_ALLOWED - STREAMS_ALLOWED / 8 >= STREAMS_PER_CONNECTION);
const _: () = assert!(STREAM_WINDOW as usize > tidelog::transport::FRAME_MAX);
