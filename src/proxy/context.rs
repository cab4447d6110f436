//! What is known of a request besides its head and body: who sends it, its id, its deadline, its history, and
//! where it goes.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::listener::Trust;
use super::route::{self, Route, normal_path};
use super::snapshot::{Held, Listener, Snapshot, Target};
use super::worker::Worker;
use crate::http1::field::Name;
use crate::http1::head::{Framing, RequestHead, Version};
use crate::policy::deadline;
use crate::policy::key::{self, Key};
use crate::policy::priority::Priority;
use crate::reason::{Error, Reason};
use crate::telemetry::metrics::Limit;

/// The most processes that a request may have passed.
const MAX_HOPS: usize = 16;
/// The longest id that is kept from a caller.
const MAX_ID: usize = 128;

/// What is known of a request besides head and body.
#[derive(Clone)]
pub struct Context {
    /// When its head was complete.
    pub arrived: Instant,
    /// Who sent it, as [`Peer`] has it.
    pub peer: SocketAddr,
    /// The address it came to.
    pub local: SocketAddr,
    /// Whether the sender's control headers are obeyed.
    pub trusted: bool,
    /// Whether it is gRPC.
    pub grpc: bool,
    /// Whether it came by HTTP/2.
    pub http2: bool,
    /// Whether its client wants to go on in another protocol over this connection (RFC 9110 §7.8).
    pub upgrade: bool,
    /// Whether it came in TLS.
    pub tls: bool,
    /// The caller's deadline.
    pub deadline: Option<Instant>,
    /// How often the caller has sent it before.
    pub caller_attempt: u32,
    /// How much it matters, as a caller that is obeyed says; [`Routed::priority`] is what counts.
    pub priority: Option<Priority>,
    /// Since when its time counts (`timeout.request`): since it arrived, or goes to another upstream.
    pub since: Instant,
    /// How long its clock stood still because its body was still flowing.
    pub stood_still: Duration,
    /// A hash of its id: decides what `rollout` does with it, in all attempts alike.
    pub hash: u64,
    id: Id,
}

/// Who is at the other end, and where it came in.
#[derive(Clone)]
pub struct Peer {
    /// The client's address, as the PROXY protocol says it where the listener speaks that. One at a Unix socket has
    /// none: [`UNIX_PEER`](crate::transport::UNIX_PEER) stands for it, so it counts as loopback for `trust`.
    pub peer: SocketAddr,
    /// The address it connected to.
    pub local: SocketAddr,
    /// Whether it came in TLS.
    pub tls: bool,
    /// The listener's name.
    pub listener: Arc<str>,
    /// By which of its entrances it was let in.
    pub entrance: u64,
}

impl Peer {
    /// The place of its listener in `snapshot`; none where that is gone, or lets in only who shows more than this one
    /// has: then the connection finishes what it has begun, and goes.
    pub fn listener_in(&self, snapshot: &Snapshot) -> Option<usize> {
        let place = snapshot.listener(&self.listener)?;
        (snapshot.listener_at(place).entrance == self.entrance).then_some(place)
    }
}

#[derive(Clone)]
enum Id {
    /// The caller's, in the head.
    Kept,
    Made([u8; 32]),
}

/// Where a request goes: the configuration that it took, and the route in it.
#[derive(Clone)]
pub struct Routed {
    snapshot: Held,
    listener: usize,
    route: usize,
}

impl Context {
    /// Reads the head's control fields.
    ///
    /// # Errors
    /// [`Reason::BadRequest`] for a malformed `grpc-timeout`, [`Reason::LoopDetected`], and
    /// [`Reason::MethodNotAllowed`] for CONNECT and TRACE.
    pub fn read(
        worker: &Worker,
        listener: &Listener,
        head: &RequestHead,
        from: &Peer,
        http2: bool,
        arrived: Instant,
    ) -> (Self, Result<(), Error>) {
        let Peer { peer, local, tls, .. } = *from;
        let trusted = listener.trust.holds(peer.ip());
        let fields = &head.fields;
        let kept = fields.get(Name::XRequestId).filter(|id| {
            trusted && (1..=MAX_ID).contains(&id.len()) && id.iter().all(|b| (0x21..=0x7e).contains(b))
        });
        let (id, hash) = match kept {
            Some(id) => (Id::Kept, hash(id)),
            None => {
                let (high, low) = (worker.draw_bits(), worker.draw_bits());
                (Id::Made(hex(high, low)), high)
            }
        };
        let grpc = fields.get(Name::ContentType).is_some_and(is_grpc);
        let mut context = Self {
            arrived,
            peer,
            local,
            trusted,
            grpc,
            http2,
            upgrade: !http2 && wants_upgrade(head),
            tls,
            deadline: None,
            caller_attempt: 0,
            priority: None,
            since: arrived,
            stood_still: Duration::ZERO,
            hash,
            id,
        };
        let checked = context.read_control(worker, head);
        (context, checked)
    }

