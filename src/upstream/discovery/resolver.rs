//! Asks DNS. One for the process; never on a worker.
//!
//! Names are looked up as the system does it: `localhost` is this host, then /etc/hosts, then the name servers of
//! /etc/resolv.conf with its search domains, `ndots`, timeout and attempts. Both files are read again when they have
//! changed (noticed within a second). A `server` that the configuration names is asked for the name as it stands:
//! no search domain, no /etc/hosts.
//!
//! hickory speaks the protocol (UDP, TCP for large answers, aliases followed within and across answers). What it would
//! decide otherwise is decided here: nothing is cached (`names` knows when to ask, and asks again to confirm that
//! there is nothing); IPv4 and IPv6 are asked side by side, and where one has come the other is waited for only
//! `PATIENCE` longer; and of several search domains one that fails is not taken for one that has nothing, or a
//! name server with a hiccup could empty a list. Rejected: getaddrinfo, which tells neither a TTL nor NXDOMAIN from
//! SERVFAIL, and blocks a thread.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Hosts, Resolver, TokioResolver};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::MAX_ENDPOINTS;
use super::names::{Addresses, Answer, Family, Question, Records, Service};

/// Look-ups at the same time, for the system's name servers together and for each that the configuration names; further
/// ones wait for their turn. Apart, so that a name server that is gone holds up nobody else's names.
const IN_FLIGHT: usize = 64;

/// Name servers of the configuration that are kept; beyond that those that nobody is asking go.
const MOST_SERVERS: usize = 64;

/// The longest that a look-up may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How much longer the other family is waited for where one has come: some name servers never answer for IPv6.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long what /etc/hosts and `localhost` say is valid.
const HOSTS_TTL: Duration = Duration::from_secs(5);

/// How often it is looked whether the system's files have changed.
const LOOK: Duration = Duration::from_secs(1);

/// How long a server that the configuration names is waited for; it is asked twice. The next look-up is the next try.
const OWN_TIMEOUT: Duration = Duration::from_secs(2);

/// The file with the system's name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The file with names that are not asked of DNS.
const HOSTS: &str = "/etc/hosts";

/// Asks DNS, with all that is kept between look-ups.
pub struct Resolvers {
    system: Mutex<Option<System>>,
    /// Those that the configuration names.
    own: Mutex<BTreeMap<SocketAddr, Arc<Client>>>,
}

/// The system's configuration as it was read.
struct System {
    files: [Vec<u8>; 2],
    looked: Instant,
    client: Arc<Client>,
}

/// A name server, or several, and how to ask them.
struct Client {
    turns: Semaphore,
    resolver: Result<TokioResolver, String>,
    hosts: Hosts,
    search: Vec<Name>,
    ndots: usize,
}

/// What one candidate for a name came to.
enum Looked {
    Found(Vec<Record>),
    Empty(String),
    Failed(String),
}

impl Resolvers {
    /// None asked yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { system: Mutex::default(), own: Mutex::default() })
    }

    /// Asks `server`, or the system's name servers.
    pub async fn ask(&self, server: Option<SocketAddr>, question: &Question) -> Answer {
        let client = match server {
            Some(server) => self.own(server),
            None => self.system().await,
        };
        // Nobody closes it.
        let _turn = client.turns.acquire().await;
        match timeout(TIMEOUT, client.ask(question)).await {
            Ok(answer) => answer,
            Err(_) => Answer::Failed(format!("no answer within {} s", TIMEOUT.as_secs())),
        }
    }

    fn own(&self, server: SocketAddr) -> Arc<Client> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if own.len() >= MOST_SERVERS {
            own.retain(|_, client| Arc::strong_count(client) > 1);
        }
        Arc::clone(own.entry(server).or_insert_with(|| Arc::new(Client::of_server(server))))
    }

    async fn system(&self) -> Arc<Client> {
        let now = Instant::now();
        let known = |system: &Option<System>| {
            let fresh = system.as_ref().filter(|system| now.saturating_duration_since(system.looked) < LOOK);
            fresh.map(|system| Arc::clone(&system.client))
        };
        if let Some(client) = known(&self.system.lock().unwrap_or_else(PoisonError::into_inner)) {
            return client;
        }
        let files = tokio::task::spawn_blocking(|| {
            // What cannot be read says nothing.
            [RESOLV_CONF, HOSTS].map(|file| std::fs::read(file).unwrap_or_default())
        });
        let files = files.await.unwrap_or_default();
        let mut system = self.system.lock().unwrap_or_else(PoisonError::into_inner);
        let client = match &*system {
            Some(known) if known.files == files => Arc::clone(&known.client),
            _ => Arc::new(Client::of_system(&files[0], &files[1])),
        };
        *system = Some(System { files, looked: now, client: Arc::clone(&client) });
        client
    }
}

