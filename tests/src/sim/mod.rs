//! The simulator: devices with real databases, their steps called one by one, in a network that loses, doubles, delays and
//! cuts; processes that end anywhere and machines that lose power; and an [`oracle`] outside of it all that knows what must
//! come of it. What it does with the code, `docs/simulator.md` tells; here is how.
//!
//! A [`Schedule`] is what happens, made of a seed. [`Simulation`] lets it happen and looks after every
//! event at what the event touched ([`check`]). The same schedule is the same simulation, to the bit: clocks, randomness and ids
//! are the simulation's own, and nothing runs beside it.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hasher,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use tidelog::{
    Error,
    id::Term,
    testing::replica::{self, Place, Replica, crash_after, limit_batches, passed},
};

pub mod check;
pub mod counters;
pub mod device;
mod ending;
mod heal;
pub mod mirror;
pub mod network;
pub mod oracle;
pub mod person;
pub mod run;
pub mod schedule;
mod talking;
mod tell;
pub mod verdict;
pub mod workload;

use counters::Counters;
use device::{Device, Ended, Templates};
use mirror::{Entry, Fnv, Pending, Rows};
use network::Network;
use oracle::{Oracle, Set};
use person::Deciding;
use schedule::{Event, Schedule};
use workload::Transaction;

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub invariant: &'static str,
    /// How.
    pub text: String,
}

impl Broken {
    fn new(invariant: &'static str, text: impl Into<String>) -> Self {
        Self { invariant, text: text.into() }
    }
}

/// What is known of a device from outside.
#[derive(Debug, Default)]
struct View {
    log: Vec<Entry>,
    /// The change behind each entry.
    causes: Vec<Option<usize>>,
    /// Changes in the log.
    logged: Set,
    /// Changes in the log or pending, as last seen.
    has: Set,
    pending: Vec<Pending>,
    folded: Rows,
    /// What its local column holds, as last seen.
    local: Option<BTreeMap<String, Option<i64>>>,
    /// Records that the log has deleted at some time.
    gone: BTreeSet<String>,
    /// The highest term that it has shown anybody.
    shown: Option<Term>,
    /// Its log may become shorter, as after a loss of power.
    may_lose: bool,
    /// The same by a step that says so, and what it held stays.
    may_shorten: bool,
}

/// Where and what an entry is, wherever it is.
struct Known {
    digest: u64,
    before: String,
}

/// A simulation.
pub struct Simulation {
    devices: Vec<Device>,
    views: Vec<View>,
    oracle: Oracle,
    network: Network,
    time: Arc<AtomicI64>,
    entries: BTreeMap<(String, u64), Known>,
    transactions: u64,
    /// A person is deciding.
    deciding: Option<Deciding>,
    events: u64,
    trace: Fnv,
    /// Some database has become another: what was stable may not be.
    is_restored: bool,
    /// Changes that were counted, and those in conflict.
    counted: (Set, Set),
    /// Entries that all devices had confirmed in one term, by seq: what they are.
    stable: Vec<u64>,
    /// What was reached.
    pub counters: Counters,
    /// Says what happens.
    pub is_loud: bool,
}

type Done<T = ()> = Result<T, Broken>;

/// A full check comes after so many events.
const CHECK_EVERY: u64 = 25;
/// Exchanges in which devices must be level once all is well again.
const ROUNDS_MAX: usize = 40;
/// Messages between two devices in one exchange.
const MESSAGES_MAX: usize = 400;

/// Plays a schedule in a folder. The trace's hash, and what was reached; or what was broken, at which event.
///
/// # Errors
/// The first promise that was not kept.
pub fn play(
    folder: &Path,
    templates: &Templates,
    schedule: &Schedule,
    counters: &mut Counters,
) -> Result<u64, (Broken, usize)> {
    let mut simulation = Simulation::begin(folder, templates, schedule);
    let played = simulation.play(&schedule.events);
    counters.merge(&simulation.counters);
    limit_batches(None);
    crash_after(None);
    played.map(|()| simulation.trace.finish())
}

impl Simulation {
    /// Devices that have just been made; nothing has happened.
    pub fn begin(folder: &Path, templates: &Templates, schedule: &Schedule) -> Self {
        let time = Arc::new(AtomicI64::new(0));
        let count = schedule.devices;
        let device = |number| Device::new(folder, templates, number, count, schedule.seed, &time);
        Self {
            devices: (0..count).map(device).collect(),
            views: (0..count).map(|_| View::default()).collect(),
            oracle: Oracle::new(count),
            network: Network::default(),
            time,
            entries: BTreeMap::new(),
            transactions: 0,
            deciding: None,
            events: 0,
            trace: Fnv::default(),
            is_restored: false,
            stable: Vec::new(),
            counted: <(Set, Set)>::default(),
            counters: Counters::default(),
            is_loud: false,
        }
    }

