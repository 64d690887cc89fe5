//! The simulator, over as many seeds as fit into the test command; `docs/simulator.md` says how to run it for longer.

#![allow(clippy::unwrap_used, reason = "in a test, a failure is a panic")]

use std::time::{Duration, Instant};

use tidelog::testing::replica::Safeguard;
use tidelog_tests::sim::{
    counters::Counters,
    device::{self, Templates},
    run::{self, Plan},
    schedule::{
        Event::{
            self, BackUp, Batches, CopyTo, CrashIn, Cut, Decide, Deliver, Double, HandOver, Inquire, Lose,
            LosePower, Mend, Push, Reassign, Reclaim, Restore, Round, Seal, Subscribe, TakeOver, Write,
        },
        Schedule,
    },
};

/// How much happens under each seed.
const EVENTS: usize = 300;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn whatever_happens_every_promise_is_kept() {
    let plan = Plan {
        first: number("TIDELOG_SIM_FIRST").unwrap_or(0),
        seeds: number("TIDELOG_SIM_SEEDS").unwrap_or(500),
        events: EVENTS,
        lasts: number("TIDELOG_SIM_MINUTES").map(|minutes| Duration::from_secs(60 * minutes)),
        surveys: std::env::var_os("TIDELOG_SIM_SURVEY").is_some(),
        until: None,
        without: None,
        twice: 50,
    };
    let began = Instant::now();
    let report = run::run(&plan);
    println!("{}{} seeds in {:?}", report.counters, report.seeds, began.elapsed());
    for failure in &report.failures {
        println!("{failure}");
    }
    assert!(report.failures.is_empty(), "{} seeds failed", report.failures.len());
    let missed: Vec<_> = SOMETIMES.iter().filter(|name| report.counters.of(name) == 0).collect();
    assert!(plan.seeds < 100 || missed.is_empty(), "no seed came to {missed:?}");
    let missed = never_cut_off(&report.counters);
    assert!(plan.seeds < 500 || missed.is_empty(), "nothing was ever cut off at {missed:?}");
    let (changes, conflicts) = (report.counters.of("entry: change"), report.counters.of("entry: conflict"));
    assert!(20 * conflicts >= changes, "of {changes} changes only {conflicts} were in conflict");
}

/// What some seed must come to, or the rest proves nothing about it.
const SOMETIMES: [&str; 26] = [
    "decision: came second",
    "decision: conflict decided",
    "decision: discarded",
    "decision: made of a scope",
    "decision: presented again",
    "decision: retried",
    "entry: conflict",
    "entry: derived",
    "entry: of another life",
    "entry: refused",
    "event: set back",
    "lead: granted",
    "lead: reclaimed",
    "lead: taken over",
    "lead: taken over by two",
    "local: kept",
    "log: became shorter",
    "rejoin: with a tail",
    "sent: grant",
    "sent: reassign",
    "sent: reassigned",
    "sent: reassigned, not done",
    "pending: blocked",
    "pending: under a pulled entry",
    "power: commits were lost",
    "stable: told",
];

/// Places between two durable steps that are passed often, or named, and at which nothing was ever cut off.
fn never_cut_off(counters: &Counters) -> Vec<String> {
    let passed = counters.beginning("passed: ").filter(|(_, count)| *count >= OFTEN);
    let places = passed.map(|(name, _)| name.replace("passed: ", "crash: "));
    let named = RARER.iter().flat_map(|step| {
        ["before", "after"].map(|when| format!("crash: testing::replica::Replica::{step} {when} its commit"))
    });
    let mut missed: Vec<String> = places.chain(named).filter(|place| counters.of(place) == 0).collect();
    missed.sort();
    missed.dedup();
    missed
}

/// Steps that are passed less often than that, and are cut off before and after their commit all the same: what people decide about
/// dead letters, of which there are few.
const RARER: [&str; 2] = ["discard", "retry"];

/// See [`never_cut_off`]: rarer ones are for the long mode.
const OFTEN: u64 = 200;

/// Plays the seed that `TIDELOG_SIM_SEED` names; if it fails, once more as short as it can be, saying what happens.
#[test]
fn one_seed() {
    let Some(seed) = number("TIDELOG_SIM_SEED") else { return };
    let templates = Templates::make();
    let plan = Plan {
        first: seed,
        seeds: 1,
        events: EVENTS,
        lasts: None,
        surveys: false,
        until: None,
        without: None,
        twice: 1,
    };
    let Err(failure) = run::play_seed(&templates, seed, &plan, &mut Counters::default()) else { return };
    println!("{failure}");
    let folder = device::folder();
    let _ = run::replay(folder.path(), &templates, &failure.schedule);
    panic!("seed {seed} failed");
}

