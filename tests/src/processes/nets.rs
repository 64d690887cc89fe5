//! A network namespace for each process, joined by a bridge in another, so that packets between them can be lost, and one way
//! between two of them cut while the other works.
//!
//! Made with `ip`; loss needs `nft` or the queueing discipline `netem` besides. Where the machine does not allow one of it, a
//! scenario says why and is skipped. Everything goes with the namespaces, whose names have this process's id in them.

use std::{
    process::{Command, Stdio, id},
    sync::atomic::{AtomicU32, Ordering},
};

use super::NAMES;

/// Networks of this process that were made so far.
static MADE: AtomicU32 = AtomicU32::new(0);

/// The namespaces of three processes.
#[derive(Debug)]
pub struct Nets {
    prefix: String,
}

impl Drop for Nets {
    fn drop(&mut self) {
        for name in NAMES.into_iter().chain(["hub"]) {
            // One that was never made, where making them failed.
            let _ = run(&format!("ip netns del {}", self.space(name)));
        }
    }
}

impl Nets {
    /// Three that reach each other.
    ///
    /// # Errors
    /// Why this machine has none.
    pub fn lay() -> Result<Self, String> {
        let nets = Self { prefix: format!("tidelog-{}-{}", id(), MADE.fetch_add(1, Ordering::Relaxed)) };
        let hub = nets.space("hub");
        run(&format!("ip netns add {hub}"))?;
        run(&format!("ip -n {hub} link add name bridge type bridge"))?;
        run(&format!("ip -n {hub} link set bridge up"))?;
        for name in NAMES {
            let (space, address) = (nets.space(name), nets.address(name));
            run(&format!("ip netns add {space}"))?;
            run(&format!("ip -n {hub} link add name to-{name} type veth peer name net netns {space}"))?;
            run(&format!("ip -n {hub} link set dev to-{name} master bridge up"))?;
            run(&format!("ip -n {space} address add {address}/24 dev net"))?;
            run(&format!("ip -n {space} link set lo up"))?;
            run(&format!("ip -n {space} link set net up"))?;
        }
        Ok(nets)
    }

    fn space(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Where a process is, in its namespace.
    pub fn address(&self, name: &str) -> String {
        let number = NAMES.iter().position(|n| *n == name).expect("a part of this name") + 1;
        format!("10.0.0.{number}")
    }

    /// What a process is started by, to be in its namespace.
    pub fn within(&self, name: &str) -> Vec<String> {
        ["ip", "netns", "exec", &self.space(name)].map(str::to_owned).into()
    }

    /// From now on so many packets of a hundred are lost on every way.
    ///
    /// # Errors
    /// Why this machine loses none.
    pub fn lose(&self, percent: u32) -> Result<(), String> {
        for name in NAMES {
            let space = self.space(name);
            let nft = || {
                let nft = format!("ip netns exec {space} nft add");
                run(&format!("{nft} table inet loss"))?;
                run(&format!("{nft} chain inet loss in {{ type filter hook input priority 0 ; }}"))?;
                run(&format!(
                    "{nft} rule inet loss in udp dport 1-65535 numgen random mod 100 < {percent} drop"
                ))
            };
            let netem = || run(&format!("tc -n {space} qdisc replace dev net root netem loss {percent}%"));
            nft().or_else(|nft| netem().map_err(|netem| format!("{nft}; {netem}")))?;
        }
        Ok(())
    }

    /// Nothing of what one sends reaches the other any more: it goes to a hardware address that nobody has.
    pub fn cut(&self, from: &str, to: &str) {
        let (space, to) = (self.space(from), self.address(to));
        let nobody = "02:00:00:00:00:99";
        run(&format!("ip -n {space} neigh replace {to} lladdr {nobody} dev net nud permanent")).unwrap();
    }

    /// What one sends reaches the other again.
    pub fn mend(&self, from: &str, to: &str) {
        let (space, to) = (self.space(from), self.address(to));
        run(&format!("ip -n {space} neigh del {to} dev net")).unwrap();
    }
}

/// Runs a command; why it failed, if it did.
fn run(command: &str) -> Result<(), String> {
    let mut words = command.split(' ');
    let program = words.next().unwrap_or_default();
    let done = Command::new(program).args(words).stdin(Stdio::null()).output();
    let done = done.map_err(|error| format!("`{command}`: {error}"))?;
    match done.status.success() {
        true => Ok(()),
        false => Err(format!("`{command}`: {}", String::from_utf8_lossy(&done.stderr).trim())),
    }
}
