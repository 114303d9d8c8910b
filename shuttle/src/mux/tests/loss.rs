//! Lost lanes, one or all, noticed by one end or both: no frame is lost or duplicated, and no state remains.

use super::lanes::LanePair;
use super::*;

/// What happens to a session.
#[derive(Clone, Debug)]
enum Step {
    /// A stream is opened that sends this many bytes, and is sent a reply of another length.
    Open(usize),
    /// A stream is reset, by the client or (`true`) the agent.
    Reset(usize, bool),
    /// The lanes whose bit is set deliver up to this many bytes each.
    Deliver(usize, u8),
    /// A lane ends, and the client, the agent or both notice.
    Cut(usize, bool, bool),
    /// A lane joins.
    Join,
    /// This many milliseconds pass.
    Wait(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0usize..300_000).prop_map(Step::Open),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(stream, by_agent)| Step::Reset(stream, by_agent)),
        16 => (1usize..100_000, any::<u8>()).prop_map(|(room, lanes)| Step::Deliver(room, lanes)),
        2 => (any::<usize>(), 0..3).prop_map(|(lane, who)| Step::Cut(lane, who != 1, who != 2)),
        2 => Just(Step::Join),
        1 => (0u64..5000).prop_map(Step::Wait),
    ]
}

/// A session whose lanes come and go.
struct Session {
    lanes: LanePair,
    /// The lanes that work, and the number of the next.
    live: Vec<LaneId>,
    next: u32,
    requests: BTreeMap<StreamId, Vec<u8>>,
    reset: Vec<StreamId>,
}

impl Session {
    fn new(replies: Vec<Vec<u8>>) -> Self {
        let mut lanes = LanePair::new(replies, 2);
        for end in [&mut lanes.pair.client, &mut lanes.pair.agent] {
            end.mux.wait_for_lanes(Duration::from_secs(24 * 3600));
        }
        let (live, requests) = (vec![LaneId(0), LaneId(1)], BTreeMap::new());
        Self { lanes, live, next: 2, requests, reset: Vec::new() }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Open(length) => {
                let client = &mut self.lanes.pair.client;
                let stream = client.mux.open(target(), self.lanes.pair.now);
                let bytes = pattern(stream.0 as u8, length);
                self.requests.insert(stream, bytes.clone());
                client.program(stream, bytes);
            }
            Step::Reset(which, by_agent) => {
                let Pair { client, agent, .. } = &mut self.lanes.pair;
                let end = if by_agent { agent } else { client };
                let mut open: Vec<_> = end.mux.streams.keys().copied().collect();
                open.sort();
                if let Some(stream) = open.get(which % open.len().max(1)) {
                    end.mux.reset(*stream, Reason::Broken);
                    self.reset.push(*stream);
                }
            }
            Step::Deliver(room, lanes) => {
                self.lanes.exchange_on(room, |lane| lanes >> (lane.0 % 8) & 1 == 1);
            }
            Step::Cut(which, client_sees, agent_sees) if !self.live.is_empty() => {
                let lane = self.live.swap_remove(which % self.live.len());
                // If no lane is left to carry LOST, both ends notice in the end.
                let last = self.live.is_empty();
                self.lanes.cut(lane, client_sees || last, agent_sees || last);
            }
            Step::Join if self.live.len() < 4 => self.join(),
            Step::Cut(..) | Step::Join => {}
            Step::Wait(ms) => self.lanes.pair.now += Duration::from_millis(ms),
        }
    }

    fn join(&mut self) {
        self.lanes.join(LaneId(self.next));
        self.live.push(LaneId(self.next));
        self.next += 1;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever happens to whichever lane, each stream is opened once, and its bytes and ends arrive once and in order.
    /// A stream that is reset ends at both ends. No state of streams or lanes remains.
    #[test]
    fn no_lane_is_missed(steps in prop::collection::vec(any_step(), 1..120)) {
        let replies: Vec<_> = (0..7).map(|index| pattern(index, 40_000 * usize::from(index))).collect();
        let mut session = Session::new(replies.clone());
        steps.into_iter().for_each(|step| session.step(step));
        session.join();
        session.lanes.settle();
        let Session { lanes, requests, reset, .. } = &session;
        let Pair { client, agent, .. } = &lanes.pair;
        for (stream, request) in requests {
            let reply = &replies[stream.0 as usize % replies.len()];
            let sent = agent.got.get(stream).map_or(&[][..], Vec::as_slice);
            let back = client.got.get(stream).map_or(&[][..], Vec::as_slice);
            prop_assert!(agent.opens.get(stream).is_none_or(|count| *count == 1), "{:?} was opened twice", stream);
            prop_assert!(request.starts_with(sent) && reply.starts_with(back), "{:?} has other bytes", stream);
            if !reset.contains(stream) {
                prop_assert_eq!((sent.len(), back.len()), (request.len(), reply.len()), "{:?}", stream);
                prop_assert_eq!((client.ended.get(stream), agent.ended.get(stream)), (Some(&1), Some(&1)));
            }
        }
        for end in [client, agent] {
            prop_assert_eq!(end.mux.stream_count(), 0);
            prop_assert!(end.mux.control.is_empty() && end.mux.unreported.is_empty() && !end.mux.is_alone());
            prop_assert_eq!(end.mux.lanes.in_flight(), 0);
            prop_assert_eq!(end.mux.lanes.lost_count(), 0);
        }
    }
}

