//! Where shedding stands on a request's way: asked once for a request, before its attempts; and what two Outriggers tell
//! each other about it.
//!
//! What is decided is decided in `policy::shed`. Here a request gets its level, and the fields are read and written: an
//! answer to an Outrigger (it sent `x-outrigger-path`, and it is trusted, for only then are its priorities and ids ours)
//! says `x-outrigger-cutoff` while anything is shed. The other one takes it off the answer, sheds by it where its own
//! upstream has `shed` written (mode and rollout are those of that table), and says in `x-outrigger-shed` what it has
//! shed. Neither field goes further than the next Outrigger: one tells of its own upstream and of nothing behind it. An
//! upstream is believed what it says of itself; it could refuse the requests as well. A caller is believed within bounds.

use super::chain::{Chain, carry_out};
use super::context::Routed;
use super::request::Request;
use super::response::{FromUpstream, Response};
use super::worker::Worker;
use crate::http1::field::{Fields, Name};
use crate::policy::key::{self, Key};
use crate::policy::mode::Mode;
use crate::policy::shed::level::{LEVELS, level};
use crate::policy::shed::source::{By, Said, VALID};
use crate::policy::shed::{Refusal, Settings, Shed, Shedding};
use crate::reason::{Error, Reason};
use crate::units::Ratio;

use std::time::Instant;

/// A request that is not shed. Dropped without [`Admitted::settle`], it says nothing: its client has left.
#[must_use = "shedding is told what became of it"]
pub struct Admitted<'a>(Option<&'a Shed>);

/// Whether the request is shed.
///
/// # Errors
/// [`Reason::LoadShed`].
pub fn admit<'a>(worker: &Worker, request: &Request, routed: &'a Routed) -> Result<Admitted<'a>, Error> {
    let chain = &*routed.target().chain;
    let (Some(shedding), Some(settings)) = (&chain.shed, &chain.upstream.settings.shed) else {
        return Ok(Admitted(None));
    };
    let context = &request.context;
    let mode = settings.mode.of(settings.rollout, context.hash);
    if mode == Mode::Off {
        return Ok(Admitted(None));
    }
    let Shedding { own, source } = &**shedding;
    if let Some(report) = request.head.fields.get(Name::XOutriggerShed)
        && knows_us(request, settings)
    {
        own.shed_at_the_source(report);
    }
    let caller = settings.caller.as_ref().and_then(|key| value_of(key, request, routed));
    let level = level(routed.priority(context), caller.unwrap_or_else(|| by_id(request)), own.seconds());
    let shard = chain.upstream.metrics.shard(worker.index);
    let decided = own.admit(level).map_err(|refusal| error(&refusal));
    if carry_out(decided, mode, false, shard)?.is_none() {
        own.passed();
        return Ok(Admitted(Some(own)));
    }
    if let Some(said) = source.said(context.arrived)
        && let Some(level) = shed_by(&said, request, routed, own.seconds())
    {
        let detail = "shed at the source: the upstream's own Outrigger refuses this priority and caller";
        let refusal = Error::new(Reason::LoadShed, detail).retry_after(Some(VALID));
        carry_out(Err::<(), _>(refusal), mode, false, shard).inspect_err(|_| source.shed(level))?;
    }
    Ok(Admitted(Some(own)))
}

impl Admitted<'_> {
    /// What became of it: whether the upstream had no room for it, or has done something about it.
    pub fn settle(self, request: &Request, served: &Result<Box<FromUpstream>, Error>) {
        let Some(shed) = self.0 else { return };
        match served.as_ref().map_err(|error| error.reason) {
            Err(Reason::ConcurrencyLimited | Reason::QueueFull | Reason::QueueTimeout) => shed.refused(),
            // Where nobody was asked (an open breaker, too little time), there is nothing to learn.
            _ if request.record.attempts == 0 => {}
            _ => shed.completed(),
        }
    }
}

/// The level at which the upstream sheds the request, if it does. It must come to the same as there.
fn shed_by(said: &Said, request: &Request, routed: &Routed, seconds: u64) -> Option<u16> {
    let caller = match &said.by {
        By::Request => None,
        // Only whole classes are shed, so any caller will do.
        By::Class => Some(0),
        By::Key(Key::Path) => {
            let mut path = Vec::new();
            routed.target().route.rewritten(request.head.path_and_query(), &mut path);
            path.split(|byte| *byte == b'?').next().map(key::hash)
        }
        By::Key(key) => value_of(key, request, routed),
    };
    let class = routed.said_priority(&request.context).unwrap_or(said.unmarked);
    let level = level(class, caller.unwrap_or_else(|| by_id(request)), seconds);
    (level >= said.cutoff).then_some(level)
}

fn value_of(key: &Key, request: &Request, routed: &Routed) -> Option<u64> {
    request.context.hash_of(&request.head, key, &routed.listener().trust)
}

/// Each request for itself.
fn by_id(request: &Request) -> u64 {
    key::hash(request.id())
}

fn error(refusal: &Refusal) -> Error {
    let detail = if refusal.own {
        "Outrigger itself is short of memory or time: it refuses the least important requests"
    } else {
        "the upstream gets more than it can serve: this priority and caller are refused until it gets less"
    };
    Error::new(Reason::LoadShed, detail).retry_after(Some(refusal.retry_after))
}

/// Tells a caller that is an Outrigger what is shed here, if anything is.
pub fn tell(request: &Request, response: &mut Response) {
    let Some(routed) = &request.record.routed else { return };
    let chain = &routed.target().chain;
    let (Some(shedding), Some(settings)) = (&chain.shed, &chain.upstream.settings.shed) else { return };
    let cutoff = shedding.own.cutoff();
    // Where something else is answered in its place, a request that is shed is better off here than at its source.
    let is_answered = routed.target().fallback.is_some();
    if cutoff >= LEVELS || is_answered || !knows_us(request, settings) {
        return;
    }
    let by = match &settings.caller {
        None => By::Request,
        // Whom we see is the caller's process, or whom it saw.
        Some(Key::ClientIp) => By::Class,
        Some(key) => By::Key(key.clone()),
    };
    let said = Said { cutoff, by, unmarked: routed.target().route.settings.priority };
    let fields = match response {
        Response::Own(answer) => &mut answer.fields,
        Response::Upstream(answer) => &mut answer.head.fields,
    };
    fields.set(Name::XOutriggerCutoff, said.text().as_bytes());
}

/// Whether its caller is one that is told a cut-off; to all others nobody listens, either.
fn knows_us(request: &Request, settings: &Settings) -> bool {
    let is_carried_out = settings.mode == Mode::Enforce && settings.rollout == Ratio::ONE;
    is_carried_out && request.context.trusted && request.head.fields.has(Name::XOutriggerPath)
}

/// An answer has come: takes off it what its sender says of its cut-off, and remembers that where it is wanted.
pub fn hear(chain: &Chain, fields: &mut Fields, now: Instant) {
    if let Some(shedding) = &chain.shed {
        shedding.source.hear(fields.get(Name::XOutriggerCutoff), now);
    }
    fields.remove(Name::XOutriggerCutoff);
}
