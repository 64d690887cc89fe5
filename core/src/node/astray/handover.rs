//! A leader that is asked to hand over by somebody who is not of the library, is gone, or is one of many; and a device that
//! asks a leader which answers in odd ways, or not at all.

use super::*;
use crate::leadership::{NotHandedOver, REASSIGNMENTS_MAX};

const THIRD: DeviceId = DeviceId([3; 32]);

fn reassign(to: DeviceId) -> Vec<u8> {
    Message::Reassign { max_seen: Term::ZERO, to }.encode()
}

fn opened_by(leader: DeviceId) -> Term {
    Term { leader, ..term(2, 1) }
}

/// A channel from a transport of the test's to the leader, on which this was said.
async fn says(bench: &Bench, mine: &MemoryTransport, message: Vec<u8>) -> Channel {
    let mut channel = soon("a channel", mine.open(LEADER, bench.library.id())).await.unwrap();
    channel.sender.send(message).await.unwrap();
    channel
}

/// A subscription of a device that is level with the leader.
async fn follows(bench: &Bench, mine: &MemoryTransport) -> Channel {
    let subscribe =
        Message::Subscribe { max_seen: Term::ZERO, top: Position::EMPTY, history: vec![], complete: true };
    let channel = says(bench, mine, subscribe.encode()).await;
    bench.shows(|s| s.followers.iter().any(|f| f.device == mine.device())).await;
    channel
}

/// Takes what comes until the lead is granted.
async fn granted(channel: &mut Channel) -> u64 {
    loop {
        let bytes = soon("a grant", channel.receiver.receive()).await.unwrap().unwrap();
        if let Message::Grant { number, .. } = Message::decode(&bytes).unwrap() {
            return number;
        }
    }
}

/// Tells the leader of the subscription that this term was opened.
async fn tells_of(channel: &mut Channel, max_seen: Term) {
    let confirm = Message::Confirm { max_seen, position: Position::EMPTY };
    channel.sender.send(confirm.encode()).await.unwrap();
}

async fn answer(channel: &mut Channel) -> Message {
    let bytes = soon("an answer", channel.receiver.receive()).await.unwrap().unwrap();
    Message::decode(&bytes).unwrap()
}

