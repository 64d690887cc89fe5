//! Devices are processes of their own, each in a network of its own that loses what it carries, or carries it one way only.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

use tidelog_tests::processes::{FOUNDER, NAMES, Stage, nets::Nets, part, tell};

/// Not a scenario of its own: the processes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    part::play().await;
}

/// Networks that are as the scenario wants them; says why there are none.
fn networks(wants: impl FnOnce(&Nets) -> Result<(), String>) -> Option<Nets> {
    let laid = Nets::lay().and_then(|nets| wants(&nets).map(|()| nets));
    laid.map_err(|why| tell(&format!("skipped, since this machine does not let us lay networks: {why}"))).ok()
}

fn stage(nets: &Nets) -> Stage {
    let mut stage = Stage::set(|name| nets.within(name), |name| Some(format!("{}:0", nets.address(name))));
    stage.start_all();
    stage.all_get_on(5);
    stage
}

#[test]
fn where_every_sixth_packet_is_lost_three_devices_that_all_write_become_level() {
    let Some(nets) = networks(|nets| nets.lose(16)) else { return };
    let mut stage = stage(&nets);
    stage.all_get_on(60);
    stage.all_become_level();
    tell(&format!("every sixth packet lost: {}", stage.end().1));
}

#[test]
fn a_way_that_is_cut_in_one_direction_deposes_nobody_and_two_leaders_are_one_again_when_they_meet() {
    let Some(nets) = networks(|_| Ok(())) else { return };
    let mut stage = stage(&nets);
    let (leader, other) = (FOUNDER, NAMES[1]);
    assert_eq!(stage.somebody_leads(), leader);
    for (from, to) in [(leader, other), (other, leader)] {
        nets.cut(from, to);
        // It looks for a leader again and again, and the third tells it that there is one.
        stage.says(other, "HasLeader", 3);
        stage.all_get_on(20);
        assert_eq!((stage.somebody_leads(), stage.highest_term()), (leader, 1), "from {from} to {to}");
        nets.mend(from, to);
        stage.all_are_level_with(leader);
    }
    // Nobody hears the leader any more, which hears everybody.
    for to in &NAMES[1..] {
        nets.cut(leader, to);
    }
    stage.wait("another leads", |stage| stage.highest_term().gt(&1).then_some(()));
    stage.all_get_on(20);
    for to in &NAMES[1..] {
        nets.mend(leader, to);
    }
    stage.all_get_on(20);
    stage.all_become_level();
    tell(&format!("one way cut: {}", stage.end().1));
}