impl Client {
    /// Asks the server that the configuration names.
    fn of_server(server: SocketAddr) -> Self {
        let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
            connection.port = server.port();
            connection
        });
        let server = NameServerConfig::new(server.ip(), true, connections.into());
        let mut options = ResolverOpts::default();
        options.timeout = OWN_TIMEOUT;
        options.attempts = 1;
        Self {
            turns: Semaphore::new(IN_FLIGHT),
            resolver: resolver(ResolverConfig::from_name_servers(vec![server]), options),
            hosts: Hosts::default(),
            search: Vec::new(),
            ndots: 0,
        }
    }

    /// Asks as the texts of resolv.conf and hosts say.
    fn of_system(resolv_conf: &[u8], hosts: &[u8]) -> Self {
        let mut static_hosts = Hosts::default();
        if let Err(error) = static_hosts.read_hosts_conf(hosts) {
            tracing::warn!(%error, "{HOSTS} is only read in part");
        }
        // Without name servers, glibc asks this host.
        let (config, options) = parse_resolv_conf(resolv_conf).unwrap_or_else(|_| {
            let here = NameServerConfig::udp_and_tcp(IpAddr::from(Ipv4Addr::LOCALHOST));
            (ResolverConfig::from_name_servers(vec![here]), ResolverOpts::default())
        });
        let domain = config.domain().filter(|domain| !domain.is_root()).cloned();
        let search = match config.search() {
            [] => domain.into_iter().collect(),
            search => search.to_vec(),
        };
        let ndots = options.ndots;
        let turns = Semaphore::new(IN_FLIGHT);
        Self { turns, resolver: resolver(config, options), hosts: static_hosts, search, ndots }
    }

    async fn ask(&self, question: &Question) -> Answer {
        let (Question::Addresses(text) | Question::Services(text)) = question;
        let Ok(name) = Name::from_ascii(text) else {
            return Answer::Failed("it is no name of DNS".to_owned());
        };
        if let Question::Addresses(_) = question
            && let Some(addresses) = self.of_hosts(&name)
        {
            return Answer::Found { records: Records::Addresses(addresses), ttl: HOSTS_TTL, failed: None };
        }
        // As the C library does it: whatever comes first is taken; a failure on the way makes an empty end a failure.
        let (mut empty, mut failed) = (None, None);
        for name in self.candidates(&name) {
            let answer = match question {
                Question::Addresses(_) => self.addresses(&name).await,
                Question::Services(_) => self.services(&name).await,
            };
            match answer {
                found @ Answer::Found { .. } => return found,
                Answer::Empty(why) => drop(empty.get_or_insert(why)),
                Answer::Failed(why) => drop(failed.get_or_insert(why)),
            }
        }
        match (failed, empty) {
            (Some(why), _) => Answer::Failed(why),
            (None, Some(why)) => Answer::Empty(why),
            (None, None) => Answer::Failed("it is no name of DNS".to_owned()),
        }
    }

    /// What needs no name server: `localhost` and whatever is below it (RFC 6761 §6.3), and /etc/hosts.
    fn of_hosts(&self, name: &Name) -> Option<Addresses> {
        let mut whole = name.clone();
        whole.set_fqdn(true);
        let of_family = |family| {
            let lookup = self.hosts.lookup_static_host(&Query::query(whole.clone(), family));
            lookup.map(|lookup| lookup.answers().to_vec()).unwrap_or_default()
        };
        let records = [of_family(RecordType::A), of_family(RecordType::AAAA)].concat();
        let addresses = addresses(&records);
        if addresses != Addresses::default() {
            return Some(addresses);
        }
        let last = name.iter().next_back().map(<[u8]>::to_ascii_lowercase);
        (last.as_deref() == Some(b"localhost"))
            .then(|| Addresses { v4: vec![Ipv4Addr::LOCALHOST], v6: vec![Ipv6Addr::LOCALHOST] })
    }

    /// The whole names that `name` may stand for, in the order in which they are tried.
    fn candidates(&self, name: &Name) -> Vec<Name> {
        let mut whole = name.clone();
        whole.set_fqdn(true);
        if name.is_fqdn() {
            return vec![whole];
        }
        let mut all: Vec<Name> =
            self.search.iter().filter_map(|domain| name.clone().append_domain(domain).ok()).collect();
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        let at = if dots >= self.ndots { 0 } else { all.len() };
        all.insert(at, whole);
        all.dedup();
        all
    }

    async fn addresses(&self, name: &Name) -> Answer {
        let (mut v4, mut v6) = (
            std::pin::pin!(self.look_up(name, RecordType::A)),
            std::pin::pin!(self.look_up(name, RecordType::AAAA)),
        );
        let late = |looked: Result<Looked, _>| {
            looked.unwrap_or_else(|_| Looked::Failed(format!("no answer within {} s", PATIENCE.as_secs())))
        };
        // Where the first one has something, the second one gets only so much more time.
        let (v4, v6) = tokio::select! {
            first = &mut v4 => match first {
                Looked::Found(_) => (first, late(timeout(PATIENCE, v6).await)),
                _ => (first, v6.await),
            },
            first = &mut v6 => match first {
                Looked::Found(_) => (late(timeout(PATIENCE, v4).await), first),
                _ => (v4.await, first),
            },
        };
        let (records, failed) = match (v4, v6) {
            (Looked::Found(v4), Looked::Found(v6)) => ([v4, v6].concat(), None),
            (Looked::Found(records), Looked::Failed(why)) => {
                (records, Some((Family::V6, format!("AAAA: {why}"))))
            }
            (Looked::Failed(why), Looked::Found(records)) => {
                (records, Some((Family::V4, format!("A: {why}"))))
            }
            (Looked::Found(records), Looked::Empty(_)) | (Looked::Empty(_), Looked::Found(records)) => {
                (records, None)
            }
            (Looked::Failed(why), _) | (_, Looked::Failed(why)) => return Answer::Failed(why),
            (Looked::Empty(why), Looked::Empty(_)) => return Answer::Empty(why),
        };
        let addresses = addresses(&records);
        if addresses == Addresses::default() {
            return Answer::Empty(format!("{name} has no addresses"));
        }
        Answer::Found { records: Records::Addresses(addresses), ttl: ttl(&records), failed }
    }

    async fn services(&self, name: &Name) -> Answer {
        let records = match self.look_up(name, RecordType::SRV).await {
            Looked::Found(records) => records,
            Looked::Empty(why) => return Answer::Empty(why),
            Looked::Failed(why) => return Answer::Failed(why),
        };
        let services = records.iter().filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(Service {
                priority: srv.priority,
                host: srv.target.to_ascii(),
                port: srv.port,
                weight: srv.weight,
            }),
            _ => None,
        });
        // RFC 2782: "." says that the service is decidedly not there. Port 0 cannot be connected.
        let services = services.filter(|service| service.host != "." && service.port != 0);
        let services: Vec<Service> = services.take(MAX_ENDPOINTS).collect();
        if services.is_empty() {
            return Answer::Empty(format!("{name} says that the service is not there"));
        }
        Answer::Found { records: Records::Services(services), ttl: ttl(&records), failed: None }
    }

    async fn look_up(&self, name: &Name, what: RecordType) -> Looked {
        let resolver = match &self.resolver {
            Ok(resolver) => resolver,
            Err(why) => return Looked::Failed(why.clone()),
        };
        match resolver.lookup(name.clone(), what).await {
            Ok(lookup) if lookup.answers().iter().any(|record| record.record_type() == what) => {
                Looked::Found(lookup.answers().to_vec())
            }
            Ok(_) => Looked::Empty(format!("{name} has no {what} records")),
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => match none.response_code {
                ResponseCode::NXDomain => Looked::Empty(format!("{name} does not exist (NXDOMAIN)")),
                ResponseCode::NoError => Looked::Empty(format!("{name} has no {what} records (NODATA)")),
                code => Looked::Failed(format!("the name server says {code}")),
            },
            Err(error) => Looked::Failed(error.to_string()),
        }
    }
}

