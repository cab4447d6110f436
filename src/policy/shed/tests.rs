//! The whole of it under made-up time: callers of all classes, an upstream that can do so much, and what must hold.

use proptest::prelude::*;

use super::source::{By, Said, Source, reported};
use super::*;
use crate::policy::priority::Priority;
use crate::policy::start;

/// Callers that ask an upstream of some capacity, tick by tick. Nobody waits: what finds no slot is refused.
struct Scene {
    shed: Shed,
    settings: Settings,
    now: Instant,
    seconds: u64,
    health: Health,
    /// Requests that complete in a tick, and how many may be in flight.
    capacity: u32,
    limit: u32,
}

/// What became of a tick's requests, by their place in it.
struct Ticked {
    /// Level, and whether it passed the shedding.
    asked: Vec<(u16, bool)>,
    completed: u32,
    change: Option<Change>,
}

impl Scene {
    fn new(capacity: u32) -> Self {
        let settings = Settings::default();
        let seconds = 1_764_547_200;
        let shed = Shed::new(start(), seconds);
        Self { shed, settings, now: start(), seconds, health: Health::default(), capacity, limit: 20 }
    }

    /// Half a second in which these come: class and caller.
    fn tick(&mut self, requests: impl IntoIterator<Item = (Priority, u64)>) -> Ticked {
        let mut ticked = Ticked { asked: Vec::new(), completed: 0, change: None };
        let shadow = self.settings.mode == Mode::Shadow;
        for (class, caller) in requests {
            let level = level::level(class, caller, self.shed.seconds());
            let passes = self.shed.admit(level).is_ok();
            ticked.asked.push((level, passes));
            if !passes && !shadow {
                continue;
            }
            if !passes {
                self.shed.passed();
            }
            if ticked.completed < self.capacity {
                self.shed.completed();
                ticked.completed += 1;
            } else {
                self.shed.refused();
            }
        }
        self.now += TICK;
        self.seconds += 1;
        let in_flight = (ticked.completed * self.limit / self.capacity).min(self.limit);
        let gate = || (in_flight, self.limit, 0);
        ticked.change = self.shed.tick((self.now, self.seconds), &self.settings, gate, || self.health);
        ticked
    }
}

/// `count` requests of as many callers: a fifth of them critical, a fifth each high and low, the rest normal.
fn crowd(count: u64) -> impl Iterator<Item = (Priority, u64)> + Clone {
    (0..count).map(|id| {
        let class = [Priority::Critical, Priority::High, Priority::Normal, Priority::Normal, Priority::Low];
        (class[(id % 5) as usize], hash(id / 5))
    })
}

fn hash(id: u64) -> u64 {
    crate::policy::key::hash(&id.to_le_bytes())
}

fn shares(ticked: &Ticked, class: Priority) -> f64 {
    let of_class = |level: u16| usize::from(level / level::PLACES) == class.rank();
    let asked: Vec<_> = ticked.asked.iter().filter(|(level, _)| of_class(*level)).collect();
    asked.iter().filter(|(_, passes)| *passes).count() as f64 / asked.len() as f64
}

#[test]
fn in_twice_too_much_the_important_pass_and_the_rest_fills_the_capacity() {
    let mut scene = Scene::new(400);
    for _ in 0..8 {
        scene.tick(crowd(800));
    }
    for _ in 0..20 {
        let ticked = scene.tick(crowd(800));
        assert_eq!(shares(&ticked, Priority::Critical), 1.0);
        assert_eq!(shares(&ticked, Priority::High), 1.0);
        assert_eq!(shares(&ticked, Priority::Low), 0.0);
        let normal = shares(&ticked, Priority::Normal);
        assert!((0.1..0.4).contains(&normal), "{normal} of the normal ones pass");
        assert!(ticked.completed > 370, "{} of 400", ticked.completed);
    }
}

#[test]
fn a_caller_lives_or_dies_whole() {
    let mut scene = Scene::new(50);
    for _ in 0..10 {
        scene.tick(crowd(100));
    }
    // Ten calls of each of a hundred callers.
    let calls = (0..10).flat_map(|_| (0..100).map(|id| (Priority::Normal, hash(id))));
    let ticked = scene.tick(calls);
    let mut whole = std::collections::BTreeMap::new();
    for (place, (_, passes)) in ticked.asked.iter().enumerate() {
        whole.entry(place % 100).or_insert_with(Vec::new).push(*passes);
    }
    assert!(whole.values().all(|calls| calls.iter().all(|passes| *passes == calls[0])));
    let through = whole.values().filter(|calls| calls[0]).count();
    assert!((1..100).contains(&through), "{through}");
}

