//! Devices are processes of their own, over QUIC, and get killed while all of them write.
//!
//! `TIDELOG_KILLS=100` kills more often, `TIDELOG_KILLS_SEED=7` others at other moments (`docs/simulator.md`).

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

use std::time::Instant;

use tidelog_tests::{
    dice::Dice,
    processes::{Moment, Stage, part, tell},
};

/// Transactions that each process commits between two kills, at least.
const BETWEEN: usize = 5;

/// Not a scenario of its own: the processes that are killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    part::play().await;
}

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

#[test]
fn whoever_is_killed_at_whatever_moment_nothing_is_lost_or_doubled_and_nobody_needs_help() {
    let (kills, seed) = (setting("TIDELOG_KILLS", 20), setting("TIDELOG_KILLS_SEED", 1));
    let (began, mut dice) = (Instant::now(), Dice(seed));
    let mut stage = Stage::on_loopback();
    stage.start_all();
    for kill in 0..kills {
        stage.all_get_on(BETWEEN);
        let leader = stage.somebody_leads();
        let victim = if kill % 2 == 0 { leader } else { stage.a_follower(&mut dice) };
        stage.kill(victim, Moment::choose(&mut dice), dice.roll(u64::MAX));
        let stays_away = dice.roll(3) == 0;
        if victim == leader && stays_away {
            // Until another leads, and all others have written what it has not seen.
            stage.somebody_leads();
            stage.all_get_on(BETWEEN);
        }
        stage.start_all();
    }
    stage.all_get_on(BETWEEN);
    stage.all_become_level();

    let (caught, found) = stage.end();
    tell(&format!("seed {seed}: {caught}; {found}; {:.0?}", began.elapsed()));
    let in_something = caught.iter().filter(|kill| kill.in_transaction || kill.step.is_some()).count();
    assert!(
        in_something * 5 >= caught.len() * 4,
        "of {} kills {in_something} were in something",
        caught.len()
    );
    assert!(found.takeovers > 0, "nobody has ever taken over");
}
