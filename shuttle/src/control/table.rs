//! Responses as text for people.

use super::{Direction, Drops, Flow, RuleLine, Status};

pub(super) fn status(status: &Status) -> String {
    let Status { name, version, pid, method: _, capture, remote, .. } = status;
    let through = remote.as_deref().unwrap_or("this machine itself");
    let mut text = String::new();
    let mut line = |what: &str, value: String| text += &format!("{what:<11} {value}\n");
    line("name", format!("{name} (shuttle {version}, pid {pid})"));
    line("through", through.to_owned());
    line("capture", capture.clone());
    line("up since", format!("{} ago", age(status.uptime_seconds)));
    line("lanes", status.lanes.open.to_string());
    line("round trip", round_trip(status));
    line("up", direction(status.up));
    line("down", direction(status.down));
    line("streams", format!("{} open, {} since the start", status.streams, status.streams_opened));
    let Drops { here, there, datagrams } = status.drops;
    line("drops", format!("{here} here, {there} by the remote side, {datagrams} datagrams"));
    let rules = status.rules;
    line(
        "rules",
        format!("{} include, {} exclude, {} by default", rules.include, rules.exclude, rules.default),
    );
    text
}

fn round_trip(status: &Status) -> String {
    match (status.round_trip_ms, status.shortest_round_trip_ms) {
        (Some(now), Some(shortest)) => format!("{now:.1} ms, {shortest:.1} ms at the least"),
        (Some(now), None) => format!("{now:.1} ms"),
        (None, _) => "not measured yet".to_owned(),
    }
}

fn direction(direction: Direction) -> String {
    let bits = direction.bytes_per_second.saturating_mul(8) as f64;
    format!("{:.1} Mbit/s, {} in all", bits / 1e6, bytes(direction.bytes))
}

pub(super) fn flows(flows: &[Flow]) -> String {
    let mut text = format!(
        "{:<5} {:<24} {:<24} {:>10} {:>10} {:>8}\n",
        "proto", "source", "destination", "up", "down", "age"
    );
    for flow in flows {
        let Flow { protocol, source, destination, bytes_up, bytes_down, age_ms } = flow;
        let (source, destination, age) = (source.to_string(), destination.to_string(), age(age_ms / 1000));
        let (up, down) = (bytes(*bytes_up), bytes(*bytes_down));
        text += &format!("{protocol:<5} {source:<24} {destination:<24} {up:>10} {down:>10} {age:>8}\n");
    }
    text
}

pub(super) fn rules(rules: &[RuleLine]) -> String {
    let width = rules.iter().map(|rule| rule.subnet.len()).max().unwrap_or(0).clamp(24, 50);
    let mut text = format!("{:<7} {:<width$} origin\n", "rule", "subnet");
    for rule in rules {
        let RuleLine { kind, subnet, networks, default: _, origin, file } = rule;
        let origin = origin.map_or_else(|| "unknown".to_owned(), |origin| origin.to_string());
        let file = file.as_ref().map(|file| format!(" {file}")).unwrap_or_default();
        let networks =
            if networks.is_empty() { String::new() } else { format!("  # {}", networks.join(" ")) };
        text += &format!("{kind:<7} {subnet:<width$} {origin}{file}{networks}\n");
    }
    text
}

/// Formats a number of bytes in the largest unit that gives at least 1, with one decimal.
fn bytes(count: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, bits)| count >> bits > 0) {
        Some((unit, bits)) => format!("{:.1} {unit}", count as f64 / (1_u64 << bits) as f64),
        None => format!("{count} B"),
    }
}

fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        (_, _, _) => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{RuleKind, RuleOrigin};

    #[test]
    fn rules_are_aligned_and_have_their_origin() {
        let rule = |kind, subnet: &str, origin, file: Option<&str>, networks: &[&str]| RuleLine {
            kind,
            subnet: subnet.to_owned(),
            networks: networks.iter().map(ToString::to_string).collect(),
            default: origin == Some(RuleOrigin::Default),
            origin,
            file: file.map(str::to_owned),
        };
        let all = [
            rule(RuleKind::Include, "10.0.0.0/8", Some(RuleOrigin::CommandLine), None, &[]),
            rule(RuleKind::Exclude, "host.name", Some(RuleOrigin::File), Some("lists/a"), &["10.0.0.1/32"]),
            rule(RuleKind::Exclude, "[2001:db8:aaaa:bbbb::/64]:8000-9000", Some(RuleOrigin::Verb), None, &[]),
            rule(RuleKind::Exclude, "127.0.0.0/8", None, None, &[]),
        ];
        let want = "\
rule    subnet                              origin
include 10.0.0.0/8                          command line
exclude host.name                           file lists/a  # 10.0.0.1/32
exclude [2001:db8:aaaa:bbbb::/64]:8000-9000 verb
exclude 127.0.0.0/8                         unknown
";
        assert_eq!(rules(&all), want);
    }

    #[test]
    fn quantities_are_short() {
        let sizes =
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 19, "1.5 MiB"), (5 << 40, "5120.0 GiB")];
        for (count, text) in sizes {
            assert_eq!(bytes(count), text);
        }
        for (seconds, text) in [(0, "0s"), (59, "59s"), (61, "1m01s"), (3_661, "1h01m"), (90_000, "1d01h")] {
            assert_eq!(age(seconds), text);
        }
    }
}
