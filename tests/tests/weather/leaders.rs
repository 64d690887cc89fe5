//! Who leads while the network is cut, where a device may take over by itself.

use std::{cell::Cell, time::Duration};

use tidelog::{Link, TakeOver, leadership::Failover};
use tidelog_tests::dice::Dice;

use crate::air::Air;

/// Without contact for this long, a device looks whether it is to lead.
const AFTER: Duration = Duration::from_secs(1);
/// How long the devices need to find each other again: the longest pause between two tries, and a handshake on a dead line.
const SETTLES: Duration = Duration::from_secs(25);

fn three(seed: u64) -> Air {
    Air::new(seed, 3, |builder| builder.failover(Failover::after(AFTER)))
}

/// The highest term that anybody has seen in a log.
fn number(air: &Air) -> u64 {
    (0..3).map(|who| air.at(who).status().term.number).max().unwrap()
}

#[track_caller]
fn assert_one_leader(air: &mut Air) -> usize {
    air.until("there is one leader, and all follow it", |air| {
        air.leader().is_some_and(|leader| (0..3).all(|who| who == leader || air.at(who).is_online()))
    });
    air.leader().unwrap()
}

#[test]
fn a_one_way_partition_does_not_change_the_leader_for_ever_and_its_end_leaves_all_consistent() {
    let mut air = three(11);
    let (mut written, mut leader) = (0, 0);
    // The leader is not heard, does not hear, and two that follow it hear each other one way only.
    for pair in [(0, 1), (1, 0), (1, 2)] {
        let pair = ((leader + pair.0) % 3, (leader + pair.1) % 3);
        let first = number(&air);
        air.cut_one_way(pair.0, pair.1);
        // Time to take over, more than once if it must be.
        for _ in 0..SETTLES.as_secs() {
            for who in 0..3 {
                air.write_items(who, &format!("of{who}-{written}-"), 1, 100);
            }
            written += 1;
            air.pass(Duration::from_secs(1), "time passes", |_| true);
        }
        let settled = number(&air);
        assert!(settled - first <= 2, "{pair:?}: {} terms were opened\n{}", settled - first, air.told());
        let stays = air.leader();
        assert!(stays.is_some(), "{pair:?}: one leads\n{}", air.told());
        air.pass(10 * AFTER, "the leader stays", |air| number(air) == settled && air.leader() == stays);
        air.mend(pair.0, pair.1);
        leader = assert_one_leader(&mut air);
        let dump = air.level(leader);
        assert_eq!(dump.rows.len(), 3 * written);
    }
}

#[test]
fn a_follower_that_hears_the_leader_seldom_says_that_it_hears_it() {
    // Only the second may take over; the third hears of the leader by its heartbeats, every five seconds.
    let opened = Cell::new(0);
    let mut air = Air::new(14, 3, |builder| match opened.replace(opened.get() + 1) {
        1 => builder.failover(Failover::after(AFTER)),
        _ => builder,
    });
    let first = number(&air);
    air.cut(0, 1);
    air.pass(10 * AFTER, "the leader stays", |air| number(air) == first && air.leader() == Some(0));
    air.mend(0, 1);
    air.level(0);
}

#[test]
fn a_leader_that_is_cut_off_is_deposed_once_and_comes_back_with_what_it_wrote_alone() {
    let mut air = three(12);
    let first = number(&air);
    air.cut(0, 1);
    air.cut(0, 2);
    for round in 0..10 {
        air.write_items(0, &format!("alone{round}-"), 3, 100);
        air.pass(Duration::from_millis(500), "time passes", |_| true);
    }
    air.until("another leads", |air| number(air) == first + 1);
    air.write_items(1, "others", 3, 100);
    air.mend(0, 1);
    air.mend(0, 2);
    let leader = assert_one_leader(&mut air);
    assert_ne!(leader, 0);
    let dump = air.level(leader);
    assert_eq!(dump.rows.len(), 33);
    assert_eq!(number(&air), first + 1);
}

#[test]
fn lines_that_flap_between_three_leave_one_leader_and_every_change_in_every_table() {
    for seed in [13, 14] {
        let mut air = three(seed);
        let mut dice = Dice(seed);
        let mut written = 0;
        for _ in 0..60 {
            let (a, b) = [(0, 1), (0, 2), (1, 2)][dice.roll(3) as usize];
            match dice.roll(5) {
                0 => air.cut(a, b),
                1 => air.cut_one_way(a, b),
                2 => air.cut_one_way(b, a),
                _ => air.mend(a, b),
            }
            let who = dice.roll(3) as usize;
            air.write_items(who, &format!("of{who}-{written}-"), 2, 500);
            written += 2;
            air.pass(Duration::from_millis(dice.roll(1200)), "time passes", |_| true);
        }
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            air.mend(a, b);
        }
        let leader = assert_one_leader(&mut air);
        let dump = air.level(leader);
        assert_eq!(dump.rows.len(), written);
    }
}

#[test]
fn a_device_that_dials_a_leader_that_is_gone_follows_the_next_one_as_soon_as_it_hears_of_it() {
    let mut air = Air::new(15, 3, |builder| builder);
    air.cut(0, 1);
    air.cut(0, 2);
    air.until("it is offline", |air| air.at(1).status().link == Link::Offline);
    air.until("it dials again", |air| air.at(1).status().link == Link::Connecting);
    let began = air.now();
    let library = air.at(2).device.library.clone();
    air.on(2, async move { library.take_over(TakeOver::FORCED).await.unwrap() });
    air.until("it follows", |air| air.at(1).is_online());
    assert!(air.now() - began < AFTER, "{:?}", air.now() - began);
    air.mend(0, 1);
    air.mend(0, 2);
    assert_eq!(assert_one_leader(&mut air), 2);
    air.level(2);
}
