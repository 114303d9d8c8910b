//! Rules that change while the tunnel runs, and rules from files.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shuttle_tests::traffic::probe::Outcome::{self, Captured, Direct};
use shuttle_tests::{Lab, Method, Options, Run, Shuttle, by_each_method};

use super::{OTHER, RUN, alive, hold, json, told};
use crate::{END, TARGET, TARGET6, connect, expect, nothing_stays, with_tunnel};

by_each_method! {
    rules_change_while_it_runs,
    many_prefixes_are_no_trouble,
    many_port_ranges_are_no_trouble,
}

fn rules_change_while_it_runs(method: Method) -> Result<()> {
    with_tunnel(Options::default(), RUN.by(method), |lab, _| {
        let mut load = hold(lab)?;
        // (verb, exit code, its output, the routes after it: the target, its other address, its IPv6 address)
        let steps: [(&[&str], i32, &str, [Outcome; 3]); 11] = [
            (&["exclude", "10.78.0.2"], 0, "1 include, 1 exclude", [Direct, Captured, Direct]),
            (
                &["include", "fd78::/64", "10.78.0.2/32"],
                0,
                "3 include, 0 exclude",
                [Captured, Captured, Captured],
            ),
            (&["remove", "10.78.0.9/24"], 0, "2 include, 0 exclude", [Captured, Direct, Captured]),
            (&["remove", "10.78.0.2", "10.9.9.9"], 2, "no rule for 10.9.9.9", [Captured, Direct, Captured]),
            (&["remove", "127.0.0.0/8"], 2, "excluded by default", [Captured, Direct, Captured]),
            (
                &["exclude", "10.78.0.2", "no-such-name.invalid"],
                2,
                "no address for no-such-name.invalid",
                [Captured, Direct, Captured],
            ),
            (&["exclude", "10.78.0.2/33"], 2, "the mask /33", [Captured, Direct, Captured]),
            (&["exclude", "10.78.0.0/24:7004"], 0, "2 include, 1 exclude", [Direct, Direct, Captured]),
            (&["include", "target:7004"], 0, "3 include, 1 exclude", [Captured, Direct, Captured]),
            (&["remove", "target:7004"], 0, "2 include, 1 exclude", [Direct, Direct, Captured]),
            (
                &["remove", "10.78.0.2", "fd78::/64", "10.78.0.0/24:7004"],
                0,
                "0 include, 0 exclude",
                [Direct; 3],
            ),
        ];
        for (args, code, says, ways) in steps {
            let said = told(lab, args, code)?;
            ensure!(said.contains(says), "{args:?}: no {says:?} in {said:?}");
            for (target, way) in [TARGET, OTHER, TARGET6].into_iter().zip(ways) {
                expect(lab, target, &[], way).with_context(|| format!("after {args:?}"))?;
            }
            ensure!(alive(&mut load)? == 1, "{args:?} has ended a connection");
        }
        Ok(())
    })
}