/// Waits until the leader works on so many requests.
async fn works_on(bench: &Bench, count: usize) {
    let shared = bench.library.shared().unwrap();
    let works = async {
        while shared.reassigning.available_permits() != REASSIGNMENTS_MAX - count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    soon("the requests are worked on", works).await;
}

fn handed_over_to(leader: DeviceId) -> Message {
    Message::Reassigned { max_seen: opened_by(leader), failed: None }
}

#[tokio::test]
async fn a_stranger_gets_no_lead_handed_over_and_moves_no_term() {
    let bench = Bench::open_over(NOTES, LEADER, FOLLOWER).await;
    let id = bench.library.id();
    bench.library.shutdown().await;
    let named = Library::builder(&bench.db).model::<note::Entity>().create(id).peer(DeviceId([9; 32]));
    let library = named.open().await.unwrap();
    library.start(Arc::new(bench.network.plug(LEADER))).await.unwrap();
    let asks = Message::Reassign { max_seen: term(90, 1), to: FOLLOWER }.encode();
    let messages = rest(&mut says(&bench, &bench.mine, asks).await).await;
    let [Message::Refused { reason }] = messages.as_slice() else { panic!("{messages:?}") };
    assert!(reason.contains("not a member") && reason.contains("nothing was changed"), "{reason}");
    assert_eq!(library.status().borrow().role, Role::Leader);
    assert_eq!(library.position().await.unwrap().term.number, 1);
}

#[tokio::test]
async fn a_handover_goes_on_when_whoever_asked_for_it_is_gone() {
    let bench = Bench::leader().await;
    let mut subscription = follows(&bench, &bench.mine).await;
    drop(says(&bench, &bench.mine, reassign(FOLLOWER)).await);
    assert_eq!(granted(&mut subscription).await, 2);
    tells_of(&mut subscription, opened_by(FOLLOWER)).await;
    let status = bench.shows(|s| s.role == Role::Follower).await;
    assert_eq!(status.last_error, None, "that nobody takes the answer is no error");
}

#[tokio::test]
async fn of_two_devices_that_are_to_lead_at_once_one_does_and_the_other_hears_of_it() {
    let bench = Bench::leader().await;
    let thirds = bench.network.plug(THIRD);
    let mut subscription = follows(&bench, &bench.mine).await;
    let _other = follows(&bench, &thirds).await;
    let mut first = says(&bench, &bench.mine, reassign(FOLLOWER)).await;
    granted(&mut subscription).await;
    // Nobody leads now, and soon somebody will: a device that granted its lead is no leader that is gone.
    let inquires = Message::Inquire { max_seen: Term::ZERO }.encode();
    let standing = answer(&mut says(&bench, &thirds, inquires).await).await;
    assert!(matches!(standing, Message::Standing { leads: true, .. }), "{standing:?}");
    let mut second = says(&bench, &thirds, reassign(THIRD)).await;
    let mut again = says(&bench, &thirds, reassign(FOLLOWER)).await;
    works_on(&bench, 3).await;
    tells_of(&mut subscription, opened_by(FOLLOWER)).await;
    assert_eq!(answer(&mut first).await, handed_over_to(FOLLOWER));
    assert_eq!(answer(&mut again).await, handed_over_to(FOLLOWER), "it is what was wanted");
    let failed = Some(NotHandedOver::Overtaken);
    assert_eq!(answer(&mut second).await, Message::Reassigned { max_seen: opened_by(FOLLOWER), failed });
}

#[tokio::test]
async fn a_leader_works_on_so_many_requests_at_once_and_refuses_one_more() {
    let bench = Bench::leader().await;
    let mut subscription = follows(&bench, &bench.mine).await;
    let mut answers = tokio::task::JoinSet::new();
    for _ in 0..=REASSIGNMENTS_MAX {
        let mut asking = says(&bench, &bench.mine, reassign(FOLLOWER)).await;
        answers.spawn(async move { answer(&mut asking).await });
    }
    granted(&mut subscription).await;
    // The others have to wait until it is taken.
    let refused = soon("a refusal", answers.join_next()).await.unwrap().unwrap();
    let Message::Reassigned { failed: Some(NotHandedOver::Busy), .. } = refused else {
        panic!("{refused:?}")
    };
    tells_of(&mut subscription, opened_by(FOLLOWER)).await;
    let all = soon("all answers", answers.join_all()).await;
    assert_eq!(all, vec![handed_over_to(FOLLOWER); REASSIGNMENTS_MAX]);
}

#[tokio::test]
async fn a_leader_that_is_deposed_over_a_request_says_who_leads() {
    let other = Term { leader: DeviceId([9; 32]), ..term(7, 1) };
    for (to, why) in [(FOLLOWER, NotHandedOver::NotTaken), (THIRD, NotHandedOver::Overtaken)] {
        let bench = Bench::leader().await;
        let mut subscription = follows(&bench, &bench.mine).await;
        let mut asking = says(&bench, &bench.mine, reassign(to)).await;
        // The one is granted the lead and does not take it, the other is still waited for.
        if to == FOLLOWER {
            granted(&mut subscription).await;
        }
        works_on(&bench, 1).await;
        tells_of(&mut subscription, other).await;
        assert_eq!(answer(&mut asking).await, Message::Reassigned { max_seen: other, failed: Some(why) });
    }
}

/// A real device that follows, and asks the test for another leader: its next channel that is no subscription.
async fn asked(bench: &mut Bench) -> (Channel, Message) {
    loop {
        let mut channel = soon("a channel", bench.incoming.recv()).await.unwrap();
        let first = soon("a message", channel.receiver.receive()).await.unwrap().unwrap();
        match Message::decode(&first).unwrap() {
            Message::Subscribe { .. } => {}
            other => return (channel, other),
        }
    }
}

#[tokio::test]
async fn whoever_asks_is_told_what_the_leader_says_or_that_it_has_not_said_it() {
    let told = |failed| Message::Reassigned { max_seen: Term { leader: THIRD, ..term(5, 1) }, failed };
    let (leader, third) = (LEADER.to_string(), THIRD.to_string());
    for (says, parts) in [
        (
            Some(told(Some(NotHandedOver::NotFollowing))),
            ["it does not follow device", &leader, "Let it connect"],
        ),
        (Some(told(Some(NotHandedOver::Behind))), ["did not catch up with device", &leader, "within 30 s"]),
        (Some(told(Some(NotHandedOver::NotTaken))), ["did not take it in time", &third, "try again"]),
        (Some(told(Some(NotHandedOver::Overtaken))), ["does not lead as it did", &third, "Ask again"]),
        (Some(told(Some(NotHandedOver::Busy))), ["works on 4 such requests already", &leader, "Try again"]),
        (Some(Message::Refused { reason: "go away".into() }), ["refused: go away", &leader, "a member"]),
        (Some(Message::MoreHistory), ["something else", &leader, "It may do it all the same"]),
        (None, ["it ended the channel", &leader, "It may do it all the same"]),
    ] {
        let mut bench = Bench::follower().await;
        let mut subscription = bench.subscribed().await;
        subscription.sender.send(entries(term(1, 1), &batch("x"))).await.unwrap();
        bench.shows(|s| s.link == Link::Online).await;
        let (library, to) = (bench.library.clone(), DeviceId([9; 32]));
        let asking = tokio::spawn(async move { library.reassign_leader(to).await });
        let (mut channel, inquiry) = asked(&mut bench).await;
        assert!(matches!(inquiry, Message::Inquire { .. }), "{inquiry:?}");
        let top = position_of_batch();
        let standing =
            Message::Standing { max_seen: top.term, top, leads: true, unheard: None, priority: None };
        channel.sender.send(standing.encode()).await.unwrap();
        let (mut channel, request) = asked(&mut bench).await;
        assert_eq!(request, Message::Reassign { max_seen: top.term, to });
        if let Some(message) = says {
            channel.sender.send(message.encode()).await.unwrap();
        }
        drop(channel);
        let error = soon("an error", asking).await.unwrap().unwrap_err().to_string();
        for part in parts.iter().chain(&["nothing was lost", &to.to_string()]) {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
