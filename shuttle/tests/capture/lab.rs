//! Two network namespaces: `home`, where the case runs and captures, and `world`, joined by a veth pair. The world
//! answers on every address with "world", a listener at home with "home", and the capturing side with "proxy".

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    process::Command,
    sync::mpsc,
    thread,
};

use shuttle::capture::StreamArrival;

use crate::{Method, cases::assert_eventually, method};

use nix::sched::{CloneFlags, unshare};

type Job = Box<dyn FnOnce() + Send>;

/// The world, which runs jobs in its namespace.
pub(crate) struct World {
    jobs: mpsc::Sender<Job>,
}

/// The port on which the world and home answer with their name.
pub(crate) const NAME_PORT: u16 = 7;
/// The port on which the world echoes.
pub(crate) const ECHO_PORT: u16 = 8;

impl World {
    /// Moves this process, which must have one thread, to a new home, and makes a world for it.
    pub(crate) fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("unshare needs root");
        ip("link set lo up");
        let (jobs, queue) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare needs root");
            tell.send(nix::unistd::gettid()).expect("the case waits");
            queue.into_iter().for_each(|job| job());
        });
        let tid = told.recv().expect("a world");
        ip(&format!("link add v0 type veth peer name v1 netns {tid}"));
        std::fs::write("/proc/sys/net/ipv6/conf/v0/addr_gen_mode", "1").expect("no link-local address");
        ["address add 10.77.0.1/24 dev v0", "address add fd77::1/64 dev v0 nodad", "link set v0 up"]
            .into_iter()
            .for_each(run_ip);
        let world = Self { jobs };
        world.run(|| {
            let addresses = ["10.88.0.1/32", "10.99.0.1/32", "fd88::1/128", "fd99::1/128"];
            addresses.into_iter().for_each(|address| run_ip(&format!("address add {address} dev lo")));
            ["link set lo up", "address add 10.77.0.2/24 dev v1", "address add fd77::2/64 dev v1 nodad"]
                .into_iter()
                .for_each(run_ip);
            ip("link set v1 up");
            serve(listen(NAME_PORT), |stream| say(stream, "world"));
            serve(listen(ECHO_PORT), echo);
        });
        ["route add default via 10.77.0.2", "-6 route add default via fd77::2"].into_iter().for_each(run_ip);
        // Both ends come up when the kernel has noticed the carrier. IPv6 then adds its own routes.
        assert_eventually("the link is up", || {
            let routes = ["route", "-6 route show table local"].map(ip).concat();
            !routes.contains("linkdown")
                && routes.contains("fd77::1")
                && routes.contains("multicast ff00::/8 dev v0")
        });
        // An address is tentative until the far end has noticed the carrier as well, and nobody can bind it.
        assert_eventually("the link is up there", || {
            world.run(|| ip("-6 route show table local")).contains("local fd77::2")
        });
        world
    }

    /// Runs a job in the world's namespace and waits for it.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.jobs.send(Box::new(move || tell.send(job()).unwrap_or(()))).expect("the world ended");
        told.recv().expect("the job failed")
    }
}

/// Returns a listener on all addresses of both families.
pub(crate) fn listen(port: u16) -> TcpListener {
    TcpListener::bind(format!("[::]:{port}")).expect("a free port")
}

/// Answers each connection from a thread.
pub(crate) fn serve(listener: TcpListener, answer: fn(TcpStream)) {
    listener.set_nonblocking(false).expect("a listener");
    thread::spawn(move || {
        listener.incoming().flatten().for_each(|stream| drop(thread::spawn(move || answer(stream))))
    });
}

/// Answers with the original destination, as the capturing side sees it.
pub(crate) fn proxy(stream: TcpStream) {
    let own = stream.local_addr().expect("an accepted socket");
    let destination = match method() {
        // The client must refuse the listener's own address itself.
        Method::Lookup | Method::Nft => Some(own),
        Method::Rewrite => {
            StreamArrival::OriginalDst.original_destination(stream.as_fd(), own).expect("an answer")
        }
    };
    stream.set_nonblocking(false).expect("an accepted socket");
    match destination {
        Some(destination) => say(stream, &format!("proxy {destination}")),
        None => say(stream, "nobody"),
    }
}

/// Sends one text, and waits until the other side closes: closing with bytes unread would be a reset.
pub(crate) fn say(mut stream: TcpStream, text: &str) {
    let said = stream.write_all(text.as_bytes()).and_then(|()| stream.shutdown(Shutdown::Write));
    if said.is_ok() {
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap_or(0);
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 64];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        stream.write_all(&buffer[..count]).unwrap_or(());
    }
}

/// Runs `ip` with these arguments in this thread's namespace.
pub(crate) fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn run_ip(arguments: &str) {
    ip(arguments);
}

/// Returns everything that capturing could leave behind in this namespace.
pub(crate) fn network_state() -> String {
    let parts =
        ["rule", "-6 rule", "route show table all", "-6 route show table all", "-br link", "-br address"];
    // The second lists nothing while v0 has no clsact qdisc.
    let traffic_control = ["qdisc", "filter show dev v0 ingress"].map(|arguments| run("tc", arguments));
    [parts.map(ip).concat(), traffic_control.concat(), nft("list ruleset")].concat()
}

/// Runs `nft` with these arguments in this thread's namespace.
pub(crate) fn nft(arguments: &str) -> String {
    run("nft", arguments)
}

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}
