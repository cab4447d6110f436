//! Around a request that may fail: who asks for it, what is kept of its answer, and what its client gets in place of a
//! failure. The decisions are made in `policy::fallback` and `policy::freshness`.
//!
//! rate limits -> share an answer (`coalesce`) -> ask the upstream -> copy its answer (`tee`) -> if it failed: the store,
//! another upstream, a fixed answer, or the failure itself, with its true reason.
//!
//! Whoever gets another's answer or a kept one is charged for it like all others, in requests and in bytes. Shedding is
//! asked behind that, of those who ask the upstream: who follows adds no load to it.
//!
//! Only here where `fallback` says something: else a request pays one branch for it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::answer::Answer;
use super::coalesce::{Lead, Question, Role, Told};
use super::context::Routed;
use super::kept::{self, Draft, Kept, Selection};
use super::rate_limit;
use super::request::Request;
use super::response::{FromUpstream, Response, is_outriggers};
use super::snapshot::Standby;
use super::store::Entry;
use super::tee::{self, Keep, Tee};
use super::words;
use super::worker::Worker;
use crate::http1::field::{Fields, Name};
use crate::http1::head::{Framing, Method};
use crate::policy::failure::Verdict;
use crate::policy::fallback::{End, Triggers, concerns_all, is_unprocessed};
use crate::policy::freshness::{Asked, Usable};
use crate::policy::mode::Mode;
use crate::policy::retry::Skip;
use crate::reason::{Error, Reason};
use crate::telemetry::metrics::{Effect, Substitute, UpstreamShard};

/// What a request came to.
enum Came {
    /// An upstream's answer to it.
    Answer(Box<FromUpstream>),
    /// The answer to one that asked the same.
    Copy(Arc<Kept>),
    /// One that asked the same got a bad answer with this status, whose body nobody kept.
    Bad(u16),
    /// Nothing.
    Failed(Error),
}

impl Came {
    /// What is told of it, and whether `on` means it. An injected fault is meant as what it stands for, or by its own
    /// name.
    fn end(&self, on: &Triggers) -> (End, bool) {
        let end = match self {
            Came::Answer(answer) => End::Status(answer.head.status),
            Came::Copy(kept) => End::Status(kept.status),
            Came::Bad(status) => End::Status(*status),
            Came::Failed(error) => {
                let told = End::Reason(error.told_reason());
                let answers_as = error.answers_as.is_some_and(|(status, _)| on.hold(End::Status(status)));
                return (told, on.hold(told) || on.hold(End::Reason(error.reason)) || answers_as);
            }
        };
        (end, on.hold(end))
    }
}

/// What a request asks, where its answer may be kept or shared.
struct Asks {
    asked: Asked,
    /// Its URL as the upstream sees it, whatever the method.
    url: Box<[u8]>,
}

/// How a request that may share an answer goes on.
enum Joined {
    /// It asks, for itself or for all.
    Asks(Option<Lead>),
    /// One that asked the same has been told.
    Came(Came),
}

/// What stands in for a failure.
enum Found {
    /// This.
    Instead(Response),
    /// There is something, but it only would: the policy is shadowed.
    Shadowed,
    Nothing,
}

/// Serves a request whose route has a fallback: by `serve`, which has not asked the rate limits, or by what stands in
/// for a failure.
///
/// # Errors
/// Why it came to nothing, where nothing could stand in.
pub async fn answer<S>(
    worker: &Rc<Worker>,
    request: &mut Request,
    routed: Routed,
    serve: S,
) -> Result<Response, Error>
where
    S: AsyncFn(&mut Request, Routed) -> Result<Box<FromUpstream>, Error>,
{
    let Some(standby) = routed.target().fallback.clone() else {
        return serve(request, routed).await.map(Response::Upstream);
    };
    request.record.routed = Some(routed.clone());
    let mode = standby.settings.mode.of(standby.settings.rollout, request.context.hash);
    let asks = asks(request, &routed, &standby);
    let mut around = Around {
        worker,
        request,
        routed: &routed,
        standby: &standby,
        mode,
        passes_bad_on: !standby.settings.has_substitute(),
        serve: &serve,
    };
    let mut came = match rate_limit::admit(worker, &routed, around.request) {
        Ok(()) => around.come(asks.as_ref()).await,
        Err(error) => Came::Failed(error),
    };

    let (end, is_meant) = came.end(&standby.on);
    if is_meant && !around.request.context.upgrade {
        let mut found = around.stale(asks.as_ref(), end);
        if matches!(found, Found::Nothing) {
            found = around.elsewhere(&mut came, end).await;
        }
        if matches!(found, Found::Nothing) {
            found = around.fixed(end);
        }
        if let Found::Instead(response) = found {
            return Ok(response);
        }
    }
    loop {
        came = match came {
            Came::Answer(answer) => return Ok(Response::Upstream(answer)),
            Came::Copy(kept) => return Ok(Response::Own(copied(&kept, around.request))),
            Came::Failed(error) => return Err(error),
            // There is nothing of it that could be passed on: one asks again, for all for whom nothing stands in.
            Came::Bad(_) => {
                around.passes_bad_on = true;
                around.come(asks.as_ref()).await
            }
        };
    }
}