/// Nothing is cached: whoever asks wants to know what is so now.
fn resolver(config: ResolverConfig, mut options: ResolverOpts) -> Result<TokioResolver, String> {
    options.cache_size = 0;
    let builder =
        Resolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options);
    builder.build().map_err(|error| format!("the name servers cannot be asked: {error}"))
}

fn addresses(records: &[Record]) -> Addresses {
    let mut addresses = Addresses::default();
    for record in records.iter().take(2 * MAX_ENDPOINTS) {
        match &record.data {
            RData::A(ip) => addresses.v4.push(ip.0),
            RData::AAAA(ip) => addresses.v6.push(ip.0),
            _ => {}
        }
    }
    addresses
}

/// The time for which all of them are valid.
fn ttl(records: &[Record]) -> Duration {
    Duration::from_secs(records.iter().map(|record| record.ttl).min().unwrap_or_default().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(resolv_conf: &str, hosts: &str) -> Client {
        // hickory's resolver needs a runtime only when it asks.
        Client::of_system(resolv_conf.as_bytes(), hosts.as_bytes())
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("a name")
    }

    #[test]
    fn names_are_completed_as_the_system_says() {
        let search = "nameserver 10.0.0.1\nsearch shop.svc.cluster.local cluster.local\noptions ndots:2\n";
        let cases: [(&str, &str, &[&str]); 5] = [
            (
                "too few dots: as it stands last",
                "app",
                &["app.shop.svc.cluster.local.", "app.cluster.local.", "app."],
            ),
            (
                "still too few",
                "app.shop",
                &["app.shop.shop.svc.cluster.local.", "app.shop.cluster.local.", "app.shop."],
            ),
            (
                "enough: as it stands first",
                "a.b.c",
                &["a.b.c.", "a.b.c.shop.svc.cluster.local.", "a.b.c.cluster.local."],
            ),
            ("a whole name is nothing else", "app.", &["app."]),
            ("a service too", "_http._tcp.app.", &["_http._tcp.app."]),
        ];
        for (why, text, expected) in cases {
            let candidates = client(search, "").candidates(&name(text));
            assert_eq!(candidates.iter().map(Name::to_ascii).collect::<Vec<_>>(), expected, "{why}");
        }
        let own = Client::of_server(SocketAddr::from(([10, 0, 0, 1], 53)));
        assert_eq!(
            own.candidates(&name("app")),
            [name("app.")],
            "a server of one's own is asked for what is written"
        );
    }

    #[test]
    fn hosts_and_localhost_need_no_name_server() {
        let hosts = "127.0.0.1 localhost\n10.1.2.3 app.internal app # the app\nfd00::3 app\n";
        let cases: [(&str, &str, &[&str]); 6] = [
            ("both families", "app", &["10.1.2.3", "fd00::3"]),
            ("in any case", "APP.Internal", &["10.1.2.3"]),
            ("this host, as the file has it", "localhost", &["127.0.0.1"]),
            ("what is below it", "app.localhost", &["127.0.0.1", "::1"]),
            ("not what only ends like it", "notlocalhost", &[]),
            ("nor anything else", "other", &[]),
        ];
        for (why, text, expected) in cases {
            let found = client("", hosts).of_hosts(&name(text)).unwrap_or_default();
            let v4 = found.v4.iter().map(ToString::to_string);
            let shown: Vec<String> = v4.chain(found.v6.iter().map(ToString::to_string)).collect();
            assert_eq!(shown, expected, "{why}");
        }
        let without = client("", "").of_hosts(&name("localhost"));
        assert_eq!(
            without.map(|found| (found.v4.len(), found.v6.len())),
            Some((1, 1)),
            "a file is not needed"
        );
    }

    #[test]
    fn the_shortest_ttl_on_the_way_counts() {
        let record = |ttl| Record::from_rdata(name("app."), ttl, RData::A(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(ttl(&[record(60), record(5), record(30)]), Duration::from_secs(5));
        assert_eq!(ttl(&[]), Duration::ZERO);
    }
}