/// The second lane delivers while the first one still holds an OPEN.
#[test]
fn nothing_overtakes_an_open() {
    for reset in [false, true] {
        let mut lanes = LanePair::new(vec![vec![]], 2);
        let stream = lanes.pair.client.mux.open(target(), lanes.pair.now);
        lanes.pair.client.program(stream, b"hello".to_vec());
        lanes.exchange_on(usize::MAX, |lane| lane == LaneId(1));
        // Whichever lane took the OPEN takes the rest too, even if it is full.
        if reset {
            lanes.pair.client.mux.reset(stream, Reason::Broken);
        }
        for lane in [LaneId(1), LaneId(0)] {
            for _ in 0..5 {
                lanes.exchange_on(usize::MAX, |delivers| delivers == lane);
            }
        }
        lanes.settle();
        assert_eq!(lanes.pair.agent.opens.get(&stream), Some(&1));
        assert_eq!(lanes.pair.agent.mux.stream_count(), 0, "the agent keeps a stream that nobody knows");
    }
}

/// Other streams pass a stream whose lane takes nothing.
#[test]
fn a_stream_that_waits_for_its_lane_holds_up_no_other() {
    let mut lanes = LanePair::new(vec![vec![]], 2);
    let (now, client) = (lanes.pair.now, &mut lanes.pair.client);
    let waits = client.mux.open(target(), now);
    let by = client.mux.streams[&waits].lane;
    client.mux.writable(by, false);
    client.program(waits, vec![1; 1000]);
    let passes = client.mux.open(target(), now);
    client.mux.streams.get_mut(&passes).unwrap().lane = LaneId(1 - by.0);
    client.program(passes, b"hello".to_vec());
    client.mux.prepare(now);
    let granted: Vec<_> = (0..2).filter_map(|_| client.mux.grant()).map(|grant| grant.stream).collect();
    assert_eq!(granted, [passes; 2]);
    client.mux.writable(by, true);
    client.mux.readable(passes, false);
    client.mux.prepare(now);
    assert_eq!(client.mux.grant().map(|grant| grant.stream), Some(waits));
}

#[test]
fn a_session_ends_with_its_last_lane_unless_it_is_to_wait() {
    for (patience, greets, lives_on) in [(0, true, false), (60, true, true), (60, false, false)] {
        let now = Instant::now();
        let mut pair = Pair::new(vec![]);
        let mux = if greets { &mut pair.client.mux } else { &mut Mux::new(Side::Client, now) };
        mux.wait_for_lanes(Duration::from_secs(patience));
        assert_eq!(mux.lose(LaneId::FIRST, now), lives_on, "{patience} s, greeted: {greets}");
        if lives_on {
            let until = now + Duration::from_secs(patience);
            assert_eq!(mux.deadline(), Some(until), "nothing else is to be done");
            assert_eq!(mux.tick(until - Duration::from_millis(1)), Ok(()));
            assert_eq!(mux.tick(until), Err(ProtocolError::Alone));
        }
    }
}