/// A request and what is around it.
struct Around<'a, S> {
    worker: &'a Rc<Worker>,
    request: &'a mut Request,
    routed: &'a Routed,
    standby: &'a Standby,
    /// Whether what stands in is given, for this request.
    mode: Mode,
    /// Whether a bad answer is passed on as it is, since nothing can stand in for it.
    passes_bad_on: bool,
    serve: &'a S,
}

impl<S> Around<'_, S>
where
    S: AsyncFn(&mut Request, Routed) -> Result<Box<FromUpstream>, Error>,
{
    /// What the request comes to, shared or by itself.
    async fn come(&mut self, asks: Option<&Asks>) -> Came {
        match self.join(asks).await {
            Joined::Came(came) => came,
            Joined::Asks(lead) => self.ask(asks, lead).await,
        }
    }

    /// Waits for the answer to a request that asks the same, if there is one.
    async fn join(&mut self, asks: Option<&Asks>) -> Joined {
        let settings = &self.standby.settings;
        // In shadow nobody waits: whoever waited would not have passed.
        let asks =
            asks.filter(|asks| settings.coalesce && self.mode == Mode::Enforce && asks.asked.may_coalesce());
        let Some(asks) = asks else { return Joined::Asks(None) };
        // An answer that does not suit says by what answers differ: one of those whom it does not suit asks for them.
        for _ in 0..2 {
            if let Some(joined) = self.follow(asks).await {
                return joined;
            }
        }
        Joined::Asks(None)
    }

    /// The same, until there is an answer; none where it is for requests that differ from this one.
    async fn follow(&mut self, asks: &Asks) -> Option<Joined> {
        let target = self.routed.target();
        let request = &mut *self.request;
        let (coalescer, fields) = (&target.chain.coalescer, &request.head.fields);
        let names = coalescer.varies_by(&asks.url);
        let question = Question {
            url: asks.url.clone(),
            headers: kept::values_of(&self.standby.settings.key, fields).into(),
            variant: names.map_or_else(Box::default, |names| kept::values_of(&names, fields).into()),
        };
        let began = Instant::now();
        let place = match coalescer.join(&question, began) {
            Role::Leads(lead) => return Some(Joined::Asks(Some(lead))),
            Role::Apart => return Some(Joined::Asks(None)),
            Role::Follows(place) => place,
        };
        let (timeout, context) = (&target.timeout, &request.context);
        let is_bounded = timeout.mode.of(timeout.rollout, context.hash) == Mode::Enforce;
        let own_end = is_bounded.then(|| context.arrived + *timeout.request);
        let end = own_end.into_iter().chain(context.deadline).min();
        let retries = target.retry.mode.of(target.retry.rollout, context.hash) == Mode::Enforce;
        let attempt = timeout.attempt_timeout(*timeout.request, retries && target.rules.attempts() > 1);
        let is_callers = context.deadline.is_some_and(|deadline| own_end.is_none_or(|own| deadline <= own));
        let told = place.wait(&self.worker.timer(), attempt, end).await;
        request.record.queue += began.elapsed();
        let shard = self.shard();
        Some(match told {
            Told::Answer(kept) if kept.suits(&self.request.head.fields) => {
                shard.coalesced.inc();
                Joined::Came(Came::Copy(kept))
            }
            Told::Answer(_) => return None,
            Told::Apart => Joined::Asks(None),
            Told::Leads(lead) => Joined::Asks(Some(lead)),
            Told::Bad(status) => Joined::Came(Came::Bad(status)),
            Told::Failed(error) => {
                // Refused with the one that asked for it.
                if matches!(error.reason, Reason::BreakerOpen | Reason::NoHealthyEndpoint) {
                    shard.rejected(error.reason, Effect::Enforced).inc();
                }
                Joined::Came(Came::Failed(error))
            }
            Told::TimeUp => {
                let reason = if is_callers { Reason::DeadlineExceeded } else { Reason::RequestTimeout };
                shard.rejected(reason, Effect::Enforced).inc();
                Joined::Came(Came::Failed(Error::new(reason, "it waited for the answer to one like it")))
            }
        })
    }

    /// Asks the upstream, for those who wait for `lead` too.
    async fn ask(&mut self, asks: Option<&Asks>, lead: Option<Lead>) -> Came {
        let served = (self.serve)(self.request, self.routed.clone()).await;
        let served = served.and_then(|answer| match answer.injected() {
            Some(error) => Err(error.told()),
            None => Ok(answer),
        });
        match served {
            Ok(mut answer) => {
                if let Some(asks) = asks {
                    self.copy(asks, &mut answer, lead);
                }
                Came::Answer(answer)
            }
            Err(error) => {
                // Else it falls, and the next one leads: also where a fault has failed this one alone.
                if let Some(lead) = lead.filter(|_| concerns_all(&error)) {
                    lead.fail(&error);
                }
                Came::Failed(error)
            }
        }
    }

    /// Has the answer copied for whoever wants it, as far as that is allowed.
    fn copy(&self, asks: &Asks, answer: &mut FromUpstream, lead: Option<Lead>) {
        let chain = &self.routed.target().chain;
        let fields = &self.request.head.fields;
        let status = answer.head.status;
        if !is_safe(self.request.head.method) {
            if (200..400).contains(&status) {
                // RFC 9111 §4.4: what was kept may not be so any more.
                chain.store.forget(&asks.url);
                chain.coalescer.part(&asks.url);
            }
            return;
        }
        if !asks.asked.is_get {
            return;
        }
        if status == 304 {
            self.renew(asks, answer);
        }
        let said = kept::said(&answer.head);
        let ends = answer.head.framing != Framing::UntilClose && !answer.is_stream();
        let terms = self.standby.settings.stale.filter(|_| ends);
        let terms =
            terms.and_then(|_| said.answer.terms(&asks.asked, seconds_since_1970(), answer.latency()));
        if terms.is_none() && asks.asked.is_for_all() && matches!(status, 200 | 404 | 410) {
            // What the upstream says now counts: it is gone, or not for keeping any more.
            chain.store.forget_those(&asks.url, |entry| entry.answer.suits(fields));
        }
        // One caller's rate or time, or a class that is shed: it falls, and the next one leads.
        let is_its_own = answer.verdict() == Verdict::Throttled
            || status == 429
            || is_outriggers(&answer.head, Reason::DeadlineExceeded);
        let lead = lead.filter(|_| !is_its_own);
        let lead = lead.and_then(|lead| {
            let is_replaced = !self.passes_bad_on && self.standby.on.hold(End::Status(status));
            if !ends || !said.answer.may_be_shared() {
                lead.keep(Instant::now());
            } else if is_replaced && answer.whole().is_none() {
                lead.fail_with(status);
            } else {
                chain.coalescer.varies(&asks.url, &said.vary);
                return Some(lead);
            }
            None
        });
        if terms.is_none() && lead.is_none() {
            return;
        }
        let draft = Draft::new(&answer.head, self.selection(said.vary));
        let length = match answer.head.framing {
            Framing::None => Some(0),
            Framing::Length(length) => Some(length),
            Framing::Chunked | Framing::UntilClose => None,
        };
        let keep = terms.map(|terms| Keep { store: Arc::clone(&chain.store), key: asks.url.clone(), terms });
        let Some(mut tee) = Tee::new(&self.worker.shared, draft, length, keep, lead) else { return };
        match answer.whole() {
            Some(body) => {
                if tee.push(body) {
                    tee.end();
                }
            }
            None => {
                let until = Instant::now() + tee::patience(answer.latency());
                answer.copy_to(tee.waited_for(until, self.worker.timer()));
            }
        }
    }

    /// What is kept is what the client has, says a 304: so it counts as new (RFC 9111 §4.3.4), unless it is not for
    /// keeping any more.
    fn renew(&self, asks: &Asks, confirmation: &FromUpstream) {
        let (store, fields) = (&self.routed.target().chain.store, &self.request.head.fields);
        let is_meant = |entry: &Entry| {
            entry.answer.suits(fields) && entry.answer.is_confirmed_by(&confirmation.head.fields)
        };
        let Some((entry, ())) = store.find(&asks.url, |entry| is_meant(entry).then_some(())) else { return };
        let head = entry.answer.head_with(&confirmation.head);
        let said = kept::said(&head);
        let Some(terms) = said.answer.terms(&asks.asked, seconds_since_1970(), confirmation.latency()) else {
            if asks.asked.is_for_all() {
                store.forget_those(&asks.url, is_meant);
            }
            return;
        };
        let draft = Draft::new(&head, self.selection(said.vary));
        let (size, body) = (draft.size(), entry.answer.body.clone());
        if let Some(room) = store.room((size + body.len()) as u64) {
            let renewed = Entry { answer: draft.with(body, None), terms, since: Instant::now() };
            store.keep(&asks.url, renewed, size, room);
        }
    }

    /// By which headers those who get an answer are told apart: those that it names, and those of `fallback.key`.
    fn selection(&self, vary: Vec<Box<[u8]>>) -> Selection {
        let own = self.standby.settings.key.iter().map(|key| key.name().as_bytes().into());
        Selection::new(vary.into_iter().chain(own).collect(), &self.request.head.fields)
    }

    /// The last good answer to the same.
    fn stale(&mut self, asks: Option<&Asks>, end: End) -> Found {
        let (Some(asks), Some(stale)) = (asks, self.standby.settings.stale) else { return Found::Nothing };
        let (now, fields) = (Instant::now(), &self.request.head.fields);
        let found = self.routed.target().chain.store.find(&asks.url, |entry| {
            let usable = entry.terms.usable(entry.resident(now), *stale.stale_for, &asks.asked);
            usable.filter(|_| entry.answer.suits(fields))
        });
        let Some((entry, usable)) = found else { return Found::Nothing };
        if !self.stands_in(Substitute::Stale, end) {
            return Found::Shadowed;
        }
        let mut fields = fields_for(&entry.answer, self.request, |name| !name.eq_ignore_ascii_case(b"age"));
        push(&mut fields, "age", &usable.age.as_secs().to_string());
        push(&mut fields, "cache-status", &cache_status(usable, end));
        let (status, body) = (entry.answer.status, entry.answer.body.clone());
        Found::Instead(Response::Own(Answer { status, fields, body }))
    }

    /// The answer of another upstream, paid from the retry budget of this one.
    async fn elsewhere(&mut self, came: &mut Came, end: End) -> Found {
        let Some(place) = self.standby.elsewhere else { return Found::Nothing };
        let (target, request) = (self.routed.target(), &mut *self.request);
        let head = &request.head;
        let grpc_path = request.context.grpc.then(|| head.path_and_query());
        let has_key = head.fields.has(Name::IdempotencyKey);
        let may_be_sent_twice = target.rules.method_allows(head.method_text(), has_key, grpc_path)
            || is_unprocessed(end, request.record.attempts);
        let may =
            request.body.is_replayable().and(if may_be_sent_twice { Ok(()) } else { Err(Skip::Method) });
        let is_enforced = self.mode == Mode::Enforce;
        let paid =
            may.and_then(|()| is_enforced.then(|| target.chain.budget.withdraw(Instant::now())).transpose());
        let paid = match paid {
            Ok(paid) => paid,
            Err(skip) => {
                self.shard().retries_skipped(words::skip(Some(skip))).inc();
                return Found::Nothing;
            }
        };
        let Some(paid) = paid else {
            self.stands_in(Substitute::Upstream, end);
            return Found::Shadowed;
        };
        if let Came::Answer(answer) = came {
            // Its slot is others' meanwhile.
            drop(answer.put_aside(Instant::now()));
        }
        let (began, attempts) = (Instant::now(), self.request.record.attempts);
        // Where the first hung, nothing is left of its time.
        let since = std::mem::replace(&mut self.request.context.since, began);
        let stood_still = std::mem::take(&mut self.request.context.stood_still);
        let meter = self.request.body.meter.take();
        let other = self.routed.elsewhere(place);
        let served = match rate_limit::admit(self.worker, &other, self.request) {
            Ok(()) => (self.serve)(self.request, other).await,
            Err(error) => Err(error),
        };
        (self.request.context.since, self.request.context.stood_still) = (since, stood_still);
        self.request.record.routed = Some(self.routed.clone());
        match served {
            Ok(answer)
                if answer.injected().is_none() && !self.standby.on.hold(End::Status(answer.head.status)) =>
            {
                paid.refund();
                let (grpc, is_stream) = (self.request.record.grpc, self.request.record.is_stream);
                self.stands_in(Substitute::Upstream, end);
                (self.request.record.grpc, self.request.record.is_stream) = (grpc, is_stream);
                Found::Instead(Response::Upstream(answer))
            }
            _ => {
                let record = &mut self.request.record;
                if record.attempts == attempts {
                    paid.unsent();
                }
                // What flows now is the first's again.
                self.request.body.meter = meter;
                (record.grpc, record.is_stream, record.reason) = (None, false, None);
                if let Came::Answer(answer) = came {
                    answer.tell(record);
                }
                Found::Nothing
            }
        }
    }

    /// What the configuration says instead.
    fn fixed(&mut self, end: End) -> Found {
        let Some(fixed) = &self.standby.settings.response else { return Found::Nothing };
        let is_read = matches!(self.request.head.method, Method::Get | Method::Head);
        if self.request.context.grpc || fixed.status < 400 && !is_read {
            return Found::Nothing;
        }
        if !self.stands_in(Substitute::Response, end) {
            return Found::Shadowed;
        }
        let mut fields = Fields::default();
        for (name, value) in &fixed.headers {
            push(&mut fields, name, value);
        }
        fields.push(Name::XRequestId, Name::XRequestId.text().as_bytes(), self.request.id());
        push(&mut fields, "proxy-status", &proxy_status(end));
        let body = Bytes::copy_from_slice(fixed.body.as_bytes());
        Found::Instead(Response::Own(Answer { status: fixed.status, fields, body }))
    }

    /// Counts what stands in. Whether it does: in shadow it only would.
    fn stands_in(&mut self, kind: Substitute, end: End) -> bool {
        let is_enforced = self.mode == Mode::Enforce;
        let effect = if is_enforced { Effect::Enforced } else { Effect::Shadowed };
        self.shard().fallbacks(kind, effect).inc();
        if is_enforced {
            let reason = if let End::Reason(reason) = end { Some(reason) } else { None };
            let record = &mut self.request.record;
            (record.substitute, record.reason) = (Some((kind, reason)), None);
            (record.grpc, record.is_stream) = (None, false);
        }
        is_enforced
    }

    fn shard(&self) -> &UpstreamShard {
        self.routed.target().chain.upstream.metrics.shard(self.worker.index)
    }
}

