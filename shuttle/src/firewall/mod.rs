//! The firewall helper and its methods.
