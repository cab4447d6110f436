//! What discovery knows of one upstream, and the list of endpoints that comes of it. Pure, as `names` is.
//!
//! **Weights and priorities of SRV** (RFC 2782) become ours. Weights keep their proportions, in lowest terms (10 and 20
//! become 1 and 2); where one is still above 1000, all are scaled so that the largest is 1000. 0 is "a very small chance":
//! beside others it becomes 1 and the largest 1000; where all are 0, all are equal. Priorities become ranks: the lowest is
//! 0, the next one 1, and what is beyond 9 is 9.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::names::{Addresses, Answer, Names, Question, Records, Service, Told};
use super::{Found, MAX_ENDPOINTS, Settings};
use crate::upstream::endpoint::{self, Address, Socket};

/// What discovery knows of one upstream.
#[derive(Clone, Debug)]
pub struct Known {
    settings: Settings,
    written: Vec<endpoint::Settings>,
    names: Names,
    /// What the file lists; none before it was read.
    listed: Option<Vec<endpoint::Settings>>,
    /// Whether the file was looked at, and what was wrong with it then.
    list_error: Option<String>,
    was_listed: bool,
    /// The list that [`Known::compose_changed`] made last.
    last: Option<Composed>,
}

/// The list of endpoints that comes of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Composed {
    /// Those that can be connected.
    pub found: Vec<Found>,
    /// Names without an address, and why.
    pub unresolved: Vec<(Address, String)>,
    /// How many there are beyond [`MAX_ENDPOINTS`].
    pub left_out: usize,
}

impl Known {
    /// For an upstream with these settings. What `previous` knows, that of the same upstream before a reload, stays as
    /// far as it is asked for still.
    pub fn new(
        settings: &Settings,
        written: &[endpoint::Settings],
        previous: Option<&Known>,
        now: Instant,
    ) -> Self {
        let mut known = Self {
            settings: settings.clone(),
            written: written.to_vec(),
            names: previous.map(|previous| previous.names.clone()).unwrap_or_default(),
            listed: previous.and_then(|previous| previous.listed.clone()),
            list_error: None,
            was_listed: previous
                .is_some_and(|previous| previous.was_listed && previous.path() == settings.path()),
            last: None,
        };
        if !matches!(settings, Settings::File { .. }) {
            known.listed = None;
        }
        known.want(now);
        if previous.is_some_and(|previous| previous.settings.server() != settings.server()) {
            known.names.ask_again(now);
        }
        known
    }

    /// Whether there is anything that changes by itself.
    pub fn changes(&self) -> bool {
        self.settings.brings_endpoints() || self.written.iter().any(|entry| entry.address.name().is_some())
    }

    /// What the configuration says.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The names.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Whether the file has to be read, and each name to be asked, a first time.
    pub fn is_new(&self) -> bool {
        self.wants_list() || !self.names.unasked().is_empty()
    }

    /// Whether the file has not been read yet.
    pub fn wants_list(&self) -> bool {
        matches!(self.settings, Settings::File { .. }) && !self.was_listed
    }

    /// Learns what the file lists, or why it cannot be read; then what it listed before stays.
    pub fn list(&mut self, list: Result<Vec<endpoint::Settings>, String>, now: Instant) -> Told {
        let before = self.list_error.take();
        self.was_listed = true;
        match list {
            Ok(list) => {
                self.listed = Some(list);
                self.want(now);
                if before.is_some() { Told::Recovered } else { Told::Nothing }
            }
            Err(why) if before.as_ref() == Some(&why) => {
                self.list_error = Some(why);
                Told::Nothing
            }
            Err(why) => {
                self.list_error = Some(why.clone());
                Told::Fails { why, keeps: self.listed.is_some() }
            }
        }
    }

    /// Learns an answer that came at `now`; `draw` is random, from 0 to 1.
    pub fn answer(&mut self, question: &Question, answer: Answer, (now, draw): (Instant, f64)) -> Told {
        let refresh = self.settings.refresh().0.map(|span| *span);
        let told = self.names.answer(question, answer, refresh, (now, draw));
        if matches!(question, Question::Services(_)) {
            self.want(now);
        }
        told
    }

