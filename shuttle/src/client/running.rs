//! A tunnel whose agent has greeted: starts the link on its thread, serves until something ends it, and stops it.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::GREETING_TIMEOUT;
use super::accept::{
    Captures, Nameservers, ORDERS, Order, Orders, Report, StartDatagrams, Timeouts, spawn_requests,
};
use super::control::{Control, Responder};
use super::end::{Cause, Ended, SessionEnd};
use super::helper::Helper;
use super::remote::{Opener, Wanted};
use super::signals::Signals;
use crate::capture::replies::ReplyChannel;
use crate::capture::{Arrival, DatagramArrival, Listeners};
use crate::config::Config;
use crate::link::{End, Link, Pipes};
use crate::mux::Side;
use crate::policy::RuleSet;
use crate::ssh::Session;

/// How long the link and ssh may each take to end by themselves.
const END_LIMIT: Duration = Duration::from_secs(1);

/// A link on its thread, over a session.
pub(super) struct Running {
    /// The channel to the link's thread.
    pub(super) orders: Orders,
    session: SessionEnd,
    reports: mpsc::UnboundedReceiver<Report>,
    end: mpsc::Receiver<End>,
    lanes: Opener,
}

impl Running {
    /// Starts the link, and waits for the agent's greeting.
    pub(super) async fn start(
        session: Session,
        config: &Config,
        rules: &RuleSet,
        signals: &mut Signals,
    ) -> Result<Self, Ended> {
        let Session { pipes, process, stderr, lanes, name } = session;
        let session = SessionEnd { process, stderr, name };
        let wanted = Wanted { lanes: config.lanes, connections: config.connections };
        let timeouts =
            Timeouts { one_way: config.udp_timeouts.one_way, both_ways: config.udp_timeouts.both_ways };
        let nameservers = Nameservers {
            captured: rules.nameservers().iter().map(|it| it.address).collect(),
            target: config.resolver,
        };
        let (orders, reports, end) = match spawn_link(pipes, timeouts, nameservers) {
            Ok(started) => started,
            Err(error) => return Err(Ended { cause: Cause::Link(Some(End::Io(error))), session }),
        };
        let mut running = Self { orders, session, reports, end, lanes: Opener::new(lanes, wanted) };
        let cause = tokio::select! {
            // The first report is the greeting.
            Some(_) = running.reports.recv() => return Ok(running),
            end = running.end.recv() => if signals.follow().await { Cause::Signal } else { Cause::Link(end) },
            () = signals.any() => Cause::Signal,
            () = sleep(GREETING_TIMEOUT) => Cause::Silence,
        };
        Err(Ended { cause, session: running.stop().await })
    }

    /// Has the link accept captured traffic.
    pub(super) fn accept(
        &self,
        listeners: Listeners,
        arrival: Arrival,
        replies: ReplyChannel,
    ) -> io::Result<()> {
        let (streams, datagrams) = listeners.by_protocol();
        self.orders.send(Order::Listen(streams, arrival.streams));
        let requests = match arrival.datagrams {
            DatagramArrival::ControlMessage => {
                let orders = self.orders.clone();
                let resolve = move |resolution| orders.send(Order::Resolve(resolution));
                Some(spawn_requests(replies, resolve)?)
            }
            DatagramArrival::Token => None,
        };
        let start = StartDatagrams { listeners: datagrams, arrival: arrival.datagrams, requests };
        self.orders.send(Order::Datagrams(start));
        Ok(())
    }

    /// Serves until something ends the tunnel.
    pub(super) async fn serve(
        &mut self,
        helper: &mut Helper,
        control: &mut Control,
        responder: &Responder,
        signals: &mut Signals,
    ) -> Cause {
        loop {
            return tokio::select! {
                () = signals.any() => Cause::Signal,
                () = helper.ended() => Cause::Helper,
                end = self.end.recv() => if signals.follow().await { Cause::Signal } else { Cause::Link(end) },
                Some(report) = self.reports.recv() => {
                    self.on_report(report);
                    continue;
                }
                (lane, pipes) = self.lanes.opened() => {
                    self.orders.send(Order::Join(lane, pipes));
                    continue;
                }
                asked = control.asked() => match responder.answer(asked) {
                    ControlFlow::Break(()) => Cause::Stop,
                    ControlFlow::Continue(()) => continue,
                },
            };
        }
    }

    fn on_report(&mut self, report: Report) {
        match report {
            Report::Greeted => {}
            Report::Door(door) => self.lanes.found_door(door),
            Report::Narrow => self.lanes.is_narrow(),
            Report::Lost(lane) => self.lanes.lost(lane),
        }
    }

    /// Resets every connection and ends ssh. Its lane closes with the link, which ends the agent, and the agent's end
    /// ends ssh.
    pub(super) async fn stop(mut self) -> SessionEnd {
        self.orders.send(Order::Stop);
        let dropped = async { while self.end.recv().await.is_some() {} };
        drop(timeout(END_LIMIT, dropped).await);
        if timeout(END_LIMIT, self.session.process.wait()).await.is_err() {
            self.session.process.end();
        }
        self.session
    }
}

type Started = (Orders, mpsc::UnboundedReceiver<Report>, mpsc::Receiver<End>);

fn spawn_link(pipes: Pipes, timeouts: Timeouts, nameservers: Nameservers) -> io::Result<Started> {
    let mut link = Link::new(Side::Client, pipes)?;
    let waker = link.waker(ORDERS)?;
    let (sender, receiver) = std::sync::mpsc::channel();
    let (report, reports) = mpsc::unbounded_channel();
    let (ended, end) = mpsc::channel(1);
    // The role is made on the link's thread, since its sockets are shared there.
    let captures = move || Captures::new(receiver, report, timeouts, nameservers);
    let run = move || {
        let mut captures = captures();
        let end = link.run(&mut captures);
        let stopped = matches!(end, End::Stopped);
        drop(ended.try_send(end));
        // Connections and listeners stay open until nothing is captured any more.
        if !stopped {
            captures.hold();
        }
        drop(link);
    };
    std::thread::Builder::new().name("link".into()).spawn(run)?;
    Ok((Orders { sender, waker: Arc::new(waker) }, reports, end))
}
