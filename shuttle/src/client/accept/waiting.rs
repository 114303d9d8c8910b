//! Replies that wait until there is a socket for them.

use std::cell::Cell;
use std::rc::Rc;

/// Bytes that may wait of all flows together: a whole burst, for the tenths of a millisecond that the helper takes.
const MOST: usize = 8 << 20;
/// What a reply costs in memory beyond its bytes.
const OVERHEAD: usize = 64;

/// What all flows have waiting, bytes.
#[derive(Clone, Debug, Default)]
pub(in crate::client) struct Total(Rc<Cell<usize>>);

/// The replies of one flow. They count in the total until this is dropped.
#[derive(Debug)]
pub(in crate::client) struct Waiting {
    replies: Vec<Vec<u8>>,
    size: usize,
    total: Total,
}

impl Waiting {
    pub(in crate::client) fn new(total: &Total) -> Self {
        Self { replies: Vec::new(), size: 0, total: total.clone() }
    }

    /// Adds a reply, which is lost if too much waits.
    pub(in crate::client) fn push(&mut self, bytes: &[u8]) {
        let (cost, total) = (bytes.len() + OVERHEAD, &self.total.0);
        if total.get() + cost <= MOST {
            total.set(total.get() + cost);
            self.size += cost;
            self.replies.push(bytes.to_vec());
        }
    }

    pub(in crate::client) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.replies.iter().map(Vec::as_slice)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.total.0.set(self.total.0.get() - self.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_together_are_bounded_and_what_is_gone_makes_room() {
        let total = Total::default();
        let reply = vec![0; 1 << 20];
        let fill = |count: usize| {
            let mut waiting = Waiting::new(&total);
            (0..count).for_each(|_| waiting.push(&reply));
            (waiting.iter().count(), waiting)
        };
        let (first, held) = fill(5);
        let (second, _also_held) = fill(5);
        assert_eq!((first, second), (5, 2));
        drop(held);
        assert_eq!(fill(9).0, 5);
        assert_eq!(fill(9).0, 5);
    }
}
