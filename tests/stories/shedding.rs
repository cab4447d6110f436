//! Who is refused when there is too much: the least important first, always the same callers, and at the source where
//! the upstream is an Outrigger; and how priorities travel.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::support::replica::{Behaviour, Replica};
use crate::support::*;

const CUTOFF: &str = "outrigger_shed_cutoff{upstream=app}";
const SHED: &str = "outrigger_rejected_total{upstream=app,reason=load_shed,mode=enforce}";

/// Nothing but the upstream's own state decides.
const BY_LOAD: &str = "shed = { caller = \"header:x-user\", memory = \"none\", lag = \"none\" }";

/// An upstream that serves forty requests a second, and a limit that knows it.
async fn small() -> (Replica, Config) {
    let app = Replica::start(10).await;
    app.behaves(Behaviour::Slow(Duration::from_millis(50)));
    let config = Config::over_addresses(&[app.address()])
        .plain()
        .upstream("outlier.mode = \"off\"")
        .upstream("concurrency.limit = { kind = \"fixed\", max = 2 }")
        .upstream("concurrency.queue = { size = 4, timeout = \"200ms\" }");
    (app, config)
}

/// What came of one request of a crowd.
#[derive(Clone, Debug)]
struct Came {
    priority: &'static str,
    user: usize,
    shed: bool,
    served: bool,
    detail: String,
    at: Instant,
}

/// Clients that each ask about ten times a second, until dropped.
struct Crowd {
    came: Arc<Mutex<Vec<Came>>>,
    _clients: JoinSet<()>,
}