    /// Lets all of it happen, and then mends everything.
    ///
    /// # Errors
    /// What was broken, and at which event.
    pub fn play(&mut self, events: &[Event]) -> Result<(), (Broken, usize)> {
        limit_batches(None);
        let _ = passed();
        self.found().map_err(|broken| (broken, 0))?;
        for (at, event) in events.iter().enumerate() {
            if self.is_loud {
                println!("{at:>4} {event:?}");
            }
            self.happen(*event).map_err(|broken| (broken, at))?;
        }
        self.heal().map_err(|broken| (broken, events.len()))
    }

    fn found(&mut self) -> Done {
        for d in 0..self.devices.len() {
            self.wake(d)?;
        }
        let transaction = Transaction {
            statements: workload::FOUNDING
                .split(';')
                .map(str::to_owned)
                .filter(|s| !s.trim().is_empty())
                .collect(),
            atomic: false,
        };
        self.commit(0, &transaction)?;
        self.step(0, Replica::seal)?;
        self.observe(0)
    }

    fn happen(&mut self, event: Event) -> Done {
        let count = self.devices.len();
        let d = |d: usize| d % count;
        self.events += 1;
        self.time.fetch_add(1 + (self.trace.finish() % 400) as i64, Ordering::Relaxed);
        self.counters.count(format!("event: {}", event.name()));
        match event {
            Event::Write(of, choice) => {
                let of = d(of);
                self.wake(of)?;
                let me = Device::key(of).to_string();
                let transaction = Transaction::choose(choice, self.transactions, &me);
                self.commit(of, &transaction)?;
            }
            Event::Decide(of, choice) => self.decide(d(of), choice)?,
            Event::Seal(of) => {
                self.step(d(of), Replica::seal)?;
                self.observe(d(of))?;
            }
            Event::Subscribe(of, to) => {
                let to = if to == usize::MAX { self.leader_of(d(of))? } else { d(to) };
                self.subscribe(d(of), to)?;
            }
            Event::Push(of) => drop_sent(self.send_to_leader(d(of), Replica::push))?,
            Event::Confirm(of) => drop_sent(self.send_to_leader(d(of), Replica::confirm))?,
            Event::Unwind(of) => drop_sent(self.unwind(d(of)))?,
            Event::Serve(of, to) => self.serve(d(of), d(to))?,
            Event::Deliver(choice) => {
                if let Some(packet) = self.network.take(choice) {
                    self.deliver(packet)?;
                }
            }
            Event::Double(choice) => {
                if let Some(packet) = self.network.copy(choice) {
                    self.deliver(packet)?;
                }
            }
            Event::Lose(choice) => drop(self.network.take(choice)),
            Event::Round(of) => {
                let to = self.leader_of(d(of))?;
                self.round(d(of), to)?;
            }
            Event::TakeOver(of) => self.take_over(d(of))?,
            Event::HandOver(of, to) => self.hand_over(d(of), d(to))?,
            Event::Reassign(of, to) => self.reassign(d(of), d(to))?,
            Event::Reclaim(of) => self.reclaim(d(of))?,
            Event::Inquire(of, to) => {
                if d(of) != d(to)
                    && let Some(bytes) = self.step(d(of), Replica::inquire)?
                {
                    self.send(d(of), d(to), bytes)?;
                }
            }
            Event::Restart(of) => {
                self.wake(d(of))?;
                self.devices[d(of)].crash();
                self.wake(d(of))?;
            }
            Event::CrashIn(of, after) => {
                self.wake(d(of))?;
                self.crash_in(d(of), after)?;
            }
            Event::LosePower(of, choice) => self.lose_power(d(of), choice)?,
            Event::BackUp(of) => {
                self.step(d(of), Replica::rest)?;
                self.observe(d(of))?;
                self.devices[d(of)].back_up().map_err(|text| Broken::new("step", text))?;
            }
            Event::Restore(of, with_memory) => {
                self.wake(d(of))?;
                self.replace(d(of), |devices| devices[d(of)].restore(with_memory))?;
            }
            Event::CopyTo(from, to) => {
                // Of one that has something of the library.
                let is_done = d(from) != d(to) && self.step(d(from), Replica::rest)?.is_some();
                self.observe(d(from))?;
                if is_done && !self.views[d(from)].log.is_empty() {
                    let (from, to) = (d(from), d(to));
                    self.replace(to, |devices| {
                        let [one, other] = devices.get_disjoint_mut([from, to]).map_err(|e| e.to_string())?;
                        other.become_copy_of(one).map(|()| true)
                    })?;
                }
            }
            Event::Clock(of, minutes) => self.devices[d(of)].shift_clock(minutes * 60_000),
            Event::Cut(from, to) if d(from) != d(to) => self.network.flip(d(from), d(to)),
            Event::Cut(..) => {}
            Event::Mend => self.network.mend(),
            Event::Batches(entries) => {
                limit_batches((entries > 0).then_some(usize::try_from(entries).unwrap_or(1)));
            }
        }
        self.note_passed();
        self.trace.write_u64(self.events);
        if self.events.is_multiple_of(CHECK_EVERY) {
            self.check_all()?;
        }
        Ok(())
    }

