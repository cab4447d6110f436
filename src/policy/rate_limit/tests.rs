//! What holds of several limits, many keys, many workers, and over a reload.

use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::policy::start;

fn settings(json: serde_json::Value) -> Settings {
    serde_json::from_value(json).unwrap_or_else(|error| panic!("{error}"))
}

fn limits(all: &[serde_json::Value]) -> Limits {
    let all: Vec<Settings> = all.iter().cloned().map(settings).collect();
    Limits::new(&all, None, start())
}

fn at(millis: u64) -> Instant {
    start() + Duration::from_millis(millis)
}

fn enforced(key: impl Into<Option<u64>>) -> Ask {
    Ask { mode: Mode::Enforce, key: key.into() }
}

/// Asks, and collects what is said.
fn ask(limits: &Limits, now: Instant, asks: &[Ask]) -> (bool, Vec<(usize, Said)>) {
    let mut said = Vec::new();
    let passes = limits.admit(now, asks, |index, what| said.push((index, what)));
    (passes, said)
}

fn passes(limits: &Limits, now: Instant, asks: &[Ask]) -> bool {
    ask(limits, now, asks).0
}

fn refused(millis: u64) -> Said {
    Said::Refused { wait: Duration::from_millis(millis) }
}

#[test]
fn each_key_has_its_own_rate() {
    let limits = limits(&[json!({ "rate": "10/s", "burst": 2, "key": "header:x-tenant" })]);
    for key in [7, 8, 0, 1 << 63] {
        assert!(passes(&limits, at(0), &[enforced(key)]) && passes(&limits, at(0), &[enforced(key)]));
        assert_eq!(ask(&limits, at(0), &[enforced(key)]), (false, vec![(0, refused(100))]), "{key}");
    }
    assert!(passes(&limits, at(100), &[enforced(7)]));
    assert_eq!(limits.0[0].buckets.held(), 4);
}

#[test]
fn requests_without_a_key_share_a_rate_and_are_told() {
    let limits = limits(&[json!({ "rate": "10/s", "burst": 1, "key": "client_ip" })]);
    assert_eq!(ask(&limits, at(0), &[enforced(None)]), (true, vec![(0, Said::Shares)]));
    assert_eq!(ask(&limits, at(0), &[enforced(None)]), (false, vec![(0, Said::Shares), (0, refused(100))]));
    assert!(passes(&limits, at(0), &[enforced(1)]), "whoever has one is none of them");
    assert_eq!(limits.0[0].buckets.overflowed.load(Relaxed), 2);
}

#[test]
fn a_limit_without_keys_is_everybodys() {
    let limits = limits(&[json!({ "rate": "10/s", "burst": 1 })]);
    assert_eq!(ask(&limits, at(0), &[enforced(None)]), (true, vec![]));
    assert_eq!(ask(&limits, at(0), &[enforced(None)]), (false, vec![(0, refused(100))]));
}

#[test]
fn a_full_table_forgets_idle_keys_and_then_lets_new_ones_share() {
    let limits = limits(&[json!({ "rate": "10/s", "burst": 2, "key": "client_ip", "max_keys": 3 })]);
    let held = || limits.0[0].buckets.held();
    for key in 1..=3 {
        assert_eq!(ask(&limits, at(0), &[enforced(key)]), (true, vec![]));
    }
    assert_eq!(ask(&limits, at(50), &[enforced(4)]), (true, vec![(0, Said::Shares)]));
    assert_eq!(ask(&limits, at(50), &[enforced(5)]), (true, vec![(0, Said::Shares)]));
    let shared = ask(&limits, at(50), &[enforced(6)]);
    assert_eq!(shared, (false, vec![(0, Said::Shares), (0, refused(100))]), "they have one rate together");
    assert!(passes(&limits, at(99), &[enforced(3)]), "whoever is there stays, idle or not");
    assert_eq!(held(), 3);

    // 1 and 2 are idle again, 3 is not.
    for key in [4, 5] {
        assert_eq!(
            ask(&limits, at(100), &[enforced(key)]),
            (true, vec![]),
            "{key} takes an idle one's place"
        );
    }
    assert!(ask(&limits, at(100), &[enforced(6)]).1.contains(&(0, Said::Shares)));
    assert!(passes(&limits, at(100), &[enforced(3)]) && !passes(&limits, at(100), &[enforced(3)]));
    assert_eq!(held(), 3);
}

