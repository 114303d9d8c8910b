//! Several lanes: each keeps its own order, and any may end at any time.

use super::*;

/// The bytes on their way on each lane, oldest first. `None`: the lane accepts everything and delivers nothing.
pub(super) type Transit = BTreeMap<LaneId, Option<Vec<u8>>>;

/// Two ends joined by several lanes.
pub(super) struct LanePair {
    pub(super) pair: Pair,
    up: Transit,
    down: Transit,
}

impl LanePair {
    pub(super) fn new(replies: Vec<Vec<u8>>, count: u32) -> Self {
        let mut lanes = Self { pair: Pair::new(replies), up: Transit::new(), down: Transit::new() };
        lanes.connect(LaneId::FIRST);
        for lane in (1..count).map(LaneId) {
            lanes.join(lane);
        }
        // Greetings, there and back.
        lanes.exchange(usize::MAX);
        lanes.exchange(usize::MAX);
        lanes
    }

    fn connect(&mut self, lane: LaneId) {
        self.up.insert(lane, Some(Vec::new()));
        self.down.insert(lane, Some(Vec::new()));
    }

    /// Adds a lane.
    pub(super) fn join(&mut self, lane: LaneId) {
        let Pair { client, agent, now, .. } = &mut self.pair;
        for end in [client, agent] {
            end.mux.join(lane, *now).unwrap();
        }
        self.connect(lane);
    }

    /// Lets each end write, and each lane deliver up to `room` bytes each way. Returns whether any bytes arrived.
    pub(super) fn exchange(&mut self, room: usize) -> bool {
        self.exchange_on(room, |_| true)
    }

    /// Does the same, but only some lanes deliver.
    pub(super) fn exchange_on(&mut self, room: usize, delivers: impl Fn(LaneId) -> bool) -> bool {
        let Pair { client, agent, replies, now } = &mut self.pair;
        send(client, &mut self.up, *now);
        send(agent, &mut self.down, *now);
        *now += Duration::from_micros(500);
        let mut moved = false;
        for (transit, end, replies) in
            [(&mut self.up, &mut *agent, &replies[..]), (&mut self.down, &mut *client, &[])]
        {
            for (lane, bytes) in transit {
                let Some(bytes) = bytes.as_mut().filter(|_| delivers(*lane)) else { continue };
                let arrived: Vec<u8> = bytes.drain(..room.min(bytes.len())).collect();
                moved |= !arrived.is_empty();
                end.receive_on(*lane, &arrived, replies, *now);
            }
        }
        moved
    }

    /// Ends a lane, with all that is on its way. One end may not notice.
    pub(super) fn cut(&mut self, lane: LaneId, client_sees: bool, agent_sees: bool) {
        let Pair { client, agent, now, .. } = &mut self.pair;
        for (end, transit, sees) in [(client, &mut self.up, client_sees), (agent, &mut self.down, agent_sees)]
        {
            if sees {
                end.mux.lose(lane, *now);
                transit.remove(&lane);
            } else if let Some(bytes) = transit.get_mut(&lane) {
                *bytes = None;
            }
        }
    }

    pub(super) fn settle(&mut self) {
        let mut still = 0;
        for turn in 0.. {
            assert!(turn < 20_001, "the lanes never come to rest");
            let rests = is_at_rest(&self.pair.client.mux) && is_at_rest(&self.pair.agent.mux);
            // An end may pause for some turns.
            still = if self.exchange(usize::MAX) { 0 } else { still + 1 };
            if still > 100 && rests {
                return;
            }
            // Until a lane that was cut is found dead.
            if still > 20 && !rests {
                self.pair.now += Duration::from_millis(20);
            }
        }
    }
}

/// Returns whether everything is acknowledged, and all lost lanes are settled.
fn is_at_rest(mux: &Mux) -> bool {
    mux.lanes.iter().all(|(_, lane)| lane.out.in_flight() == 0) && mux.lanes.lost_count() == 0
}

fn send(end: &mut End, transit: &mut Transit, now: Instant) {
    end.mux.tick(now).unwrap();
    while let Some(lane) = end.mux.dead_lane(now) {
        transit.remove(&lane);
        end.mux.lose(lane, now);
    }
    end.mux.prepare(now);
    while let Some(grant) = end.mux.grant() {
        end.fill(grant);
    }
    for (lane, bytes) in transit {
        while !end.mux.unwritten(*lane).is_empty() {
            let unwritten = end.mux.unwritten(*lane);
            let length = unwritten.len();
            if let Some(bytes) = bytes {
                bytes.extend(unwritten);
            }
            end.mux.wrote(*lane, length, now);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every byte arrives once and in order, in whichever order the lanes deliver, and whichever lanes are lost.
    #[test]
    fn lanes_carry_streams_whole(
        lengths in prop::collection::vec((0usize..900_000, 0usize..900_000), 1..6),
        steps in prop::collection::vec((1usize..200_000, prop::option::weighted(0.1, 0u32..3)), 1..60),
    ) {
        let replies: Vec<Vec<u8>> =
            lengths.iter().enumerate().map(|(index, (_, down))| pattern(index as u8, *down)).collect();
        let mut lanes = LanePair::new(replies.clone(), 4);
        let mut requests = BTreeMap::new();
        for (index, (up, _)) in lengths.iter().enumerate() {
            let bytes = pattern(100 + index as u8, *up);
            let stream = lanes.pair.client.mux.open(target(), lanes.pair.now);
            requests.insert(stream, bytes.clone());
            lanes.pair.client.program(stream, bytes);
        }
        for (room, lost) in steps {
            if let Some(lane) = lost {
                lanes.cut(LaneId(lane), true, true);
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
    let mut lanes = LanePair::new(vec![vec![7; 30_000_000]], 4);
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
    let mut check = |rows: &[(LaneId, Result<(), ProtocolError>)], gone: Option<LaneId>| {
        if let Some(lane) = gone {
            mux.lose(lane, now);
        }
        for (lane, outcome) in rows {
            assert_eq!(mux.join(*lane, now), *outcome, "{lane:?}");
        }
    };
    let refused = Err(ProtocolError::Lane);
    check(&[(LaneId::FIRST, refused), (LaneId(1), Ok(())), (LaneId(1), refused)], None);
    check(&[(LaneId::MAX, Ok(())), (LaneId(LaneId::MAX.0 + 1), refused)], None);
    check(&[(LaneId(1), refused), (LaneId(2), Ok(()))], Some(LaneId(1)));
}
