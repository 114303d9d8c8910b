//! Lanes that deliver nothing, lanes that are merely slow, and times without any lane.

use std::time::Duration;

use super::super::LaneId;
use super::cases::{line, ms};
use super::world::World;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_lane_that_brings_nothing_is_found_while_others_live() {
    for (mbits, round_trip) in [(20.0, 40.0), (200.0, 50.0), (5.0, 300.0)] {
        for lane in [LaneId(0), LaneId(2)] {
            let mut world = World::with_lanes(line(mbits, round_trip).wire(), 4, 3);
            world.run(2 * SECOND);
            world.black_holes.insert(lane);
            let since = world.now;
            // Until the lane is suspect, its bytes in flight leave no room, and its streams wait for them.
            world.run(4 * SECOND);
            let late: Vec<_> = (0..4).map(|_| world.open()).collect();
            world.client.bulk.extend(&late);
            world.run(SECOND / 2);
            let share = world.share(10 * SECOND);
            assert!(share > 0.8, "{lane:?}: the others carry {share:.3} of {mbits} Mbit/s, {round_trip} ms");
            world.run(6 * SECOND);
            let [(dead, at)] = world.client.dead[..] else { panic!("{:?}", world.client.dead) };
            let took = at - since;
            eprintln!(
                "{lane:?} on {mbits} Mbit/s, {round_trip} ms is dead after {took:.1?}, beside {share:.3} of the rate"
            );
            assert_eq!(dead, lane);
            assert!(took < ms(19_500.0), "{lane:?} is found after {took:?}");
            // Its bytes were sent again on other lanes, so every stream continues.
            let before = world.got();
            world.run(2 * SECOND);
            assert!(world.got().iter().zip(before).all(|(now, before)| *now > before));
            assert!(world.agent.mux.lanes.get(lane).is_none(), "the far side hears of it");
        }
    }
}

/// Little is sent, so the other lanes are probed too.
#[test]
fn a_lane_that_brings_nothing_is_found_in_a_quiet_session() {
    for lane in [LaneId(0), LaneId(1)] {
        let mut world = World::with_lanes(line(20.0, 40.0).wire(), 0, 2);
        world.run(SECOND);
        world.black_holes.insert(lane);
        let since = world.now;
        world.run(60 * SECOND);
        let took = world.client.dead.iter().map(|(dead, at)| (*dead, *at - since)).collect::<Vec<_>>();
        let within = [(lane, 36 * SECOND)];
        assert!(took.len() == 1 && took[0].0 == lane && took[0].1 < within[0].1, "{took:?}");
    }
}

#[test]
fn a_lane_that_is_slow_is_not_dead() {
    // A long line with a long queue; and three lanes, one of which takes a second longer each way.
    for (mbits, round_trip, slow) in [(0.2, 2000.0, None), (20.0, 40.0, Some((LaneId(1), ms(1000.0))))] {
        let mut world = World::with_lanes(line(mbits, round_trip).wire(), 4, 3);
        world.slow = slow;
        world.run(60 * SECOND);
        assert_eq!((&world.client.dead[..], &world.agent.dead[..]), (&[][..], &[][..]), "{mbits} Mbit/s");
    }
}

/// All lanes stall together, and resume together.
#[test]
fn a_path_that_stands_still_costs_no_lane() {
    let mut world = World::with_lanes(line(20.0, 40.0).wire(), 4, 3);
    world.run(2 * SECOND);
    world.is_paused = true;
    world.run(25 * SECOND);
    world.is_paused = false;
    world.run(10 * SECOND);
    assert_eq!((&world.client.dead[..], &world.agent.dead[..]), (&[][..], &[][..]));
    assert!(world.share(SECOND) > 0.9);
}

#[test]
fn a_session_lives_on_without_lanes() {
    for lanes in [1, 3] {
        let mut world = World::with_lanes(line(50.0, 40.0).wire(), 4, lanes);
        for end in [&mut world.client, &mut world.agent] {
            end.mux.wait_for_lanes(3600 * SECOND);
        }
        world.run(2 * SECOND);
        world.black_out(600 * SECOND);
        // What programs do meanwhile waits.
        let late: Vec<_> = (0..100).map(|_| world.open()).collect();
        world.client.bulk.extend(&late);
        world.black_out(600 * SECOND);
        let held: usize = world.client.mux.lanes.held();
        assert!(held <= 8 << 20, "{held} bytes are held");
        let before = world.got();
        world.join(LaneId(lanes));
        world.run(5 * SECOND);
        assert!(
            world.got().iter().zip(before).all(|(now, before)| *now > before),
            "not every stream goes on"
        );
        let share = world.share(SECOND);
        eprintln!("{lanes} lanes: {held} bytes held, then {share:.3} of the rate");
        assert!(share > 0.9, "{share:.3} of the rate");
        assert_eq!(world.client.mux.lanes.lost_count() + world.agent.mux.lanes.lost_count(), 0);
    }
}
