//! The mux over simulated paths. Runs depend neither on chance nor on the machine: each always ends the same.

mod cases;
mod outage;
mod path;
mod stalled;
mod world;
