//! The control socket and its verbs: a running tunnel is queried, changed and ended.

mod place;
mod rules;
mod status;

use std::path::PathBuf;
use std::process::{Output, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shuttle_tests::traffic::hold::Held;
use shuttle_tests::{Lab, Load, Run, User};

const OTHER: &str = "10.78.0.3:7004";
const ECHO: &str = "10.78.0.2:7000";
/// By the method that shuttle chooses. A case that depends on the method runs it by each.
const RUN: Run = Run { method: None, ..Run::remote(&["10.78.0.0/24"]) };

fn verb(lab: &Lab, user: &User, args: &[&str]) -> Result<Output> {
    let mut command = lab.client.command_as(user, lab.program("shuttle")?);
    Ok(command.args(args).stdin(Stdio::null()).output()?)
}

/// Runs a verb as the user whose tunnel it is. The verb must end with `code`. Returns what it prints.
pub(super) fn told(lab: &Lab, args: &[&str], code: i32) -> Result<String> {
    told_to(lab, &lab.users.local, args, code)
}

fn told_to(lab: &Lab, user: &User, args: &[&str], code: i32) -> Result<String> {
    let output = verb(lab, user, args)?;
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.code() == Some(code), "{args:?}: {}, not {code}\n{out}{error}", output.status);
    ensure!(error.lines().count() == usize::from(code != 0), "{args:?}: not one line of error:\n{error}");
    Ok(if code == 0 { out.into_owned() } else { error.into_owned() })
}

fn json(lab: &Lab, args: &[&str]) -> Result<Value> {
    let text = told(lab, &[args, &["--json"]].concat(), 0)?;
    serde_json::from_str(&text).with_context(|| text)
}

/// Returns the socket's path, as the machine sees it.
fn socket(lab: &Lab, name: &str) -> PathBuf {
    let user = lab.users.local.id.to_string();
    lab.dir().join("client/run/user").join(user).join("shuttle").join(format!("{name}.sock"))
}

fn hold(lab: &Lab) -> Result<Load> {
    let mut load = Load::start(lab, &["hold", ECHO, "1"])?;
    let held: Held = load.answer()?;
    ensure!(held.count == 1, "{held:?}");
    Ok(load)
}

fn alive(load: &mut Load) -> Result<usize> {
    Ok(load.ask::<Held>()?.count)
}