#[test]
fn subnets_come_from_files() -> Result<()> {
    let lab = Lab::with(Options::default())?;
    let home = &lab.users.local.home;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = home.join(name);
        fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    };
    let included = file("included", "# the lab\n10.78.0.0/24\n\nfd78::/64 # both of it\n")?;
    let excluded = file("excluded", "10.78.0.3\n")?;
    let wrong = file("wrong", "10.78.0.3\n\n10.78.0.3:99999\n")?;
    let mut shuttle = Shuttle::connect(&lab, Run { args: &["-s", &included, "-X", &excluded], ..RUN })?;
    for (target, way) in [(TARGET, Captured), (OTHER, Direct), (TARGET6, Captured)] {
        expect(&lab, target, &[], way)?;
    }
    let origins = |lab: &Lab| -> Result<Vec<String>> {
        let rules = json(lab, &["rules"])?;
        let explicit = rules.as_array().context("no array")?.iter().filter(|rule| rule["default"] == false);
        let text = |rule: &Value| {
            let field = |name: &str| rule[name].as_str().unwrap_or("-").to_owned();
            ["way", "subnet", "origin", "file"].map(field).join(" ")
        };
        Ok(explicit.map(text).collect())
    };
    let of_file = |rule: &str, file: &str| format!("{rule} file {file}");
    let want = [
        of_file("include 10.78.0.0/24", &included),
        of_file("include fd78::/64", &included),
        of_file("exclude 10.78.0.3", &excluded),
    ];
    ensure!(origins(&lab)? == want, "{:?}", origins(&lab)?);
    told(&lab, &["remove", "-s", &excluded], 0)?;
    told(&lab, &["exclude", "-s", &included], 0)?;
    let want = ["exclude 10.78.0.0/24 verb -", "exclude fd78::/64 verb -"];
    ensure!(origins(&lab)? == want, "{:?}", origins(&lab)?);
    for target in [TARGET, OTHER, TARGET6] {
        expect(&lab, target, &[], Direct)?;
    }
    let says = format!("{wrong}:3: the port 99999");
    ensure!(told(&lab, &["include", "-s", &wrong], 2)?.contains(&says));
    told(&lab, &["stop"], 0)?;
    shuttle.wait(END)?;
    for args in [["-s", &wrong], ["-X", &wrong]] {
        let args = [&args[..], if args[0] == "-X" { &["0/0"] } else { &[] }].concat();
        let output = Shuttle::command(&lab, Run { args: &args, ..RUN })?.output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2) && error.contains(&says), "{args:?}: {error}");
    }
    for path in [included, excluded, wrong] {
        fs::remove_file(path)?;
    }
    nothing_stays(&lab)
}

/// Tests prefixes from a file, at the start and at runtime. `cargo xtask bench --rules-only` takes more of them, with a
/// release build.
fn many_prefixes_are_no_trouble(method: Method) -> Result<()> {
    many(method, 40_000, |network, _| format!("{network}/24"))
}

/// Each subnet has a port range of its own.
fn many_port_ranges_are_no_trouble(method: Method) -> Result<()> {
    many(method, 30_000, |network, index| format!("{network}/24:{}-{}", 1 + index, 2 + 2 * index))
}

/// Has this many subnets excluded at the start, removed, and included.
fn many(method: Method, count: u32, subnet: fn(Ipv4Addr, u32) -> String) -> Result<()> {
    let lab = Lab::with(Options::default())?;
    let path = lab.users.local.home.join("many");
    let network = |index: u32| Ipv4Addr::from((16 << 24) + (index << 10));
    fs::write(&path, (0..count).map(|index| subnet(network(index), index) + "\n").collect::<String>())?;
    let file = path.to_string_lossy();
    let args = ["10.78.0.0/24", "-X", &file];
    let started = Instant::now();
    let mut shuttle = connect(&lab, Run { args: &args, ..RUN }.by(method))?;
    ensure!(started.elapsed() < END, "{:?}", started.elapsed());
    let (excluded, included) = (count + 1, count + 2);
    let steps: [(&[&str], String, [Outcome; 2]); 3] = [
        (&["exclude", "10.78.0.2"], format!("1 include, {excluded} exclude"), [Direct, Captured]),
        (&["remove", "-s", &file], "1 include, 1 exclude".to_owned(), [Direct, Captured]),
        (&["include", "-s", &file, "10.78.0.2"], format!("{included} include, 0 exclude"), [Captured; 2]),
    ];
    for (args, says, ways) in steps {
        let said = told(&lab, args, 0)?;
        ensure!(said.contains(&says), "{args:?}: no {says:?} in {said:?}");
        for (target, way) in [TARGET, OTHER].into_iter().zip(ways) {
            expect(&lab, target, &[], way).with_context(|| format!("after {args:?}"))?;
        }
    }
    let rules = json(&lab, &["rules"])?;
    ensure!(rules.as_array().is_some_and(|all| all.len() == included as usize + 9));
    told(&lab, &["stop"], 0)?;
    shuttle.wait(END)?;
    fs::remove_file(path)?;
    nothing_stays(&lab)
}
