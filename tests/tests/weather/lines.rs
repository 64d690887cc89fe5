//! A leader and its followers over lines that are cut, silent, lossy, broken off or slow.

use std::time::Duration;

use tidelog::{leadership::Failover, status::Link, transport::MESSAGE_MAX};
use tidelog_transport::limits::{IDLE_TIMEOUT, SEND_WINDOW, STREAM_WINDOW};

use crate::air::{Air, LATENCY};

/// A quiet leader says this often that it is there.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A follower that hears nothing for this long looks for the leader anew.
const SILENCE: Duration = Duration::from_secs(15);
/// What messages on their way, retries of single datagrams and ticks come to.
const MOMENT: Duration = Duration::from_secs(2);

#[test]
fn a_follower_reconnects_when_the_network_is_whole_again_and_nothing_is_lost_or_comes_twice() {
    let mut air = Air::new(1, 2, |builder| builder);
    air.cut(0, 1);
    air.write_items(0, "there", 50, 1000);
    air.write_items(1, "here", 50, 1000);
    air.until("the follower is offline", |air| air.at(1).status().link == Link::Offline);
    air.mend(0, 1);
    air.until("it is back", |air| air.at(1).is_online());
    let dump = air.level(0);
    assert_eq!(dump.rows.len(), 100);
    air.assert_once(0, "here", 50);
    air.assert_once(1, "there", 50);
}

#[test]
fn a_peer_that_falls_silent_is_noticed_when_its_time_is_over_and_not_before() {
    let mut air = Air::new(2, 2, |builder| builder);
    // Whatever is said now was said before.
    air.pass(Duration::from_secs(30), "a quiet line stands", |air| {
        air.at(1).is_online() && air.at(0).status().followers.len() == 1
    });
    let cut = air.now();
    air.cut(0, 1);
    air.pass(SILENCE - HEARTBEAT - MOMENT, "the follower waits", |air| air.at(1).is_online());
    air.until("the follower notices", |air| !air.at(1).is_online());
    assert!(air.now() - cut < SILENCE + MOMENT, "{:?}", air.now() - cut);
    air.until("it says so", |air| air.at(1).status().link == Link::Offline);
    let status = air.at(1).status();
    assert!(status.next_retry.is_some(), "{status:?}");
    let told = status.last_error.unwrap();
    assert!(told.contains("nothing was heard of device") && told.contains("15s"), "{told}");

    // The leader has asked for nothing: only the connection tells it.
    let waits = IDLE_TIMEOUT - HEARTBEAT - MOMENT - (air.now() - cut);
    air.pass(waits, "the leader waits", |air| air.at(0).status().followers.len() == 1);
    air.until("the leader notices", |air| air.at(0).status().followers.is_empty());
    assert!(air.now() - cut < IDLE_TIMEOUT + MOMENT, "{:?}", air.now() - cut);
    let told = air.at(0).status().last_error.unwrap();
    assert!(told.contains("broke: nothing was heard from the peer for too long"), "{told}");

    air.write_items(0, "there", 1, 100);
    air.mend(0, 1);
    air.level(0);
    assert_eq!(air.at(1).status().last_error, None);
}

#[test]
fn a_stream_that_is_cancelled_in_mid_message_leaves_both_sides_sound_and_the_next_goes_on_where_it_was() {
    let mut air = Air::new(3, 2, |builder| builder);
    for group in 0..9 {
        air.write_items(0, &format!("there{group}-"), 10, 60_000);
        air.write_items(1, &format!("here{group}-"), 10, 60_000);
    }
    air.until("it is under way", |air| !air.is_level(0));
    // Whoever receives says that it reads no more, or whoever sends gives up.
    for round in 0..12_u64 {
        let (who, receives) = ((round % 2) as usize, round % 4 < 2);
        let shears = std::sync::Arc::clone(&air.at(who).shears);
        let carried = |air: &Air| {
            air.at(1).shears.quic.stats().bytes_received + air.at(0).shears.quic.stats().bytes_received
        };
        let (from, before) = (carried(&air), shears.cuts());
        air.until("something is under way and cut", |air| {
            if carried(air) < from + 60_000 + 37_000 * round {
                return air.is_level(0);
            }
            if receives {
                shears.cut_receiving()
            } else {
                shears.cut_sending()
            }
            air.is_level(0) || shears.cuts() > before
        });
        // The half that was asked learns of it in the next tick.
        air.until("it is cut", |air| air.is_level(0) || shears.cuts() > before);
    }
    let cuts = air.at(0).shears.cuts() + air.at(1).shears.cuts();
    let dump = air.level(0);
    assert!(cuts >= 8, "only {cuts} were cut before all was there");
    assert_eq!(dump.rows.len(), 180);
    air.assert_once(0, "here", 90);
    air.assert_once(1, "there", 90);
    for station in [air.at(0), air.at(1)] {
        assert_eq!(station.shears.quic.stats().ended, 0, "a stream was cancelled, not the connection");
    }
}

