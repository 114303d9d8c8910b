//! Labs stand side by side, but for those in which something is measured.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

static TURNS: Mutex<Turns> = Mutex::new(Turns { standing: Vec::new(), alone: false, waiting: 0 });
static CHANGED: Condvar = Condvar::new();

/// The labs of this process.
#[derive(Debug)]
struct Turns {
    /// The thread of each lab that stands.
    standing: Vec<ThreadId>,
    /// Whether other threads' labs have to wait.
    alone: bool,
    /// How many labs wait until no other stands.
    waiting: usize,
}

/// A lab's permission to stand. Dropping it returns it.
#[derive(Debug)]
pub(crate) struct Turn(ThreadId);

impl Turn {
    /// Waits while a lab stands alone, or waits to: if others overtook it, it might wait for ever. A thread that has a
    /// lab already gets its next one at once.
    pub(crate) fn shared() -> Turn {
        let own = thread::current().id();
        let stays = |turns: &mut Turns| (turns.alone || turns.waiting > 0) && !turns.standing.contains(&own);
        Turn::of(CHANGED.wait_while(turns(), stays).unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until no other lab stands, and keeps others waiting. Panics in a thread that has a lab already: it would
    /// wait for itself.
    pub(crate) fn alone() -> Turn {
        let mut turns = turns();
        assert!(
            !turns.standing.contains(&thread::current().id()),
            "a lab that stands alone is a thread's first"
        );
        turns.waiting += 1;
        let stays = |turns: &mut Turns| !turns.standing.is_empty();
        let mut turns = CHANGED.wait_while(turns, stays).unwrap_or_else(PoisonError::into_inner);
        turns.waiting -= 1;
        turns.alone = true;
        Turn::of(turns)
    }

    fn of(mut turns: MutexGuard<Turns>) -> Turn {
        let own = thread::current().id();
        turns.standing.push(own);
        Turn(own)
    }

    /// Lets others stand beside it from now on.
    pub(crate) fn share(&self) {
        let mut turns = turns();
        if turns.standing.contains(&self.0) {
            turns.alone = false;
        }
        CHANGED.notify_all();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut turns = turns();
        if let Some(index) = turns.standing.iter().position(|thread| *thread == self.0) {
            turns.standing.swap_remove(index);
        }
        turns.alone &= !turns.standing.is_empty();
        CHANGED.notify_all();
    }
}

fn turns() -> MutexGuard<'static, Turns> {
    TURNS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver};
    use std::thread;
    use std::time::Duration;

    use super::{Turn, turns};

    const SOON: Duration = Duration::from_millis(100);

    /// Takes a turn in a thread of its own, and says when it has it; it is returned when the receiver is dropped.
    fn elsewhere(take: fn() -> Turn) -> Receiver<()> {
        let (sender, receiver) = mpsc::sync_channel(0);
        thread::spawn(move || {
            let _turn = take();
            while sender.send(()).is_ok() {}
        });
        receiver
    }

    #[test]
    fn who_stands_alone_does_and_nobody_waits_for_ever() {
        let first = Turn::shared();
        let beside = elsewhere(Turn::shared);
        beside.recv().expect("labs stand side by side");
        let alone = elsewhere(Turn::alone);
        while turns().waiting == 0 {
            thread::yield_now();
        }
        let late = elsewhere(Turn::shared);
        assert!(late.recv_timeout(SOON).is_err(), "it overtakes one that waits to stand alone");
        let second = Turn::shared();
        drop((first, beside));
        assert!(alone.recv_timeout(SOON).is_err(), "it is not alone");
        drop(second);
        alone.recv().expect("it is alone");
        assert!(late.recv_timeout(SOON).is_err(), "another stands beside it");
        drop(alone);
        late.recv().expect("nobody is alone any more");
        drop(late);
        let alone = Turn::alone();
        let late = elsewhere(Turn::shared);
        assert!(late.recv_timeout(SOON).is_err(), "another stands beside it");
        alone.share();
        late.recv().expect("it is not alone any more");
    }
}
