//! Devices that are processes of their own, over QUIC, for who kills them: each is the test's binary once more, with only the
//! test `child` in it, and told its part by the environment.
//!
//! [`Stage`] is the parent's side: it starts and kills. [`part`] is a process, which writes what [`load`] says, and says so to
//! an [`oracle`] outside of its database; [`judge`] then knows what all databases must hold.
//! [`nets`] puts networks between them that lose what they carry.

#![allow(clippy::unwrap_used, reason = "a scenario fails by panicking")]

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    io::Write,
    ops::Deref,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tempfile::TempDir;
use tidelog::id::LibraryId;
use tidelog_transport::Identity;

use crate::{
    devices::{lines, reader},
    dice::Dice,
    sim::workload,
};

pub mod judge;
pub mod load;
pub mod nets;
pub mod oracle;
pub mod part;

use oracle::Oracle;

/// All parts.
pub const NAMES: [&str; 3] = ["a", "b", "c"];
/// Who founds the library.
pub const FOUNDER: &str = "a";
/// No condition takes this long unless something is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The same for what gets on, but slowly.
const PATIENCE_MAX: Duration = Duration::from_secs(600);

/// The folder that all processes share, and what is where in it.
#[derive(Clone, Debug)]
pub struct Place(PathBuf);

impl Place {
    /// A part's database.
    pub fn database(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.sqlite"))
    }

    /// What a part says of its transactions.
    fn oracle(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.oracle"))
    }

    /// What a part says of its engine.
    fn step(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.step"))
    }

    /// Where a part listens.
    fn address(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.address"))
    }

    /// What a part says to people.
    fn told(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.log"))
    }

    fn key(&self, name: &str) -> Identity {
        Identity::load_or_create(self.0.join(format!("{name}.key"))).unwrap()
    }

    fn library(&self) -> LibraryId {
        LibraryId(fs::read_to_string(self.0.join("library")).unwrap().parse().unwrap())
    }

    fn is_enough(&self) -> bool {
        self.0.join("enough").exists()
    }
}

/// In the midst of what a process is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A transaction of its application, which said so.
    Transaction,
    /// A round of its engine: a step is in its transaction, as the engine said.
    Round,
    /// Anything.
    Any,
}

impl Moment {
    /// Nine of ten in something.
    pub fn choose(dice: &mut Dice) -> Self {
        match dice.roll(10) {
            0 => Self::Any,
            1..=4 => Self::Transaction,
            _ => Self::Round,
        }
    }
}

/// What a process that was killed had said last.
#[derive(Clone, Debug)]
pub struct Caught {
    /// Whether it led.
    pub led: bool,
    /// Whether a transaction of its application was open.
    pub in_transaction: bool,
    /// The step whose transaction was open.
    pub step: Option<String>,
}

/// All kills, in order.
#[derive(Clone, Debug, Default)]
pub struct Kills(Vec<Caught>);

impl Deref for Kills {
    type Target = [Caught];

    fn deref(&self) -> &[Caught] {
        &self.0
    }
}

impl fmt::Display for Kills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |is_it: fn(&Caught) -> bool| self.iter().filter(|kill| is_it(kill)).count();
        write!(
            f,
            "{} kills, {} of leaders, {} in open transactions, {} in rounds",
            self.len(),
            count(|kill| kill.led),
            count(|kill| kill.in_transaction),
            count(|kill| kill.step.is_some())
        )?;
        let mut steps: BTreeMap<&str, usize> = BTreeMap::new();
        for step in self.iter().filter_map(|kill| kill.step.as_deref()) {
            // The innermost function that is named in the type of its closure.
            let names = step.split(['<', '>', ',', ' ']).filter(|name| name.starts_with("tidelog::"));
            let named =
                names.map(|name| name.split("::{{").next().unwrap_or(name)).next_back().unwrap_or(step);
            *steps.entry(named).or_default() += 1;
        }
        let steps: Vec<String> = steps.iter().map(|(step, count)| format!("{step} {count}")).collect();
        write!(f, " ({})", steps.join(", "))
    }
}