/// What a request asks; none where no answer to it is kept or shared.
fn asks(request: &Request, routed: &Routed, standby: &Standby) -> Option<Asks> {
    let settings = &standby.settings;
    if settings.stale.is_none() && !settings.coalesce || request.context.grpc || request.context.upgrade {
        return None;
    }
    let has_body = !matches!(request.body.framing(), Framing::None | Framing::Length(0));
    let head = &request.head;
    let route = &routed.target().route;
    let mut url = Vec::with_capacity(128);
    url.push(request.context.tls.into());
    url.extend(head.authority().iter().map(u8::to_ascii_lowercase));
    // Neither an authority nor a path has a space in it.
    url.push(b' ');
    url.extend_from_slice(route.settings.rewrite.host.as_deref().unwrap_or_default().as_bytes());
    url.push(b' ');
    route.rewritten(head.path_and_query(), &mut url);
    Some(Asks { asked: kept::asked(head, has_body), url: url.into() })
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Whether a method only reads (RFC 9110 §9.2.1).
fn is_safe(method: Method) -> bool {
    matches!(method, Method::Get | Method::Head | Method::Options | Method::Trace)
}

/// The answer to one that asked the same.
fn copied(kept: &Kept, request: &Request) -> Answer {
    let mut fields = fields_for(kept, request, |_| true);
    push(&mut fields, "cache-status", "outrigger; fwd=miss; collapsed");
    Answer { status: kept.status, fields, body: kept.body.clone() }
}

/// The fields of an answer to another request, those that `stay`; an id in them is that of this one.
fn fields_for(kept: &Kept, request: &Request, stay: impl Fn(&[u8]) -> bool) -> Fields {
    let mut fields = Fields::default();
    for field in kept.fields.iter().filter(|field| stay(field.name)) {
        let value = if field.known == Name::XRequestId { request.id() } else { field.value };
        fields.push(field.known, field.name, value);
    }
    fields
}

/// RFC 9211: a hit where no upstream answered; where one did, and badly, the request went forward first.
fn cache_status(usable: Usable, end: End) -> String {
    let ttl = usable.ttl;
    match end {
        End::Reason(reason) => format!("outrigger; hit; ttl={ttl}; detail={}", reason.label()),
        // What was fresh was not used since the upstream is asked as long as it can answer.
        End::Status(status) => {
            let why = if ttl > 0 { "bypass" } else { "stale" };
            format!("outrigger; fwd={why}; fwd-status={status}; ttl={ttl}")
        }
    }
}

/// RFC 9209: what went wrong behind a fixed answer.
fn proxy_status(end: End) -> String {
    match end {
        End::Reason(reason) => {
            format!("outrigger; error={}; details=\"{}\"", reason.proxy_status(), reason.label())
        }
        End::Status(status) => format!("outrigger; received-status={status}"),
    }
}

fn push(fields: &mut Fields, name: &str, value: &str) {
    fields.push(Name::of(name.as_bytes()), name.as_bytes(), value.as_bytes());
}