    /// The list of endpoints, in an order that only changes with what is known.
    pub fn compose(&self) -> Composed {
        let mut composed = Composed::default();
        let mut seen = HashSet::new();
        for entry in self.entries() {
            let sockets = match (entry.address.socket(), entry.address.name()) {
                (Some(socket), _) => vec![(socket, Vec::new())],
                (None, Some((host, port))) => {
                    self.names.addresses(host).map(|addresses| paired(addresses, port)).unwrap_or_default()
                }
                (None, None) => Vec::new(),
            };
            if let (true, Some((host, _))) = (sockets.is_empty(), entry.address.name()) {
                let why = self.names.error(&Question::Addresses(host.to_owned()));
                composed.unresolved.push((entry.address.clone(), why));
            }
            for (socket, others) in sockets {
                if !seen.insert((entry.address.clone(), socket.clone())) {
                    continue;
                }
                if composed.found.len() == MAX_ENDPOINTS {
                    composed.left_out += 1;
                    continue;
                }
                composed.found.push(Found {
                    address: entry.address.clone(),
                    socket,
                    others,
                    weight: entry.weight,
                    priority: entry.priority,
                });
            }
        }
        if let Some(name) = self.service().filter(|name| self.names.services(name).is_none()) {
            let why = self.names.error(&Question::Services(name.to_owned()));
            composed.unresolved.push((Address::Tcp { host: name.to_owned(), port: 0 }, why));
        }
        composed
    }

    /// The same, if it is another one than the last time: most answers bring nothing new.
    pub fn compose_changed(&mut self) -> Option<Composed> {
        let composed = Some(self.compose());
        if composed == self.last {
            return None;
        }
        self.last.clone_from(&composed);
        composed
    }

    /// What is wrong with the file.
    pub fn list_error(&self) -> Option<&str> {
        self.list_error.as_deref()
    }

    /// The age of the oldest answer in use; none where no name is asked.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        self.names.age(now)
    }

    /// What `/upstreams` tells of it; none where nothing changes by itself.
    pub fn view(&self, now: Instant) -> Option<Value> {
        if !self.changes() {
            return None;
        }
        let names = self.names.iter().map(|(question, name)| {
            json!({
                "name": question.to_string(),
                "records": match name.records() {
                    None => 0,
                    Some(Records::Addresses(addresses)) => addresses.v4.len() + addresses.v6.len(),
                    Some(Records::Services(services)) => services.len(),
                },
                "age_seconds": name.age(now).as_secs_f64(),
                "asked_again_in_seconds": name.due_in(now).as_secs_f64(),
                "error": name.error(),
            })
        });
        let mut view = json!({ "kind": self.settings.kind(), "names": names.collect::<Vec<_>>() });
        if let Some(path) = self.path() {
            view["file"] = json!({
                "path": path.display().to_string(),
                "endpoints": self.listed.as_ref().map(Vec::len),
                "error": self.list_error,
            });
        }
        Some(view)
    }

    /// Names that are of interest: those of all entries, and the service's.
    fn want(&mut self, now: Instant) {
        let hosts = self
            .entries()
            .into_iter()
            .filter_map(|entry| entry.address.name().map(|(host, _)| Question::Addresses(host.to_owned())));
        let service = self.service().map(|name| Question::Services(name.to_owned()));
        let wanted: BTreeSet<Question> = match self.settings {
            Settings::None {} => BTreeSet::new(),
            // The bound is for hosts: were the service left out, all of its hosts would go with it.
            _ => hosts.take(MAX_ENDPOINTS).chain(service).collect(),
        };
        self.names.want(&wanted, now);
    }

    /// What is written, and behind it what the file or the service says.
    fn entries(&self) -> Vec<endpoint::Settings> {
        let mut entries = self.written.clone();
        entries.extend(self.listed.iter().flatten().cloned());
        let services = self.service().and_then(|name| self.names.services(name));
        entries.extend(services.map(offered).unwrap_or_default());
        entries
    }

    fn service(&self) -> Option<&str> {
        match &self.settings {
            Settings::DnsSrv { name, .. } => Some(name.as_str()),
            _ => None,
        }
    }

    fn path(&self) -> Option<&std::path::Path> {
        self.settings.path()
    }
}

/// Endpoints of a host: those of the family with more addresses, each with its partner of the other one.
fn paired(addresses: &Addresses, port: u16) -> Vec<(Socket, Vec<SocketAddr>)> {
    let socket = |ip: IpAddr| SocketAddr::new(ip, port);
    let v4 = || addresses.v4.iter().map(|ip| socket(IpAddr::V4(*ip)));
    let v6 = || addresses.v6.iter().map(|ip| socket(IpAddr::V6(*ip)));
    let pair = |own: Vec<SocketAddr>, other: Vec<SocketAddr>| {
        let partner = |place: usize| other.get(place % other.len().max(1)).copied();
        let paired = own
            .iter()
            .enumerate()
            .map(|(place, own)| (Socket::Tcp(*own), partner(place).into_iter().collect()));
        paired.collect()
    };
    if addresses.v6.len() >= addresses.v4.len() {
        pair(v6().collect(), v4().collect())
    } else {
        pair(v4().collect(), v6().collect())
    }
}