#[test]
fn a_request_that_one_limit_refuses_costs_none_of_them_anything() {
    let wide = json!({ "name": "all", "rate": "10/s", "burst": 3 });
    let narrow = json!({ "name": "each", "rate": "1/s", "burst": 1, "key": "client_ip" });
    let limits = limits(&[wide, narrow]);
    let both = |key| [enforced(None), enforced(key)];
    assert!(passes(&limits, at(0), &both(1)));
    for _ in 0..10 {
        assert_eq!(ask(&limits, at(0), &both(1)), (false, vec![(1, refused(1000))]));
    }
    assert!(passes(&limits, at(0), &both(2)) && passes(&limits, at(0), &both(3)), "all had what it had");
    assert_eq!(ask(&limits, at(0), &both(1)), (false, vec![(0, refused(100)), (1, refused(1000))]));
    assert!(passes(&limits, at(100), &both(4)));
    assert_eq!(ask(&limits, at(100), &both(5)), (false, vec![(0, refused(100))]));
    assert!(passes(&limits, at(200), &both(5)), "each had what it had");
}

#[test]
fn a_limit_in_shadow_speaks_and_lets_pass() {
    let shadow = json!({ "name": "a", "rate": "1/s", "burst": 1 });
    let other = json!({ "name": "b", "rate": "1/s", "burst": 2 });
    let limits = limits(&[shadow, other]);
    let asks = |mode| [Ask { mode, key: None }, enforced(None)];
    assert_eq!(ask(&limits, at(0), &asks(Mode::Shadow)), (true, vec![]));
    assert_eq!(ask(&limits, at(0), &asks(Mode::Shadow)), (true, vec![(0, refused(1000))]));
    let both = ask(&limits, at(0), &asks(Mode::Shadow));
    assert_eq!(both, (false, vec![(0, refused(1000)), (1, refused(1000))]), "the other was charged");
    assert_eq!(ask(&limits, at(1000), &asks(Mode::Off)), (true, vec![]));
    assert_eq!(ask(&limits, at(1000), &asks(Mode::Shadow)).1, vec![(1, refused(1000))], "off is not charged");
}

#[test]
fn time_that_goes_back_gives_nothing() {
    let limits = limits(&[json!({ "rate": "10/s", "burst": 1, "key": "client_ip", "max_keys": 1 })]);
    assert!(passes(&limits, at(1000), &[enforced(1)]));
    for millis in [900, 0, 1000, 500] {
        assert!(!passes(&limits, at(millis), &[enforced(1)]), "{millis}");
    }
    assert!(passes(&limits, at(1100), &[enforced(1)]));
    assert!(passes(&limits, at(1200), &[enforced(2)]), "the first is idle and forgotten");
    assert!(!passes(&limits, at(1150), &[enforced(2)]));
}

#[test]
fn bytes_are_charged_when_they_have_flowed() {
    let limits = limits(&[json!({ "rate": "1000B/s", "burst": "500B", "key": "client_ip" })]);
    let buckets = Arc::clone(limits.0[0].buckets());
    for _ in 0..10 {
        assert!(passes(&limits, at(0), &[enforced(1)]), "nothing has flowed");
    }
    buckets.charge(Some(1), at(0), 1500);
    let (passes_now, said) = ask(&limits, at(0), &[enforced(1)]);
    let wait = Duration::from_nanos(1_000_000_001);
    assert_eq!((passes_now, said), (false, vec![(0, Said::Refused { wait })]));
    assert!(passes(&limits, at(0), &[enforced(2)]), "it is the debt of one");
    assert!(!passes(&limits, at(1000), &[enforced(1)]) && passes(&limits, at(1001), &[enforced(1)]));
    assert_eq!(limits.0[0].stands(Some(1), at(1250)), (250, Duration::from_millis(250)));
}