#[test]
fn beginning_and_end_are_told_once() {
    let mut scene = Scene::new(100);
    let mut changes = Vec::new();
    let mut run = |count, ticks| (0..ticks).for_each(|_| changes.extend(scene.tick(crowd(count)).change));
    for _ in 0..3 {
        run(300, 10);
        run(50, 8);
    }
    run(50, 20);
    assert!(matches!(changes[0], Change::Began { own: false, .. }), "{changes:?}");
    assert!(matches!(changes[1], Change::Ended { shed: 1000.., after } if after > TICK * 45), "{changes:?}");
    assert_eq!(changes.len(), 2);
}

#[test]
fn in_shadow_as_much_would_be_shed_and_nothing_is() {
    let mut scene = Scene::new(100);
    scene.settings.mode = Mode::Shadow;
    for _ in 0..60 {
        scene.tick(crowd(200));
    }
    let ticked = scene.tick(crowd(200));
    let would_pass = ticked.asked.iter().filter(|(_, passes)| *passes).count();
    assert!((85..=115).contains(&would_pass), "{would_pass} of 200");
    assert_eq!(ticked.completed, 100, "the upstream is as full as before");
}

#[test]
fn own_need_sheds_what_matters_least_whatever_the_upstream_does() {
    let mut scene = Scene::new(1000);
    let shares_at = |health, scene: &mut Scene, ticks| {
        scene.health = health;
        let last = (0..ticks).map(|_| scene.tick(crowd(100))).last().expect("some ticks");
        Priority::ALL.map(|class| shares(&last, class))
    };
    let lag = |millis| Health { lag: Duration::from_millis(millis), ..Health::default() };
    let memory = |share| Health { memory: 1, memory_share: share, ..Health::default() };
    assert_eq!(shares_at(lag(49), &mut scene, 3), [1.0, 1.0, 1.0, 1.0]);
    assert_eq!(shares_at(lag(50), &mut scene, 2), [1.0, 1.0, 1.0, 0.0]);
    assert_eq!((scene.shed.admit(383).is_ok(), scene.shed.admit(384).is_ok()), (true, false));
    assert_eq!(shares_at(memory(0.901), &mut scene, 20), [1.0, 1.0, 0.0, 0.0], "it goes on");
    assert_eq!(scene.shed.admit(500), Err(Refusal { own: true, retry_after: TICK }));
    assert_eq!(shares_at(memory(0.1), &mut scene, 6), [1.0, 1.0, 1.0, 1.0]);

    scene.settings.memory = Memory::Size(Size::from_bytes(64));
    assert_eq!(shares_at(Health { memory: 65, ..Health::default() }, &mut scene, 2), [1.0, 1.0, 1.0, 0.0]);
    assert_eq!(shares_at(Health::default(), &mut scene, 6), [1.0; 4], "nothing known, nothing shed");
    scene.settings.memory = Memory::Share(Ratio::ONE);
    let no_limit = Health { memory: 1 << 40, memory_share: 0.0, ..Health::default() };
    assert_eq!(shares_at(no_limit, &mut scene, 6), [1.0; 4], "no limit of which it could be a share");
    scene.settings = Settings { memory: Memory::None, lag: OrNone(None), ..Settings::default() };
    assert_eq!(
        shares_at(Health { memory: 1 << 40, memory_share: 1.0, ..lag(1000) }, &mut scene, 6),
        [1.0; 4],
        "both are off"
    );
}

#[test]
fn a_mode_that_is_off_lets_go() {
    let mut scene = Scene::new(50);
    for _ in 0..6 {
        scene.tick(crowd(200));
    }
    assert!(scene.shed.cutoff() < LEVELS);
    scene.settings.mode = Mode::Off;
    scene.tick(crowd(200));
    assert_eq!(scene.shed.cutoff(), LEVELS);
}

