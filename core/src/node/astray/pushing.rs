//! Followers that push what is not in order, is there already, cannot be read, or makes the leader fail.

use super::*;

/// Pushes, and returns what is answered to it.
async fn answer_to(channel: &mut Channel, batch: &Batch) -> Message {
    let push = Message::push(Term::ZERO, Position::EMPTY, batch).encode();
    channel.sender.send(push).await.unwrap();
    loop {
        let bytes = soon("an answer", channel.receiver.receive()).await.unwrap().unwrap();
        match Message::decode(&bytes).unwrap() {
            Message::Entries { .. } | Message::Top { .. } => {}
            answer => return answer,
        }
    }
}

/// The change of [`batch`] as its author would push it, with this number and tag.
pub(super) fn pushed(n: u64, tag: u64) -> Batch {
    let Batch { mut entries, mut groups, .. } = batch(&format!("text {n}"));
    let mut entry = entries.remove(1);
    (entry.seq, entry.term, entry.n) = (Seq(1), Term::ZERO, Some(OriginSeq(n)));
    let group = &mut groups[0];
    (group.device, group.tag) = (FOLLOWER, tag);
    (group.first, group.last, group.first_n, group.last_n) = (Seq(1), Seq(1), OriginSeq(n), OriginSeq(n));
    Batch { after: Position::EMPTY, entries: vec![entry], groups }
}

#[tokio::test]
async fn a_push_takes_effect_once_and_a_gap_or_a_fork_not_at_all() {
    let bench = Bench::leader().await;
    let mut channel = bench.following().await;
    let mut answer = async |batch: &Batch| answer_to(&mut channel, batch).await;
    assert!(matches!(answer(&pushed(1, 7)).await, Message::Pushed { .. }));
    let top = bench.library.position().await.unwrap();
    assert!(matches!(answer(&pushed(1, 7)).await, Message::Pushed { .. }), "known");
    let gap = PushStop::Gap { origin: pushed(1, 7).groups[0].origin, expected: OriginSeq(2) };
    assert!(matches!(answer(&pushed(3, 7)).await, Message::PushStopped { why, .. } if why == gap));
    let fork =
        PushStop::Forked { change: Seen { origin: pushed(1, 8).groups[0].origin, n: OriginSeq(1), tag: 8 } };
    assert!(matches!(answer(&pushed(1, 8)).await, Message::PushStopped { why, .. } if why == fork));
    let mut strangers = pushed(2, 7);
    strangers.groups[0].device = DeviceId([9; 32]);
    let Message::Refused { reason } = answer(&strangers).await else { panic!("taken") };
    assert!(reason.contains("no member") && reason.contains("nothing was changed"), "{reason}");
    let mut leaders = pushed(2, 7);
    if let Body::Change(change) = &mut leaders.entries[0].body {
        change.outcome = Some(Box::new(crate::entry::Outcome::nothing()));
    }
    let Message::Refused { reason } = answer(&leaders).await else { panic!("taken") };
    assert!(reason.contains("only a leader appends"), "{reason}");
    assert_eq!(bench.library.position().await.unwrap(), top, "one entry, whatever else was sent");
    assert_eq!(bench.notes().await, 1);
}

/// A change of a release in which the record has another key: one that is no column here, or another column.
fn of_another_key(key: &str, outcome: Option<crate::entry::Outcome>) -> Batch {
    let mut batch = pushed(1, 7);
    let fields = vec![if key == "text" { "id".into() } else { key.into() }, "text".into()];
    let key = vec![usize::from(key == "text")];
    let shape = Arc::new(Shape { model: "notes".into(), fields, key, uuids: vec![false; 2] });
    if let Body::Change(change) = &mut batch.entries[0].body {
        change.record = shape.record_id(&change.row);
        (change.shape, change.outcome) = (shape, outcome.map(Box::new));
    }
    batch
}

#[tokio::test]
async fn a_change_of_a_record_with_another_key_is_refused_and_stops_no_follower() {
    for key in ["name", "text"] {
        let bench = Bench::leader().await;
        let mut channel = soon("a channel", bench.mine.open(LEADER, bench.library.id())).await.unwrap();
        let subscribe = Message::Subscribe {
            max_seen: Term::ZERO,
            top: Position::EMPTY,
            history: vec![],
            complete: true,
        };
        channel.sender.send(subscribe.encode()).await.unwrap();
        let push = Message::push(Term::ZERO, Position::EMPTY, &of_another_key(key, None)).encode();
        channel.sender.send(push).await.unwrap();
        bench.shows(|status| status.dead_letters == 1).await;
        let letters = bench.library.dead_letters().await.unwrap();
        assert!(letters[0].reason.contains("another key"), "{letters:?}");
        assert_eq!(bench.notes().await, 0);

        let mut bench = Bench::follower().await;
        let mut channel = bench.subscribed().await;
        channel.sender.send(entries(term(1, 1), &batch("a"))).await.unwrap();
        bench.shows(|status| status.position.seq == Seq(2)).await;
        let mut refused =
            of_another_key(key, Some(crate::entry::Outcome::refused(letters[0].reason.clone())));
        (refused.after, refused.entries[0].seq) = (Position { term: term(1, 1), seq: Seq(2) }, Seq(3));
        refused.entries[0].term = term(1, 1);
        (refused.groups[0].origin, refused.groups[0].first) = (Origin(uuid::Uuid::from_u128(5)), Seq(3));
        refused.groups[0].last = Seq(3);
        channel.sender.send(entries(term(1, 1), &refused)).await.unwrap();
        let status = bench.shows(|s| s.dead_letters == 1 || matches!(s.link, Link::Stopped { .. })).await;
        assert_eq!(status.link, Link::Online, "{:?}", status.last_error);
        assert_eq!(bench.notes().await, 1);
    }
}

