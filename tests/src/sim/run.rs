//! Running many seeds: on every core, each twice now and then, and what to say of those that fail.

use std::{
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tidelog::testing::replica::{Safeguard, switch_off};

use super::{Broken, counters::Counters, device, device::Templates, play, schedule::Schedule};

/// How much to do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The first seed.
    pub first: u64,
    /// How many seeds; all that come within `lasts`, if that is set.
    pub seeds: u64,
    /// Events of each.
    pub events: usize,
    /// Goes on for so long instead.
    pub lasts: Option<Duration>,
    /// Goes on after failures, and shortens none.
    pub surveys: bool,
    /// Ends when this was broken.
    pub until: Option<&'static str>,
    /// A safeguard that is off.
    pub without: Option<Safeguard>,
    /// One in so many is played twice: the same trace must come of it.
    pub twice: u64,
}

/// A seed that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The shortened schedule.
    pub schedule: Schedule,
    /// What was broken.
    pub broken: Broken,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// What was reached.
    pub counters: Counters,
    /// Seeds that were played.
    pub seeds: u64,
    /// The first of those that failed, on each core.
    pub failures: Vec<Failure>,
}

/// Plays a schedule in a folder of its own.
///
/// # Errors
/// What was broken, and at which event.
pub fn play_alone(
    templates: &Templates,
    schedule: &Schedule,
    counters: &mut Counters,
) -> Result<u64, (Broken, usize)> {
    let folder = device::folder();
    play(folder.path(), templates, schedule, counters)
}

/// Plays a seed; of one that fails, the shortest schedule that was found to fail alike.
///
/// # Errors
/// [`Failure`].
pub fn play_seed(
    templates: &Templates,
    seed: u64,
    plan: &Plan,
    counters: &mut Counters,
) -> Result<(), Box<Failure>> {
    let schedule = Schedule::of(seed, plan.events);
    let played = play_alone(templates, &schedule, counters);
    let played = match played {
        Ok(trace) if plan.twice > 0 && seed.is_multiple_of(plan.twice) => {
            counters.count("played twice");
            match play_alone(templates, &schedule, &mut Counters::default()) {
                Ok(again) if again == trace => Ok(()),
                Ok(_) => {
                    Err((Broken::new("same", "the same seed has two traces"), schedule.events.len() - 1))
                }
                Err(broken) => Err(broken),
            }
        }
        other => other.map(drop),
    };
    played.map_err(|(broken, at)| Box::new(shortened(templates, schedule, broken, at, plan.surveys)))
}

fn shortened(
    templates: &Templates,
    mut schedule: Schedule,
    broken: Broken,
    at: usize,
    surveys: bool,
) -> Failure {
    schedule.events.truncate(at + 1);
    if surveys {
        return Failure { schedule, broken };
    }
    let invariant = broken.invariant;
    if invariant == "same" {
        return Failure { schedule, broken };
    }
    let mut found = broken;
    let began = Instant::now();
    let shortest = schedule.shorten(|shorter| {
        if began.elapsed() > SHORTENING_MAX {
            return false;
        }
        match play_alone(templates, shorter, &mut Counters::default()) {
            Err((broken, _)) if broken.invariant == invariant => {
                found = broken;
                true
            }
            _ => false,
        }
    });
    Failure { schedule: shortest, broken: found }
}

/// How long a failing schedule is shortened.
const SHORTENING_MAX: Duration = Duration::from_secs(30);

/// Plays many seeds. Ends with the first failure on each core.
pub fn run(plan: &Plan) -> Report {
    let templates = Templates::make();
    let next = AtomicU64::new(plan.first);
    let report = Mutex::new(Report::default());
    let began = Instant::now();
    let cores = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                let mut counters = Counters::default();
                let (mut played, mut surveyed) = (0, Vec::new());
                switch_off(plan.without);
                let failure = loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let is_over = match plan.lasts {
                        Some(lasts) => began.elapsed() > lasts,
                        None => seed >= plan.first + plan.seeds,
                    };
                    if is_over {
                        break None;
                    }
                    played += 1;
                    if let Err(failure) = play_seed(&templates, seed, plan, &mut counters) {
                        let is_it = plan.until == Some(failure.broken.invariant);
                        if plan.surveys && !is_it {
                            surveyed.push(*failure);
                            continue;
                        }
                        // The others need not go on.
                        next.store(u64::MAX / 2, Ordering::Relaxed);
                        break Some(failure);
                    }
                };
                let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                report.counters.merge(&counters);
                report.seeds += played;
                report.failures.extend(surveyed);
                report.failures.extend(failure.map(|failure| *failure));
            });
        }
    });
    report.into_inner().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Schedule { seed, devices, events } = &self.schedule;
        writeln!(f, "broken: {}: {}", self.broken.invariant, self.broken.text)?;
        writeln!(f, "seed {seed}, {devices} devices, shortened to {} events:", events.len())?;
        for event in events {
            writeln!(f, "    {event:?},")?;
        }
        writeln!(
            f,
            "replay: TIDELOG_SIM_SEED={seed} cargo test --workspace --test simulator one_seed -- --nocapture"
        )
    }
}

/// Plays one schedule and says what happens.
///
/// # Errors
/// What was broken, and at which event.
pub fn replay(folder: &Path, templates: &Templates, schedule: &Schedule) -> Result<(), (Broken, usize)> {
    let mut simulation = super::Simulation::begin(folder, templates, schedule);
    simulation.is_loud = true;
    let played = simulation.play(&schedule.events);
    if played.is_err() {
        simulation.tell_all();
    }
    tidelog::testing::replica::limit_batches(None);
    played
}