#[test]
fn a_tick_comes_when_its_time_has_come() {
    let scene = Scene::new(50);
    let (now, health) = (scene.now, Health::default());
    let asked = std::cell::Cell::new(0);
    for millis in [0, 499, 500, 501, 900, 1000] {
        let gate = || {
            asked.set(asked.get() + 1);
            (0, 10, 0)
        };
        scene.shed.tick((now + Duration::from_millis(millis), 7), &scene.settings, gate, || health);
    }
    assert_eq!(asked.get(), 2);
    assert_eq!(scene.shed.seconds(), 7);
}

proptest! {
    /// In one tick nothing passes that matters less than what is shed: so no class loses a request while one below it
    /// passes, critical least of all.
    #[test]
    fn nothing_less_important_passes_than_what_is_shed(
        ticks in prop::collection::vec((0u64..600, 1u32..300, 0.0..2.0f64), 1..30), shadow: bool
    ) {
        let mut scene = Scene::new(100);
        scene.settings.mode = if shadow { Mode::Shadow } else { Mode::Enforce };
        for (count, capacity, lag) in ticks {
            scene.capacity = capacity;
            scene.health.lag = Duration::from_millis(50).mul_f64(lag);
            let ticked = scene.tick(crowd(count));
            let least_shed = ticked.asked.iter().filter(|(_, passes)| !passes).map(|(level, _)| *level).min();
            let most_passed = ticked.asked.iter().filter(|(_, passes)| *passes).map(|(level, _)| *level).max();
            if let (Some(shed), Some(passed)) = (least_shed, most_passed) {
                prop_assert!(passed < shed, "{passed} passed, {shed} was shed");
            }
        }
    }

    /// However long and hard the overload was: within five seconds after it, with less traffic or none, all pass.
    #[test]
    fn all_pass_again_within_five_seconds(
        capacity in 20u32..500, factor in 1.2..20.0f64, ticks in 1usize..40, after in 0.0..0.8f64
    ) {
        let mut scene = Scene::new(capacity);
        for _ in 0..ticks {
            scene.tick(crowd((f64::from(capacity) * factor) as u64));
        }
        for _ in 0..9 {
            scene.tick(crowd((f64::from(capacity) * after) as u64));
        }
        prop_assert_eq!(scene.shed.cutoff(), LEVELS);
    }

    /// What is said of a cut-off is understood.
    #[test]
    fn a_cutoff_is_read_as_it_was_written(cutoff in 0..=LEVELS, key in 0usize..6, rank in 0usize..4) {
        let keys = ["header:x-user", "cookie:session", "path", "client_ip"];
        let by = match key {
            0 => By::Request,
            1 => By::Class,
            key => By::Key(Key::try_from(keys[key - 2].to_owned()).expect("a key")),
        };
        let said = Said { cutoff, by, unmarked: Priority::ALL[rank] };
        prop_assert_eq!(Said::parse(said.text().as_bytes()), Some(said));
    }

    /// Whatever stands in the fields, reading it panics never and yields levels that exist.
    #[test]
    fn any_text_of_a_peer_is_read(text in "\\PC{0,60}", numbers in "[0-9*,;= a-z:]{0,60}") {
        for text in [text, numbers] {
            let said = Said::parse(text.as_bytes());
            prop_assert!(said.is_none_or(|said| said.cutoff <= LEVELS));
            prop_assert!(reported(text.as_bytes()).all(|(level, _)| level < LEVELS));
            Source::default().hear(Some(text.as_bytes()), start());
        }
    }
}

#[test]
fn what_a_peer_says_is_read_or_left() {
    let key = |text: &str| By::Key(Key::try_from(text.to_owned()).expect("a key"));
    let cases = [
        // why                             value                                         cut-off, by, unmarked
        (
            "all of it",
            "301;key=header:x-user;unmarked=normal",
            Some((301, key("header:x-user"), Priority::Normal)),
        ),
        ("with space", " 0 ; key=path", Some((0, key("path"), Priority::Critical))),
        ("a cut-off alone is of classes", "256", Some((256, By::Class, Priority::Critical))),
        ("more than we know", "256;key=request;pace=7", Some((256, By::Request, Priority::Critical))),
        ("beyond all levels", "513", None),
        ("no number", "x;key=path", None),
        ("no key", "1;key=query:a", None),
        ("no class", "1;unmarked=urgent", None),
        ("nothing", "", None),
    ];
    for (why, value, expected) in cases {
        let expected = expected.map(|(cutoff, by, unmarked)| Said { cutoff, by, unmarked });
        assert_eq!(Said::parse(value.as_bytes()), expected, "{why}");
    }
    let read = |value: &str| reported(value.as_bytes()).collect::<Vec<_>>();
    assert_eq!(read("400*3,417, 511*2"), [(400, 3), (417, 1), (511, 2)]);
    assert_eq!(read("512,x,3*y,-1,7"), [(7, 1)]);
    assert_eq!(read("1*12,2*4000000000,3*5"), [(1, 12), (2, 7), (3, 0)], "it speaks for nineteen others");
    assert_eq!(read("1*4294967296,2*5"), [(2, 5)], "no number of ours");
    assert_eq!(read(&"1,".repeat(100)).len(), 16);
}