/// Says something to people, also of a test that passes.
pub fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Three devices, and how each is started.
pub struct Stage {
    /// Where all is.
    pub place: Place,
    folder: TempDir,
    parts: Vec<Part>,
    kills: Kills,
}

/// A part: a process, or none while it is away.
struct Part {
    name: &'static str,
    device: String,
    process: Option<Child>,
    /// How often it was started.
    lives: u32,
    oracle: Oracle,
    /// What its process is started by, and where it listens.
    within: Vec<String>,
    listen: Option<String>,
    /// Transactions that were committed when this was last asked.
    committed: usize,
}

impl Part {
    /// The highest term that it has seen, and whether it leads it.
    fn standing_in_terms(&self, place: &Place) -> Option<String> {
        let path = place.database(self.name);
        let lead =
            lines(&reader(&path), "SELECT max_seen, lead IS NOT NULL AND lead = max_seen FROM sync_replica");
        lead.first().cloned()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for part in &mut self.parts {
            if let Some(mut process) = part.process.take() {
                let _ = process.kill();
                let _ = process.wait();
            }
        }
        if std::thread::panicking() {
            // For who looks for the reason.
            eprintln!("what the processes left is kept in {}", self.place.0.display());
            self.folder.disable_cleanup(true);
        }
    }
}

impl Stage {
    /// Three databases, and nobody there yet. `within` says by what a part's process is started, and `listen` at which
    /// address it listens, where that is not loopback.
    pub fn set(within: impl Fn(&str) -> Vec<String>, listen: impl Fn(&str) -> Option<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = Place(folder.path().to_owned());
        fs::write(place.0.join("library"), LibraryId::random().to_string()).unwrap();
        let part = |name| {
            let conn = rusqlite::Connection::open(place.database(name)).unwrap();
            workload::create_tables(&conn).unwrap();
            Part {
                name,
                // Made here, so that no two processes make one at once.
                device: place.key(name).device_id().to_string(),
                process: None,
                lives: 0,
                oracle: Oracle::of(place.oracle(name)),
                within: within(name),
                listen: listen(name),
                committed: 0,
            }
        };
        let parts = NAMES.into_iter().map(part).collect();
        Self { place, folder, parts, kills: Kills::default() }
    }

    /// Three processes on this machine's loopback.
    pub fn on_loopback() -> Self {
        Self::set(|_| Vec::new(), |_| None)
    }

    fn part(&mut self, name: &str) -> &mut Part {
        self.parts.iter_mut().find(|part| part.name == name).expect("a part of this name")
    }

    /// Starts everybody who is away.
    pub fn start_all(&mut self) {
        for name in NAMES {
            if self.part(name).process.is_none() {
                self.start(name);
            }
        }
    }