/// A service's hosts as entries with our weights and priorities.
fn offered(services: &[Service]) -> Vec<endpoint::Settings> {
    let common = services.iter().fold(0, |common, service| divisor(common, service.weight)).max(1);
    let largest = u32::from(services.iter().map(|service| service.weight / common).max().unwrap_or_default());
    let has_none = services.iter().any(|service| service.weight == 0);
    let ours = |weight: u16| match u32::from(weight / common) {
        weight if largest > 0 && (has_none || largest > 1000) => {
            ((weight * 1000 + largest / 2) / largest).max(1)
        }
        weight => weight.max(1),
    };
    let ranks: BTreeSet<u16> = services.iter().map(|service| service.priority).collect();
    let rank = |priority: u16| ranks.range(..priority).count().min(9) as u8;
    services
        .iter()
        .map(|service| endpoint::Settings {
            address: Address::Tcp { host: service.host.clone(), port: service.port },
            weight: ours(service.weight),
            priority: rank(service.priority),
        })
        .collect()
}

/// The greatest common divisor.
fn divisor(one: u16, other: u16) -> u16 {
    if other == 0 { one } else { divisor(other, one % other) }
}

#[cfg(test)]
mod tests {
    use super::super::Refresh;
    use super::*;
    use crate::units::Span;

    fn entry(address: &str) -> endpoint::Settings {
        endpoint::Settings { address: address.parse().expect("an address"), weight: 1, priority: 0 }
    }

    fn found(v4: &[u8], v6: &[u16]) -> Answer {
        let addresses = Addresses {
            v4: v4.iter().map(|last| [10, 0, 0, *last].into()).collect(),
            v6: v6.iter().map(|last| [0xfd00, 0, 0, 0, 0, 0, 0, *last].into()).collect(),
        };
        Answer::Found { records: Records::Addresses(addresses), ttl: Duration::from_secs(60), failed: None }
    }

    fn addresses_of(host: &str) -> Question {
        Question::Addresses(host.to_owned())
    }

    /// Each endpoint as `address socket [others] xWEIGHT pPRIORITY`.
    fn shown(known: &Known) -> Vec<String> {
        let line = |found: &Found| {
            let Found { address, socket, others, weight, priority } = found;
            format!("{address} {socket} {others:?} x{weight} p{priority}")
        };
        known.compose().found.iter().map(line).collect()
    }

    fn dns(written: &[&str]) -> Known {
        let written: Vec<_> = written.iter().map(|address| entry(address)).collect();
        Known::new(&Settings::default(), &written, None, Instant::now())
    }