    fn read_control(&mut self, worker: &Worker, head: &RequestHead) -> Result<(), Error> {
        use crate::http1::head::Method;
        let fields = &head.fields;
        if matches!(head.method, Method::Connect | Method::Trace) {
            return Err(Error::new(Reason::MethodNotAllowed, "CONNECT and TRACE are not proxied"));
        }
        if self.trusted {
            for name in [Name::XRequestTimeoutMs, Name::XEnvoyExpectedRqTimeoutMs] {
                if let Some(value) = fields.get(name) {
                    match deadline::parse_millis(value) {
                        Some(left) => self.bound(left),
                        None => worker.shared.metrics.limit_reached(Limit::DeadlineUnreadable).inc(),
                    }
                }
            }
            self.caller_attempt = fields
                .get(Name::XRetryAttempt)
                .and_then(|value| std::str::from_utf8(value).ok()?.trim().parse().ok())
                .unwrap_or(0);
            if let Some(value) = fields.get(Name::XPriority) {
                self.priority = Priority::parse(value);
                if self.priority.is_none() {
                    worker.shared.metrics.limit_reached(Limit::PriorityUnreadable).inc();
                }
            }
        }
        if let Some(value) = fields.get(Name::GrpcTimeout) {
            let left = deadline::parse_grpc_timeout(value)
                .map_err(|_| Error::new(Reason::BadRequest, "grpc-timeout is malformed"))?;
            self.bound(left);
        }
        let mut hops = 0;
        for value in fields.all(Name::XOutriggerPath) {
            for id in value.split(|b| *b == b',') {
                hops += 1;
                if id.trim_ascii() == worker.shared.id.as_bytes() || hops > MAX_HOPS {
                    return Err(Error::new(
                        Reason::LoopDetected,
                        "x-outrigger-path holds this process already, or too many others",
                    ));
                }
            }
        }
        Ok(())
    }

    fn bound(&mut self, left: Duration) {
        let at = self.arrived.checked_add(left).unwrap_or(self.arrived + Duration::from_secs(86_400 * 365));
        self.deadline = Some(self.deadline.map_or(at, |deadline| deadline.min(at)));
    }

    /// The hash of what `key` takes from the request; `None` where it has no such part.
    pub fn hash_of(&self, head: &RequestHead, key: &Key, trust: &Trust) -> Option<u64> {
        self.read_key(head, key, trust, key::hash)
    }

    /// What `read` makes of what `key` takes from the request; `None` where it has no such part.
    pub fn read_key<R>(
        &self,
        head: &RequestHead,
        key: &Key,
        trust: &Trust,
        read: impl FnOnce(&[u8]) -> R,
    ) -> Option<R> {
        let value = match key {
            Key::Header(name) => head.fields.find(name.as_bytes()).next()?,
            Key::Cookie(name) => head.fields.find(b"cookie").find_map(|field| key::cookie(field, name))?,
            Key::Path => head.path_and_query().split(|byte| *byte == b'?').next()?,
            Key::ClientIp => match self.client_ip(head, trust) {
                IpAddr::V4(ip) => return Some(read(&ip.octets())),
                IpAddr::V6(ip) => return Some(read(&ip.octets())),
            },
        };
        Some(read(value))
    }

    /// Who asked: the peer, or behind trusted ones the right-most entry of X-Forwarded-For that is not; where all are
    /// trusted, the first one.
    fn client_ip(&self, head: &RequestHead, trust: &Trust) -> IpAddr {
        let mut client = self.peer.ip().to_canonical();
        if !self.trusted {
            return client;
        }
        let entries: Vec<&[u8]> = head
            .fields
            .all(Name::XForwardedFor)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .collect();
        for entry in entries.iter().rev() {
            let ip = std::str::from_utf8(entry).ok().and_then(|text| text.trim().parse::<IpAddr>().ok());
            // What is no address was written by nobody who can be trusted.
            let Some(ip) = ip else { break };
            client = ip.to_canonical();
            if !trust.holds(client) {
                break;
            }
        }
        client
    }

