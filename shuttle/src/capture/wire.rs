//! The messages between client and helper: a u32 length in network order, then that many bytes of JSON, over a UNIX
//! stream socket. Descriptors travel with the length. The client sends one request at a time, and the helper responds.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use shuttle_common::rule::Rule;

use super::{Arrival, BypassKind, BypassOptions, Failure, Mechanism, MethodName, Missing};
use crate::{
    policy::{Families, Plan},
    sys::descriptors::{receive_with_descriptors, send_with_descriptors},
};

/// The version of the protocol. Client and helper are one program, but an upgrade can come between their starts.
pub const VERSION: u32 = 7;

/// The longest message, in bytes: more than a plan of 200,000 rules needs, and little enough for any machine.
const MAX_LENGTH: u32 = 32 << 20;

/// Client to helper.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// The first message.
    Hello {
        /// The client's [`VERSION`].
        version: u32,
    },
    /// Set up the bypass for the client and its later children.
    Enclose(BypassOptions),
    /// Prepare everything that the capture needs, and capture nothing yet.
    Prepare {
        /// What to capture.
        plan: Plan,
        /// How to capture.
        mechanism: Mechanism,
    },
    /// Return what would be set up, and set up nothing.
    DryRun {
        /// What to capture.
        plan: Plan,
        /// How to capture.
        mechanism: Mechanism,
    },
    /// Start the capture that was prepared.
    Capture,
    /// Replace the rules of the running capture atomically.
    Replace {
        /// The new rules, all of them.
        rules: Vec<Rule>,
    },
}

/// Helper to client.
#[derive(Debug, Serialize, Deserialize)]
pub enum Response {
    /// Answers `Hello`.
    Hello {
        /// The helper's [`VERSION`].
        version: u32,
    },
    /// Answers `Enclose`.
    Enclosed,
    /// Answers `Prepare`.
    Prepared,
    /// Answers `DryRun`.
    DryRun {
        /// One step per line. Lines that begin with `#` are remarks.
        text: String,
    },
    /// Answers `Capture`. These descriptors come along: the TCP and the UDP listener of IPv4, then those of IPv6, then
    /// the client's end of the socket pair for [`replies`](super::replies).
    Captured {
        /// The method in use.
        method: MethodName,
        /// How to read the listeners.
        arrival: Arrival,
        /// The kind of bypass of the client's own connections, if it has one.
        bypass: Option<BypassKind>,
        /// The address families whose listeners come along.
        families: Families,
        /// One line for the user.
        description: String,
        /// The methods that were passed over, and what each lacks.
        passed_over: Vec<(MethodName, Vec<Missing>)>,
    },
    /// Answers `Replace`.
    Replaced {
        /// The rules that this host can't carry out, for the user; empty if it can carry out all.
        note: String,
    },
    /// The request failed and changed nothing.
    Failed {
        /// Why.
        failure: Failure,
    },
}

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other end is gone.
    #[error("the other end closed the socket")]
    Closed,
    /// The length is above the limit.
    #[error("a message of {0} bytes is above the limit of {MAX_LENGTH}")]
    TooLong(u64),
    /// The bytes are not a message.
    #[error("not a message: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Sends one message and its descriptors.
pub fn send(
    stream: &UnixStream,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Error> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).ok().filter(|length| *length <= MAX_LENGTH);
    let head = length.ok_or(Error::TooLong(body.len() as u64))?.to_be_bytes();
    let sent = send_with_descriptors(stream, &head, descriptors)?;
    let mut stream = stream;
    stream.write_all(head.get(sent..).unwrap_or_default())?;
    stream.write_all(&body)?;
    Ok(())
}

/// Receives one message and its descriptors. Waits until they have come.
pub fn receive<T: DeserializeOwned>(stream: &UnixStream) -> Result<(T, Vec<OwnedFd>), Error> {
    let mut head = [0; 4];
    let (got, descriptors) = receive_with_descriptors(stream, &mut head)?;
    let mut stream = stream;
    match head.get_mut(got..) {
        _ if got == 0 => return Err(Error::Closed),
        Some(rest) => stream.read_exact(rest)?,
        None => {}
    }
    let length = u32::from_be_bytes(head);
    if length > MAX_LENGTH {
        return Err(Error::TooLong(length.into()));
    }
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body)?;
    Ok((serde_json::from_slice(&body)?, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_messages_of_sane_length_are_received() {
        let hello = br#"{"Hello":{"version":7}}"#;
        let framed = |length: u32, body: &[u8]| [&length.to_be_bytes()[..], body].concat();
        let cases: [(Vec<u8>, &str); 6] = [
            (framed(hello.len() as u32, hello), "Hello { version: 7 }"),
            (vec![], "the other end closed the socket"),
            (vec![0, 0], "failed to fill whole buffer"),
            (framed(MAX_LENGTH + 1, b""), "a message of 33554433 bytes is above the limit of 33554432"),
            (framed(hello.len() as u32 + 1, hello), "failed to fill whole buffer"),
            (framed(2, b"{}"), "not a message: expected value at line 1 column 2"),
        ];
        for (bytes, want) in cases {
            let (mut near, far) = UnixStream::pair().unwrap();
            near.write_all(&bytes).unwrap();
            drop(near);
            let got = match receive::<Request>(&far) {
                Ok((message, _)) => format!("{message:?}"),
                Err(error) => error.to_string(),
            };
            assert_eq!(got, want);
        }
    }

    #[test]
    fn descriptors_travel_with_their_message() {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut a, b) = UnixStream::pair().unwrap();
        send(&near, &Request::Capture, &[std::os::fd::AsFd::as_fd(&b)]).unwrap();
        drop(b);
        let (_, mut descriptors) = receive::<Request>(&far).unwrap();
        let mut b = UnixStream::from(descriptors.pop().unwrap());
        a.write_all(b"x").unwrap();
        let mut byte = [0];
        b.read_exact(&mut byte).unwrap();
        assert_eq!((&byte, descriptors.len()), (b"x", 0));
    }
}