    #[test]
    fn both_families_of_a_host_are_one_endpoint() {
        type Case = (&'static str, &'static [u8], &'static [u16], &'static [&'static str]);
        let cases: [Case; 5] = [
            ("IPv4 alone", &[2, 1], &[], &["10.0.0.1:80 []", "10.0.0.2:80 []"]),
            ("IPv6 alone", &[], &[1], &["[fd00::1]:80 []"]),
            (
                "as many: IPv6 leads",
                &[1, 2],
                &[8, 9],
                &["[fd00::8]:80 [10.0.0.1:80]", "[fd00::9]:80 [10.0.0.2:80]"],
            ),
            (
                "more IPv4: it leads",
                &[1, 2],
                &[9],
                &["10.0.0.1:80 [[fd00::9]:80]", "10.0.0.2:80 [[fd00::9]:80]"],
            ),
            ("more IPv6", &[1], &[8, 9], &["[fd00::8]:80 [10.0.0.1:80]", "[fd00::9]:80 [10.0.0.1:80]"]),
        ];
        for (why, v4, v6, expected) in cases {
            let mut known = dns(&["app.internal:80"]);
            known.answer(&addresses_of("app.internal"), found(v4, v6), (Instant::now(), 0.5));
            let expected: Vec<_> =
                expected.iter().map(|line| format!("app.internal:80 {line} x1 p0")).collect();
            assert_eq!(shown(&known), expected, "{why}");
        }
    }

    #[test]
    fn endpoints_stand_in_the_order_of_their_entries_however_the_answers_come() {
        let mut known = dns(&["b.internal:1", "10.0.0.9:1", "a.internal:1"]);
        let names: Vec<String> =
            known.compose().unresolved.iter().map(|(name, _)| name.to_string()).collect();
        assert_eq!(names, ["b.internal:1", "a.internal:1"]);
        assert_eq!(known.compose().unresolved[0].1, "not looked up yet");
        known.answer(&addresses_of("a.internal"), found(&[7, 3], &[]), (Instant::now(), 0.5));
        known.answer(&addresses_of("b.internal"), found(&[5], &[]), (Instant::now(), 0.5));
        let sockets = |known: &Known| {
            known.compose().found.iter().map(|found| found.socket.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(sockets(&known), ["10.0.0.5:1", "10.0.0.9:1", "10.0.0.3:1", "10.0.0.7:1"]);
        known.answer(&addresses_of("a.internal"), found(&[3, 7], &[]), (Instant::now(), 0.5));
        assert_eq!(sockets(&known), ["10.0.0.5:1", "10.0.0.9:1", "10.0.0.3:1", "10.0.0.7:1"]);
    }

    #[test]
    fn weights_and_priorities_of_srv_become_ours() {
        type Case = (&'static str, &'static [(u16, u16)], &'static [(u32, u8)]);
        #[rustfmt::skip]
        let cases: [Case; 7] = [
            // why                               priority and weight             ours: weight and priority
            ("equal ones are equal",             &[(0, 5), (0, 5)],              &[(1, 0), (1, 0)]),
            ("in proportion, in lowest terms",   &[(0, 10), (0, 20)],            &[(1, 0), (2, 0)]),
            ("as they are where they fit",       &[(0, 60), (0, 7)],             &[(60, 0), (7, 0)]),
            ("all 0 are equal",                  &[(0, 0), (0, 0)],              &[(1, 0), (1, 0)]),
            ("a 0 beside others is the least",   &[(0, 0), (0, 65_535)],         &[(1, 0), (1000, 0)]),
            ("the whole range fits",             &[(0, 1), (0, 65_535)],         &[(1, 0), (1000, 0)]),
            ("priorities by rank",               &[(10, 1), (20, 1), (20, 1), (700, 1)], &[(1, 0), (1, 1), (1, 1), (1, 2)]),
        ];
        for (why, services, expected) in cases {
            let services: Vec<Service> = services
                .iter()
                .enumerate()
                .map(|(number, (priority, weight))| Service {
                    priority: *priority,
                    weight: *weight,
                    host: format!("h{number}."),
                    port: 80,
                })
                .collect();
            let ours: Vec<_> =
                offered(&services).iter().map(|entry| (entry.weight, entry.priority)).collect();
            assert_eq!(ours, expected, "{why}");
        }
        let many: Vec<Service> =
            (0..20).map(|n| Service { priority: n, weight: 1, host: format!("h{n}."), port: 80 }).collect();
        assert!(offered(&many).iter().all(|entry| entry.priority <= 9 && (1..=1000).contains(&entry.weight)));
    }

    #[test]
    fn a_service_says_hosts_that_are_looked_up_in_turn() {
        let name = "_http._tcp.app.internal";
        let settings = Settings::DnsSrv {
            name: name.to_owned().try_into().expect("a name"),
            refresh: Refresh(Some(Span::from_secs(10))),
            server: None,
        };
        let now = (Instant::now(), 0.5);
        let mut known = Known::new(&settings, &[], None, now.0);
        let service = Question::Services(name.to_owned());
        assert_eq!(known.names().unasked(), std::slice::from_ref(&service));
        assert_eq!(known.compose().unresolved[0].0.to_string(), name);

        let host = |host: &str, priority| Service { priority, weight: 1, host: host.to_owned(), port: 8080 };
        let records = Records::Services(vec![host("b.internal.", 2), host("a.internal.", 1)]);
        known.answer(&service, Answer::Found { records, ttl: Duration::from_secs(9), failed: None }, now);
        assert_eq!(known.names().unasked(), [addresses_of("a.internal."), addresses_of("b.internal.")]);
        known.answer(&addresses_of("b.internal."), found(&[2], &[]), now);
        known.answer(&addresses_of("a.internal."), found(&[1], &[]), now);
        let expected = ["a.internal.:8080 10.0.0.1:8080 [] x1 p0", "b.internal.:8080 10.0.0.2:8080 [] x1 p1"];
        assert_eq!(shown(&known), expected);
        assert_eq!(known.compose().unresolved, []);
        assert!(!known.is_new());

        let records = Records::Services(vec![host("a.internal.", 1)]);
        known.answer(&service, Answer::Found { records, ttl: Duration::from_secs(9), failed: None }, now);
        assert_eq!(shown(&known), expected[..1], "a host that is offered no more is forgotten");
        assert_eq!(known.names().iter().count(), 2);
    }

    #[test]
    fn a_broken_file_keeps_the_last_good_list() {
        let settings = Settings::File { path: "endpoints.toml".into(), refresh: Refresh(None), server: None };
        let now = Instant::now();
        let mut known = Known::new(&settings, &[entry("10.0.0.9:1")], None, now);
        assert!(known.wants_list());
        let fails = |keeps| Told::Fails { why: "gone".to_owned(), keeps };
        assert_eq!(known.list(Err("gone".to_owned()), now), fails(false));
        assert_eq!(known.list_error(), Some("gone"));
        assert_eq!(known.list(Ok(vec![entry("10.0.0.1:1"), entry("app.internal:1")]), now), Told::Recovered);
        assert_eq!(known.names().unasked(), [addresses_of("app.internal")], "names in it are looked up");
        assert_eq!(known.list(Err("gone".to_owned()), now), fails(true));
        assert_eq!(known.list(Err("gone".to_owned()), now), Told::Nothing);
        assert_eq!(shown(&known), ["10.0.0.9:1 10.0.0.9:1 [] x1 p0", "10.0.0.1:1 10.0.0.1:1 [] x1 p0"]);
        assert_eq!(known.list(Ok(Vec::new()), now), Told::Recovered);
        assert_eq!(shown(&known).len(), 1, "an empty list is meant");
    }

    #[test]
    fn a_reload_keeps_what_is_known() {
        let now = (Instant::now(), 0.5);
        let mut before = dns(&["a.internal:1", "b.internal:1"]);
        before.answer(&addresses_of("a.internal"), found(&[1], &[]), now);
        let after = |settings: &Settings| {
            Known::new(settings, &[entry("a.internal:2"), entry("c.internal:1")], Some(&before), now.0)
        };
        let same = after(&Settings::default());
        assert_eq!(shown(&same), ["a.internal:2 10.0.0.1:2 [] x1 p0"]);
        assert_eq!(same.names().unasked(), [addresses_of("c.internal")]);
        assert_eq!(same.names().due(now.0, &BTreeSet::new()), [addresses_of("c.internal")]);
        let server = Some(SocketAddr::from(([127, 0, 0, 1], 53)));
        let other = after(&Settings::Dns { refresh: Refresh(None), server });
        assert_eq!(shown(&other).len(), 1);
        assert_eq!(
            other.names().due(now.0, &BTreeSet::new()).len(),
            2,
            "another server is asked for all of them"
        );
    }

    #[test]
    fn an_upstream_has_a_bounded_number_of_endpoints() {
        let written: Vec<_> =
            (0..MAX_ENDPOINTS + 5).map(|port| entry(&format!("10.0.0.1:{}", port + 1))).collect();
        let twice: Vec<_> = [&written[..7], &written[..7]].concat();
        let known = |written: &[_]| Known::new(&Settings::default(), written, None, Instant::now()).compose();
        assert_eq!((known(&written).found.len(), known(&written).left_out), (MAX_ENDPOINTS, 5));
        assert_eq!(
            (known(&twice).found.len(), known(&twice).left_out),
            (7, 0),
            "one that stands there twice is one"
        );
    }

    #[test]
    fn a_service_of_more_hosts_than_endpoints_fit_is_still_asked_for() {
        let name = "_http._tcp.app.internal";
        let settings = Settings::DnsSrv {
            name: name.to_owned().try_into().expect("a name"),
            refresh: Refresh(None),
            server: None,
        };
        let now = (Instant::now(), 0.5);
        let mut known = Known::new(&settings, &[], None, now.0);
        let service = Question::Services(name.to_owned());
        for count in [MAX_ENDPOINTS, MAX_ENDPOINTS + 5] {
            let host = |number| Service { priority: 0, weight: 1, host: format!("h{number}."), port: 80 };
            let records = Records::Services((0..count).map(host).collect());
            known.answer(&service, Answer::Found { records, ttl: Duration::from_secs(9), failed: None }, now);
            assert_eq!(known.names().unasked().len(), MAX_ENDPOINTS);
            assert_eq!(known.compose().unresolved.len(), count, "all wait for their addresses");
            assert!(known.names().iter().any(|(question, _)| *question == service));
        }
    }
}
