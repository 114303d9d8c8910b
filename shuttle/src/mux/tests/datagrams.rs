//! Datagrams arrive whole, soon and once, or not at all.

use super::*;

fn peer(port: u16) -> Peer {
    Peer(SocketAddr::from(([10, 78, 0, 2], port)))
}

#[test]
fn datagrams_go_both_ways_with_their_peers() {
    let mut pair = Pair::new(vec![]);
    let six = Peer("[fd99::1]:53".parse().unwrap());
    let (one, two) = (pair.client.mux.associate(), pair.client.mux.associate());
    let sent = [
        (one, peer(1), vec![]),
        (one, peer(2), pattern(2, 1200)),
        (two, six, pattern(3, MAX_DATAGRAM)),
        (one, peer(1), pattern(4, 65_507)),
    ];
    for (association, peer, bytes) in &sent {
        pair.client.mux.datagram(*association, *peer, bytes, pair.now);
        // The pieces end anywhere, also within a frame.
        while pair.exchange(30_001) {}
    }
    assert!(pair.agent.datagrams == sent, "{} arrived", pair.agent.datagrams.len());
    for (association, peer, bytes) in &sent {
        pair.agent.mux.datagram(*association, *peer, bytes, pair.now);
        while pair.exchange(usize::MAX) {}
    }
    assert!(pair.client.datagrams == sent, "{} came back", pair.client.datagrams.len());
    assert_eq!((pair.client.mux.dropped_datagrams(), pair.agent.mux.dropped_datagrams()), (0, 0));
}

#[test]
fn queries_go_to_whom_they_are_for() {
    let mut pair = Pair::new(vec![]);
    let sent: Vec<_> =
        [(Target::Resolver, 40), (target(), 512), (Target::Resolver, MAX_DATAGRAM), (target(), 0)]
            .into_iter()
            .map(|(target, length)| (pair.client.mux.associate(), target, pattern(5, length)))
            .collect();
    for (association, target, bytes) in &sent {
        pair.client.mux.query(*association, *target, bytes, pair.now);
        while pair.exchange(30_001) {}
    }
    assert!(pair.agent.queries == sent, "{} arrived", pair.agent.queries.len());
    // A query that has ended gets no answer.
    pair.client.mux.dissociate(sent[0].0);
    for (association, ..) in &sent {
        pair.agent.mux.query(*association, Target::Resolver, b"answer", pair.now);
    }
    while pair.exchange(usize::MAX) {}
    let answered: Vec<_> = pair.client.queries.iter().map(|(association, ..)| *association).collect();
    assert_eq!(answered, [sent[1].0, sent[2].0, sent[3].0]);
}

#[test]
fn what_cannot_go_soon_is_dropped() {
    const LONGEST: usize = 65_507;
    // The number and length of the datagrams queued, the milliseconds after which the lane takes them, and the number
    // sent.
    let rows: [(usize, usize, u64, usize); 6] = [
        (10, 100, 0, 10),
        (10, 100, 199, 10),
        (10, 100, 201, 0),
        (9, LONGEST, 0, 7),
        (9, LONGEST, 201, 0),
        (3, MAX_DATAGRAM + 1, 0, 0),
    ];
    for (count, length, wait, arrive) in rows {
        let mut pair = Pair::new(vec![]);
        // The rate must be known first, or the limit would not allow as much in flight.
        let bulk = pair.client.mux.open(target(), pair.now);
        pair.client.program(bulk, vec![0; 20_000_000]);
        pair.settle();
        let association = pair.client.mux.associate();
        for seed in 0..count {
            pair.client.mux.datagram(association, peer(1), &pattern(seed as u8, length), pair.now);
        }
        pair.now += Duration::from_millis(wait);
        for _ in 0..16 {
            pair.exchange(usize::MAX);
        }
        let got: Vec<u8> = pair.agent.datagrams.iter().map(|(.., bytes)| bytes[0]).collect();
        let newest: Vec<u8> = (count - arrive..count).map(|seed| seed as u8).collect();
        assert_eq!(got, newest, "{count} of {length} bytes, after {wait} ms");
        assert_eq!(pair.client.mux.dropped_datagrams() as usize, count - arrive);
    }
}

#[test]
fn what_waits_is_bounded_over_all_associations() {
    let now = Instant::now();
    let mut mux = Mux::new(Side::Client, now);
    for _ in 0..1000 {
        let association = mux.associate();
        for _ in 0..10 {
            mux.datagram(association, peer(1), &[0; 60_000], now);
        }
    }
    let kept = 10_000 - mux.dropped_datagrams();
    assert!((100..=8 * 1024 * 1024 / 60_000).contains(&kept), "{kept}");
}

