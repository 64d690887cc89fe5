//! QUIC between tidelog devices: identity, mutual trust, and channels for whole messages.
//!
//! [`Quic`] implements [`tidelog::transport::Transport`] over quinn and rustls. A device is the SHA-256 of its
//! public key ([`Identity`]); peers are configured by device id and address, and each side lets in nobody
//! else. A peer that is unknown, speaks another protocol version, asks for a library that is not served or
//! sends a damaged frame is refused with a reason that both sides log, and nothing changes.
//!
//! ```
//! use std::net::{Ipv4Addr, SocketAddr};
//!
//! use tidelog::{id::LibraryId, transport::Transport};
//! use tidelog_transport::{Identity, Peer, Quic, QuicOptions};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Two devices; outside of tests and examples, the identity is `Identity::load_or_create(path)`.
//! let (desktop, laptop) = (Identity::generate()?, Identity::generate()?);
//! let (desktop_id, laptop_id) = (desktop.device_id(), laptop.device_id());
//! let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
//!
//! // The desktop knows the laptop, but not where it is; the laptop knows where the desktop is.
//! let peers = vec![Peer { device: laptop_id, address: None }];
//! let desktop = Quic::bind(desktop, QuicOptions { listen: loopback, peers, ..Default::default() }).await?;
//! let peers = vec![Peer { device: desktop_id, address: Some(desktop.local_addr()?) }];
//! let laptop = Quic::bind(laptop, QuicOptions { listen: loopback, peers, ..Default::default() }).await?;
//!
//! let library = LibraryId::random();
//! let mut incoming = desktop.listen(library)?;
//! let mut ours = laptop.open(desktop_id, library).await?;
//! let mut theirs = incoming.recv().await.ok_or("closed")?;
//! assert_eq!(theirs.peer, laptop_id);
//!
//! ours.sender.send(b"hello".to_vec()).await?;
//! assert_eq!(theirs.receiver.receive().await?.as_deref(), Some(&b"hello"[..]));
//!
//! drop(ours);
//! assert_eq!(theirs.receiver.receive().await?, None);
//! laptop.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! The bounds of it all are in [`limits`]. What is left out: finding peers and pairing with them (peers are
//! configured by hand), retrying after a failure (the node does, with backoff), and what the messages mean.

mod accept;
mod channel;
mod codes;
mod connections;
mod dial;
mod frame;
mod identity;
pub mod limits;
mod peers;
mod preface;
mod quic;
mod tls;

pub use connections::QuicStats;
pub use identity::{Identity, IdentityError};
pub use peers::Peer;
#[doc(hidden)]
pub use preface::Versions;
#[doc(hidden)]
pub use quic::Patience;
pub use quic::{BindError, Quic, QuicOptions};