#[test]
fn a_reload_keeps_what_was_taken() {
    let keyed = |more: serde_json::Value| {
        let mut all = json!({ "name": "a", "rate": "10/s", "burst": 5, "key": "client_ip" });
        all.as_object_mut().expect("a table").extend(more.as_object().expect("a table").clone());
        settings(all)
    };
    let cases = [
        // why                                      after                                      left of key 1, of key 2
        ("nothing changed", json!({}), 1, 3),
        ("another mode", json!({ "mode": "shadow" }), 1, 3),
        ("a faster rate", json!({ "rate": "1000/s" }), 1, 3),
        ("a slower rate and a larger burst", json!({ "rate": "1/h", "burst": 10 }), 6, 8),
        ("room for more", json!({ "max_keys": 100_000 }), 1, 3),
        ("room for few", json!({ "max_keys": 2, "rate": "7/m" }), 1, 3),
        ("another key begins anew", json!({ "key": "route" }), 5, 5),
        ("so does another unit", json!({ "rate": "10B/s", "burst": "5B" }), 5, 5),
        ("so does another name", json!({ "name": "b" }), 5, 5),
    ];
    for (why, after, first, second) in cases {
        let before = Limits::new(&[keyed(json!({}))], None, start());
        for (key, times) in [(1, 4), (2, 2)] {
            (0..times).for_each(|_| assert!(passes(&before, at(10_000), &[enforced(key)])));
        }
        let after = Limits::new(&[keyed(after)], Some(&before), at(10_000));
        let left = |key| after.0[0].stands(Some(key), at(10_000)).0;
        assert_eq!((left(1), left(2), left(3)), (first, second, after.0[0].settings.burst().get()), "{why}");
    }
    let one = |rate: &str| settings(json!({ "rate": rate, "burst": 5 }));
    let before = Limits::new(&[one("10/s")], None, start());
    assert!(passes(&before, at(0), &[enforced(None)]));
    let after = Limits::new(&[one("1/s")], Some(&before), at(0));
    assert_eq!(after.0[0].stands(None, at(0)), (4, Duration::from_secs(1)), "the common one too");
}

#[test]
fn memory_is_what_the_settings_say() {
    for max_keys in [1, 1000, 10_000, 1_000_000] {
        let settings = settings(json!({ "rate": "1/d", "key": "client_ip", "max_keys": max_keys }));
        let limits = Limits::new(std::slice::from_ref(&settings), None, start());
        let buckets = &limits.0[0].buckets;
        let taken = || -> usize {
            let slots = |shard: &Apart<Shard>| shard.lock().table.memory();
            buckets.shards.iter().map(slots).sum::<usize>() + size_of_val(&*buckets.shards)
        };
        let bound = settings.max_memory();
        assert_eq!(taken(), bound);
        assert!(bound <= 24 * max_keys as usize + 16 * 512, "{bound} bytes for {max_keys} keys");
        let mut key = 0u64;
        let mut own = 0;
        for _ in 0..max_keys + max_keys / 10 {
            key = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let (_, said) = ask(&limits, at(0), &[enforced(key)]);
            own += u64::from(!said.contains(&(0, Said::Shares)));
        }
        assert_eq!((own, buckets.held() as u64), (max_keys, max_keys), "all that were asked for");
        assert_eq!(taken(), bound, "nothing has grown");
    }
}

#[test]
fn workers_together_get_the_rate_and_no_more() {
    let limits = limits(&[
        json!({ "name": "all", "rate": "1/d", "burst": 1000 }),
        json!({ "name": "each", "rate": "1/d", "burst": 300, "key": "client_ip" }),
    ]);
    let worker = |first: u64| {
        let asks = |key| [enforced(None), enforced(key)];
        (0..2000).map(|n| passes(&limits, at(0), &asks((first + n) % 5 + 1))).filter(|passes| *passes).count()
    };
    let passed: usize = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|first| scope.spawn(move || worker(first))).collect();
        workers.into_iter().map(|worker| worker.join().expect("it ends")).sum()
    });
    assert_eq!(passed, 1000);
    let left: u64 = (1..=5).map(|key| limits.0[1].stands(Some(key), at(0)).0).sum();
    assert_eq!(left, 5 * 300 - 1000, "what one refused the other did not charge");
}