/// A far side that answers, opens and sends, but never acknowledges.
#[test]
fn a_far_side_that_never_acknowledges_ends_the_session() {
    let hello = Frame::Hello { lane: 0, hello: Hello { version: VERSION, initial_credit: 1 << 40 } };
    let open = |number: u32| Frame::Open { stream: StreamId(number), target: target(), credit: 0 };
    let datagram =
        |number: u32| Found::Datagram(AssociationId(number), Peer("10.0.0.1:1".parse().unwrap()), vec![]);
    // What it sends in each round, and to which side.
    type Says = Box<dyn Fn(u32) -> Vec<Found>>;
    let cases: [(&str, Side, Says); 5] = [
        (
            "opens and closes",
            Side::Agent,
            Box::new(move |number| {
                vec![
                    Found::Frame(open(number)),
                    Found::Frame(Frame::Fin { stream: StreamId(number), end: 0 }),
                ]
            }),
        ),
        (
            "sends little by little",
            Side::Agent,
            Box::new(|number| match number {
                1 => vec![Found::Frame(Frame::Open { stream: StreamId(1), target: target(), credit: 0 })],
                _ => vec![Found::Data(StreamId(1), u64::from(number - 2), vec![0])],
            }),
        ),
        ("asks after it", Side::Agent, Box::new(|_| vec![Found::Frame(Frame::Ping { token: 1 })])),
        ("sends unknown datagrams", Side::Client, Box::new(move |number| vec![datagram(number)])),
        ("is sent streams", Side::Client, Box::new(|_| vec![])),
    ];
    for (what, side, says) in cases {
        let mut now = Instant::now();
        let mut end = End::new(side, now);
        end.receive(&encode(&Found::Frame(hello.clone())), &[], now);
        let mut most = 0;
        let ended = (1..400_000).find_map(|number| {
            now += Duration::from_millis(25);
            if side == Side::Client {
                let stream = end.mux.open(target(), now);
                end.mux.reset(stream, Reason::Broken);
            }
            let bytes: Vec<u8> = says(number).iter().flat_map(encode).collect();
            end.receive(&bytes, &[], now);
            end.got.clear();
            let result = end.mux.tick(now);
            end.mux.prepare(now);
            while let Some(grant) = end.mux.grant() {
                end.fill(grant);
            }
            end.mux.wrote(LaneId::FIRST, end.mux.unwritten(LaneId::FIRST).len(), now);
            most = most.max(end.mux.lanes.out(LaneId::FIRST).unwrap().held());
            result.err().map(|error| (number, error))
        });
        println!("{what}: up to {most} bytes are held");
        assert_eq!(ended.map(|(_, error)| error), Some(ProtocolError::Unacknowledged), "{what}");
        assert!(most as u64 <= 2 * MAX_CONTROL, "{what}: {most} bytes are held");
    }
}

/// Streams are refused long before the limit.
#[test]
fn streams_are_refused_before_the_session_ends() {
    let mut pair = Pair::new(vec![]);
    let mux = &mut pair.client.mux;
    let opened = (0..1_000_000).take_while(|_| {
        let room = mux.has_room_to_open();
        if room {
            let stream = mux.open(target(), pair.now);
            mux.reset(stream, Reason::Broken);
            mux.prepare(pair.now);
        }
        room
    });
    assert!((40_000..MAX_CONTROL as usize / 2 / 30).contains(&opened.count()));
    assert_eq!(mux.tick(pair.now), Ok(()));
    pair.exchange(usize::MAX);
    pair.settle();
    assert!(pair.client.mux.has_room_to_open());
}
