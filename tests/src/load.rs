//! A program that loads a tunnel as long as the test wants.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;

use crate::{Host, Lab};

/// A running `lab-tool` on the client host. Dropping it ends it.
#[derive(Debug)]
pub struct Load {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Load {
    /// Starts a load, and waits for its first line, which says that it is ready.
    pub fn start(lab: &Lab, args: &[&str]) -> Result<Load> {
        Load::start_on(lab, &lab.client, args)
    }

    /// As [`Load::start`], on any host.
    pub fn start_on(lab: &Lab, host: &Host, args: &[&str]) -> Result<Load> {
        let mut command = host.command(lab.program("lab-tool")?);
        let mut child = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        Ok(Load { child, stdin, lines })
    }

    /// Waits for the program's next line.
    pub fn answer<T: DeserializeOwned>(&mut self) -> Result<T> {
        let line = self.lines.next().context("the load has ended")??;
        serde_json::from_str(&line).context(line)
    }

    /// Sends a line to the program, and waits for the answer.
    pub fn ask<T: DeserializeOwned>(&mut self) -> Result<T> {
        self.stdin.as_mut().context("no input")?.write_all(b"\n")?;
        self.answer()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.stdin.take());
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
