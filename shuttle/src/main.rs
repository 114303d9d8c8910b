//! shuttle
fn main() {}