/// A group in so many parts.
fn in_parts(parts: u64) -> Vec<Batch> {
    let part = |i: u64| {
        let mut part = pushed(1, 7);
        part.after.seq = Seq(i);
        let group = &mut part.groups[0];
        (group.first, group.last, group.last_n) = (Seq(1), Seq(parts), OriginSeq(parts));
        let entry = &mut part.entries[0];
        (entry.seq, entry.n) = (Seq(i + 1), Some(OriginSeq(i + 1)));
        let Body::Change(change) = &mut entry.body else { panic!("no change") };
        change.row[0] = Value::Text(format!("record {i}").into());
        change.record = change.shape.record_id(&change.row);
        part
    };
    (0..parts).map(part).collect()
}

#[tokio::test]
async fn what_was_on_its_way_when_a_follower_came_anew_does_not_come_between_the_parts_of_its_group() {
    let bench = Bench::leader().await;
    let parts = in_parts(3);
    let mut old = bench.following().await;
    assert!(matches!(answer_to(&mut old, &parts[0]).await, Message::Pushed { .. }));
    let mut new = bench.following().await;
    assert!(matches!(answer_to(&mut new, &parts[0]).await, Message::Pushed { .. }));
    old.sender.send(Message::push(Term::ZERO, Position::EMPTY, &parts[1]).encode()).await.unwrap();
    let told = rest(&mut old).await;
    assert!(!told.iter().any(|message| matches!(message, Message::Pushed { .. })), "{told:?}");
    for part in &parts[1..] {
        assert!(matches!(answer_to(&mut new, part).await, Message::Pushed { .. }));
    }
    assert_eq!(bench.notes().await, 3);
}

#[tokio::test]
async fn a_push_that_cannot_be_read_is_the_followers_fault_and_nobody_is_told_to_restore_a_backup() {
    let mut misnumbered = pushed(1, 7);
    misnumbered.entries[0].n = Some(OriginSeq(9));
    let push = Message::push(Term::ZERO, Position::EMPTY, &misnumbered).encode();
    for message in [push, vec![1, 2, 3]] {
        let bench = Bench::leader().await;
        let mut channel = bench.following().await;
        channel.sender.send(message).await.unwrap();
        rest(&mut channel).await;
        let status = bench.shows(|s| s.last_error.is_some()).await;
        let error = status.last_error.unwrap();
        assert!(error.contains("what it sent is not used") && !error.contains("backup"), "{error}");
        assert_eq!((status.role, status.link), (Role::Leader, Link::Leading));
        assert_eq!(bench.notes().await, 0);
    }
}

#[tokio::test]
async fn a_group_that_the_leader_fails_on_is_refused_in_parts_as_it_is_whole() {
    for parts in [1, 3] {
        let bench = Bench::leader().await;
        // Takes the whole transaction back, not the row: nothing that can be answered row by row.
        let poison = "CREATE TRIGGER poison BEFORE INSERT ON notes BEGIN SELECT RAISE(ROLLBACK, 'as a bug would'); END";
        bench.db.execute_unprepared(poison).await.unwrap();
        let mut tries = 0;
        'tries: loop {
            tries += 1;
            assert!(tries < 8, "in {parts} parts it is tried for ever");
            let mut channel = bench.following().await;
            for part in in_parts(parts) {
                let push = Message::push(Term::ZERO, Position::EMPTY, &part).encode();
                channel.sender.send(push).await.unwrap();
            }
            let mut answers = 0;
            while let Ok(Some(bytes)) = soon("an answer", channel.receiver.receive()).await {
                answers += u64::from(matches!(Message::decode(&bytes), Ok(Message::Pushed { .. })));
                if answers == parts {
                    break 'tries;
                }
            }
        }
        let letters = bench.library.dead_letters().await.unwrap();
        assert_eq!((letters.len() as u64, tries), (parts, 4));
        assert!(letters[0].reason.contains("failed on it 3 times"), "{letters:?}");
    }
}
