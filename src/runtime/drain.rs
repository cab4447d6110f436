//! Leaving: when a listener ends, and when the process does.
//!
//! ```text
//!            /drain             SIGTERM, /quit                drain_timeout         all ended, or GRACE over
//! Serving ----------> Draining ---------------> Leaving ------------------> Refusing ----------------> Ended
//! ```
//! From `Draining` on the sidecar is unready and every answer asks its client to go (`Connection: close`,
//! GOAWAY), while listeners stay open: whoever has not noticed yet is still served.
//!
//! - An **ingress** listener ends when [`QUIET`] has passed without a new request and its requests are done:
//!   load balancers need that long to notice.
//! - An **egress** listener carries the calls of the service beside us, which works on while the world is
//!   leaving. `/drain` alone never ends it. From SIGTERM on it serves until `server.service` is gone, or, if
//!   none is named, until it was quiet like an ingress one.
//! - The process ends when SIGTERM came, all listeners ended and no request is in flight; at the latest
//!   `drain_timeout` after SIGTERM. What still comes then gets `draining`, for [`GRACE`].
//!
//! The service is gone when its port refuses connections and nothing of it is heard any more: many close
//! their port first and then finish their requests, for which they need us.
//!
//! The decision is a pure function; what looks and acts is below it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::process::Process;
use crate::proxy::listener::Direction;

/// Without a new request for this long a listener counts as left.
const QUIET: Duration = Duration::from_secs(3);
/// The same for an egress listener whose service's port is closed.
const GONE_QUIET: Duration = Duration::from_millis(500);
/// From `drain_timeout` to the end: time for `draining` answers to leave.
const GRACE: Duration = Duration::from_millis(250);

/// How often it looks while draining.
const PERIOD: Duration = Duration::from_millis(50);
/// How often the service's port is tried, and how long an answer is waited for.
const TRY: Duration = Duration::from_millis(200);

/// What `GET /readyz` says when everybody from outside has gone; `outrigger drain --wait` waits for it.
pub const DRAINED: &str = "drained";

/// What the decision looks at.
#[derive(Clone, Debug)]
struct Sight {
    now: Instant,
    /// Since when it drains.
    draining: Instant,
    /// When SIGTERM came, if it did.
    leaving: Option<Instant>,
    drain_timeout: Duration,
    upgrade_drain_timeout: Duration,
    service: Service,
    listeners: Vec<Listener>,
    /// Requests in all, also those of listeners that ended.
    in_flight: usize,
}

/// What is known of `server.service`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    /// The configuration names none.
    Unnamed,
    /// Its port takes connections, or does not answer.
    Present,
    /// Its port refuses connections.
    PortClosed,
}

/// A listener that has not ended.
#[derive(Clone, Copy, Debug)]
struct Listener {
    direction: Direction,
    in_flight: usize,
    /// When its last request came; `None`: it had none.
    last_request: Option<Instant>,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Decision {
    /// Places of the listeners that end now.
    end: Vec<usize>,
    stage: Stage,
}

/// How far the process has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Still serves.
    Draining,
    /// Every new request is refused with `draining`.
    Refusing,
    /// Over.
    Ended,
}

impl Sight {
    fn decide(&self) -> Decision {
        let end: Vec<usize> =
            (0..self.listeners.len()).filter(|place| self.has_left(&self.listeners[*place])).collect();
        let all_done = end.len() == self.listeners.len() && self.in_flight == 0;
        let late = self.leaving.map(|since| self.now.saturating_duration_since(since));
        let stage = match late {
            None => Stage::Draining,
            Some(_) if all_done => Stage::Ended,
            Some(late) if late >= self.drain_timeout + GRACE => Stage::Ended,
            Some(late) if late >= self.drain_timeout => Stage::Refusing,
            Some(_) => Stage::Draining,
        };
        Decision { end, stage }
    }

    /// Whether connections in another protocol are to end, those of ingress or those of egress: nobody tells them to
    /// go elsewhere, so they would stay for ever.
    fn ends_upgrades(&self, ingress: bool) -> bool {
        let since = if ingress { Some(self.draining) } else { self.leaving };
        since.is_some_and(|since| self.now.saturating_duration_since(since) >= self.upgrade_drain_timeout)
    }

    /// Whether nobody needs `listener` any more.
    fn has_left(&self, listener: &Listener) -> bool {
        // Quiet counts from the announcement on: before it nobody had a reason to leave.
        let quiet_since =
            |announced: Instant| listener.last_request.map_or(announced, |at| at.max(announced));
        let quiet = |announced| self.now.saturating_duration_since(quiet_since(announced));
        if listener.in_flight > 0 {
            return false;
        }
        match (listener.direction, self.leaving, self.service) {
            (Direction::Ingress, ..) => quiet(self.draining) >= QUIET,
            (Direction::Egress, None, _) | (Direction::Egress, _, Service::Present) => false,
            (Direction::Egress, Some(since), Service::Unnamed) => quiet(since) >= QUIET,
            (Direction::Egress, Some(since), Service::PortClosed) => quiet(since) >= GONE_QUIET,
        }
    }
}

