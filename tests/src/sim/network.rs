//! The network: a bag of messages that may be lost, doubled, late, or kept out by a partition, one way or both.

/// A message on its way.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Index of the device that sent it.
    pub from: usize,
    /// Index of the device that it is for.
    pub to: usize,
    /// What is sent.
    pub bytes: Vec<u8>,
}

/// What is on its way, in the order in which it was sent, and who is kept from whom.
#[derive(Debug, Default)]
pub struct Network {
    packets: Vec<Packet>,
    /// From, to.
    cut: Vec<(usize, usize)>,
}

/// Messages on their way; the oldest is lost when there are more.
const PACKETS_MAX: usize = 64;

impl Network {
    /// Sends, unless the way is cut.
    pub fn send(&mut self, packet: Packet) {
        if self.is_cut(packet.from, packet.to) {
            return;
        }
        if self.packets.len() >= PACKETS_MAX {
            self.packets.remove(0);
        }
        self.packets.push(packet);
    }

    /// Takes one off: the oldest, or by `choice` any.
    pub fn take(&mut self, choice: u64) -> Option<Packet> {
        let at = self.choose(choice)?;
        Some(self.packets.remove(at))
    }

    /// The same one, and it stays.
    pub fn copy(&self, choice: u64) -> Option<Packet> {
        self.choose(choice).map(|at| self.packets[at].clone())
    }

    /// Takes the oldest between two devices.
    pub fn take_between(&mut self, one: usize, other: usize) -> Option<Packet> {
        let is_theirs = |p: &Packet| (p.from, p.to) == (one, other) || (p.from, p.to) == (other, one);
        let at = self.packets.iter().position(is_theirs)?;
        Some(self.packets.remove(at))
    }

    /// Takes the oldest for a device.
    pub fn take_for(&mut self, to: usize) -> Option<Packet> {
        let at = self.packets.iter().position(|packet| packet.to == to)?;
        Some(self.packets.remove(at))
    }

    fn choose(&self, choice: u64) -> Option<usize> {
        let count = self.packets.len() as u64;
        // Mostly in order.
        (count > 0).then(|| if choice.is_multiple_of(4) { (choice / 4 % count) as usize } else { 0 })
    }

    /// Cuts a way, or opens it again.
    pub fn flip(&mut self, from: usize, to: usize) {
        match self.cut.iter().position(|&way| way == (from, to)) {
            Some(at) => drop(self.cut.remove(at)),
            None => self.cut.push((from, to)),
        }
    }

    /// Whether messages from one to the other are lost.
    pub fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut.contains(&(from, to))
    }

    /// Opens all ways.
    pub fn mend(&mut self) {
        self.cut.clear();
    }

    /// Loses everything that is on its way.
    pub fn clear(&mut self) {
        self.packets.clear();
    }
}