/// Each safeguard, and the promise that is broken without it.
const SAFEGUARDS: [(Safeguard, &str); 6] = [
    (Safeguard::TermCheck, "fencing"),
    (Safeguard::TailRequeue, "kept"),
    (Safeguard::DuplicateCheck, "once"),
    (Safeguard::OneTransaction, "fold"),
    (Safeguard::Tombstone, "deleted"),
    (Safeguard::Suppression, "captured"),
];

#[test]
fn without_any_of_its_safeguards_a_promise_is_broken() {
    let mut missed = Vec::new();
    for (safeguard, invariant) in SAFEGUARDS {
        let plan = Plan {
            first: 0,
            seeds: 300,
            events: EVENTS,
            lasts: None,
            surveys: true,
            until: Some(invariant),
            without: Some(safeguard),
            twice: 0,
        };
        let report = run::run(&plan);
        let broken: Vec<_> = report.failures.iter().map(|failure| failure.broken.invariant).collect();
        println!("without {safeguard:?}, {} seeds: {broken:?}", report.seeds);
        if !broken.contains(&invariant) {
            missed.push((safeguard, broken));
        }
    }
    assert!(missed.is_empty(), "switched off, and what must break did not: {missed:?}");
}

/// Plays a schedule on which something was broken once.
fn holds(seed: u64, devices: usize, events: &[Event]) {
    let schedule = Schedule { seed, devices, events: events.to_vec() };
    let folder = device::folder();
    let played = run::replay(folder.path(), &Templates::make(), &schedule);
    assert_eq!(played, Ok(()));
}

#[test]
fn entries_that_are_there_already_are_found_the_same_however_the_log_is_cut_into_batches() {
    holds(
        57,
        2,
        &[Subscribe(1, 0), Deliver(1), Subscribe(1, 0), Deliver(1), Batches(2), Double(1), Deliver(1)],
    );
}

#[test]
fn a_leader_that_wrote_a_record_of_another_twice_in_one_seal_shows_what_the_log_has() {
    holds(12, 2, &[Write(1, 182700112664), Round(1), Write(0, 761449805605), Write(0, 605998432891)]);
}

#[test]
fn a_cascade_that_meets_restrict_refuses_what_it_came_of_and_nothing_else() {
    let before = [Round(1), Write(1, 652750005873), Round(1), Write(0, 131502501914)];
    holds(282, 2, &[&before[..], &[Write(1, 844869553098), Write(0, 287371270916)]].concat());
}

#[test]
fn a_row_that_steps_out_and_comes_back_leaves_those_that_refer_to_it_uncounted() {
    let before = [Write(0, 1023404482344), Write(1, 934634925847), Round(1), Write(1, 728021564939), Seal(1)];
    let behind = [Write(1, 420749583079), Write(1, 634466637267), Write(1, 236297908294)];
    holds(200079, 2, &[&before[..], &[Write(0, 923543353816)], &behind].concat());
}

#[test]
fn a_part_of_a_group_that_holds_only_what_cascades_made_is_read() {
    let before = [Batches(3), Write(0, 820605393871), CopyTo(0, 1), Write(1, 295146898225)];
    holds(396, 2, &[&before[..], &[Write(1, 939076142190), Write(0, 287608832741)]].concat());
}

#[test]
fn what_a_refused_transfer_took_is_not_taken_by_the_next_one() {
    holds(270, 2, &[Write(0, 847819431183), Round(1), Write(1, 887656157731), Write(1, 881080396012)]);
}

#[test]
fn half_of_a_transfer_does_not_stand_behind_a_fork() {
    let before = [Write(0, 1019840500828), BackUp(0), Write(0, 629364072447), Round(0), Round(1)];
    holds(1084, 3, &[&before[..], &[Restore(0, true), Write(0, 773713362415)]].concat());
}

#[test]
fn pushes_of_two_origins_that_arrive_the_other_way_round_are_taken_in_order() {
    let events = [
        Round(2),
        Write(2, 60837801697),
        Seal(2),
        LosePower(0, 166609142467),
        Push(2),
        LosePower(2, 913410300669),
        Deliver(577727846654),
        Subscribe(2, usize::MAX),
        Subscribe(2, usize::MAX),
        Deliver(287746011933),
        Deliver(461907170424),
        Write(2, 630903362732),
        Deliver(631888096471),
        Push(2),
        Deliver(619212359519),
        Push(2),
        Deliver(454347298078),
        Deliver(373404068324),
    ];
    holds(235, 3, &events);
}