    /// Starts a process, on the files that are there.
    pub fn start(&mut self, name: &str) {
        let (told, place) = (self.place.told(name), self.place.0.clone());
        let part = self.part(name);
        let binary = std::env::current_exe().unwrap();
        let mut command = match part.within.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(binary);
                command
            }
            None => Command::new(binary),
        };
        command
            .args(["--exact", "child", "--nocapture"])
            .env(part::PART, name)
            .env(part::PLACE, place)
            .env(part::LIFE, part.lives.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(File::options().create(true).append(true).open(told).unwrap());
        if let Some(listen) = &part.listen {
            command.env(part::LISTEN, listen);
        }
        part.process = Some(command.spawn().unwrap());
        part.lives += 1;
        part.oracle.listen();
        part.committed = part.oracle.committed;
    }

    /// `kill -9`, in the midst of something: the process is held there first, so that what it last said is so.
    pub fn kill(&mut self, name: &str, moment: Moment, choice: u64) {
        let (led, mut dice) = (self.leader() == Some(name), Dice(choice));
        let deadline = Instant::now() + PATIENCE;
        loop {
            sleep(Duration::from_micros(dice.roll(12_000)));
            self.all_are_well();
            let step = self.place.step(name);
            let part = self.part(name);
            let process = part.process.as_mut().expect("it is there");
            let pid = Pid::from_raw(process.id().try_into().unwrap()).unwrap();
            kill_process(pid, Signal::STOP).unwrap();
            let stopped = waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().expect("it was waited for");
            assert!(stopped.1.stopped(), "{name} has ended by itself");
            part.oracle.listen();
            let said = fs::read_to_string(step).unwrap_or_default();
            let step = Some(said.trim().to_owned()).filter(|said| !said.is_empty());
            let caught = Caught { led, in_transaction: part.oracle.is_open, step };
            let is_it = match moment {
                Moment::Transaction => caught.in_transaction,
                Moment::Round => caught.step.is_some(),
                Moment::Any => true,
            };
            if is_it || Instant::now() > deadline {
                process.kill().unwrap();
                process.wait().unwrap();
                part.process = None;
                self.kills.0.push(caught);
                return;
            }
            kill_process(pid, Signal::CONT).unwrap();
        }
    }

    /// One of those that are there and do not lead.
    pub fn a_follower(&self, dice: &mut Dice) -> &'static str {
        let leader = self.leader();
        let here = self.parts.iter().filter(|part| part.process.is_some() && Some(part.name) != leader);
        let here: Vec<&'static str> = here.map(|part| part.name).collect();
        here[dice.roll(here.len() as u64) as usize]
    }

    /// Who leads, of those who are there.
    pub fn leader(&self) -> Option<&'static str> {
        let mut standings = Vec::new();
        for part in self.parts.iter().filter(|part| part.process.is_some()) {
            let Some(standing) = part.standing_in_terms(&self.place) else { continue };
            let number: u64 = standing.split('/').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            standings.push((number, standing.ends_with("| 1"), part.name));
        }
        standings.into_iter().filter(|(_, leads, _)| *leads).max().map(|(_, _, name)| name)
    }

    /// Waits until a condition holds, while all that are there are well.
    pub fn wait<T>(&mut self, what: &str, attempt: impl FnMut(&mut Self) -> Option<T>) -> T {
        self.wait_while(what, |_| (), attempt)
    }

    /// The same with a patience that begins anew whenever what `moves` has moved, up to a bound.
    fn wait_while<T, M: PartialEq>(
        &mut self,
        what: &str,
        moves: impl Fn(&Self) -> M,
        mut attempt: impl FnMut(&mut Self) -> Option<T>,
    ) -> T {
        let began = Instant::now();
        let (mut moved, mut at) = (began, moves(self));
        loop {
            self.all_are_well();
            if let Some(value) = attempt(self) {
                return value;
            }
            let now = moves(self);
            if now != at {
                (moved, at) = (Instant::now(), now);
            }
            assert!(moved.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}\n{}", self.how_all_stand());
            assert!(
                began.elapsed() < PATIENCE_MAX,
                "{what}: not within {PATIENCE_MAX:?}\n{}",
                self.how_all_stand()
            );
            sleep(Duration::from_millis(10));
        }
    }

    /// Waits until everybody who is there has committed so many transactions more, since it was started or this was asked.
    pub fn all_get_on(&mut self, by: usize) {
        self.wait("everybody writes on", |stage| {
            let mut here = stage.parts.iter_mut().filter(|part| part.process.is_some());
            here.all(|part| {
                part.oracle.listen();
                part.oracle.committed >= part.committed + by
            })
            .then_some(())
        });
        for part in &mut self.parts {
            part.committed = part.oracle.committed;
        }
    }

    /// Waits until somebody leads who is there.
    pub fn somebody_leads(&mut self) -> &'static str {
        self.wait("somebody leads", |stage| stage.leader())
    }

    /// The highest number of a term that anybody has seen.
    pub fn highest_term(&self) -> u64 {
        let number = |part: &Part| part.standing_in_terms(&self.place)?.split('/').next()?.parse().ok();
        self.parts.iter().filter_map(number).max().unwrap_or(0)
    }

    /// Waits until a process has told people this so many times, from now on.
    pub fn says(&mut self, name: &str, text: &str, times: usize) {
        let told = self.place.told(name);
        let count = move || fs::read_to_string(&told).unwrap_or_default().matches(text).count();
        let before = count();
        self.wait(&format!("{name} says {text}"), |_| (count() >= before + times).then_some(()));
    }

    /// Waits until all hold what this one holds now.
    pub fn all_are_level_with(&mut self, name: &str) {
        let top = |stage: &Self, name| -> i64 {
            let conn = reader(&stage.place.database(name));
            conn.query_row("SELECT max(seq) FROM sync_entry", [], |row| row.get(0)).unwrap()
        };
        let all = top(self, name);
        self.wait("all hold it", |stage| NAMES.iter().all(|name| top(stage, name) >= all).then_some(()));
    }

    /// Nobody writes any more; waits until all hold the same, nothing waits, and one leads.
    pub fn all_become_level(&mut self) {
        fs::write(self.place.0.join("enough"), "").unwrap();
        let standings =
            |stage: &Self| -> Vec<_> { stage.parts.iter().map(|part| stage.standing(part.name)).collect() };
        // On a bad way, how long it takes is for what was written meanwhile to say.
        self.wait_while("all are level", standings, |stage| {
            let all = standings(stage);
            let leaders = stage.parts.iter().filter_map(|part| part.standing_in_terms(&stage.place));
            let leaders = leaders.filter(|standing| standing.ends_with("| 1")).count();
            let rests = all.iter().all(|(_, waits)| *waits == 0);
            (rests && leaders == 1 && all.iter().all(|(top, _)| *top == all[0].0)).then_some(())
        });
    }

    /// The top of a device's log, and how much waits there.
    fn standing(&self, name: &str) -> (String, i64) {
        let conn = reader(&self.place.database(name));
        let top = "SELECT coalesce(max(seq), 0), (SELECT number || leader || counter || nonce FROM sync_term ORDER BY first DESC
            LIMIT 1), (SELECT max_seen FROM sync_replica) FROM sync_entry";
        let waits =
            "SELECT (SELECT count(*) FROM sync_outbox WHERE kind > 0) + (SELECT count(*) FROM sync_pending)";
        (lines(&conn, top).join(""), conn.query_row(waits, [], |row| row.get(0)).unwrap())
    }

    fn how_all_stand(&self) -> String {
        let one = |part: &Part| {
            let (name, there) = (part.name, part.process.is_some());
            format!(
                "{name} ({}, there: {there}): {:?} {:?}\n",
                part.device,
                self.standing(name),
                part.standing_in_terms(&self.place)
            )
        };
        self.parts.iter().map(one).collect()
    }

    /// Fails if a process has ended by itself.
    pub fn all_are_well(&mut self) {
        for part in &mut self.parts {
            let Some(process) = &mut part.process else { continue };
            if let Some(status) = process.try_wait().unwrap() {
                let told = fs::read_to_string(self.place.told(part.name)).unwrap_or_default();
                let last: Vec<_> = told.lines().rev().take(12).collect();
                let last: Vec<_> = last.into_iter().rev().collect();
                panic!("{} has ended by itself, {status}:\n{}", part.name, last.join("\n"));
            }
        }
    }

    /// Everybody is killed, and what all databases hold is compared with what the oracle knows. Who was killed before that,
    /// and what was found.
    pub fn end(mut self) -> (Kills, judge::Found) {
        for part in &mut self.parts {
            if let Some(mut process) = part.process.take() {
                process.kill().unwrap();
                process.wait().unwrap();
            }
            part.oracle.listen();
        }
        let oracles: Vec<&Oracle> = self.parts.iter().map(|part| &part.oracle).collect();
        let found = judge::judge(&self.place, &oracles);
        (std::mem::take(&mut self.kills), found)
    }
}
