//! Who asks, who waits, and what they are told: whatever happens, one of those who ask the same is with the upstream,
//! and nobody is forgotten.

use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::http1::field::Fields;
use crate::http1::head::ResponseHead;
use crate::proxy::kept::{Draft, Selection};
use crate::reason::Reason;
use crate::timer::Wheel;

const ATTEMPT: Duration = Duration::from_secs(3600);

fn coalescer() -> Arc<Coalescer> {
    let words = crate::proxy::words::words();
    Arc::new(Coalescer::new(&Metrics::new(1, "0", "0", words), Instant::now()))
}

fn question(url: u8, headers: u8) -> Question {
    Question { url: [url].into(), headers: [headers].into(), variant: Box::default() }
}

fn kept() -> Arc<Kept> {
    let selection = Selection::new(Vec::new(), &Fields::default());
    Arc::new(Draft::new(&ResponseHead::default(), selection).with(Bytes::new(), None))
}

fn leads(coalescer: &Arc<Coalescer>, question: &Question) -> Lead {
    match coalescer.join(question, Instant::now()) {
        Role::Leads(lead) => lead,
        _ => panic!("somebody leads already"),
    }
}

fn follows(coalescer: &Arc<Coalescer>, question: &Question) -> Waits {
    match coalescer.join(question, Instant::now()) {
        Role::Follows(place) => Waits::new(place, ATTEMPT, None),
        _ => panic!("nobody leads"),
    }
}

/// A follower that is asked every now and then.
struct Waits(std::pin::Pin<Box<dyn Future<Output = Told>>>);

impl Waits {
    fn new(place: Place, attempt: Duration, end: Option<Instant>) -> Self {
        Self(Box::pin(async move { place.wait(&Wheel::new(Instant::now()).timer(), attempt, end).await }))
    }

    /// What it has been told by now.
    fn told(&mut self) -> Option<Told> {
        match self.0.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(told) => Some(told),
            Poll::Pending => None,
        }
    }
}

#[test]
fn one_leads_and_all_get_its_answer() {
    let coalescer = coalescer();
    let lead = leads(&coalescer, &question(1, 0));
    let mut followers: Vec<_> = (0..3).map(|_| follows(&coalescer, &question(1, 0))).collect();
    assert!(followers.iter_mut().all(|follower| follower.told().is_none()), "they wait");
    let other = leads(&coalescer, &question(1, 1));
    drop(other);
    lead.share(kept());
    assert!(followers.iter_mut().all(|follower| matches!(follower.told(), Some(Told::Answer(_)))));
    assert_eq!(coalescer.counts(), (0, 0));
    drop(leads(&coalescer, &question(1, 0)));
}

#[test]
fn a_failure_is_shared() {
    let coalescer = coalescer();
    let lead = leads(&coalescer, &question(1, 0));
    let mut follower = follows(&coalescer, &question(1, 0));
    lead.fail(&Reason::ConnectError.into());
    assert!(matches!(follower.told(), Some(Told::Failed(error)) if error.reason == Reason::ConnectError));
    let lead = leads(&coalescer, &question(1, 0));
    let mut follower = follows(&coalescer, &question(1, 0));
    lead.fail_with(503);
    assert!(matches!(follower.told(), Some(Told::Bad(503))));
}

#[test]
fn an_answer_for_one_sends_all_on_their_own_way_for_a_while() {
    let coalescer = coalescer();
    let now = Instant::now();
    let lead = leads(&coalescer, &question(1, 0));
    let mut follower = follows(&coalescer, &question(1, 0));
    lead.keep(now);
    assert!(matches!(follower.told(), Some(Told::Apart)));
    let role = |question: &Question, at| coalescer.join(question, at);
    assert!(matches!(role(&question(1, 0), now + APART_FOR / 2), Role::Apart));
    let variant = Question { variant: [1].into(), ..question(1, 0) };
    assert!(matches!(role(&variant, now + APART_FOR / 2), Role::Apart), "whatever it depends on");
    assert!(matches!(role(&question(2, 0), now + APART_FOR / 2), Role::Leads(_)), "others are not meant");
    assert!(matches!(role(&question(1, 0), now + APART_FOR * 2), Role::Leads(_)), "it is tried again");
}

#[test]
fn an_answer_that_breaks_off_is_asked_for_once_more() {
    let coalescer = coalescer();
    let lead = leads(&coalescer, &question(1, 0));
    let mut followers: Vec<_> = (0..3).map(|_| follows(&coalescer, &question(1, 0))).collect();
    lead.break_off(&Reason::UpstreamReset.into());
    let Some(Told::Leads(lead)) = followers[0].told() else { panic!("the first leads") };
    assert!(followers[1..].iter_mut().all(|follower| follower.told().is_none()), "one alone");
    lead.break_off(&Reason::UpstreamReset.into());
    assert!(followers[1..].iter_mut().all(|follower| matches!(follower.told(), Some(Told::Failed(_)))));
    assert_eq!(coalescer.counts(), (0, 0));
}