#[test]
fn settings_say_what_is_wrong_and_what_to_write() {
    let cases = [
        ("a burst of nothing", json!({ "rate": "1/s", "burst": 0 }), "give at least 1"),
        ("of no bytes", json!({ "rate": "1B/s", "burst": "0B" }), "give at least 1"),
        ("a header without a name", json!({ "rate": "1/s", "key": "header:" }), "\"route\""),
        ("no header", json!({ "rate": "1/s", "key": "header:a b" }), "give \"header:NAME\""),
        ("no key", json!({ "rate": "1/s", "key": "tenant" }), "\"client_ip\" or \"route\""),
        ("no rate", json!({ "rate": "100" }), "such as \"100/s\""),
        ("nothing passes", json!({ "rate": "0/s" }), "give at least 1"),
        ("no name", json!({ "rate": "1/s", "name": "a\"b" }), "give 1 to 63 letters"),
        ("no keys", json!({ "rate": "1/s", "max_keys": 0 }), "from 1 to"),
    ];
    for (why, json, cure) in cases {
        let wrong = serde_json::from_value::<Settings>(json).expect_err(why).to_string();
        assert!(wrong.contains(cure), "{why}: {wrong}");
    }
    let settings = settings(json!({ "rate": "6000/m" }));
    assert_eq!((settings.name.as_str(), settings.burst()), ("default", Amount::Requests(100)));
    assert_eq!(settings.fills_in(), Some(Duration::from_secs(1)));
    assert_eq!(self::settings(json!({ "rate": "1/d", "burst": 4000 })).fills_in(), None);
}

/// What some request asks of two limits: keys of few, so that they meet; and when.
fn some_steps() -> impl Strategy<Value = Vec<(u64, u64, u64)>> {
    prop::collection::vec((0u64..4, 0u64..4, 0u64..400), 1..200)
}

proptest! {
    /// Several limits together: all or nothing, in exact numbers, against buckets that are asked one by one.
    #[test]
    fn several_limits_are_charged_all_or_none(steps in some_steps(), bursts in prop::array::uniform2(1u32..8)) {
        let setting = |name: &str, rate: &str, burst: u32| {
            json!({ "name": name, "rate": rate, "burst": burst, "key": "client_ip" })
        };
        let all = [setting("a", "10/s", bursts[0]), setting("b", "3/s", bursts[1])];
        let limits = limits(&all);
        let terms = limits.0.iter().map(|limit| Terms::new(limit.settings.rate, limit.settings.burst()));
        let terms: Vec<Terms> = terms.collect();
        let mut model = [HashMap::new(), HashMap::new()];
        let mut now = 0;
        for (one, other, step) in steps {
            now += step;
            let nanos = now * 1_000_000;
            let keys = [one + 1, other + 1];
            let full = |model: &HashMap<u64, u64>, key| model.get(&key).copied().unwrap_or(0);
            let may = (0..2).all(|n| terms[n].check(full(&model[n], keys[n]), nanos).is_ok());
            prop_assert_eq!(passes(&limits, at(now), &keys.map(enforced)), may);
            if may {
                for n in 0..2 {
                    let after = terms[n].charge(full(&model[n], keys[n]), nanos);
                    model[n].insert(keys[n], after);
                }
            }
        }
    }

    /// However many keys there are and however few places: no key that has its own bucket gets more than the rate, nor
    /// do all that share one together.
    #[test]
    fn no_key_gets_more_than_its_rate(
        keys in prop::collection::vec((1u64..12, 0u64..60), 1..300), max_keys in 1u32..6,
    ) {
        let limits = limits(&[json!({ "rate": "10/s", "burst": 3, "key": "client_ip", "max_keys": max_keys })]);
        let mut passed: HashMap<Option<u64>, Vec<u64>> = HashMap::new();
        let mut now = 0;
        for (key, step) in keys {
            now += step;
            let (passes, said) = ask(&limits, at(now), &[enforced(key)]);
            if passes {
                let shares = said.contains(&(0, Said::Shares));
                passed.entry((!shares).then_some(key)).or_default().push(now);
            }
        }
        for times in passed.values() {
            for (first, from) in times.iter().enumerate() {
                for (last, to) in times.iter().enumerate().skip(first) {
                    prop_assert!((last - first + 1) as u64 * 100 <= 300 + (to - from), "{times:?}");
                }
            }
        }
        prop_assert!(limits.0[0].buckets.held() <= max_keys as usize);
    }
}
