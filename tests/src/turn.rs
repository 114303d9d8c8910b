//! Labs run side by side, except those that measure something.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

static TURNS: Mutex<Turns> = Mutex::new(Turns { standing: Vec::new(), alone: false, waiting: 0 });
static CHANGED: Condvar = Condvar::new();

/// The labs of this process.
#[derive(Debug)]
struct Turns {
    /// The thread of each lab that runs.
    standing: Vec<ThreadId>,
    /// Whether other threads' labs have to wait.
    alone: bool,
    /// The number of labs that wait until no other lab runs.
    waiting: usize,
}

/// A lab's permission to run. Dropping it returns it.
#[derive(Debug)]
pub(crate) struct Turn(ThreadId);

impl Turn {
    /// Waits while a lab runs alone, or waits to run alone: if others overtook it, it might wait for ever. A thread
    /// that already has a lab gets its next one at once.
    pub(crate) fn shared() -> Turn {
        let own = thread::current().id();
        let stays = |turns: &mut Turns| (turns.alone || turns.waiting > 0) && !turns.standing.contains(&own);
        Turn::of(CHANGED.wait_while(turns(), stays).unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until no other lab runs, and keeps others waiting. Panics in a thread that already has a lab, as it would
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

    /// Lets other labs run at the same time from now on.
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

    /// Takes a turn in a separate thread, and reports when it has it. The turn is returned when the receiver is
    /// dropped.
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