#[test]
fn a_slow_client_leads_no_longer_and_sets_nobody_apart() {
    let coalescer = coalescer();
    let lead = leads(&coalescer, &question(1, 0));
    let mut followers: Vec<_> = (0..3).map(|_| follows(&coalescer, &question(1, 0))).collect();
    lead.pass_on();
    let Some(Told::Leads(lead)) = followers[0].told() else { panic!("the first leads") };
    assert!(followers[1..].iter_mut().all(|follower| follower.told().is_none()), "one alone");
    lead.pass_on();
    assert!(followers[1..].iter_mut().all(|follower| matches!(follower.told(), Some(Told::Apart))));
    drop(leads(&coalescer, &question(1, 0)));
}

#[test]
fn by_what_answers_differ_is_remembered_within_a_bound() {
    let coalescer = coalescer();
    let names = |list: &[&str]| list.iter().map(|name| name.as_bytes().into()).collect::<Vec<Box<[u8]>>>();
    let known = |url: &[u8]| coalescer.varies_by(url).map(|known| known.to_vec());
    coalescer.varies(b"a", &[]);
    assert_eq!(known(b"a"), None);
    coalescer.varies(b"a", &names(&["accept", "origin"]));
    coalescer.varies(b"b", &names(&["accept"]));
    assert_eq!(known(b"a"), Some(names(&["accept", "origin"])));
    coalescer.varies(b"a", &names(&["origin"]));
    assert_eq!(known(b"a"), Some(names(&["origin"])), "what was said last");
    coalescer.varies(b"a", &[]);
    assert_eq!((known(b"a"), known(b"b")), (None, Some(names(&["accept"]))));
    (0..10 * VARYING).for_each(|url| coalescer.varies(&url.to_be_bytes(), &names(&["accept"])));
    let count = coalescer.varying.get().map(|varying| varying.lock().expect("no panic").len());
    assert!(count.is_some_and(|count| count <= VARYING), "{count:?}");
}

#[test]
fn where_the_leader_leaves_the_one_who_waits_longest_leads() {
    let coalescer = coalescer();
    let lead = leads(&coalescer, &question(1, 0));
    let mut first = follows(&coalescer, &question(1, 0));
    let left = follows(&coalescer, &question(1, 0));
    let mut third = follows(&coalescer, &question(1, 0));
    assert!(first.told().is_none() && third.told().is_none());
    drop(lead);
    let Some(Told::Leads(lead)) = first.told() else { panic!("the first leads") };
    assert!(third.told().is_none(), "one alone");
    drop(left);
    drop(lead);
    let Some(Told::Leads(lead)) = third.told() else { panic!("the one in between has left") };
    drop(lead);
    assert_eq!(coalescer.counts(), (0, 0));
}

#[test]
fn one_that_leaves_without_hearing_that_it_leads_passes_it_on() {
    let coalescer = coalescer();
    let lead = leads(&coalescer, &question(1, 0));
    let first = follows(&coalescer, &question(1, 0));
    let mut second = follows(&coalescer, &question(1, 0));
    drop(lead);
    drop(first);
    assert!(matches!(second.told(), Some(Told::Leads(_))));
}

#[test]
fn beyond_the_bound_each_goes_by_itself() {
    let coalescer = coalescer();
    let lead = leads(&coalescer, &question(1, 0));
    let mut followers: Vec<_> = (0..FOLLOWERS).map(|_| follows(&coalescer, &question(1, 0))).collect();
    assert!(matches!(coalescer.join(&question(1, 0), Instant::now()), Role::Apart));
    assert_eq!(coalescer.metrics.limit_reached(Limit::Followers).get(), 1);
    followers.pop();
    followers.push(follows(&coalescer, &question(1, 0)));
    drop((followers, lead));
    assert_eq!(coalescer.counts(), (0, 0));
}

#[test]
fn a_write_ends_the_flight_for_those_who_come_after_it() {
    let coalescer = coalescer();
    let lead = leads(&coalescer, &question(1, 0));
    let mut before = follows(&coalescer, &question(1, 0));
    coalescer.part(&[1]);
    let after = leads(&coalescer, &question(1, 0));
    let mut behind = follows(&coalescer, &question(1, 0));
    lead.share(kept());
    assert!(matches!(before.told(), Some(Told::Answer(_))) && behind.told().is_none());
    after.share(kept());
    assert!(matches!(behind.told(), Some(Told::Answer(_))));
    assert_eq!(coalescer.counts(), (0, 0));
}