#[test]
fn a_term_that_was_told_is_not_forgotten() {
    let before = [Subscribe(2, 0), Deliver(1), Deliver(1), Round(3), LosePower(0, 933477007448), Round(2)];
    holds(383, 4, &[&before[..], &[Subscribe(2, 3), Deliver(1), LosePower(3, 912762253795)]].concat());
}

#[test]
fn what_was_pending_shows_no_more_when_the_log_settles_it_out_of_turn() {
    let before = [Subscribe(2, usize::MAX), Round(0), Write(2, 872864029482), Write(0, 424537677700)];
    holds(685, 3, &[&before[..], &[CopyTo(2, 1), Round(2), TakeOver(1)]].concat());
}

#[test]
fn what_comes_into_a_folder_whose_deletion_is_pending_brings_it_back() {
    let before = [Round(1), Write(1, 267031483892), Round(1)];
    holds(12, 2, &[&before[..], &[Write(0, 128022708254), Write(1, 711784769213)]].concat());
}

#[test]
fn what_is_pending_in_a_folder_that_goes_with_its_refusal_steps_out() {
    let before = [Round(1), Batches(1), Write(1, 130878787236), Write(0, 683031816114), Round(0)];
    holds(291, 2, &[&before[..], &[Write(1, 588603479381), Write(0, 1064592045991)]].concat());
}

#[test]
fn what_an_unwinding_lays_over_again_refers_to_nothing_that_is_gone() {
    let before = [Round(0), Write(0, 1049664944370), Round(1), Round(0), Write(1, 596833733871)];
    holds(1201, 3, &[&before[..], &[Write(0, 849266005774), Round(2), Round(1), TakeOver(2)]].concat());
}

#[test]
fn a_copy_that_is_forced_to_lead_takes_what_is_pending_in_it() {
    let before = [Inquire(0, 1), Write(1, 1003402504796), Deliver(1), Subscribe(1, usize::MAX), Batches(1)];
    holds(
        106,
        3,
        &[&before[..], &[Deliver(1), Deliver(1), Deliver(1), Deliver(1), CopyTo(1, 0), TakeOver(0)]].concat(),
    );
}

#[test]
fn what_an_entry_writes_over_shows_beside_what_is_pending() {
    let before = [
        Batches(3),
        Subscribe(2, usize::MAX),
        Deliver(936170755797),
        Deliver(272211838776),
        Write(0, 563549587566),
        Subscribe(1, 2),
        Deliver(752330685461),
        Write(1, 955591666376),
        Deliver(838673855071),
        Write(2, 142814147423),
        Double(715097261121),
    ];
    let then = [
        Round(1),
        Write(1, 203415542289),
        Subscribe(2, usize::MAX),
        Subscribe(2, usize::MAX),
        CrashIn(0, 600585117123),
        HandOver(0, 2),
        Write(2, 366949452496),
    ];
    holds(55, 3, &[&before[..], &then].concat());
}

#[test]
fn what_was_seen_of_one_life_is_not_what_stands_under_its_number_in_the_other() {
    let before = [BackUp(0), Write(0, 392315224774), Round(2), Round(0), CrashIn(2, 503475441346)];
    let then =
        [Write(0, 1034502629254), Round(1), Round(0), Restore(0, true), Write(0, 719883403317), Round(1)];
    holds(469, 3, &[&before[..], &then, &[CrashIn(0, 561580537833)]].concat());
}

#[test]
fn a_leader_that_is_brought_what_it_forgot_does_not_number_on_beside_it() {
    let before = [BackUp(0), Write(0, 392315224774), Round(1), Restore(0, true), Round(1)];
    holds(
        469,
        2,
        &[&before[..], &[Write(0, 1034502629254), Round(1), Write(1, 719883403317), Round(1)]].concat(),
    );
}

#[test]
fn what_a_cascade_did_is_seen_by_who_made_what_it_came_of() {
    let before = [Round(0), Write(0, 26288348312), Write(0, 23485730850), Write(2, 187348641414), Round(2)];
    let then = [Write(2, 105239505806), Round(1), Write(2, 105831459222), Write(1, 941114901134)];
    holds(10310, 4, &[&before[..], &then].concat());
}

#[test]
fn a_folder_that_comes_back_takes_its_name_from_what_is_pending() {
    let before = [Round(0), Round(1), Write(1, 312740538833), Round(1), Round(2), Write(2, 248052963865)];
    holds(10649, 4, &[&before[..], &[Round(2), Write(1, 50212155408), Write(1, 448385642004)]].concat());
    let before = [Round(1), Write(1, 355308764090), Write(0, 960146934007), Round(1), Write(1, 454192774096)];
    holds(10212, 2, &[&before[..], &[Write(1, 503160248271), Write(0, 499805776383)]].concat());
}

