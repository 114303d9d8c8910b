//! How the remote's agent is reached: by ssh, or as a child on this machine. `lanes.rs` opens further lanes to it.

mod lanes;

use std::num::NonZeroU8;

pub(super) use lanes::{Opener, Wanted};

use super::identity::Identity;
use super::signals::Signals;
use crate::config::{Config, Verbosity};
use crate::ssh::{self, CommandLine, ConnectError, Extras, LaneCount, Session, Settings};

/// How to run ssh.
pub(super) struct Ssh {
    line: CommandLine,
    extras: Extras,
    settings: Settings,
}

/// Asks ssh for its configuration, while the helper sets up the bypass. Makes no connection. Returns `None` if the
/// agent runs on this machine.
pub(super) async fn ask_ssh(config: &Config, identity: &Identity) -> Option<Ssh> {
    let line = config.ssh.clone()?;
    let settings = Settings {
        environment: identity.environment(),
        prefer_cipher: config.prefer_cipher,
        share: config.lanes != LaneCount::Exactly(NonZeroU8::MIN),
        verbose: config.verbosity > Verbosity::Warnings,
    };
    let extras = Extras::find(&line, &settings).await;
    Some(Ssh { line, extras, settings })
}

/// Starts the agent, by ssh or on this machine. Returns `None` after a signal.
pub(super) async fn connect(
    ssh: Option<Ssh>,
    signals: &mut Signals,
) -> Result<Option<Session>, ConnectError> {
    let start = async {
        match ssh {
            Some(Ssh { line, extras, settings }) => ssh::connect(&line, extras, &settings).await,
            None => ssh::local_agent(),
        }
    };
    tokio::select! {
        session = start => match session {
            Ok(session) => Ok(Some(session)),
            Err(_) if signals.follow().await => Ok(None),
            Err(error) => Err(error),
        },
        () = signals.any() => Ok(None),
    }
}
