//! Converts the errors of the parts into failures for the client.

use super::bypass;
use super::parts::{PartsError, claim, lan, listeners, netlink, tun};
use crate::capture::{BypassFailure, Failure};

impl Failure {
    /// Makes a failure of an operation.
    pub(crate) fn system(operation: impl Into<String>, reason: &dyn std::fmt::Display) -> Self {
        Self::System { operation: operation.into(), reason: reason.to_string() }
    }
}

impl From<netlink::Error> for Failure {
    fn from(error: netlink::Error) -> Self {
        match error {
            netlink::Error::LoopbackDown => {
                Self::system("the loopback interface is down", &"run `ip link set lo up`")
            }
            netlink::Error::Failed { operation, source } => Self::system(operation, &source),
        }
    }
}

impl From<bypass::Error> for Failure {
    fn from(error: bypass::Error) -> Self {
        Self::Bypass(BypassFailure::Step(error.to_string()))
    }
}

impl From<claim::Error> for Failure {
    fn from(error: claim::Error) -> Self {
        match error {
            claim::Error::NoSlot => Self::NoSlot,
            claim::Error::Tun(tun::Error::Create(source)) => Self::system("creating a TUN device", &source),
            claim::Error::Tun(tun::Error::Netlink(error)) | claim::Error::Netlink(error) => error.into(),
        }
    }
}

impl From<listeners::Error> for Failure {
    fn from(error: listeners::Error) -> Self {
        match error {
            listeners::Error::NoFamily(why) => Self::NoFamily(why),
            listeners::Error::Open { family, source } => {
                Self::system(format!("opening the {family} listener"), &source)
            }
        }
    }
}

impl From<PartsError> for Failure {
    fn from(error: PartsError) -> Self {
        match error {
            PartsError::Netlink(error) | PartsError::Lan(lan::Error::Netlink(error)) => error.into(),
            PartsError::Lan(lan::Error::Fault(fault)) => Self::Lan(fault),
        }
    }
}