#[test]
fn a_follower_that_does_not_read_costs_the_leader_a_bounded_amount_and_nobody_else_anything() {
    let mut air = Air::new(4, 3, |builder| builder);
    air.at(2).shears.read(false);
    for group in 0..12 {
        air.write_items(0, &format!("there{group}-"), 20, 60_000);
    }
    let top = air.barrier(0);
    air.until("the other follower has all", |air| air.has(1, top));
    let leader = air.at(0);
    let (reader, other) = (leader.shears.sent(air.at(1).id), leader.shears.sent(air.at(2).id));
    assert!(reader > 14_000_000, "{reader}");
    assert!(!air.has(2, top));
    let most = u64::from(STREAM_WINDOW) + SEND_WINDOW + MESSAGE_MAX as u64;
    assert!(other < most, "{other} bytes were taken for a follower that reads nothing");
    // It is given up and asks anew, several times: what it did not read is not kept.
    let before = air.now();
    while air.now() - before < 2 * SILENCE {
        air.pass(MOMENT, "connections stay few", |air| air.at(0).shears.quic.stats().connections <= 4);
        air.write_items(0, &format!("later{}-", air.now().as_millis()), 1, 100);
        let top = air.barrier(0);
        air.until("the other follower has all", |air| air.has(1, top));
    }
    air.at(2).shears.read(true);
    air.level(0);
}

#[test]
fn loss_duplication_and_reordering_change_nothing_but_the_time_it_takes() {
    for (seed, lost, doubled) in [(5, 10, 10), (6, 20, 20)] {
        let mut air = Air::new(seed, 3, |builder| builder);
        air.set_latency(LATENCY.0, LATENCY.1 * 5);
        {
            let mut weather = air.weather.lock().unwrap();
            (weather.lost, weather.doubled) = (lost, doubled);
        }
        for round in 0..10 {
            for who in 0..3 {
                air.write_items(who, &format!("of{who}-{round}-"), 10, 400);
            }
            air.write(1, &[format!("UPDATE items SET name = 'by 1 in {round}' WHERE id LIKE 'of0-%'")]);
            air.write(2, &[format!("UPDATE items SET name = 'by 2 in {round}' WHERE id LIKE 'of0-%'")]);
            air.pass(Duration::from_millis(300), "time passes", |_| true);
        }
        let dump = air.level(0);
        assert_eq!(dump.rows.len(), 300);
        let (lost, doubled) = air.weather.lock().unwrap().met;
        assert!(lost > 50 && doubled > 50, "{lost} were lost, and {doubled} came twice");
    }
}

#[test]
fn two_devices_that_have_much_to_tell_each_other_over_a_slow_line_do_not_wait_for_each_other_for_ever() {
    // A device that may take over asks for signs of life all the time.
    let mut air = Air::new(7, 2, |builder| builder.failover(Failover::after(SILENCE)));
    air.cut(0, 1);
    for group in 0..4 {
        air.write_items(0, &format!("there{group}-"), 20, 60_000);
        air.write_items(1, &format!("here{group}-"), 20, 60_000);
    }
    air.narrow(0, Some(400_000.0));
    air.narrow(1, Some(400_000.0));
    air.mend(0, 1);
    let dump = air.level(0);
    assert_eq!(dump.rows.len(), 160);
}

#[test]
fn a_line_that_flaps_carries_all_in_the_end() {
    let mut air = Air::new(8, 2, |builder| builder);
    let mut dice = tidelog_tests::dice::Dice(8);
    for round in 0..30 {
        air.cut(0, 1);
        air.write_items(0, &format!("there{round}-"), 3, 3000);
        air.pass(Duration::from_millis(dice.roll(3000)), "time passes", |_| true);
        air.mend(0, 1);
        air.write_items(1, &format!("here{round}-"), 3, 3000);
        air.pass(Duration::from_millis(dice.roll(1500)), "time passes", |_| true);
    }
    let dump = air.level(0);
    assert_eq!(dump.rows.len(), 180);
    air.assert_once(0, "here", 90);
    air.assert_once(1, "there", 90);
    assert!(air.at(0).shears.quic.stats().connections <= 2);
}

#[test]
fn a_line_on_which_a_message_takes_longer_than_the_leader_may_be_silent_carries_it_all_the_same() {
    let mut air = Air::new(9, 2, |builder| builder);
    air.narrow(1, Some(80_000.0));
    air.write_items(0, "there", 40, 60_000);
    let began = air.now();
    air.level(0);
    assert!(air.now() - began > SILENCE, "{:?}", air.now() - began);
}

#[test]
fn a_leader_that_sends_all_the_time_over_a_slow_line_is_not_taken_for_silent_and_deposed() {
    let after = Duration::from_secs(1);
    let mut air = Air::new(10, 2, |builder| builder.failover(Failover::after(after)));
    air.narrow(1, Some(400_000.0));
    let term = air.at(1).status().term;
    air.write_items(0, "there", 40, 60_000);
    let began = air.now();
    air.level(0);
    assert!(air.now() - began > 2 * after, "{:?}", air.now() - began);
    assert_eq!(air.at(1).status().term, term);
}

#[test]
fn a_transport_that_is_closed_while_it_dials_somebody_who_is_gone_ends_soon() {
    let mut air = Air::new(16, 2, |builder| builder);
    air.cut(0, 1);
    air.until("it is offline", |air| air.at(1).status().link == Link::Offline);
    air.until("the old connections are gone", |air| air.at(1).shears.quic.stats().connections == 0);
    assert!(air.at(1).shears.quic.stats().ended > 0);
    air.until("it dials again", |air| air.at(1).status().link == Link::Connecting);
    let (shears, began) = (std::sync::Arc::clone(&air.at(1).shears), air.now());
    air.on(1, async move { shears.quic.close().await });
    assert!(air.now() - began < Duration::from_millis(1100), "{:?}", air.now() - began);
}
