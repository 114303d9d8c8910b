//! What a run is to do, resolved from what was typed.

mod lists;
mod names;

pub use lists::{ListError, read_lists};
pub use names::Names;