    /// The request's id.
    pub fn id<'a>(&'a self, head: &'a RequestHead) -> &'a [u8] {
        match &self.id {
            Id::Kept => head.fields.get(Name::XRequestId).unwrap_or_default(),
            Id::Made(id) => id,
        }
    }
}

impl Routed {
    /// Where the first route of the listener that takes this request leads; `draw` is random.
    ///
    /// # Errors
    /// [`Reason::NoRoute`].
    pub fn find(
        snapshot: &Held,
        listener: usize,
        (head, context): (&RequestHead, &Context),
        draw: u64,
    ) -> Result<Self, Error> {
        let path = normal_path(head.path_and_query());
        let request = route::Request {
            method: head.method_text(),
            host: head.authority(),
            normal_path: &path,
            has_header: &|name, value| {
                head.fields.find(name.as_bytes()).any(|found| found == value.as_bytes())
            },
        };
        let at = snapshot.listener_at(listener);
        // Not the bits by which a hash chooses among the upstream's endpoints, nor those of a rollout.
        let stays =
            |key: &Key| Some(context.hash_of(head, key, &at.trust)?.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let draw = |route: &Route| route.settings.split_by.as_ref().and_then(stays).unwrap_or(draw);
        let route = at.route(&request, draw).ok_or(Reason::NoRoute)?;
        Ok(Self { snapshot: Rc::clone(snapshot), listener, route })
    }

    /// The listener.
    pub fn listener(&self) -> &Listener {
        self.snapshot.listener_at(self.listener)
    }

    /// Another target of the same listener.
    pub fn elsewhere(&self, target: usize) -> Self {
        Self { route: target, ..self.clone() }
    }

    /// How much the request matters: as its caller says, else its route.
    pub fn priority(&self, context: &Context) -> Priority {
        context.priority.unwrap_or(self.target().route.settings.priority)
    }

    /// The same, as far as somebody says so: what goes up.
    pub fn said_priority(&self, context: &Context) -> Option<Priority> {
        let route = self.target().route.settings.priority;
        context.priority.or((route != Priority::default()).then_some(route))
    }

    /// The route.
    pub fn target(&self) -> &Target {
        self.listener().target(self.route)
    }
}

/// Whether a request asks for another protocol. Not where it has a body, which would have to be read first; and not
/// for HTTP/2, which no client speaks this way any more (RFC 9113 §3.1) and which would bypass every policy.
fn wants_upgrade(head: &RequestHead) -> bool {
    head.fields.has(Name::Upgrade)
        && head.version == Version::Http11
        && head.framing == Framing::None
        && head.is_connection_option(b"upgrade")
        && head.fields.all(Name::Upgrade).all(|value| {
            let mut protocols = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            protocols.all(|protocol| {
                !protocol.eq_ignore_ascii_case(b"h2c") && !protocol.eq_ignore_ascii_case(b"h2")
            })
        })
}

/// Whether a `content-type` is gRPC's.
pub fn is_grpc(content_type: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    content_type.get(..GRPC.len()).is_some_and(|start| start.eq_ignore_ascii_case(GRPC))
        && matches!(content_type.get(GRPC.len()), None | Some(b'+' | b';' | b' '))
}

fn hash(id: &[u8]) -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // A fixed seed: every process decides alike for one id.
    let mut hasher = foldhash::quality::FixedState::with_seed(0).build_hasher();
    hasher.write(id);
    hasher.finish()
}

/// 128 bits as hexadecimal digits.
fn hex(high: u64, low: u64) -> [u8; 32] {
    let mut text = [0; 32];
    for (half, bits) in text.chunks_exact_mut(16).zip([high, low]) {
        for (place, digit) in half.iter_mut().enumerate() {
            *digit = b"0123456789abcdef"[(bits >> (60 - 4 * place) & 15) as usize];
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_ids_hold_all_bits() {
        assert_eq!(&hex(0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210), b"0123456789abcdeffedcba9876543210");
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/GRPC; charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/json", false),
            ("", false),
        ] {
            assert_eq!(is_grpc(value.as_bytes()), expected, "{value:?}");
        }
    }
}
