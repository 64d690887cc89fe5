//! The schedule: what happens, by the seed; and shorter ones that fail alike.

use super::workload::HOT;
use crate::dice::Dice;

/// Something that happens. Devices are meant modulo how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Event {
    /// The application of a device commits what this choice comes to.
    Write(usize, u64),
    /// A person decides about a conflict or a dead letter that a device shows.
    Decide(usize, u64),
    /// A device seals.
    Seal(usize),
    /// A device begins to follow another.
    Subscribe(usize, usize),
    /// It pushes.
    Push(usize),
    /// It confirms.
    Confirm(usize),
    /// It takes a chunk of a tail that parts from the leader's log back into pending.
    Unwind(usize),
    /// A device sends entries to another that follows it.
    Serve(usize, usize),
    /// A message arrives, mostly the oldest.
    Deliver(u64),
    /// One arrives, and will once more.
    Double(u64),
    /// One is lost.
    Lose(u64),
    /// A whole round with whom the device takes for the leader.
    Round(usize),
    /// A device takes over.
    TakeOver(usize),
    /// A device that leads hands over to another.
    HandOver(usize, usize),
    /// A device asks the one that it takes for the leader to hand over to some device.
    Reassign(usize, usize),
    /// One that handed over and was not answered leads again.
    Reclaim(usize),
    /// A device asks another where it stands.
    Inquire(usize, usize),
    /// The process ends and starts again.
    Restart(usize),
    /// What the device, or who speaks with it, does next is cut off at some crash point.
    CrashIn(usize, u64),
    /// The machine loses power, and with it what was not synced, or a part of it.
    LosePower(usize, u64),
    /// All is sealed, and the database copied.
    BackUp(usize),
    /// The database becomes what it was when it was copied; with its memory, as if the machine had been set back.
    Restore(usize, bool),
    /// The second device's database becomes a copy of the first one's.
    CopyTo(usize, usize),
    /// Its clock jumps, by minutes.
    Clock(usize, i64),
    /// A way is cut, or open again.
    Cut(usize, usize),
    /// All ways are open.
    Mend,
    /// Batches hold so many entries; 0 for as many as usual.
    Batches(u64),
}

impl Event {
    /// Its kind, for counting.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Write(..) => "write",
            Self::Decide(..) => "decide",
            Self::Seal(_) => "seal",
            Self::Subscribe(..) => "subscribe",
            Self::Push(_) => "push",
            Self::Confirm(_) => "confirm",
            Self::Unwind(_) => "unwind",
            Self::Serve(..) => "serve",
            Self::Deliver(_) => "deliver",
            Self::Double(_) => "double",
            Self::Lose(_) => "lose",
            Self::Round(_) => "round",
            Self::TakeOver(_) => "take over",
            Self::HandOver(..) => "hand over",
            Self::Reassign(..) => "reassign",
            Self::Reclaim(_) => "reclaim",
            Self::Inquire(..) => "inquire",
            Self::Restart(_) => "restart",
            Self::CrashIn(..) => "crash in",
            Self::LosePower(..) => "lose power",
            Self::BackUp(_) => "back up",
            Self::Restore(_, false) => "restore",
            Self::Restore(_, true) => "set back",
            Self::CopyTo(..) => "copy to",
            Self::Clock(..) => "clock",
            Self::Cut(..) => "cut",
            Self::Mend => "mend",
            Self::Batches(_) => "batches",
        }
    }
}

/// What a seed comes to.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Of the randomness of devices.
    pub seed: u64,
    /// How many devices there are.
    pub devices: usize,
    /// What happens.
    pub events: Vec<Event>,
}

impl Schedule {
    /// The schedule of a seed.
    pub fn of(seed: u64, length: usize) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(17));
        let devices = 2 + (seed % 3) as usize;
        // Some simulations are calm: devices get on with it. Others are all trouble.
        let calm = dice.roll(3);
        let mut events = Vec::with_capacity(length);
        while events.len() < length {
            let d = dice.roll(devices as u64) as usize;
            let other = (d + 1 + dice.roll(devices as u64 - 1) as usize) % devices;
            if dice.roll(20) < calm * 3 {
                events.push(Event::Round(d));
                continue;
            }
            let any = dice.roll(1 << 40);
            events.push(match dice.roll(100) {
                0..=25 => Event::Write(d, any),
                26..=29 => Event::Write(d, HOT + any),
                30 => Event::TakeOver(d),
                31 => Event::HandOver(d, other),
                32 => Event::Reclaim(d),
                33 => Event::Inquire(d, other),
                34..=39 => Event::Seal(d),
                // Mostly with the one that leads.
                40..=44 => Event::Subscribe(d, if dice.roll(4) == 0 { other } else { usize::MAX }),
                45..=52 => Event::Push(d),
                53..=54 => Event::Confirm(d),
                55 => Event::Unwind(d),
                56..=61 => Event::Serve(d, other),
                62..=75 => Event::Deliver(any),
                76 => Event::Reassign(d, dice.roll(devices as u64) as usize),
                77..=80 => Event::Decide(d, any),
                81..=83 => Event::Double(any),
                84..=85 => Event::Lose(any),
                86..=87 => Event::Round(d),
                88..=89 => Event::Restart(d),
                90..=92 => Event::CrashIn(d, any),
                93..=94 => Event::LosePower(d, any),
                95 => match (dice.roll(5), dice.roll(2) == 0) {
                    (0..=1, _) => Event::BackUp(d),
                    (2..=3, with_memory) => Event::Restore(d, with_memory),
                    _ => Event::CopyTo(other, d),
                },
                96 => Event::Clock(d, dice.roll(600) as i64 - 300),
                97 => Event::Cut(d, other),
                98 => Event::Mend,
                _ => Event::Batches([0, 1, 2, 3][dice.roll(4) as usize]),
            });
        }
        Self { seed, devices, events }
    }

    /// A shorter one of which `fails` still holds: parts of it left out for as long as that goes.
    pub fn shorten(&self, mut fails: impl FnMut(&Self) -> bool) -> Self {
        let mut shortest = self.clone();
        let mut step = (shortest.events.len() / 2).max(1);
        loop {
            let (mut at, mut changed) = (0, false);
            while at < shortest.events.len() {
                let mut shorter = shortest.clone();
                shorter.events.drain(at..(at + step).min(shorter.events.len()));
                if fails(&shorter) {
                    (shortest, changed) = (shorter, true);
                } else {
                    at += step;
                }
            }
            if step == 1 && !changed {
                return shortest;
            }
            step = (step / 2).max(1);
        }
    }
}
