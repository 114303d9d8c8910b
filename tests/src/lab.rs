//! Makes a lab, and removes it in any case.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use nix::unistd::Uid;
use serde::de::DeserializeOwned;

use crate::accounts::{ETC, SUDOERS, User, Users};
use crate::cgroup::{self, Cgroup};
use crate::host::{Host, Network};
use crate::leftovers::Snapshot;
use crate::link::{self, Link};
use crate::process;
use crate::sshd::{self, Server};
use crate::traffic::port;
use crate::turn::Turn;

const PREFIX: &str = "shut-lab.";
/// Buffers for the fat link: with the default of 4 MiB for sending, one flow could not fill it.
const WIDE_BUFFERS: &str = "echo '4096 16384 33554432' > /proc/sys/net/ipv4/tcp_wmem
echo '4096 131072 33554432' > /proc/sys/net/ipv4/tcp_rmem";
/// Makes a host forward packets.
const FORWARD: &str =
    "echo 1 > /proc/sys/net/ipv4/ip_forward\necho 1 > /proc/sys/net/ipv6/conf/all/forwarding\n";
const PARENT: &str = "/var/tmp";

/// The kind of lab to make.
#[derive(Clone, Debug)]
pub struct Options {
    /// The link between the client and the server.
    pub link: Link,
    /// The kind of ssh server and account.
    pub server: Server,
    /// Whether the server forwards packets to the target, so that *uncaptured* traffic gets there too and
    /// [`crate::traffic::probe`] can tell the two paths apart. Without it, uncaptured traffic vanishes.
    pub forwarding: bool,
    /// Whether there is a machine behind the client, which then forwards packets.
    pub lan: bool,
    /// Whether no other lab of this process may run at the same time, for measurements of time or losses.
    pub alone: bool,
    /// The folder of the programs; by default that of the running program.
    pub programs: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            link: Link::Lan,
            server: Server::Plain,
            forwarding: true,
            lan: false,
            alone: false,
            programs: None,
        }
    }
}

/// Three hosts, an sshd and the target's services. Dropping it ends every process and removes every trace.
#[derive(Debug)]
pub struct Lab {
    /// The host of shuttle and its users.
    pub client: Host,
    /// The host of sshd.
    pub server: Host,
    /// The host that only the server reaches.
    pub target: Host,
    /// The host behind the client, if the lab has one.
    pub lan: Option<Host>,
    /// Root, the local user and the ssh account.
    pub users: Users,
    dir: PathBuf,
    programs: Option<PathBuf>,
    cgroup: Cgroup,
    before: Snapshot,
    daemons: Vec<Child>,
    /// The last field, so that the turn is returned when everything else is gone.
    turn: Turn,
}

impl Lab {
    /// Makes a lab with a plain server and forwarding.
    pub fn new(link: Link) -> Result<Lab> {
        Lab::with(Options { link, ..Options::default() })
    }

    /// Makes a lab with `options`. This takes about a tenth of a second, and waits while a lab runs alone.
    pub fn with(options: Options) -> Result<Lab> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        ensure!(
            Uid::effective().is_root(),
            "the lab makes network namespaces and runs sshd: run this as root"
        );
        let turn = if options.alone { Turn::alone() } else { Turn::shared() };
        purge_leftovers_of_the_dead();
        let name = format!("{PREFIX}{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let guard = Traces { dir: Path::new(PARENT).join(&name), cgroup: cgroup::mount_point()?.join(&name) };
        let made = Lab::make(&guard, options, turn);
        if made.is_ok() {
            std::mem::forget(guard);
        }
        made
    }

