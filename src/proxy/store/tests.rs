//! The store against a model too simple to be wrong.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::http1::field::{Fields, Name};
use crate::http1::head::ResponseHead;
use crate::proxy::kept::{Draft, Selection};

fn store(max: u64) -> Arc<Store> {
    let words = crate::proxy::words::words();
    let store = Arc::new(Store::new(&Metrics::new(1, "0", "0", words)));
    store.set_max(max);
    store
}

fn request(language: u8) -> Fields {
    let mut fields = Fields::default();
    fields.push(Name::Other, b"accept-language", &[b'a' + language]);
    fields
}

/// An answer of this size to a request in this language; whether it depends on that.
fn entry(size: usize, language: u8, varies: bool, since: Instant) -> (Entry, usize) {
    let names = if varies { vec![b"accept-language"[..].into()] } else { Vec::new() };
    let draft = Draft::new(&ResponseHead::default(), Selection::new(names, &request(language)));
    let draft_size = draft.size();
    let terms = Terms { age: Duration::ZERO, lifetime: Duration::ZERO, if_error: None, public: false };
    let body = Bytes::from(vec![language; size]);
    (Entry { answer: draft.with(body, None), terms, since }, draft_size)
}

/// Copies an answer and keeps it; whether there was room to copy it.
fn keep(store: &Arc<Store>, key: &[u8], size: usize, language: u8, varies: bool) -> bool {
    let Some(room) = store.room(size as u64) else { return false };
    let (entry, draft_size) = entry(size, language, varies, Instant::now());
    store.keep(key, entry, draft_size, room);
    true
}

fn find(store: &Store, key: &[u8], language: u8) -> Option<u8> {
    let request = request(language);
    let (found, ()) = store.find(key, |entry| entry.answer.suits(&request).then_some(()))?;
    Some(found.answer.body.first().copied().unwrap_or(language))
}

#[test]
fn the_answer_used_longest_ago_goes_first() {
    let store = store(80 << 10);
    // Nine of 8 KiB and a bit fit.
    for key in 0..9u8 {
        assert!(keep(&store, &[key], 8 << 10, 0, false));
    }
    assert!(find(&store, &[0], 0).is_some(), "used again");
    assert!(keep(&store, &[9], 8 << 10, 0, false));
    let there: Vec<u8> = (0..10).filter(|key| find(&store, &[*key], 0).is_some()).collect();
    assert!(there.contains(&0) && there.contains(&9) && !there.contains(&1), "{there:?}");
    assert!(store.metrics.limit_reached(Limit::StaleStore).get() > 0, "it is counted");
}

#[test]
fn an_answer_may_take_an_eighth_and_copies_half() {
    let store = store(64 << 10);
    assert!(!keep(&store, b"a", (8 << 10) + 1, 0, false), "too large to be copied");
    assert_eq!(store.metrics.limit_reached(Limit::StaleAnswer).get(), 1);
    let rooms: Vec<Room> = std::iter::from_fn(|| store.room(8 << 10)).collect();
    assert_eq!((rooms.len(), store.counts()), (4, (0, 32 << 10)), "copies under way take half of it");
    assert_eq!(store.metrics.limit_reached(Limit::StaleStore).get(), 1);
    drop(rooms);
    assert_eq!(store.counts(), (0, 0), "and give it back");
    assert!(keep(&store, b"a", 7 << 10, 0, false));
}

#[test]
fn an_answer_takes_the_place_of_that_to_the_same_request() {
    let store = store(64 << 10);
    assert!(keep(&store, b"a", 1, 0, true) && keep(&store, b"a", 1, 1, true));
    assert_eq!(
        (find(&store, b"a", 0), find(&store, b"a", 1), find(&store, b"a", 2)),
        (Some(0), Some(1), None)
    );
    assert!(keep(&store, b"a", 2, 1, true));
    assert_eq!(store.counts().0, 2, "one for each language");
    // From now on it depends on nothing: what was said before holds no more.
    assert!(keep(&store, b"a", 1, 3, false));
    assert_eq!((store.counts().0, find(&store, b"a", 0)), (1, Some(3)));
    store.forget(b"a");
    assert_eq!((store.counts(), find(&store, b"a", 0)), ((0, 0), None));
}

