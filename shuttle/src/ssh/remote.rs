//! The ssh server on the command line: `[USER@]HOST[:PORT]`.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// The ssh server, as typed. `host` may be an alias from the user's ssh configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The account, if given.
    pub user: Option<String>,
    /// The name or address.
    pub host: String,
    /// The port, if given.
    pub port: Option<u16>,
}

/// Why a remote is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// There is no host, or ssh would take it for an option.
    #[error("`{0}` is no host name or address")]
    Host(String),
    /// There is no user before `@`, or ssh would take it for an option.
    #[error("`{0}` is no user name")]
    User(String),
    /// `user:password@host`.
    #[error("a password on the command line is visible to everyone: leave it out, and ssh will ask for it")]
    Password,
    /// The port is no number from 1 to 65535.
    #[error("the port {0} must be a number from 1 to 65535")]
    Port(String),
}

impl FromStr for Remote {
    type Err = RemoteError;

    fn from_str(typed: &str) -> Result<Self, RemoteError> {
        let (user, host) = match typed.rsplit_once('@') {
            Some((user, host)) => (Some(parse_user(user)?), host),
            None => (None, typed),
        };
        let (host, port) = split_port(host)?;
        if host.is_empty() || host.starts_with('-') || host.contains(|c: char| c.is_whitespace() || c == '/')
        {
            return Err(RemoteError::Host(host.to_owned()));
        }
        Ok(Self { user, host: host.to_owned(), port })
    }
}

fn parse_user(user: &str) -> Result<String, RemoteError> {
    match user.split_once(':') {
        Some(_) => Err(RemoteError::Password),
        None if user.is_empty() || user.starts_with('-') => Err(RemoteError::User(user.to_owned())),
        None => Ok(user.to_owned()),
    }
}

/// Splits off the port. An IPv6 address has more than one colon, so its port needs brackets.
fn split_port(host: &str) -> Result<(&str, Option<u16>), RemoteError> {
    if host.parse::<Ipv6Addr>().is_ok() {
        return Ok((host, None));
    }
    let (host, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((_, rest)) if !rest.is_empty() && !rest.starts_with(':') => {
            return Err(RemoteError::Host(host.to_owned()));
        }
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => match host.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (host, None),
        },
    };
    let parse = |port: &str| match port.parse() {
        Ok(0) | Err(_) => Err(RemoteError::Port(port.to_owned())),
        Ok(port) => Ok(port),
    };
    Ok((host, port.map(parse).transpose()?))
}

impl Remote {
    /// Returns the destination on ssh's command line.
    pub(super) fn destination(&self) -> String {
        match &self.user {
            Some(user) => format!("{user}@{}", self.host),
            None => self.host.clone(),
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        write!(f, "{user}{host}{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remotes_are_read() {
        for (typed, user, host, port) in [
            ("host", None, "host", None),
            ("me@host", Some("me"), "host", None),
            ("me@host:2222", Some("me"), "host", Some(2222)),
            ("me@corp@host", Some("me@corp"), "host", None),
            ("[fd00::1]:22", None, "fd00::1", Some(22)),
            ("me@[fd00::1]", Some("me"), "fd00::1", None),
            ("fd00::1", None, "fd00::1", None),
        ] {
            let expected = Remote { user: user.map(Into::into), host: host.into(), port };
            assert_eq!(typed.parse(), Ok(expected), "{typed}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (typed, error) in [
            ("", RemoteError::Host(String::new())),
            ("-oProxyCommand=x", RemoteError::Host("-oProxyCommand=x".into())),
            ("[fd00::1]22", RemoteError::Host("[fd00::1]22".into())),
            ("me@", RemoteError::Host(String::new())),
            ("@host", RemoteError::User(String::new())),
            ("-l@host", RemoteError::User("-l".into())),
            ("me:secret@host", RemoteError::Password),
            ("host:0", RemoteError::Port("0".into())),
            ("host:99999", RemoteError::Port("99999".into())),
            ("host:", RemoteError::Port(String::new())),
        ] {
            assert_eq!(typed.parse::<Remote>(), Err(error), "{typed}");
        }
    }
}