/// Waits in real time, on a wheel that turns.
#[tokio::test(flavor = "current_thread")]
async fn a_leader_that_takes_too_long_is_replaced_by_one_of_them() {
    tokio::task::LocalSet::new()
        .run_until(async {
            let wheel = Wheel::new(Instant::now());
            let driver = tokio::task::spawn_local(Rc::clone(&wheel).drive());
            let coalescer = coalescer();
            let slow = leads(&coalescer, &question(1, 0));
            let place = |coalescer: &Arc<Coalescer>| match coalescer.join(&question(1, 0), Instant::now()) {
                Role::Follows(place) => place,
                _ => panic!("nobody leads"),
            };
            let attempt = Duration::from_millis(50);
            let (first, second) = (place(&coalescer), place(&coalescer));
            let (one, two) = (wheel.timer(), wheel.timer());
            let mut first = Box::pin(first.wait(&one, attempt, None));
            let mut second = Box::pin(second.wait(&two, attempt * 100, None));
            let lead = tokio::select! {
                told = &mut first => match told { Told::Leads(lead) => lead, _ => panic!("it takes over") },
                _ = &mut second => panic!("it waits for the new one"),
            };
            // What the old leader gets after all is theirs too; that it failed is not.
            slow.share(kept());
            assert!(matches!(second.await, Told::Answer(_)));
            assert_eq!(coalescer.counts(), (1, 0));

            // That it is for nobody else is as true, whoever leads by then.
            let third = place(&coalescer);
            let Told::Leads(new) = place(&coalescer).wait(&one, attempt, None).await else {
                panic!("it takes over")
            };
            lead.keep(Instant::now());
            assert!(matches!(third.wait(&two, ATTEMPT, None).await, Told::Apart));
            drop(new);
            let coalescer = self::coalescer();
            let lead = leads(&coalescer, &question(1, 0));
            let late = place(&coalescer);
            let end = Instant::now() + Duration::from_millis(30);
            assert!(matches!(late.wait(&one, ATTEMPT, Some(end)).await, Told::TimeUp), "its own time");
            drop(lead);
            assert_eq!(coalescer.counts(), (0, 0));
            driver.abort();
        })
        .await;
}

/// What happens.
#[derive(Clone, Debug)]
enum Step {
    Join(u8),
    Leave(usize),
    Share(usize),
    Fail(usize),
    Break(usize),
    Keep(usize),
    Part(u8),
    Look(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..3u8).prop_map(Step::Join),
        3 => (0..12usize).prop_map(Step::Leave),
        1 => (0..6usize).prop_map(Step::Share),
        1 => (0..6usize).prop_map(Step::Fail),
        1 => (0..6usize).prop_map(Step::Break),
        1 => (0..6usize).prop_map(Step::Keep),
        1 => (0..3u8).prop_map(Step::Part),
        4 => (0..12usize).prop_map(Step::Look),
    ];
    prop::collection::vec(step, 0..150)
}

proptest! {
    /// In whatever order requests come, leave and are answered: where nothing was written in between, one of those who
    /// ask the same is with the upstream; whoever waits has somebody who leads; and in the end nothing is left.
    #[test]
    fn one_request_for_each_question_is_in_flight(steps in steps()) {
        let coalescer = coalescer();
        let mut leading: Vec<(u8, Lead)> = Vec::new();
        let mut waiting: Vec<(u8, Waits)> = Vec::new();
        let mut parted = [0; 3];
        for step in steps {
            match step {
                Step::Join(url) => match coalescer.join(&question(url, 0), Instant::now()) {
                    Role::Leads(lead) => leading.push((url, lead)),
                    Role::Follows(place) => waiting.push((url, Waits::new(place, ATTEMPT, None))),
                    Role::Apart => {}
                },
                Step::Leave(at) if at < waiting.len() => drop(waiting.swap_remove(at)),
                Step::Leave(at) if at < leading.len() => drop(leading.swap_remove(at)),
                Step::Share(at) if at < leading.len() => leading.swap_remove(at).1.share(kept()),
                Step::Fail(at) if at < leading.len() => {
                    leading.swap_remove(at).1.fail(&Reason::ConnectError.into());
                }
                Step::Break(at) if at < leading.len() => {
                    leading.swap_remove(at).1.break_off(&Reason::UpstreamReset.into());
                }
                Step::Keep(at) if at < leading.len() => leading.swap_remove(at).1.keep(Instant::now()),
                Step::Part(url) => {
                    coalescer.part(&[url]);
                    parted[usize::from(url)] += 1;
                }
                Step::Look(at) if at < waiting.len() => {
                    let (url, told) = (waiting[at].0, waiting[at].1.told());
                    if let Some(told) = told {
                        drop(waiting.swap_remove(at));
                        if let Told::Leads(lead) = told {
                            leading.push((url, lead));
                        }
                    }
                }
                _ => {}
            }
            let (flights, followers) = coalescer.counts();
            prop_assert!(followers <= waiting.len());
            prop_assert!(flights <= 3 + parted.iter().sum::<usize>());
            for url in 0..3 {
                let leaders = leading.iter().filter(|(other, _)| *other == url).count();
                prop_assert!(leaders <= 1 + parted[usize::from(url)], "{leaders} lead for {url}");
            }
        }
        // Those who still wait are told something, one after the other.
        while !(leading.is_empty() && waiting.is_empty()) {
            leading.clear();
            let mut told = 0;
            for (url, mut waits) in std::mem::take(&mut waiting) {
                match waits.told() {
                    Some(Told::Leads(lead)) => {
                        told += 1;
                        leading.push((url, lead));
                    }
                    Some(_) => told += 1,
                    None => waiting.push((url, waits)),
                }
            }
            prop_assert!(told > 0 || waiting.is_empty(), "{} are forgotten", waiting.len());
        }
        prop_assert_eq!(coalescer.counts(), (0, 0));
    }
}