    /// Starts a device that is down.
    fn wake(&mut self, of: usize) -> Done {
        // An opening may be cut off, too; a second one is not.
        for _ in 0..2 {
            if self.devices[of].replica.is_some() {
                return Ok(());
            }
            match self.devices[of].open() {
                Ok(Ended::Done(())) => self.observe(of)?,
                Ok(Ended::Crashed(crash)) => self.note_crash(of, &crash),
                Err(error) => return Err(failed(of, "opening", &error)),
            }
        }
        Ok(())
    }

    fn commit(&mut self, of: usize, transaction: &Transaction) -> Done {
        self.transactions += 1;
        let actor = format!("w{}", self.transactions);
        let seen = self.seen_on(of);
        let images = self.devices[of]
            .write(&actor, transaction)
            .map_err(|e| Broken::new("step", format!("writing on device {of}: {e}")))?;
        let Some(images) = images else {
            self.counters.count("write: the database refused");
            return Ok(());
        };
        if self.is_loud {
            println!("     {actor} on {of}: {}", transaction.statements.join("; "));
        }
        self.oracle.committed(of, &actor, transaction.atomic, &images, seen);
        // What it wrote into its local column it is to find there.
        let app = self.devices[of].app.as_ref().expect("it has just written");
        self.views[of].local =
            Some(mirror::local(app).map_err(|e| failed(of, "reading", &device::database("reading", e)))?);
        self.observe(of)
    }

    /// The changes that stand in a device's database.
    fn seen_on(&self, of: usize) -> Set {
        let mut seen = self.views[of].logged.clone();
        for pending in &self.views[of].pending {
            if let Some(id) = self.oracle.find(pending.name.as_ref(), Some(&pending.record)) {
                seen.insert(id);
            }
        }
        seen
    }

    /// Has a device do something, unless it is down. `None` where it was cut off.
    fn step<T>(&mut self, of: usize, step: impl FnOnce(&mut Replica) -> Result<T, Error>) -> Done<Option<T>> {
        self.wake(of)?;
        match self.devices[of].step(step) {
            Ok(Some(Ended::Done(done))) => Ok(Some(done)),
            Ok(Some(Ended::Crashed(crash))) => {
                self.note_crash(of, &crash);
                Ok(None)
            }
            Ok(None) => Ok(None),
            Err(error) => Err(failed(of, "a step", &error)),
        }
    }

    fn note_crash(&mut self, of: usize, crash: &replica::Crash) {
        if self.is_loud {
            println!("     device {of} is cut off: {crash:?}");
        }
        self.counters.count(format!("crash: {} {}", step_name(crash.step), place(crash.place)));
    }

    fn note_passed(&mut self) {
        for (step, at) in passed() {
            self.counters.count(format!("passed: {} {}", step_name(step), place(at)));
        }
    }
}

fn drop_sent(sent: Done<bool>) -> Done {
    sent.map(|_| ())
}

fn failed(of: usize, what: &str, error: &Error) -> Broken {
    Broken::new("step", format!("device {of}, {what}: {error}"))
}

fn place(place: Place) -> &'static str {
    match place {
        Place::BeforeCommit => "before its commit",
        Place::AfterCommit => "after its commit",
        Place::AfterSync => "when it is durable",
    }
}

/// The step's own path, without what runs it and what it returns.
fn step_name(path: &'static str) -> String {
    let is_carrier = |word: &str| word.contains("store::Store") || word.contains("engine::Driver");
    let words = path.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    let steps: Vec<&str> = words
        .filter(|word| word.contains("tidelog::") && !is_carrier(word))
        .map(|word| word.trim_start_matches("tidelog::").trim_end_matches("::"))
        .filter(|word| word.chars().next().is_some_and(char::is_lowercase))
        .collect();
    let own =
        steps.iter().find(|word| word.rsplit("::").next().is_some_and(|w| w.starts_with(char::is_lowercase)));
    own.map_or_else(|| path.to_owned(), |own| (*own).to_owned())
}
