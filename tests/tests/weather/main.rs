//! Bad weather: real nodes over real QUIC, on a network that loses, doubles, delays, reorders and is cut, with a simulated
//! clock. What each test is called is what it proves.
//!
//! - `air.rs`: the devices, the network and the clock
//! - `socket.rs`: quinn's socket on turmoil
//! - `shears.rs`: channels that are broken off, and not read
//! - `lines.rs`: one line, cut, silent, lossy, slow
//! - `leaders.rs`: who leads meanwhile, where a device may take over by itself

#![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

mod air;
mod leaders;
mod lines;
mod shears;
mod socket;
