//! Several lanes: each keeps its own order, and any but the first may end at any time.

use super::*;

/// What is on its way on each lane, oldest first.
type Transit = BTreeMap<LaneId, Vec<u8>>;

/// Two ends joined by several lanes.
struct Lanes {
    pair: Pair,
    up: Transit,
    down: Transit,
}

impl Lanes {
    fn new(replies: Vec<Vec<u8>>, count: u32) -> Self {
        let mut pair = Pair::new(replies);
        for lane in (1..count).map(LaneId) {
            pair.client.mux.join(lane, pair.now).unwrap();
            pair.agent.mux.join(lane, pair.now).unwrap();
        }
        let transit: Transit = (0..count).map(|lane| (LaneId(lane), Vec::new())).collect();
        let mut lanes = Self { pair, up: transit.clone(), down: transit };
        // Greetings, there and back.
        lanes.exchange(usize::MAX);
        lanes.exchange(usize::MAX);
        lanes
    }

    /// Lets each end write, and each lane deliver up to `room` bytes each way.
    fn exchange(&mut self, room: usize) -> bool {
        let Pair { client, agent, replies, now } = &mut self.pair;
        send(client, &mut self.up, *now);
        send(agent, &mut self.down, *now);
        *now += Duration::from_micros(500);
        let mut moved = false;
        for (transit, end, replies) in
            [(&mut self.up, &mut *agent, &replies[..]), (&mut self.down, &mut *client, &[])]
        {
            for (lane, bytes) in transit {
                let arrived: Vec<u8> = bytes.drain(..room.min(bytes.len())).collect();
                moved |= !arrived.is_empty();
                end.receive_on(*lane, &arrived, replies, *now);
            }
        }
        moved
    }

    /// A lane ends, with all that is on its way.
    fn lose(&mut self, lane: LaneId) {
        for (end, transit) in [(&mut self.pair.client, &mut self.up), (&mut self.pair.agent, &mut self.down)]
        {
            end.mux.lose(lane);
            transit.remove(&lane);
        }
    }

    fn settle(&mut self) {
        let mut still = 0;
        for turn in 0.. {
            assert!(turn < 100_000, "the lanes never come to rest");
            let in_flight = self.pair.client.mux.lanes.in_flight() + self.pair.agent.mux.lanes.in_flight();
            // An end may let some turns pass before it goes on.
            still = if self.exchange(usize::MAX) { 0 } else { still + 1 };
            if still > 100 && in_flight == 0 {
                return;
            }
        }
    }
}

fn send(end: &mut End, transit: &mut Transit, now: Instant) {
    end.mux.tick(now).unwrap();
    end.mux.prepare(now);
    while let Some(grant) = end.mux.grant() {
        end.fill(grant);
    }
    for (lane, bytes) in transit {
        while !end.mux.unwritten(*lane).is_empty() {
            let unwritten = end.mux.unwritten(*lane);
            let length = unwritten.len();
            bytes.extend(unwritten);
            end.mux.wrote(*lane, length, now);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every byte arrives once and in order, whichever lane overtakes which, and whichever is lost.
    #[test]
    fn lanes_carry_streams_whole(
        lengths in prop::collection::vec((0usize..900_000, 0usize..900_000), 1..6),
        steps in prop::collection::vec((1usize..200_000, prop::option::weighted(0.1, 1u32..4)), 1..60),
    ) {
        let replies: Vec<Vec<u8>> =
            lengths.iter().enumerate().map(|(index, (_, down))| pattern(index as u8, *down)).collect();
        let mut lanes = Lanes::new(replies.clone(), 4);
        let mut requests = BTreeMap::new();
        for (index, (up, _)) in lengths.iter().enumerate() {
            let bytes = pattern(100 + index as u8, *up);
            let stream = lanes.pair.client.mux.open(target(), lanes.pair.now);
            requests.insert(stream, bytes.clone());
            lanes.pair.client.program(stream, bytes);
        }
        for (room, lost) in steps {
            if let Some(lane) = lost {
                lanes.lose(LaneId(lane));
            }
            lanes.exchange(room);
        }
        lanes.settle();
        let Pair { client, agent, .. } = &lanes.pair;
        for (stream, request) in &requests {
            let reply = &replies[stream.0 as usize % replies.len()];
            prop_assert!(agent.got.get(stream).map_or(&[][..], Vec::as_slice) == request.as_slice());
            prop_assert!(client.got.get(stream).map_or(&[][..], Vec::as_slice) == reply.as_slice());
        }
        prop_assert_eq!((client.mux.stream_count(), agent.mux.stream_count()), (0, 0));
    }
}

#[test]
fn bulk_goes_by_all_lanes_and_acknowledgements_are_never_in_the_way() {
    let mut lanes = Lanes::new(vec![vec![7; 30_000_000]], 4);
    let stream = lanes.pair.client.mux.open(target(), lanes.pair.now);
    lanes.pair.client.program(stream, Vec::new());
    let before: Vec<u64> = lanes.pair.agent.mux.lanes.iter().map(|(_, lane)| lane.out.written()).collect();
    lanes.settle();
    let carried =
        lanes.pair.agent.mux.lanes.iter().zip(before).map(|((_, lane), before)| lane.out.written() - before);
    for bytes in carried {
        assert!(bytes > 1_000_000, "a lane carried {bytes} bytes only");
    }
    assert_eq!(lanes.pair.client.got[&stream].len(), 30_000_000);
    for (lane, state) in lanes.pair.client.mux.lanes.iter() {
        assert_eq!(state.out.in_flight(), 0, "{lane:?}");
        assert!(state.out.retained() < 64 * 1024, "ACKs of {lane:?} are kept for ever");
    }
}

#[test]
fn a_number_in_use_or_too_high_is_refused() {
    let now = Instant::now();
    let mut mux = Mux::new(Side::Agent, now);
    for (lane, outcome) in [
        (LaneId::FIRST, Err(ProtocolError::Lane)),
        (LaneId(1), Ok(())),
        (LaneId(1), Err(ProtocolError::Lane)),
        (LaneId::MOST, Ok(())),
        (LaneId(LaneId::MOST.0 + 1), Err(ProtocolError::Lane)),
    ] {
        assert_eq!(mux.join(lane, now), outcome, "{lane:?}");
    }
}