fn after(millis: u64) -> Instant {
    start() + Duration::from_millis(millis)
}

/// Why, what was said at which millisecond, and the cut-off in force at another.
type Case<'a> = (&'a str, Vec<(u64, Option<&'a str>)>, u64, Option<u16>);

/// The cut-off that is in force after these words at these milliseconds, at the last time.
fn heard(words: &[(u64, Option<&str>)], at: u64) -> Option<u16> {
    let source = Source::default();
    words.iter().for_each(|(at, word)| source.hear(word.map(str::as_bytes), after(*at)));
    source.said(after(at)).map(|said| said.cutoff)
}

#[test]
fn news_is_believed_for_two_seconds_and_the_mildest_counts() {
    let said = |cutoff| {
        Some(match cutoff {
            100 => "100;key=path",
            200 => "200;key=path",
            300 => "300;key=path",
            _ => "512;key=path",
        })
    };
    let cases: Vec<Case<'_>> = vec![
        ("nothing was said", vec![(0, None)], 0, None),
        ("said", vec![(0, said(200))], 0, Some(200)),
        ("still believed", vec![(0, said(200))], 2000, Some(200)),
        ("too old", vec![(0, said(200))], 2001, None),
        ("milder", vec![(0, said(200)), (10, said(300))], 20, Some(300)),
        ("harder, but another endpoint may be milder", vec![(0, said(200)), (10, said(100))], 20, Some(200)),
        ("harder in the next half", vec![(0, said(300)), (1000, said(100))], 1000, Some(300)),
        ("harder after a silence", vec![(0, said(300)), (2000, said(100))], 2000, Some(100)),
        ("harder for a while", vec![(0, said(200)), (1000, said(100)), (2000, said(100))], 2000, Some(100)),
        ("an answer that says nothing sheds nothing", vec![(0, said(200)), (10, None)], 20, None),
        (
            "of two endpoints one sheds nothing",
            vec![
                (0, None),
                (10, said(200)),
                (20, None),
                (900, said(200)),
                (950, None),
                (1800, said(200)),
                (1850, None),
                (2700, said(200)),
            ],
            2700,
            None,
        ),
        (
            "the other one is gone",
            vec![(0, said(200)), (10, None), (1020, said(200)), (2030, said(200))],
            2030,
            Some(200),
        ),
        ("told that it has ended", vec![(0, said(200)), (10, said(512))], 20, None),
        (
            "callers are told apart by another key",
            vec![(0, said(300)), (10, Some("100;key=request"))],
            20,
            Some(100),
        ),
        ("what cannot be read says nothing", vec![(0, said(200)), (10, Some("x"))], 20, None),
        ("only whole classes can be told apart", vec![(0, Some("257;key=class"))], 0, Some(384)),
        ("a whole class", vec![(0, Some("256;key=class"))], 0, Some(256)),
        ("a part of the last class", vec![(0, Some("400;key=class"))], 0, None),
    ];
    for (why, words, at, cutoff) in cases {
        assert_eq!(heard(&words, at), cutoff, "{why}");
    }
}

#[test]
fn the_most_important_class_counts_for_what_has_none() {
    let source = Source::default();
    source.hear(Some(b"300;key=path;unmarked=normal"), after(0));
    source.hear(Some(b"300;key=path;unmarked=critical"), after(10));
    source.hear(Some(b"300;key=path;unmarked=low"), after(20));
    assert_eq!(source.said(after(30)).map(|said| said.unmarked), Some(Priority::Critical));
    source.hear(Some(b"300;key=path;unmarked=low"), after(3000));
    assert_eq!(source.said(after(3000)).map(|said| said.unmarked), Some(Priority::Low), "later news");
}