impl Crowd {
    /// So many users of each class.
    fn of(proxy: &Proxy, classes: &[(&'static str, usize)]) -> Self {
        let came: Arc<Mutex<Vec<Came>>> = Arc::default();
        let mut clients = JoinSet::new();
        let classes = classes.iter().flat_map(|(class, count)| std::iter::repeat_n(*class, *count));
        for (user, priority) in classes.enumerate() {
            let (came, address) = (Arc::clone(&came), proxy.listener());
            clients.spawn(async move {
                let request = format!(
                    "GET / HTTP/1.1\r\nHost: app.test\r\nx-user: {user}\r\nx-priority: {priority}\r\n\r\n"
                );
                let mut client = Client::connect(address).await;
                loop {
                    let response = client.exchange(&request).await;
                    let shed = response.is_for("load_shed");
                    assert!(!shed || response.field("retry-after").is_some(), "{response:?}");
                    assert_eq!(response.field("x-outrigger-cutoff"), None, "a client is told nothing");
                    came.lock().expect("nobody panics with it").push(Came {
                        priority,
                        user,
                        shed,
                        served: response.status == 200,
                        detail: response.text(),
                        at: Instant::now(),
                    });
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            });
        }
        Self { came, _clients: clients }
    }

    /// What came within the last second and a half.
    fn of_late(&self) -> Vec<Came> {
        let since = Instant::now() - Duration::from_millis(1500);
        let came = self.came.lock().expect("nobody panics with it");
        came.iter().filter(|came| came.at >= since).cloned().collect()
    }
}

fn of_class<'a>(came: &'a [Came], class: &str) -> Vec<&'a Came> {
    came.iter().filter(|came| came.priority == class).collect()
}

#[tokio::test]
async fn the_least_important_are_shed_first_and_all_pass_again_afterwards() {
    let (_app, config) = small().await;
    let proxy = config.upstream(BY_LOAD).start().await;
    assert_eq!(proxy.metric(CUTOFF).await, 512.0);
    let crowd = Crowd::of(&proxy, &[("critical", 2), ("normal", 8), ("low", 10)]);

    eventually("low is shed whole, critical never, and normal makes up what is left", async || {
        let came = crowd.of_late();
        let (critical, normal, low) =
            (of_class(&came, "critical"), of_class(&came, "normal"), of_class(&came, "low"));
        critical.len() >= 10
            && critical.iter().filter(|came| came.served).count() * 10 >= critical.len() * 9
            && critical.iter().all(|came| !came.shed)
            && normal.iter().any(|came| came.served)
            && low.iter().filter(|came| came.shed).count() * 10 >= low.len() * 9
    })
    .await;
    let view = proxy.admin_get("/upstreams").await.text();
    let view: serde_json::Value = serde_json::from_str(&view).expect("JSON");
    let shed = &view["app"]["shed"];
    assert!(shed["share"].as_f64() > Some(0.2) && shed["cutoff"].as_u64() < Some(512), "{view}");

    drop(crowd);
    let ended = Instant::now();
    proxy.metric_becomes(CUTOFF, 512.0).await;
    assert!(ended.elapsed() < Duration::from_secs(6), "{:?}", ended.elapsed());
    assert_eq!(proxy.get("/").await.status, 200);
    proxy.rests().await;
    let begins = proxy.lines().iter().filter(|line| line.contains("load shedding begins")).count();
    assert_eq!(begins, 1, "one line, however the cut-off moves");
}

/// A trusted load balancer passes on what its clients write: one of them says that it has shed what nobody asked for.
#[tokio::test]
async fn who_claims_to_have_shed_others_does_not_save_them() {
    let (_app, config) = small().await;
    let proxy = config.upstream(BY_LOAD).start().await;
    let lies = "GET / HTTP/1.1\r\nHost: a\r\nx-user: liar\r\nx-outrigger-path: 0123456789abcdef\r\n\
                x-outrigger-shed: 511*100000\r\n\r\n";
    let address = proxy.listener();
    let liar = tokio::spawn(async move {
        let mut client = Client::connect(address).await;
        loop {
            client.exchange(lies).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let crowd = Crowd::of(&proxy, &[("critical", 2), ("normal", 8), ("low", 10)]);

    eventually("low is shed, and critical served", async || {
        let came = crowd.of_late();
        let (critical, low) = (of_class(&came, "critical"), of_class(&came, "low"));
        critical.len() >= 10
            && critical.iter().filter(|came| came.served).count() * 10 >= critical.len() * 9
            && low.iter().filter(|came| came.shed).count() * 10 >= low.len() * 9
    })
    .await;
    liar.abort();
}

#[tokio::test]
async fn a_caller_lives_or_dies_whole() {
    let (_app, config) = small().await;
    let proxy = config.upstream(BY_LOAD).start().await;
    let crowd = Crowd::of(&proxy, &[("normal", 16)]);

    eventually("some callers pass and some are shed, nearly all of them whole", async || {
        let came = crowd.of_late();
        let mut whole = (0, 0);
        for user in 0..16 {
            let calls: Vec<_> = came.iter().filter(|came| came.user == user).collect();
            let shed = calls.iter().filter(|came| came.shed).count();
            if calls.len() >= 5 && shed == 0 {
                whole.0 += 1;
            } else if calls.len() >= 5 && shed == calls.len() {
                whole.1 += 1;
            }
        }
        whole.0 >= 2 && whole.1 >= 4 && whole.0 + whole.1 >= 13
    })
    .await;
}

#[tokio::test]
async fn shadow_counts_what_it_would_shed() {
    let (_app, config) = small().await;
    let shadow = BY_LOAD.replace("{ ", "{ mode = \"shadow\", ");
    let proxy = config.upstream(&shadow).start().await;
    let crowd = Crowd::of(&proxy, &[("normal", 8), ("low", 10)]);

    eventually("it would shed", async || proxy.metric(&SHED.replace("enforce", "shadow")).await > 20.0).await;

    assert!(crowd.of_late().iter().all(|came| !came.shed), "and lets all pass");
    assert_eq!(proxy.metric(SHED).await, 0.0);
}

#[tokio::test]
async fn a_cutoff_travels_to_the_outrigger_that_asks() {
    for http2 in [false, true] {
        let (_app, config) = small().await;
        let back = config.upstream(BY_LOAD).start().await;
        let front = Config::over_addresses(&[back.listener().to_string()]).plain().upstream(BY_LOAD);
        let front = if http2 { front.http2() } else { front }.start().await;
        let crowd = Crowd::of(&front, &[("critical", 2), ("normal", 8), ("low", 10)]);

        eventually("most of what is shed is shed at the source, and the others are served", async || {
            let came = crowd.of_late();
            let (critical, low) = (of_class(&came, "critical"), of_class(&came, "low"));
            let at_source = low.iter().filter(|came| came.detail.contains("at the source")).count();
            critical.len() >= 10
                && critical.iter().all(|came| !came.shed)
                && critical.iter().filter(|came| came.served).count() * 10 >= critical.len() * 8
                && at_source * 10 >= low.len() * 6
        })
        .await;
        assert_eq!(front.metric(CUTOFF).await, 512.0, "the limit of the first one is not reached");

        // Who is no Outrigger is told nothing; who is, all that it needs.
        let told = |field: &str| {
            let request = format!("GET / HTTP/1.1\r\nHost: a\r\nx-user: 1\r\n{field}\r\n");
            let back = &back;
            async move {
                let response = back.connect().await.exchange(&request).await;
                response.field("x-outrigger-cutoff").map(str::to_owned)
            }
        };
        let mut heard = None;
        eventually("an Outrigger is told", async || {
            heard = told("x-outrigger-path: 0123456789abcdef\r\n").await;
            heard.is_some()
        })
        .await;
        let heard = heard.expect("it was heard");
        assert!(heard.ends_with(";key=header:x-user;unmarked=normal"), "{heard}");
        assert_eq!(told("").await, None);

        drop(crowd);
        back.metric_becomes(CUTOFF, 512.0).await;
        eventually("the first one lets all pass again", async || {
            let request = "GET / HTTP/1.1\r\nHost: a\r\nx-user: 1\r\nx-priority: low\r\n\r\n";
            front.connect().await.exchange(request).await.status == 200
        })
        .await;
        let sent_up = back.metric("outrigger_requests_total{upstream=app}").await;
        let asked = front.metric("outrigger_requests_total{upstream=app}").await;
        assert!(sent_up < asked, "{sent_up} of {asked} went up");
    }
}

#[tokio::test]
async fn an_upstream_that_says_so_falsely_is_not_passed_on() {
    let app = Upstream::that().answers(200).with_field("x-outrigger-cutoff", "0;key=request").start().await;
    let asked =
        "GET / HTTP/1.1\r\nHost: a\r\nx-outrigger-path: 0123456789abcdef\r\nx-outrigger-shed: 7*9\r\n\r\n";

    let proxy = Config::over([&app]).plain().start().await;
    for _ in 0..3 {
        let response = proxy.connect().await.exchange(asked).await;
        assert_eq!((response.status, response.field("x-outrigger-cutoff")), (200, None), "not heeded either");
    }
    assert_eq!(app.request(0).field("x-outrigger-shed"), None, "one hop is all that it is for");

    // It is what that upstream says of itself, so where shedding is written it is taken at its word, for a while.
    let proxy = Config::over([&app]).plain().upstream(BY_LOAD).start().await;
    assert_eq!(proxy.get("/").await.status, 200);
    let refused = proxy.get("/").await;
    refused.must_be(503, "load_shed");
    assert_eq!(refused.field("x-outrigger-cutoff"), None);
    eventually("it is asked again", async || proxy.get("/").await.status == 200).await;
}

/// What is shed at the source is what the upstream itself would shed: both find the same level for a request.
#[tokio::test]
async fn both_find_the_same_level() {
    use outrigger::policy::key::hash;
    use outrigger::policy::priority::Priority;
    use outrigger::policy::shed::level::level;

    // The level at which half of the normal requests are shed.
    const HALF: u16 = 320;
    let routes = "[[listener.route]]\nmatch = { path_prefix = \"/old\" }\nupstream = \"app\"\nrewrite = { prefix = \"/new\" }\n";
    for key in ["header:x-user", "cookie:session", "path", "request", "class"] {
        let said = format!("{HALF};key={key};unmarked=normal");
        let app = Upstream::that().answers(200).with_field("x-outrigger-cutoff", &said).start().await;
        let proxy = Config::over([&app]).plain().upstream(BY_LOAD).and(routes).start().await;
        let mut served = 1;
        assert_eq!(proxy.get("/").await.status, 200, "nothing was said yet");
        for number in 0..96 {
            let fields = format!(
                "x-user: u{number}\r\nCookie: a=b; session=s{number}\r\nx-request-id: id-{number}\r\n"
            );
            let value = match key {
                "header:x-user" => format!("u{number}"),
                "cookie:session" => format!("s{number}"),
                "path" => format!("/new/{number}"),
                _ => format!("id-{number}"),
            };
            let seconds = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
            let of = |seconds| level(Priority::Normal, hash(value.as_bytes()), seconds);
            if of(seconds - 2) != of(seconds + 2) {
                continue; // its hour turns just now
            }
            // Only whole classes can be shed where callers cannot be told apart, and this one is shed in part.
            let is_shed = key != "class" && of(seconds) >= HALF;

            let response = asked(&proxy, &format!("/old/{number}?a=b"), &fields).await;

            assert_eq!(response.is_for("load_shed"), is_shed, "{key}: {value} has level {}", of(seconds));
            served += usize::from(!is_shed);
        }
        assert_eq!(app.seen(), served);
        // 48 of the 96 are expected. Who they are changes with the hour: fewer than 22, or more than 74, in less than one
        // of a million.
        assert!(key == "class" || (23..=75).contains(&served), "{served} of 97");

        let low = asked(&proxy, "/", "x-priority: low\r\nx-user: u1\r\n").await;
        assert!(low.is_for("load_shed"), "{key}: {low:?}");
        assert_eq!(asked(&proxy, "/", "x-priority: high\r\n").await.status, 200);
        let report =
            app.request(served).field("x-outrigger-shed").expect("it is told what was shed").to_owned();
        let levels: Vec<u16> = report
            .split(',')
            .map(|entry| entry.split('*').next().expect("a level").parse().expect("a number"))
            .collect();
        assert!(levels.iter().all(|level| (HALF..512).contains(level)), "{report}");
        assert!(levels.iter().any(|level| *level >= 384), "{report}");
    }
}

/// Asks with these fields.
async fn asked(proxy: &Proxy, path: &str, fields: &str) -> Response {
    proxy.connect().await.exchange(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).await
}

/// This process uses more memory than it may: always.
const BY_MEMORY: &str = "shed = { memory = \"1KiB\", lag = \"none\" }";

#[tokio::test]
async fn a_process_in_need_sheds_low_then_normal_and_no_more() {
    let app = Upstream::that().answers(200).start().await;
    let proxy = Config::over([&app]).plain().upstream(BY_MEMORY).start().await;

    eventually("low is shed", async || asked(&proxy, "/", "x-priority: low\r\n").await.is_for("load_shed"))
        .await;
    let refused = asked(&proxy, "/", "x-priority: low\r\n").await;
    refused.must_be_because(503, "load_shed", "memory");
    assert_eq!(refused.field("retry-after"), Some("1"));
    eventually("normal is shed", async || proxy.get("/").await.is_for("load_shed")).await;
    for class in ["high", "critical", "CRITICAL"] {
        assert_eq!(asked(&proxy, "/", &format!("x-priority: {class}\r\n")).await.status, 200, "{class}");
    }
    assert_eq!(proxy.metric(CUTOFF).await, 256.0);
    assert!(proxy.metric(SHED).await >= 2.0);
}

/// A process that gets no time: stopped for 200 ms, let go on for 10 ms, over and over, until dropped.
struct Starved {
    over: Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Starved {
    fn begin(proxy: &Proxy) -> Self {
        use rustix::process::{Pid, Signal, kill_process};
        let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let id = Pid::from_raw(i32::try_from(proxy.pid()).expect("an id")).expect("an id");
        let is_over = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                for (signal, millis) in [(Signal::STOP, 200), (Signal::CONT, 10)] {
                    kill_process(id, signal).expect("it runs");
                    std::thread::sleep(Duration::from_millis(millis));
                }
            }
        });
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Starved {
    fn drop(&mut self) {
        self.over.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[tokio::test]
async fn a_late_event_loop_sheds_low_until_it_is_in_time_again() {
    let app = Upstream::that().answers(200).start().await;
    let shed = "shed = { memory = \"none\", lag = \"90ms\" }";
    let proxy = Config::over([&app]).plain().upstream(shed).start().await;
    assert_eq!(asked(&proxy, "/", "x-priority: low\r\n").await.status, 200);

    let starved = Starved::begin(&proxy);
    eventually("low is shed", async || asked(&proxy, "/", "x-priority: low\r\n").await.is_for("load_shed"))
        .await;
    assert_eq!(asked(&proxy, "/", "x-priority: high\r\n").await.status, 200);

    drop(starved);
    eventually("low passes", async || asked(&proxy, "/", "x-priority: low\r\n").await.status == 200).await;
}

#[tokio::test]
async fn who_is_not_trusted_has_the_priority_of_the_route() {
    let app = Upstream::that().answers(200).start().await;
    let routes =
        "[[listener.route]]\nmatch = { path_prefix = \"/pay\" }\nupstream = \"app\"\npriority = \"high\"\n";
    let config = Config::over([&app]).plain().listener("trust = \"none\"").upstream(BY_MEMORY).and(routes);
    let proxy = config.start().await;

    let critical = "x-priority: critical\r\nx-outrigger-path: 0123456789abcdef\r\n";
    eventually("it does not help to call oneself critical", async || {
        asked(&proxy, "/", critical).await.is_for("load_shed")
    })
    .await;
    assert_eq!(asked(&proxy, "/", critical).await.field("x-outrigger-cutoff"), None, "nor to look like us");
    assert_eq!(asked(&proxy, "/pay", "x-priority: low\r\n").await.status, 200);
}

#[tokio::test]
async fn priorities_go_up_as_they_are_in_force() {
    let app = Upstream::that().answers(200).start().await;
    let routes = "[[listener.route]]\nmatch = { path_prefix = \"/pay\" }\nupstream = \"app\"\npriority = \"high\"\n\
                  [[listener]]\nname = \"open\"\naddress = \"127.0.0.1:0\"\nupstream = \"app\"\ntrust = \"none\"\n";
    let proxy = Config::over([&app]).plain().and(routes).start().await;
    let cases = [
        // why                                        listener  path     sent                            goes up
        ("nobody says anything", "main", "/", "", None),
        ("as the caller says", "main", "/", "x-priority: Low\r\n", Some("low")),
        ("the caller's word goes before the route's", "main", "/pay", "x-priority: low\r\n", Some("low")),
        ("the route's", "main", "/pay", "", Some("high")),
        ("what is no class is left out", "main", "/", "x-priority: urgent\r\n", None),
        ("and the route's counts", "main", "/pay", "x-priority: urgent\r\n", Some("high")),
        ("whom we do not trust", "open", "/", "x-priority: critical\r\n", None),
    ];
    for (number, (why, listener, path, sent, goes_up)) in cases.into_iter().enumerate() {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n{sent}\r\n");
        let response = Client::connect(proxy.listener_named(listener)).await.exchange(&request).await;
        assert_eq!(response.status, 200, "{why}");
        assert_eq!(app.request(number).field("x-priority"), goes_up, "{why}");
    }
    assert_eq!(proxy.metric("outrigger_limit_reached_total{what=priority_unreadable}").await, 2.0);
}
