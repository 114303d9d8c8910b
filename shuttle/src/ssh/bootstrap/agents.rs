//! The agents that this program carries, as build.rs made them.

/// An agent, and what is known of it.
pub(super) struct Agent {
    /// What `uname` says where it runs.
    pub(super) machine: &'static str,
    program: &'static [u8],
    gzip: &'static [u8],
    xz: &'static [u8],
    /// Length, SHA-256 and CRC of the program.
    sums: &'static str,
}

/// The agent for the machine that this program is for.
pub(super) const AGENTS: &[Agent] = &[Agent {
    #[cfg(target_arch = "x86_64")]
    machine: "Linux x86_64",
    #[cfg(target_arch = "aarch64")]
    machine: "Linux aarch64",
    program: include_bytes!(env!("SHUTTLE_AGENT")),
    gzip: include_bytes!(env!("SHUTTLE_AGENT_GZIP")),
    xz: include_bytes!(env!("SHUTTLE_AGENT_XZ")),
    sums: env!("SHUTTLE_AGENT_SUMS"),
}];

/// How an agent crosses the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Two fifths as long; the remote machine needs xz.
    Xz,
    /// Half as long; the remote machine needs gzip.
    Gzip,
    /// As it is.
    Raw,
}

impl Form {
    /// By the name that the script uses.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        [Self::Xz, Self::Gzip, Self::Raw].into_iter().find(|form| form.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Xz => "xz",
            Self::Gzip => "gzip",
            Self::Raw => "raw",
        }
    }
}

impl Agent {
    /// For the machine of that name.
    pub(super) fn of(machine: &str) -> Option<&'static Self> {
        AGENTS.iter().find(|agent| agent.machine == machine)
    }

    /// What is sent of it.
    pub(super) fn bytes(&self, form: Form) -> &'static [u8] {
        match form {
            Form::Xz => self.xz,
            Form::Gzip => self.gzip,
            Form::Raw => self.program,
        }
    }

    /// The line that goes before.
    pub(super) fn header(&self, form: Form) -> String {
        format!("{} {} {}\n", form.name(), self.bytes(form).len(), self.sums)
    }
}