#[test]
fn a_smaller_bound_holds_at_once_and_none_lets_all_go() {
    let store = store(1 << 20);
    for key in 0..100u8 {
        assert!(keep(&store, &[key], 8 << 10, 0, false));
    }
    store.set_max(64 << 10);
    assert!(store.counts().1 <= 64 << 10, "{:?}", store.counts());
    store.set_max(0);
    assert_eq!(store.counts(), (0, 0));
    assert!(!keep(&store, b"a", 1, 0, false));
}

/// What happens to a store.
#[derive(Clone, Debug)]
enum Step {
    Keep { key: u8, size: usize, language: u8, varies: bool },
    Copy(u64),
    Drop(usize),
    Grow(usize, u64),
    Find(u8, u8),
    Forget(u8),
    Bound(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..20u8, 0..12_000usize, 0..20u8, any::<bool>())
            .prop_map(|(key, size, language, varies)| Step::Keep { key, size, language, varies }),
        2 => (0..12_000u64).prop_map(Step::Copy),
        2 => (0..8usize).prop_map(Step::Drop),
        2 => (0..8usize, 0..30_000u64).prop_map(|(room, size)| Step::Grow(room, size)),
        4 => (0..20u8, 0..20u8).prop_map(|(key, language)| Step::Find(key, language)),
        1 => (0..20u8).prop_map(Step::Forget),
        1 => (64u64 << 10..256 << 10).prop_map(Step::Bound),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    /// Whatever is copied, kept and given up in whatever order: the bytes stay within the bound, the counts are those
    /// of what is there, and nobody gets an answer in another language than the one it was for.
    #[test]
    fn the_byte_bound_holds_and_no_answer_crosses_vary(steps in steps()) {
        let mut max = 64 << 10;
        let store = store(max);
        let mut rooms: Vec<Room> = Vec::new();
        for step in steps {
            match step {
                Step::Keep { key, size, language, varies } => {
                    keep(&store, &[key], size, language, varies);
                }
                Step::Copy(size) => rooms.extend(store.room(size)),
                Step::Drop(at) if at < rooms.len() => drop(rooms.swap_remove(at)),
                Step::Grow(at, size) if at < rooms.len() => {
                    rooms[at].grow_to(size);
                }
                Step::Drop(_) | Step::Grow(..) => {}
                Step::Find(key, language) => {
                    let asks = request(language);
                    if let Some((found, ())) = store.find(&[key], |entry| entry.answer.suits(&asks).then_some(())) {
                        let own = found.answer.body.first().copied().unwrap_or(language);
                        let varies = !found.answer.suits(&request(own ^ 1)) || !found.answer.suits(&Fields::default());
                        prop_assert!(!varies || own == language, "{own} for {language}");
                    }
                }
                Step::Forget(key) => store.forget(&[key]),
                Step::Bound(bound) => {
                    // Copies under way keep what they have.
                    if rooms.is_empty() {
                        max = bound;
                        store.set_max(max);
                    }
                }
            }
            let inner = store.lock();
            let entries: Vec<&Node> = inner.places.iter().flatten().collect();
            let bytes: u64 = entries.iter().map(|node| node.size).sum();
            prop_assert!(inner.used + inner.copying <= max, "{} + {} in {max}", inner.used, inner.copying);
            prop_assert_eq!(inner.used, bytes);
            prop_assert_eq!(inner.copying, rooms.iter().map(|room| room.bytes).sum::<u64>());
            let really: usize = entries.iter().map(|node| node.entry.answer.body.len()).sum();
            prop_assert!(really as u64 <= inner.used);
            let (mut chain, mut at) = (0, inner.latest);
            while let Some(node) = inner.places.get(at).and_then(Option::as_ref) {
                (chain, at) = (chain + 1, node.earlier);
            }
            prop_assert_eq!(chain, entries.len());
            prop_assert_eq!(inner.keys.values().map(Vec::len).sum::<usize>(), entries.len());
        }
    }
}