/// What is ordered from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// `/drain`.
    Drain,
    /// SIGTERM, SIGINT, `/quit`.
    Leave,
}

/// Waits for orders, drains, and tells `ended` when the process is over.
pub(super) async fn obey(
    process: Arc<Process>,
    mut orders: mpsc::UnboundedReceiver<Order>,
    ended: std_mpsc::Sender<()>,
) {
    let Some(mut order) = orders.recv().await else { return };
    let draining = Instant::now();
    let mut leaving = None;
    let mut service = None;
    loop {
        if order == Order::Leave && leaving.is_none() {
            leaving = Some(Instant::now());
            let named = process.loaded.load().config.server.service;
            service = named.map(watch_service);
        }
        announce(&process, order);
        order = loop {
            let sight = look(&process, draining, leaving, service.as_ref());
            let decision = sight.decide();
            if !decision.end.is_empty() {
                process.end_listeners(&decision.end);
            }
            for ingress in [true, false] {
                if sight.ends_upgrades(ingress) {
                    process.shared.life.end_upgrades(ingress);
                }
            }
            tell_whether_drained(&process, sight.in_flight);
            match decision.stage {
                Stage::Draining => {}
                Stage::Refusing => process.shared.life.refuse(),
                Stage::Ended => {
                    match sight.in_flight {
                        0 => tracing::info!("drained; the process ends"),
                        left => tracing::warn!(
                            "server.drain_timeout is over; the process ends and cuts {left} requests"
                        ),
                    }
                    // It errs only when nobody waits for the end.
                    let _ = ended.send(());
                    return;
                }
            }
            match timeout(PERIOD, orders.recv()).await {
                Ok(Some(order)) => break order,
                Ok(None) => return,
                Err(_) => {}
            }
        };
    }
}

fn announce(process: &Process, order: Order) {
    process.shared.life.drain();
    let in_flight = process.shared.requests_in_flight();
    match order {
        Order::Drain => tracing::info!(in_flight, "draining: out of rotation, and serving on"),
        Order::Leave => {
            let timeout = process.loaded.load().config.server.drain_timeout;
            tracing::info!(
                in_flight,
                "draining: the process ends when nobody needs it, in {timeout} at the latest"
            );
        }
    }
}

/// What there is to see now.
fn look(
    process: &Process,
    draining: Instant,
    leaving: Option<Instant>,
    service: Option<&watch::Receiver<Service>>,
) -> Sight {
    let shared = &process.shared;
    let snapshot = shared.snapshot.load();
    let open = process.open();
    let listeners = open.iter().map(|open| {
        let activity = snapshot.listener(&open.name).map(|place| &snapshot.listener_at(place).activity);
        Listener {
            direction: open.direction,
            in_flight: activity.map_or(0, |activity| activity.in_flight()),
            last_request: activity.and_then(|activity| activity.last_request()),
        }
    });
    let listeners = listeners.collect();
    let server = &process.loaded.load().config.server;
    Sight {
        listeners,
        draining,
        leaving,
        drain_timeout: *server.drain_timeout,
        upgrade_drain_timeout: *server.upgrade_drain_timeout,
        service: service.map_or(Service::Unnamed, |service| *service.borrow()),
        in_flight: shared.requests_in_flight(),
        now: Instant::now(),
    }
}

/// Whether all that comes from outside is done. Where nothing does, what is in flight counts.
fn tell_whether_drained(process: &Process, in_flight: usize) {
    let config = &process.loaded.load().config.listener;
    let has_ingress = config.iter().any(|listener| listener.direction == Direction::Ingress);
    let is_open = process.open().iter().any(|open| open.direction == Direction::Ingress);
    process.drained.store(if has_ingress { !is_open } else { in_flight == 0 }, Relaxed);
}

