//! The embedded agents, made by build.rs.

/// An embedded agent.
pub(super) struct Agent {
    /// The machine that it runs on, according to `uname`.
    pub(super) machine: &'static str,
    program: &'static [u8],
    gzip: &'static [u8],
    xz: &'static [u8],
    /// The length, SHA-256 and CRC of the unpacked program.
    sums: &'static str,
}

/// The embedded agents. There is one, for the machine that this program was built for.
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

/// The form in which an agent is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Two fifths of the raw size; the remote machine needs xz.
    Xz,
    /// Half of the raw size; the remote machine needs gzip.
    Gzip,
    /// Not compressed.
    Raw,
}

impl Form {
    /// Returns the form with this name in the script.
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
    /// Returns the agent for this machine.
    pub(super) fn of(machine: &str) -> Option<&'static Self> {
        AGENTS.iter().find(|agent| agent.machine == machine)
    }

    /// Returns the bytes to send.
    pub(super) fn bytes(&self, form: Form) -> &'static [u8] {
        match form {
            Form::Xz => self.xz,
            Form::Gzip => self.gzip,
            Form::Raw => self.program,
        }
    }

    /// Returns the line that is sent before the bytes.
    pub(super) fn header(&self, form: Form) -> String {
        format!("{} {} {}\n", form.name(), self.bytes(form).len(), self.sums)
    }
}