#[test]
fn what_was_shed_at_the_source_is_reported_once() {
    let source = Source::default();
    let report = || source.report();
    assert_eq!(report(), None);
    [400, 417, 400, 400].into_iter().for_each(|level| source.shed(level));
    assert_eq!(report().as_deref(), Some("400*3,417"));
    assert_eq!(report(), None);
    (0..100).for_each(|level| source.shed(level));
    let text = report().expect("there is one");
    let mut told: Vec<Vec<_>> = vec![reported(text.as_bytes()).collect()];
    told.extend(std::iter::from_fn(report).map(|text| reported(text.as_bytes()).collect()));
    let counts: Vec<u32> = told.iter().map(|one| one.iter().map(|(_, count)| count).sum()).collect();
    assert_eq!(counts, [19, 19, 19, 19, 19, 5], "what one may not speak for waits for the next one");
    assert_eq!(told[0].len(), 16, "{text}");

    source.hear(Some(b"301;key=request"), start());
    source.shed(400);
    source.hear(Some(b"512;key=request"), start());
    assert_eq!(report(), None, "it is over");
}

/// A trusted load balancer passes on what its clients write. One of ten of them lies with each request.
#[test]
fn a_report_that_is_a_lie_does_not_end_the_shedding() {
    let mut scene = Scene::new(200);
    for number in 0..60 {
        (0..50).for_each(|_| scene.shed.shed_at_the_source(b"511*100000,0*4294967295"));
        let ticked = scene.tick(crowd(500));
        if number >= 20 {
            let passed = ticked.asked.iter().filter(|(_, passes)| *passes).count();
            assert!((150..250).contains(&passed), "{passed} of 500 passed, where 200 can be served");
        }
    }
    for _ in 0..12 {
        scene.tick(crowd(100));
    }
    assert_eq!(scene.shed.cutoff(), LEVELS);
    (0..50).for_each(|_| scene.shed.shed_at_the_source(b"0*19"));
    scene.tick(crowd(500));
    let share = scene.shed.state.lock().expect("nobody panics with it").share.get();
    assert!(share > 0.2 && (1..LEVELS).contains(&scene.shed.cutoff()), "nobody was told a cut-off: {share}");
}

/// Two Outriggers in a row: what the first sheds at the source never reaches the second, which must not take that for
/// the end of its overload.
#[test]
fn shedding_at_the_source_does_not_swing() {
    let mut scene = Scene::new(200);
    let source = Source::default();
    let tick = |arriving: u64, scene: &mut Scene| {
        let (mut sent, mut saved, mut completed) = (0, 0, 0);
        for (place, (class, caller)) in crowd(arriving).enumerate() {
            let now = scene.now + TICK.mul_f64(place as f64 / arriving as f64);
            let level = level::level(class, caller, scene.shed.seconds());
            if source.said(now).is_some_and(|said| level >= said.cutoff) {
                source.shed(level);
                saved += 1;
                continue;
            }
            sent += 1;
            if let Some(report) = source.report() {
                scene.shed.shed_at_the_source(report.as_bytes());
            }
            if scene.shed.admit(level).is_ok() {
                if completed < scene.capacity {
                    completed += 1;
                    scene.shed.completed();
                } else {
                    scene.shed.refused();
                }
            }
            let said = Said { cutoff: scene.shed.cutoff(), by: By::Request, unmarked: Priority::Normal };
            let said = (said.cutoff < LEVELS).then(|| said.text());
            source.hear(said.as_deref().map(str::as_bytes), now);
        }
        scene.now += TICK;
        let in_flight = completed * 20 / scene.capacity;
        let gate = || (in_flight, 20, 0);
        scene.shed.tick((scene.now, scene.seconds), &scene.settings, gate, Health::default);
        (sent, saved, completed)
    };
    for _ in 0..10 {
        tick(500, &mut scene);
    }
    for _ in 0..60 {
        let (sent, saved, completed) = tick(500, &mut scene);
        assert!(completed > 150, "{completed} of 200 at {}", scene.shed.cutoff());
        assert!((150..320).contains(&sent), "{sent} were sent");
        assert!(saved > 180, "{saved} of some 300 were shed at the source");
    }
    for _ in 0..11 {
        tick(100, &mut scene);
    }
    assert_eq!(scene.shed.cutoff(), LEVELS);
    assert_eq!(tick(100, &mut scene).1, 0, "nobody is shed at the source any more");
}