    fn make(traces: &Traces, options: Options, turn: Turn) -> Result<Lab> {
        let dir = traces.dir.clone();
        for folder in ["bin", "client/tmp", "client/run/user", "server/tmp", "server/run/sshd"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        let users = Users::new(&dir);
        users.create(&dir, options.server)?;
        open_folders(&dir, &users)?;
        let cgroup = Cgroup::create(traces.cgroup.clone())?;
        let host = |name: &str| Host::new(cgroup.child(name)?, users.root.clone(), &binds(&dir, name));
        let (client, server, target) = (host("client")?, host("server")?, host("target")?);
        let mut daemons = Vec::from_iter(link::join(&client, &server, options.link, || {
            let tool = place_program(&dir, options.programs.as_deref(), "lab-tool")?;
            Ok(target.command(tool))
        })?);
        number(&client, &server, &target, options.forwarding)?;
        let lan = if options.lan { Some(host("lan")?) } else { None };
        if let Some(lan) = &lan {
            put_behind(&client, &server, lan)?;
        }
        if options.link == Link::Fat {
            [&client, &server, &target]
                .into_iter()
                .chain(&lan)
                .try_for_each(|host| host.script(WIDE_BUFFERS))?;
        }
        daemons.extend(sshd::start(&server, &users.root, &dir, options.server)?);
        let mut lab = Lab {
            client,
            server,
            target,
            lan,
            users,
            dir,
            programs: options.programs,
            cgroup,
            before: Snapshot::default(),
            daemons,
            turn,
        };
        lab.serve()?;
        lab.before = Snapshot::take(&lab)?;
        Ok(lab)
    }

    fn serve(&mut self) -> Result<()> {
        let tool = self.program("lab-tool")?;
        let serve = self.target.command(tool).arg("serve").stdin(Stdio::null()).spawn()?;
        self.daemons.push(serve);
        sshd::wait_for_port(&self.target, (crate::addr::TARGET, port::LAST).into(), || Ok(()))
    }

    /// Returns a program of this workspace, under a path that every host sees (their `/tmp` is not the machine's).
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        place_program(&self.dir, self.programs.as_deref(), name)
    }

    /// Returns the machine behind the client.
    pub fn lan(&self) -> Result<&Host> {
        self.lan.as_ref().context("this lab has no LAN")
    }

    /// Makes a container of the client. One with a network of its own has no link yet.
    pub fn container(&self, network: Network) -> Result<Host> {
        self.client.container(network, &binds(&self.dir, "container"))
    }

    /// Runs a `lab-tool` client on the client host and reads its result.
    pub fn measure<T: DeserializeOwned>(&self, args: &[&str]) -> Result<T> {
        self.measure_on(&self.client, args)
    }

    /// As [`Lab::measure`], on any host.
    pub fn measure_on<T: DeserializeOwned>(&self, host: &Host, args: &[&str]) -> Result<T> {
        let output = host.command(self.program("lab-tool")?).args(args).stdin(Stdio::null()).output()?;
        let (text, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        serde_json::from_str(&text).with_context(|| format!("lab-tool {args:?}: {}\n{errors}", output.status))
    }

    /// Returns the lab's folder. `client/tmp`, `server/tmp` and so on in it are the hosts' own.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Lets other labs run at the same time from now on, although this one began alone.
    pub fn share(&self) {
        self.turn.share();
    }

    /// Returns what exists now and did not when the lab was made, and what is gone: rules, routes, links, packet
    /// filters, cgroups, files. It must be empty after a test.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        Ok(Snapshot::take(self)?.beyond(&self.before))
    }

    /// Returns the log of sshd.
    pub fn sshd_log(&self) -> String {
        fs::read_to_string(self.dir.join("sshd.log")).unwrap_or_default()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(Traces { dir: self.dir.clone(), cgroup: self.cgroup.path().into() });
        for daemon in &mut self.daemons {
            daemon.wait().ok();
        }
    }
}

/// The traces of a lab outside its namespaces: a folder and a cgroup. Dropping it ends the processes and removes both.
struct Traces {
    dir: PathBuf,
    cgroup: PathBuf,
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = Cgroup::at(self.cgroup.clone()).destroy() {
            eprintln!("lab: {error:#}");
        }
        match fs::remove_dir_all(&self.dir) {
            Err(error) if self.dir.exists() => eprintln!("lab: remove {}: {error}", self.dir.display()),
            Ok(()) | Err(_) => {}
        }
    }
}

fn place_program(dir: &Path, programs: Option<&Path>, name: &str) -> Result<PathBuf> {
    let built = programs.map_or_else(|| process::built(name), |folder| Ok(folder.join(name)))?;
    let placed = dir.join("bin").join(name);
    if !placed.exists() && fs::hard_link(&built, &placed).is_err() {
        fs::copy(&built, &placed).with_context(|| format!("copy {}", built.display()))?;
    }
    Ok(placed)
}