/// Tries the service's port again and again, until nobody wants to know any more.
fn watch_service(address: SocketAddr) -> watch::Receiver<Service> {
    let (sender, receiver) = watch::channel(Service::Present);
    tokio::spawn(async move {
        while !sender.is_closed() {
            // No answer in time is no refusal: it is there, and busy.
            let refused = match timeout(TRY, TcpStream::connect(address)).await {
                Ok(Err(error)) => error.kind() == std::io::ErrorKind::ConnectionRefused,
                Ok(Ok(_)) | Err(_) => false,
            };
            sender.send_replace(if refused { Service::PortClosed } else { Service::Present });
            sleep(TRY).await;
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1000;

    /// A sight at `now` milliseconds after `/drain`, with a timeout of 20 s.
    struct At {
        start: Instant,
        sight: Sight,
    }

    fn at(now: u64) -> At {
        let start = Instant::now();
        let sight = Sight {
            now: start + Duration::from_millis(now),
            draining: start,
            leaving: None,
            drain_timeout: Duration::from_secs(20),
            upgrade_drain_timeout: Duration::from_secs(10),
            service: Service::Unnamed,
            listeners: Vec::new(),
            in_flight: 0,
        };
        At { start, sight }
    }

    impl At {
        fn term(mut self, at: u64) -> Self {
            self.sight.leaving = Some(self.start + Duration::from_millis(at));
            self
        }
        fn service(mut self, service: Service) -> Self {
            self.sight.service = service;
            self
        }
        fn listener(mut self, direction: Direction, in_flight: usize, last_request: Option<u64>) -> Self {
            let last_request = last_request.map(|at| self.start + Duration::from_millis(at));
            self.sight.listeners.push(Listener { direction, in_flight, last_request });
            self.sight.in_flight += in_flight;
            self
        }
        fn ingress(self, in_flight: usize, last_request: Option<u64>) -> Self {
            self.listener(Direction::Ingress, in_flight, last_request)
        }
        fn egress(self, in_flight: usize, last_request: Option<u64>) -> Self {
            self.listener(Direction::Egress, in_flight, last_request)
        }
        fn leftover(mut self, in_flight: usize) -> Self {
            self.sight.in_flight += in_flight;
            self
        }
    }

    #[test]
    fn other_protocols_end_by_a_limit_of_their_own() {
        let cases = [
            // why                                       sight                   ingress  egress
            ("they are left alone at first", at(9 * S), false, false),
            ("those from outside end after /drain", at(10 * S), true, false),
            ("those of the service after SIGTERM", at(19 * S).term(9 * S), true, true),
        ];
        for (why, at, ingress, egress) in cases {
            assert_eq!(
                (at.sight.ends_upgrades(true), at.sight.ends_upgrades(false)),
                (ingress, egress),
                "{why}"
            );
        }
    }

    #[test]
    fn listeners_and_process_end_when_nobody_needs_them() {
        use Service::{PortClosed, Present};
        use Stage::{Draining, Ended, Refusing};
        #[rustfmt::skip]
        let cases = [
            // why                                              sight                                                              ends     stage
            ("balancers have not noticed yet",                  at(2 * S).ingress(0, None),                                        vec![],  Draining),
            ("3 s of quiet end an ingress listener",            at(3 * S).ingress(0, None),                                        vec![0], Draining),
            ("a request starts the quiet anew",                 at(4 * S).ingress(0, Some(2 * S)),                                 vec![],  Draining),
            ("and it ends later",                               at(5 * S).ingress(0, Some(2 * S)),                                 vec![0], Draining),
            ("its requests must be done",                       at(9 * S).ingress(1, Some(2 * S)),                                 vec![],  Draining),
            ("a service works on while it drains",              at(99 * S).egress(0, None),                                        vec![],  Draining),
            ("even when its port is closed",                    at(99 * S).egress(0, None).service(PortClosed),                    vec![],  Draining),
            ("each listener for itself",                        at(9 * S).egress(0, None).ingress(0, None),                        vec![1], Draining),
            ("SIGTERM: 3 s of quiet for egress too",            at(2 * S).term(0).egress(0, None),                                 vec![],  Draining),
            ("then all is over",                                at(3 * S).term(0).egress(0, None),                                 vec![0], Ended),
            ("quiet before SIGTERM does not count",             at(11 * S).term(10 * S).egress(0, None),                           vec![],  Draining),
            ("but for ingress that drained before it does",     at(11 * S).term(10 * S).ingress(0, None),                          vec![0], Ended),
            ("a busy service is served",                        at(9 * S).term(0).egress(0, Some(8 * S)),                          vec![],  Draining),
            ("a service that is there is waited for",           at(19 * S).term(0).egress(0, None).service(Present),               vec![],  Draining),
            ("a service that is gone is not",                   at(S).term(0).egress(0, None).service(PortClosed),                 vec![0], Ended),
            ("its port may close before its last calls",        at(S).term(0).egress(1, Some(0)).service(PortClosed),              vec![],  Draining),
            ("and between two of them",                         at(S).term(0).egress(0, Some(900)).service(PortClosed),            vec![],  Draining),
            ("requests of ended listeners are waited for",      at(9 * S).term(0).leftover(1),                                     vec![],  Draining),
            ("nothing to wait for",                             at(0).term(0),                                                     vec![],  Ended),
            ("drain_timeout refuses what still comes",          at(20 * S).term(0).egress(1, Some(19 * S)),                        vec![],  Refusing),
            ("it runs from SIGTERM",                            at(25 * S).term(10 * S).egress(1, Some(25 * S)),                   vec![],  Draining),
            ("and then ends everything",                        at(20 * S + 250).term(0).egress(1, Some(20 * S)),                  vec![],  Ended),
            ("/drain alone has no timeout",                     at(999 * S).ingress(1, Some(S)),                                   vec![],  Draining),
        ];
        for (why, at, end, stage) in cases {
            assert_eq!(at.sight.decide(), Decision { end, stage }, "{why}");
        }
    }
}