#[test]
fn a_folder_that_comes_back_when_another_change_of_it_is_settled_takes_its_name_too() {
    let before = [Write(0, 524394643954), Round(0), Round(1), TakeOver(1), Write(0, 60832116860)];
    let then = [Write(1, 816546953208), Write(1, 884024955671), Seal(0), Write(0, 700286477503)];
    holds(10623, 2, &[&before[..], &then, &[Write(0, 615486109795), Batches(1)]].concat());
}

#[test]
fn what_steps_out_into_a_folder_whose_deletion_is_pending_brings_it_back() {
    let before = [Write(0, 123954928414), Round(1), Write(1, 441323392569), Write(0, 426856244758), Round(1)];
    let then = [Write(1, 570980537747), Write(0, 833189609381), Write(1, 542143797268)];
    holds(10767, 2, &[&before[..], &then].concat());
}

#[test]
fn what_answers_a_subscription_of_long_ago_is_no_damage() {
    let before = [Round(3), Round(2), Subscribe(2, 3), Write(0, 132075382457), Round(2), TakeOver(3)];
    holds(21371, 4, &[&before[..], &[Round(0), Round(2), Round(2)]].concat());
}

#[test]
fn what_is_pending_over_the_log_does_not_hide_what_a_deletion_takes_along() {
    let before = [Write(0, 953341046880), Round(0), Subscribe(1, usize::MAX), Cut(1, 0), Round(1)];
    let then = [
        Write(0, 852303770961),
        TakeOver(1),
        Batches(2),
        Round(0),
        Write(0, 636960518376),
        Write(1, 83539785639),
        Mend,
    ];
    let last = [Write(0, 261281364305), Round(0), HandOver(1, 0), Round(0)];
    holds(30843, 2, &[&before[..], &then, &last].concat());
}

#[test]
fn a_column_that_only_rises_is_what_a_person_says_where_nobody_else_has_written_it() {
    let before = [Round(1), Write(1, 814054041914), Round(1), Write(1, 2364659617), Write(0, 727142486975)];
    let then = [Round(1), Write(1, 619599445397), Round(1), TakeOver(1), Decide(0, 579477306488)];
    holds(36, 2, &[&before[..], &then].concat());
}

#[test]
fn a_leader_gives_up_what_it_was_refused_of_a_record_of_another() {
    let before = [Write(1, 590734270023), Round(0), Round(1), Write(0, 745556090906)];
    holds(43, 3, &[&before[..], &[Decide(0, 541834173575)]].concat());
}

#[test]
fn what_a_person_chose_is_not_lost_where_the_two_met_in_another_order() {
    let before = [Write(0, 612492923071), Write(1, 998347250827), HandOver(0, 1), Write(1, 1034521715164)];
    let then = [CrashIn(1, 512221878371), Decide(1, 875322144313), Reclaim(0), Write(0, 439448314905)];
    holds(438, 2, &[&before[..], &then, &[Decide(1, 902934340515)]].concat());
}

#[test]
fn what_a_new_leader_has_yet_to_sequence_leaves_no_row_that_refers_to_nothing() {
    let before = [
        Subscribe(1, usize::MAX),
        Deliver(265435954589),
        Lose(729343435902),
        Deliver(560229100723),
        Write(1, 303978076913),
        Write(1, 236365017957),
        Seal(1),
    ];
    let then = [Write(0, 480920476758), Write(1, 263475510024), Write(0, 362973923044)];
    holds(20595, 2, &[&before[..], &then, &[Write(0, 751367150229), Batches(3), HandOver(0, 1)]].concat());
}

#[test]
fn a_group_that_comes_into_the_log_while_it_is_pushed_is_not_gone_on_with_by_what_is_pending_behind_it() {
    let before = [
        Round(1),
        Cut(1, 0),
        Write(1, 702478966346),
        Round(1),
        Write(1, 1049841224216),
        Round(1),
        Write(1, 508479332964),
    ];
    holds(744, 2, &[&before[..], &[Batches(1), CopyTo(1, 0), Write(0, 868037250328)]].concat());
}

#[test]
fn what_meets_a_constraint_among_entries_that_are_taken_together_is_taken_by_itself_and_not_passed_over() {
    let before = [Round(0), Round(1), Write(1, 569175257943), Reassign(0, 2), Round(2)];
    holds(40, 3, &[&before[..], &[Batches(2), Write(2, 935176187687)]].concat());
}