/// Removes the folders and cgroups of killed tests, which are named after their processes.
fn purge_leftovers_of_the_dead() {
    let Ok(point) = cgroup::mount_point() else { return };
    let names = [Path::new(PARENT), &point].into_iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten();
    for entry in names.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            drop(Traces { dir: Path::new(PARENT).join(&name), cgroup: point.join(&name) });
        }
    }
}

/// Returns the `/etc` files for every host, and `/tmp` and `/run` for the hosts where shuttle or its agent may write.
fn binds(dir: &Path, host: &str) -> Vec<(PathBuf, PathBuf)> {
    let mut binds: Vec<_> =
        ETC.iter().map(|file| (dir.join("etc").join(file), Path::new("/etc").join(file))).collect();
    if host == "client" {
        binds.push((dir.join("etc").join(SUDOERS), "/etc/sudoers".into()));
    }
    if host == "client" || host == "server" {
        binds.push((dir.join(host).join("tmp"), "/tmp".into()));
        binds.push((dir.join(host).join("run"), "/run".into()));
    }
    binds
}

fn open_folders(dir: &Path, users: &Users) -> Result<()> {
    use std::os::unix::fs::{PermissionsExt, chown};
    for host in ["client", "server"] {
        fs::set_permissions(dir.join(host).join("tmp"), fs::Permissions::from_mode(0o1777))?;
    }
    let runtime = runtime_dir(dir, &users.local);
    fs::create_dir_all(&runtime)?;
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700))?;
    Ok(chown(runtime, Some(users.local.id), Some(users.local.id))?)
}

fn runtime_dir(dir: &Path, user: &User) -> PathBuf {
    dir.join("client/run/user").join(user.id.to_string())
}

/// Connects the server and the target, and gives every host its addresses, routes and forwarding.
fn number(client: &Host, server: &Host, target: &Host, forwarding: bool) -> Result<()> {
    let on = u8::from(forwarding);
    let forward = |on: u8| {
        format!(
            "echo {on} > /proc/sys/net/ipv4/ip_forward\necho {on} > /proc/sys/net/ipv6/conf/all/forwarding\n"
        )
    };
    server.script(&format!("ip link add name inner type veth peer name inner netns {}", target.pid()))?;
    client.script(&format!("{}{}", addresses("wire", &["10.77.0.1/24", "fd77::1/64"]), defaults("77", 2)))?;
    server.script(&format!(
        "{}{}{}\nip route add 10.79.0.0/24 via 10.78.0.2\necho 2 > /proc/sys/net/ipv4/tcp_syn_retries\n",
        addresses("wire", &["10.77.0.2/24", "fd77::2/64"]),
        addresses("inner", &["10.78.0.1/24", "fd78::1/64"]),
        forward(on)
    ))?;
    let inner = ["10.78.0.2/24", "10.78.0.3/24", "fd78::2/64", "fd78::3/64"];
    target.script(&format!("{}{}{}", addresses("inner", &inner), defaults("78", 1), forward(0)))
}

/// Connects the client and the machine behind it, and makes the client forward its packets.
fn put_behind(client: &Host, server: &Host, lan: &Host) -> Result<()> {
    client.script(&format!(
        "ip link add name lan type veth peer name up netns {}\n{}{}",
        lan.pid(),
        addresses("lan", &["10.76.0.1/24", "fd76::1/64"]),
        FORWARD
    ))?;
    lan.script(&format!("{}{}", addresses("up", &["10.76.0.2/24", "fd76::2/64"]), defaults("76", 1)))?;
    // The route covers all addresses that may be behind the client.
    server.script("ip route add 10.72.0.0/13 via 10.77.0.1\nip -6 route add fd70::/13 via fd77::1\n")
}

fn addresses(device: &str, addresses: &[&str]) -> String {
    // With duplicate address detection, no IPv6 address could be used in its first second, not even a link-local one.
    let mut script = format!("echo 0 > /proc/sys/net/ipv6/conf/{device}/accept_dad\n");
    for address in addresses {
        script += &format!("ip addr add {address} dev {device}\n");
    }
    format!("{script}ip link set dev {device} up\n")
}

fn defaults(net: &str, via: u8) -> String {
    format!("ip route add default via 10.{net}.0.{via}\nip -6 route add default via fd{net}::{via}\n")
}
