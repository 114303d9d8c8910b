//! The capture methods of the table of end-to-end cases: the options that request each, and what it can't do.

/// A method of capture, by which cases run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// eBPF programs; sockets are looked up.
    Lookup,
    /// eBPF programs; destinations are rewritten.
    Rewrite,
    /// nftables.
    Nft,
}

/// What differs by method. What a method can't do is here, with the words of its refusal.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The arguments that request the method, and nothing else.
    pub args: &'static [&'static str],
    /// The method's name in the first line on standard error.
    pub called: &'static str,
    /// The options that choose how forwarded traffic is captured, each to be tried; or the refusal of such traffic, as
    /// a mistake in the arguments.
    pub forwarded: Result<&'static [&'static str], &'static str>,
    /// `Ok` if a bridge's packets are captured whether or not br_netfilter is on, or the refusal while it is on.
    pub filtered_bridges: Result<(), &'static str>,
    /// Whether fragments of forwarded datagrams that aren't captured pass unchanged. Otherwise the kernel reassembles
    /// all fragments.
    pub passes_fragments: bool,
    /// Whether it warns if a firewall drops forwarded connections that it has captured.
    pub names_firewalls: bool,
    /// Whether programs are notified of datagrams that nobody receives at the far side.
    pub hears_refusals: bool,
    /// `Ok` if queries to link-local nameservers are captured, or the warning that they aren't.
    pub link_local: Result<(), &'static str>,
    /// The possible ends of a connection that is open when the helper is killed.
    pub fate_if_killed: &'static [&'static str],
    /// What a killed helper may leave: the beginnings of the lines, and the tag of each.
    pub inert: &'static [(&'static str, &'static str)],
    /// The nftables table that such a helper leaves. `--dry-run` has its text.
    pub guard: Option<&'static str>,
}

/// The cgroup in which the client and its ssh were.
const CGROUP: (&str, &str) = ("client cgroup", "/shuttle.");
/// Policy rules for a mark that no packet has any more. The protocol is shuttle's.
const RULES: [(&str, &str); 2] = [("client rule: ", "proto 219"), ("client rule6: ", "proto 219")];

impl Method {
    /// Returns what differs for this method.
    pub fn row(self) -> Row {
        match self {
            Method::Lookup => Row {
                args: &["--method=ebpf", "--ebpf-steering=lookup"],
                called: "ebpf: lookup",
                forwarded: Ok(&["--ebpf-ingress=tcx", "--ebpf-ingress=clsact"]),
                filtered_bridges: Ok(()),
                passes_fragments: true,
                names_firewalls: true,
                hears_refusals: true,
                link_local: Ok(()),
                // The connection's own address disappears with the helper's TUN device, and whatever is sent to it is
                // lost.
                fate_if_killed: &["reset", "timeout"],
                inert: &[CGROUP, RULES[0], RULES[1]],
                guard: None,
            },
            Method::Rewrite => Row {
                args: &["--method=ebpf", "--ebpf-steering=rewrite"],
                called: "ebpf: rewrite",
                forwarded: Err("--ebpf-steering=rewrite can't capture forwarded traffic"),
                filtered_bridges: Ok(()),
                passes_fragments: true,
                names_firewalls: true,
                hears_refusals: false,
                link_local: Err("queries to link-local nameservers are not captured"),
                fate_if_killed: &["reset"],
                inert: &[CGROUP],
                guard: None,
            },
            Method::Nft => Row {
                args: &["--method=nft"],
                called: "nft: table shuttle_",
                forwarded: Ok(&[]),
                filtered_bridges: Err(
                    "while net.bridge.bridge-nf-call-iptables is 1: set it to 0 if no firewall relies on it; \
                     --method=ebpf can",
                ),
                passes_fragments: false,
                names_firewalls: false,
                hears_refusals: true,
                link_local: Ok(()),
                fate_if_killed: &["reset"],
                inert: &[CGROUP, RULES[0], RULES[1]],
                guard: Some("shuttle_0_guard"),
            },
        }
    }
}

/// Makes of each `fn case(method: Method) -> Result<()>` one test for each method: `case::lookup` and so on.
#[macro_export]
macro_rules! by_each_method {
    ($($case:ident),+ $(,)?) => {
        $($crate::by_each_method! { $case by
            Lookup as lookup,
            Rewrite as rewrite,
            Nft as nft,
        })+
    };
    ($case:ident by $($method:ident as $test:ident),+ $(,)?) => {
        mod $case {
            use $crate::Method;

            // A method that is not in the list above does not compile.
            const _: fn(Method) = |method| match method {
                $(Method::$method => {})+
            };

            $(#[test]
            fn $test() -> anyhow::Result<()> {
                super::$case(Method::$method)
            })+
        }
    };
}
