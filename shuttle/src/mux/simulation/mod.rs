//! The mux over simulated paths. Nothing is left to chance or to the machine: a run always ends the same.

mod cases;
mod outage;
mod path;
mod stalled;
mod world;