#[test]
fn an_association_ends_at_both_ends() {
    let mut pair = Pair::new(vec![]);
    let association = pair.client.mux.associate();
    pair.client.mux.datagram(association, peer(1), b"a", pair.now);
    pair.exchange(usize::MAX);
    pair.client.mux.dissociate(association);
    // A datagram that crosses the CLOSE is not for the client's programs, and the agent is told again.
    pair.agent.mux.datagram(association, peer(1), b"b", pair.now);
    pair.exchange(usize::MAX);
    pair.exchange(usize::MAX);
    assert_eq!(pair.agent.closed, [association; 2]);
    assert_eq!(pair.client.datagrams, []);
    // The agent may end one too.
    let association = pair.client.mux.associate();
    pair.agent.mux.dissociate(association);
    pair.exchange(usize::MAX);
    assert_eq!(pair.client.closed, [association]);
}

#[test]
fn the_client_hears_of_unreachable_peers_and_the_agent_is_bounded() {
    let mut pair = Pair::new(vec![]);
    let (association, gone) = (pair.client.mux.associate(), pair.client.mux.associate());
    pair.client.mux.dissociate(gone);
    for association in [association, gone] {
        pair.agent.mux.unreachable(association, peer(1), Reason::Refused);
    }
    while pair.exchange(usize::MAX) {}
    assert_eq!(pair.client.unreachable, [(association, peer(1), Reason::Refused)]);
    for _ in 0..1000 {
        pair.agent.mux.unreachable(association, peer(1), Reason::Unreachable);
    }
    while pair.exchange(usize::MAX) {}
    assert!(pair.client.unreachable.len() < 100, "{}", pair.client.unreachable.len());
    // An agent ignores UNREACHABLE.
    pair.client.mux.unreachable(association, peer(1), Reason::Refused);
    while pair.exchange(usize::MAX) {}
    assert_eq!(pair.agent.unreachable, []);
}

#[test]
fn numbers_out_of_range_end_the_session() {
    for (id, fits) in [(0, false), (1, true), (AssociationId::MAX.0, true), (AssociationId::MAX.0 + 1, false)]
    {
        let hello = Frame::Hello { lane: 0, hello: Hello { version: VERSION, initial_credit: 0 } };
        let datagram = Found::Datagram(AssociationId(id), peer(1), vec![1]);
        let bytes = [encode(&Found::Frame(hello)), encode(&datagram)].concat();
        let mut mux = Mux::new(Side::Agent, Instant::now());
        let mut input = &bytes[..];
        assert_eq!(mux.receive(LaneId::FIRST, &mut input, Instant::now()), Ok(Some(Event::Hello)));
        let result = mux.receive(LaneId::FIRST, &mut input, Instant::now()).map(|event| event.is_some());
        assert_eq!(result, if fits { Ok(true) } else { Err(ProtocolError::Association) }, "{id}");
    }
}

#[test]
fn a_lost_lane_takes_its_datagrams_and_queries_along() {
    let mut pair = Pair::new(vec![]);
    let lane = LaneId(1);
    let now = pair.now;
    for end in [&mut pair.client, &mut pair.agent] {
        end.mux.join(lane, now).unwrap();
    }
    let carry = |from: &mut End, to: &mut End| {
        from.mux.prepare(now);
        let bytes = from.mux.unwritten(lane).to_vec();
        from.mux.wrote(lane, bytes.len(), now);
        to.receive_on(lane, &bytes, &[], now);
    };
    carry(&mut pair.client, &mut pair.agent);
    carry(&mut pair.agent, &mut pair.client);
    // The first lane takes nothing, so the datagrams are sent on the other.
    pair.client.mux.writable(LaneId::FIRST, false);
    let (association, asks) = (pair.client.mux.associate(), pair.client.mux.associate());
    pair.client.mux.datagram(association, peer(1), b"lost", now);
    pair.client.mux.query(asks, Target::Resolver, b"gone", now);
    pair.client.mux.prepare(now);
    assert_eq!(pair.client.mux.grant(), None);
    for payload in [b"lost", b"gone"] {
        assert!(pair.client.mux.unwritten(lane).windows(4).any(|bytes| bytes == payload));
    }
    pair.client.mux.writable(LaneId::FIRST, true);
    assert!(pair.client.mux.lose(lane, now) && pair.agent.mux.lose(lane, now));
    pair.exchange(usize::MAX);
    assert_eq!((pair.agent.datagrams, pair.agent.queries), (vec![], vec![]));
}
