//! The format of a message: a u32 length in network order, then that many bytes of JSON with a version. A connection
//! carries one request and one response.

use std::io;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The version of the protocol. Tunnel and verb may differ, as an upgrade can come between their starts.
pub const VERSION: u32 = 1;
/// The longest request, in bytes: 200,000 subnets.
pub const MAX_REQUEST: u32 = 8 << 20;
/// The longest response, in bytes: 200,000 rules or flows.
pub const MAX_RESPONSE: u32 = 64 << 20;

/// Why a message can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The length is above the limit.
    #[error("a message of {0} bytes is too long")]
    TooLong(u64),
    /// The peer speaks another version.
    #[error("it speaks version {theirs} of the control protocol, this program {VERSION}")]
    Version {
        /// The peer's version.
        theirs: u32,
    },
    /// The bytes are not JSON, or not of this type.
    #[error("not a message: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    version: u32,
    message: T,
}

/// Encodes a message, preceded by its length.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, &Envelope { version: VERSION, message })?;
    let length = bytes.len() - 4;
    let head = u32::try_from(length).map_err(|_| Error::TooLong(length as u64))?.to_be_bytes();
    bytes.splice(..4, head);
    Ok(bytes)
}

/// Decodes the length of a message from its first bytes, and checks that it is at most `max`.
pub fn length(head: [u8; 4], max: u32) -> Result<u32, Error> {
    let length = u32::from_be_bytes(head);
    if length > max { Err(Error::TooLong(length.into())) } else { Ok(length) }
}

/// Decodes the message that follows the length.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    // The version is checked first, since a message of another version need not parse.
    let Envelope { version, message: _ } = serde_json::from_slice::<Envelope<serde::de::IgnoredAny>>(body)?;
    if version != VERSION {
        return Err(Error::Version { theirs: version });
    }
    Ok(serde_json::from_slice::<Envelope<T>>(body)?.message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Request;

    #[test]
    fn only_messages_of_this_version_and_of_sane_length_are_read() {
        let encoded = encode(&Request::Status).unwrap();
        assert_eq!(length(encoded[..4].try_into().unwrap(), 100).unwrap() as usize, encoded.len() - 4);
        let cases: [(&[u8], &str); 5] = [
            (&encoded[4..], "Status"),
            (
                br#"{"version":2,"message":{"unheard":"of"}}"#,
                "it speaks version 2 of the control protocol, this program 1",
            ),
            (br#"{"version":1,"message":"nonsense"}"#, "not a message: unknown variant `nonsense`"),
            (b"{", "not a message: EOF"),
            (b"GET / HTTP/1.0", "not a message: expected value"),
        ];
        for (body, want) in cases {
            let got = match decode::<Request>(body) {
                Ok(request) => format!("{request:?}"),
                Err(error) => error.to_string(),
            };
            assert!(got.starts_with(want), "{got}");
        }
        assert_eq!(
            length(*b"GET ", MAX_REQUEST).unwrap_err().to_string(),
            "a message of 1195725856 bytes is too long"
        );
    }
}
