//! Other software's programs at the same hooks.

use std::{fs, net::TcpListener, os::fd::AsFd, path::PathBuf};

use aya::{
    Ebpf, EbpfLoader,
    maps::{LpmTrie, lpm_trie::Key},
    programs::{CgroupAttachMode, CgroupSockAddr},
};
use shuttle::{
    policy::{Lans, Plan},
    sys::capture::{cgroup2_root, netns_cookie},
};
use shuttle_common::{compile::compile, ports::RawPorts, rule::Verdict};

use crate::{
    Method,
    app::{How, ask, connect},
    cases::{everything, rule, start},
    lab::{World, address, ip},
    method,
};

/// A program that marks connections to one network with a bit of its own, in this namespace. It is detached on drop.
struct Neighbour {
    _object: Ebpf,
}

impl Neighbour {
    fn attach(bit: u32, cgroup: impl AsFd) -> Self {
        Self::attach_for("10.99.0.0/16", bit, cgroup)
    }

    fn attach_for(network: &str, bit: u32, cgroup: impl AsFd) -> Self {
        let object = concat!(env!("CARGO_MANIFEST_DIR"), "/../shuttle-ebpf/prebuilt/shuttle.bpf.o");
        let socket = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let cookie = netns_cookie(socket.as_fd()).expect("a cookie");
        let mut object = EbpfLoader::new()
            .override_global("CAPTURE_BIT", &bit, true)
            .override_global("NETNS_COOKIE", &cookie, true)
            .load_file(object)
            .expect("our own object");
        let entries = compile(&[rule(network, Verdict::Capture)]).expect("one rule");
        let map = object.map_mut("RULES4_A").expect("a map");
        let mut map = LpmTrie::<_, [u8; 4], RawPorts>::try_from(map).expect("a trie");
        for (length, address, ports) in entries.v4_raw() {
            map.insert(&Key::new(length, address), ports.raw(), 0).expect("room");
        }
        let program = object.program_mut("connect4").expect("a program");
        let program: &mut CgroupSockAddr = program.try_into().expect("of this type");
        program.load().expect("it loads");
        program.attach(cgroup, CgroupAttachMode::Single).expect("it attaches");
        Self { _object: object }
    }
}

/// A cgroup for this process, which leaves and removes it on drop.
struct Child(PathBuf);

impl Child {
    fn enter() -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").expect("a cgroup");
        let below = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("cgroup2");
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("cgroup2");
        let parent = PathBuf::from(mount.split(' ').nth(1).unwrap_or_default()).join(below);
        let child = Self(parent.join(format!("shuttle-test.{}", std::process::id())));
        fs::create_dir(&child.0).expect("a child");
        child.hold(&child.0);
        child
    }

    fn hold(&self, cgroup: &std::path::Path) {
        fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).expect("to move");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(parent) = self.0.parent() {
            self.hold(parent);
        }
        fs::remove_dir(&self.0).expect("it is empty");
    }
}

/// Tests programs at the root and below it, attached before shuttle and after. By lookup all see each connection, and
/// none loses its bit.
pub(crate) fn other_programs() {
    const BITS: [u32; 3] = [0x1_0000, 0x2_0000, 0x4_0000];
    let _world = World::new();
    let child = Child::enter();
    let below = fs::File::open(&child.0).expect("a directory");
    let root = cgroup2_root().expect("a hierarchy");
    let _before = [Neighbour::attach(BITS[0], &root), Neighbour::attach(BITS[1], &below)];
    let (handle, captured) = start(&everything());
    let after = Neighbour::attach(BITS[2], &root);
    let mark = || connect(How::Plain, address("10.99.0.1:7")).and_then(|it| it.mark()).expect("connected");
    assert_eq!(ask(How::Plain, address("10.99.0.1:7")), "proxy 10.99.0.1:7");
    let seen = match method() {
        Method::Lookup => 0x1000_0000 | BITS[0] | BITS[1] | BITS[2],
        // nft marks packets, not sockets.
        Method::Nft => BITS[0] | BITS[1] | BITS[2],
        // A program that is attached after shuttle's sees a destination that its rules don't know.
        Method::Rewrite => BITS[0] | BITS[1],
    };
    assert_eq!(mark(), seen);
    drop((handle, captured));
    assert_eq!(ask(How::Plain, address("10.99.0.1:7")), "world");
    assert_eq!(mark(), BITS[0] | BITS[1] | BITS[2]);
    drop(after);
    assert_eq!(mark(), BITS[0] | BITS[1]);
}

/// Tests a container whose own programs decide about its sockets, even if it is a shuttle and uses the same bit.
/// Shuttle's programs at the root see its connections too, and don't touch its sockets. What it sends by a LAN
/// interface is captured there.
pub(crate) fn container_with_programs() {
    const BIT: u32 = 0x1000_0000;
    const THERE: &str = "10.55.0.1:7";
    for lans in [Lans::None, Lans::Named(vec!["v0".into()])] {
        let container = World::new();
        let group = Child::enter();
        let own = fs::File::open(&group.0).expect("a directory");
        let named = lans != Lans::None;
        let (_handle, _captured) = start(&Plan { lans, ..everything() });
        container.run(move || {
            ip("route add 10.55.0.0/16 via 10.77.0.1");
            let connected = |to: &str| connect(How::Plain, address(to)).map(|it| it.mark().expect("a mark"));
            assert_eq!(connected("10.99.0.1:7").expect("its own"), 0, "ours marks a container's socket");
            let program = Neighbour::attach_for("10.55.0.0/16", BIT, &own);
            let captured = || ask(How::Plain, address(THERE)) == format!("proxy {THERE}");
            assert_eq!(captured(), named, "with its mark");
            if named {
                assert_eq!(connected(THERE).expect("captured"), BIT, "its program's bit");
            }
            drop(program);
            assert_eq!(captured(), named, "without its mark");
        });
    }
}
