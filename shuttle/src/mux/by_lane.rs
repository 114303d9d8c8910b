//! A map from lanes to values.

use super::LaneId;

/// One value for each of a session's lanes, in the order of their numbers. Lanes are few, so a search goes through all.
#[derive(Debug)]
pub struct ByLane<T>(Vec<(LaneId, T)>);

impl<T> ByLane<T> {
    /// A map with one lane.
    pub fn new(lane: LaneId, value: T) -> Self {
        Self(vec![(lane, value)])
    }

    /// Adds a lane that the map doesn't have.
    pub fn insert(&mut self, lane: LaneId, value: T) {
        let place = self.0.partition_point(|(other, _)| *other < lane);
        self.0.insert(place, (lane, value));
    }

    /// Removes a lane and returns its value, if the map has it.
    pub fn remove(&mut self, lane: LaneId) -> Option<T> {
        let place = self.0.iter().position(|(other, _)| *other == lane)?;
        Some(self.0.remove(place).1)
    }

    /// The value of a lane.
    pub fn get(&self, lane: LaneId) -> Option<&T> {
        self.iter().find(|(other, _)| *other == lane).map(|(_, value)| value)
    }

    /// The value of a lane, to change it.
    pub fn get_mut(&mut self, lane: LaneId) -> Option<&mut T> {
        self.iter_mut().find(|(other, _)| *other == lane).map(|(_, value)| value)
    }

    /// The next lane after this one, which may have been removed.
    pub fn after(&self, lane: LaneId) -> Option<LaneId> {
        self.iter().map(|(other, _)| other).find(|other| *other > lane)
    }

    /// All lanes with their values.
    pub fn iter(&self) -> impl Iterator<Item = (LaneId, &T)> {
        self.0.iter().map(|(lane, value)| (*lane, value))
    }

    /// All lanes with their values, to change these.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (LaneId, &mut T)> {
        self.0.iter_mut().map(|(lane, value)| (*lane, value))
    }

    /// The values alone.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, value)| value)
    }

    /// How many lanes there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no lane.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
