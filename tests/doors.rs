//! The doors between rooms open one way: this test reads every path in `src/` and holds it to the map in
//! `lib.rs`. A room uses only rooms below it; `http1`, `policy` and `telemetry` know only the ground floor; no
//! two files of a room need each other; and a policy neither reads a clock, nor draws, nor waits.
//!
//! It reads tokens, not types: what a path starts with (`crate`, `super`, `self`, a child module, a name that
//! `use` brought in) says where it leads, and re-exports are followed. A dependency that no path shows (a trait's
//! method called on a value) is none that a reader would have to look up.
//!
//! Test code keeps to the rooms too, but may look at a sibling file and at the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// From the top: each room uses only what stands below it. The map in `lib.rs` has the same order.
const ROOMS: [&str; 14] = [
    "cli",
    "runtime",
    "admin",
    "config",
    "proxy",
    "upstream",
    "tls",
    "http1",
    "policy",
    "telemetry",
    "transport",
    "timer",
    "reason",
    "units",
];

/// What everybody may use.
const GROUND: [&str; 4] = ["transport", "timer", "reason", "units"];

/// Rooms that use the ground floor alone.
const SECLUDED: [&str; 3] = ["http1", "policy", "telemetry"];

/// What code of `policy` may not say, and why.
const IMPURE: [(&[&str], &str); 6] = [
    (&["tokio"], "a policy does not wait, its shell does"),
    (&["fastrand"], "randomness is a parameter of a policy"),
    (&["Instant", "::", "now"], "time is a parameter of a policy"),
    (&["SystemTime", "::", "now"], "time is a parameter of a policy"),
    (&[".", "elapsed"], "it reads the clock"),
    (&["thread", "::", "sleep"], "a policy does not wait"),
];

/// Why, the files by name, and what the faults begin with.
type Case = (&'static str, &'static [(&'static str, &'static str)], &'static [&'static str]);

#[test]
fn the_doors_of_the_house_open_one_way() {
    let house = House::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").as_path());
    assert!(house.files.len() > 12, "only {} files were read", house.files.len());
    assert!(house.edges().iter().any(|edge| edge.from.starts_with("policy")), "no path was understood");

    let faults = house.faults();

    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn the_map_in_lib_rs_lists_the_rooms_in_their_order() {
    let map = include_str!("../src/lib.rs");
    let listed: Vec<&str> =
        map.lines().filter_map(|line| line.strip_prefix("//! - [`")?.split('`').next()).collect();
    let opened: BTreeSet<&str> =
        map.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();

    assert_eq!(listed, ROOMS);
    for room in opened {
        assert!(listed.contains(&room), "`{room}` is a module that the map does not show");
    }
}

#[test]
fn a_door_that_opens_the_wrong_way_is_found() {
    let cases: &[Case] = &[
        (
            "a room uses what is below",
            &[("proxy/route.rs", "use crate::upstream::pool::Pool;"), ("upstream/pool.rs", "")],
            &[],
        ),
        (
            "not what is above",
            &[("upstream/pool.rs", "\nuse crate::proxy::route::Route;"), ("proxy/route.rs", "")],
            &["upstream/pool.rs:2: `upstream` may not use `proxy`"],
        ),
        (
            "a path in the code is a door like an import",
            &[("upstream/pool.rs", "fn f() { crate::proxy::go() }"), ("proxy/mod.rs", "")],
            &["upstream/pool.rs:1: `upstream` may not use `proxy`"],
        ),
        (
            "so is one that climbs",
            &[("policy/breaker.rs", "use super::super::config::Config;"), ("config/mod.rs", "")],
            &["policy/breaker.rs:1: `policy` may not use `config`"],
        ),
        (
            "and each branch of a group",
            &[
                (
                    "policy/retry.rs",
                    "use crate::{\n units::Span,\n telemetry::{metrics::Counter, Settings},\n};",
                ),
                ("telemetry/metrics.rs", ""),
                ("telemetry/mod.rs", ""),
                ("units.rs", ""),
            ],
            &[
                "policy/retry.rs:3: `policy` may not use `telemetry`",
                "policy/retry.rs:3: `policy` may not use `telemetry`",
            ],
        ),
        (
            "policy does not know http1, though it stands above",
            &[("http1/body.rs", "use crate::policy::x::Y;"), ("policy/x.rs", "")],
            &["http1/body.rs:1: `http1` may not use `policy`"],
        ),
        (
            "what lib.rs re-exports is where it came from",
            &[
                ("lib.rs", "pub mod config; pub mod units; pub use config::Config;"),
                ("units.rs", "use crate::Config;"),
                ("config/mod.rs", ""),
            ],
            &["units.rs:1: `units` may not use `config`"],
        ),
        (
            "the ground floor has its order too",
            &[("units.rs", "use crate::reason::Reason;"), ("reason.rs", "")],
            &["units.rs:1: `units` may not use `reason`"],
        ),
        (
            "test code keeps to the rooms",
            &[("units.rs", "#[cfg(test)] mod tests { use crate::cli::run; }"), ("cli/mod.rs", "")],
            &["units.rs:1: `units` may not use `cli`"],
        ),
        (
            "comments, text and lifetimes are no doors",
            &[
                (
                    "units.rs",
                    "// crate::cli::a\n/* /* */ crate::cli::b */ const A: &'static str = \"crate::cli::c\"; \
                     const B: char = '\"'; const C: &str = r#\"\"crate::cli::d\"#; const D: u8 = b'\\'';",
                ),
                ("cli/mod.rs", ""),
            ],
            &[],
        ),
        (
            "a room that the map does not show",
            &[("util/strings.rs", "")],
            &["util/strings.rs:1: `util` is not a room"],
        ),
    ];
    for (why, files, expected) in cases {
        assert_faults(why, files, expected);
    }
}

#[test]
fn files_that_need_each_other_are_found() {
    let cases: &[Case] = &[
        (
            "one way is fine",
            &[("proxy/a.rs", "use super::b::B;"), ("proxy/b.rs", "use super::c::C;"), ("proxy/c.rs", "")],
            &[],
        ),
        (
            "two that need each other",
            &[("proxy/a.rs", "use super::b::B;"), ("proxy/b.rs", "use crate::proxy::a::A;")],
            &["a cycle: proxy/a.rs -> proxy/b.rs -> proxy/a.rs"],
        ),
        (
            "a longer way round",
            &[
                ("proxy/a.rs", "use super::b::B;"),
                ("proxy/b.rs", "fn f() { super::c::g() }"),
                ("proxy/c.rs", "use super::a;"),
            ],
            &["a cycle: proxy/a.rs -> proxy/b.rs -> proxy/c.rs -> proxy/a.rs"],
        ),
        (
            "a parent that uses its child, which uses the parent",
            &[("proxy/mod.rs", "pub mod a; struct S(a::A);"), ("proxy/a.rs", "use super::S;")],
            &["a cycle: proxy/a.rs -> proxy/mod.rs -> proxy/a.rs"],
        ),
        (
            "a parent that only shows what its child has is no cycle",
            &[("proxy/mod.rs", "mod a; pub use a::A; pub struct S;"), ("proxy/a.rs", "use super::S;")],
            &[],
        ),
        (
            "what the parent shows belongs to the child that has it",
            &[
                ("proxy/mod.rs", "mod a; mod b; pub use a::A;"),
                ("proxy/a.rs", "use super::b;"),
                ("proxy/b.rs", "use super::A;"),
            ],
            &["a cycle: proxy/a.rs -> proxy/b.rs -> proxy/a.rs"],
        ),
        (
            "tests may look at what they test, and beside it",
            &[
                ("proxy/a.rs", "use super::b::B; #[cfg(test)] mod tests;"),
                ("proxy/a/tests.rs", "use super::*;"),
                ("proxy/b.rs", "#[cfg(test)] mod tests { use crate::proxy::a::A; }"),
            ],
            &[],
        ),
    ];
    for (why, files, expected) in cases {
        assert_faults(why, files, expected);
    }
}

#[test]
fn a_policy_that_reads_the_clock_draws_or_waits_is_found() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("time as a parameter", "use std::time::Instant; fn f(now: Instant) -> Instant { now }", &[]),
        ("a clock", "\nfn f() { std::time::Instant::now(); }", &["policy/p.rs:2: `Instant::now`"]),
        ("the wall clock", "fn f() { SystemTime::now(); }", &["policy/p.rs:1: `SystemTime::now`"]),
        ("a clock by the back door", "fn f(t: Instant) { t.elapsed(); }", &["policy/p.rs:1: `.elapsed`"]),
        ("a field of that name", "struct S { elapsed: Duration }", &[]),
        ("waiting", "use tokio::sync::Notify;", &["policy/p.rs:1: `tokio`"]),
        ("dice", "fn f() -> f64 { fastrand::f64() }", &["policy/p.rs:1: `fastrand`"]),
        ("a comment", "// tokio's Notify waits; Instant::now is not called here", &[]),
        ("a test needs some instant", "#[cfg(test)] mod tests { fn f() { Instant::now(); } }", &[]),
    ];
    for (why, text, expected) in cases {
        assert_faults(why, &[("policy/p.rs", text)], expected);
    }
    let storm = "fn f() { fastrand::f64(); }";
    assert_faults(
        "a file of tests",
        &[("policy/mod.rs", "#[cfg(test)]\nmod storm;"), ("policy/storm.rs", storm)],
        &[],
    );
    let found = &["policy/storm.rs:1: `fastrand`"];
    assert_faults(
        "by its declaration",
        &[("policy/mod.rs", "mod storm;"), ("policy/storm.rs", storm)],
        found,
    );
    assert_faults("elsewhere it is allowed", &[("proxy/p.rs", "use tokio::net::TcpStream;")], &[]);
}

#[track_caller]
fn assert_faults(why: &str, files: &[(&str, &str)], expected: &[&str]) {
    let faults = House::of(files).faults();
    let as_expected = faults.len() == expected.len()
        && faults.iter().zip(expected).all(|(fault, expected)| fault.starts_with(expected));
    assert!(as_expected, "{why}: expected {expected:#?}, found {faults:#?}");
}

/// The sources of a crate, and what leads where.
struct House {
    /// By path from `src/`.
    files: BTreeMap<String, File>,
}

/// One source file, read.
struct File {
    /// `["policy", "breaker"]` for `policy/breaker.rs`, as for `policy/breaker/mod.rs`; empty for `lib.rs`.
    module: Vec<String>,
    tokens: Vec<Token>,
    paths: Vec<Reference>,
    /// What `use` brought in, by the name that it has here.
    names: BTreeMap<String, Vec<String>>,
}

/// A word or a mark of Rust, without comments, text and numbers.
struct Token {
    text: String,
    line: usize,
    /// Stands under `#[cfg(test)]`, here or where its file is declared.
    in_tests: bool,
}

/// A path from the crate's root that a file names.
struct Reference {
    path: Vec<String>,
    line: usize,
    in_tests: bool,
    /// By `pub use`.
    shown: bool,
}

/// A file that uses another one.
struct Edge {
    from: String,
    to: String,
    line: usize,
    in_tests: bool,
    shown: bool,
}

impl House {
    fn read(directory: &Path) -> House {
        fn walk(directory: &Path, inside: &str, found: &mut Vec<(String, String)>) {
            for entry in std::fs::read_dir(directory).expect("src can be listed") {
                let path = entry.expect("src can be listed").path();
                let name =
                    format!("{inside}{}", path.file_name().expect("an entry's name").to_string_lossy());
                if path.is_dir() {
                    walk(&path, &format!("{name}/"), found);
                } else if name.ends_with(".rs") {
                    found.push((name, std::fs::read_to_string(&path).expect("a source is text")));
                }
            }
        }
        let mut found = Vec::new();
        walk(directory, "", &mut found);
        House::of(&found.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect::<Vec<_>>())
    }

    fn of(sources: &[(&str, &str)]) -> House {
        let mut files: BTreeMap<String, File> =
            sources.iter().map(|(path, text)| (path.to_string(), File::parse(path, text))).collect();
        let test_modules: Vec<Vec<String>> = files.values().flat_map(File::test_modules).collect();
        for file in files.values_mut() {
            if test_modules.iter().any(|module| file.module.starts_with(module)) {
                file.tokens.iter_mut().for_each(|token| token.in_tests = true);
                file.paths.iter_mut().for_each(|path| path.in_tests = true);
            }
        }
        House { files }
    }

    /// Every fault, in the order of the files.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (path, file) in &self.files {
            let room = room_of(path);
            if !matches!(room, "lib" | "main") && !ROOMS.contains(&room) {
                faults.push(format!("{path}:1: `{room}` is not a room that the map in lib.rs shows"));
            }
            if room == "policy" {
                faults.extend(impurities(path, &file.tokens));
            }
        }
        let edges = self.edges();
        for edge in &edges {
            let (from, to) = (room_of(&edge.from), room_of(&edge.to));
            if from != to && !may_use(from, to) {
                faults.push(format!("{}:{}: `{from}` may not use `{to}`", edge.from, edge.line));
            }
        }
        faults.extend(cycles(&edges));
        faults
    }

    fn edges(&self) -> Vec<Edge> {
        let mut edges = Vec::new();
        for (from, file) in &self.files {
            for path in &file.paths {
                let Some(to) = self.file_of(&path.path, 0) else { continue };
                if to != from {
                    let (line, in_tests, shown) = (path.line, path.in_tests, path.shown);
                    edges.push(Edge { from: from.clone(), to: to.to_string(), line, in_tests, shown });
                }
            }
        }
        edges
    }

    /// The file that has what `path` names; re-exports are followed, to a bounded depth.
    fn file_of(&self, path: &[String], depth: usize) -> Option<&str> {
        let longest = (0..=path.len()).rev().find_map(|length| {
            let (name, file) = self
                .files
                .iter()
                .find(|(name, file)| file.module == path[..length] && !matches!(name.as_str(), "main.rs"))?;
            Some((name, file, length))
        });
        let (name, file, length) = longest?;
        let rest = &path[length..];
        if let Some(target) = rest.first().and_then(|next| file.names.get(next))
            && depth < 8
        {
            let target: Vec<String> = target.iter().chain(&rest[1..]).cloned().collect();
            return self.file_of(&target, depth + 1).or(Some(name));
        }
        Some(name)
    }
}

/// The first part of a file's path: the room it stands in.
fn room_of(path: &str) -> &str {
    let first = path.split('/').next().expect("split yields at least one part");
    first.strip_suffix(".rs").unwrap_or(first)
}

fn may_use(from: &str, to: &str) -> bool {
    let floor = |room: &str| ROOMS.iter().position(|other| *other == room);
    match (floor(from), floor(to)) {
        _ if to == "lib" => true, // the map: its re-exports were followed, and it has nothing else
        (Some(from_floor), Some(to_floor)) => {
            from_floor < to_floor && (!SECLUDED.contains(&from) || GROUND.contains(&to))
        }
        // `lib.rs` and `main.rs` stand above all rooms.
        (None, _) => true,
        (Some(_), None) => false,
    }
}

fn impurities(path: &str, tokens: &[Token]) -> Vec<String> {
    let mut faults = Vec::new();
    for (index, token) in tokens.iter().enumerate().filter(|(_, token)| !token.in_tests) {
        for (words, why) in IMPURE {
            let said = tokens[index..].iter().map(|token| token.text.as_str()).take(words.len());
            if said.eq(words.iter().copied()) {
                faults.push(format!("{path}:{}: `{}`: {why}", token.line, words.concat()));
            }
        }
    }
    faults
}

/// Each cycle between files once, from its first file.
fn cycles(edges: &[Edge]) -> BTreeSet<String> {
    let mut uses: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for edge in edges.iter().filter(|edge| !edge.in_tests && !edge.shown) {
        uses.entry(&edge.from).or_default().insert(&edge.to);
    }
    fn walk<'a>(
        uses: &BTreeMap<&'a str, BTreeSet<&'a str>>,
        way: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
        found: &mut BTreeSet<String>,
    ) {
        let here = *way.last().expect("a way has a start");
        for &next in uses.get(here).into_iter().flatten() {
            if let Some(start) = way.iter().position(|file| *file == next) {
                let mut cycle = way[start..].to_vec();
                let first = (0..cycle.len()).min_by_key(|index| cycle[*index]).expect("a cycle has files");
                cycle.rotate_left(first);
                cycle.push(cycle[0]);
                found.insert(format!("a cycle: {}", cycle.join(" -> ")));
            } else if !done.contains(next) {
                way.push(next);
                walk(uses, way, done, found);
                way.pop();
            }
        }
        done.insert(here);
    }
    let (mut done, mut found) = (BTreeSet::new(), BTreeSet::new());
    for &file in uses.keys() {
        if !done.contains(file) {
            walk(&uses, &mut vec![file], &mut done, &mut found);
        }
    }
    found
}

impl File {
    fn parse(path: &str, text: &str) -> File {
        let mut module: Vec<String> = path
            .trim_end_matches(".rs")
            .split('/')
            .map(str::to_string)
            .filter(|part| part != "mod")
            .collect();
        if matches!(path, "lib.rs" | "main.rs") {
            module.clear();
        }
        let mut tokens = tokens(text);
        mark_tests(&mut tokens);
        let mut file = File { module, tokens, paths: Vec::new(), names: BTreeMap::new() };
        file.read_paths();
        file
    }

    /// Modules in files of their own that stand under `#[cfg(test)]`.
    fn test_modules(&self) -> impl Iterator<Item = Vec<String>> {
        self.tokens.windows(3).filter_map(|window| {
            let is_file = window[0].in_tests && window[0].text == "mod" && window[2].text == ";";
            is_file.then(|| self.module.iter().chain([&window[1].text]).cloned().collect())
        })
    }

    fn read_paths(&mut self) {
        let tokens = std::mem::take(&mut self.tokens);
        // Child modules are names like any that `use` brings in.
        for window in tokens.windows(3) {
            if window[0].text == "mod" && window[2].text == ";" {
                let child = self.module.iter().chain([&window[1].text]).cloned().collect();
                self.names.insert(window[1].text.clone(), child);
            }
        }
        let mut inline: Vec<(String, usize)> = Vec::new(); // `mod name {` and the depth at which it ends
        let mut depth = 0;
        let mut index = 0;
        while index < tokens.len() {
            let text = tokens[index].text.as_str();
            let after = |offset: usize| tokens.get(index + offset).map(|token| token.text.as_str());
            match text {
                "{" => depth += 1,
                "}" => {
                    depth -= 1;
                    if inline.last().is_some_and(|(_, end)| *end == depth) {
                        inline.pop();
                    }
                }
                "mod" if after(2) == Some("{") => {
                    inline.push((tokens[index + 1].text.clone(), depth));
                }
                "use" => {
                    let here = self.module.iter().chain(inline.iter().map(|(name, _)| name));
                    let here: Vec<String> = here.cloned().collect();
                    let shown = index > 0 && matches!(tokens[index - 1].text.as_str(), "pub" | ")");
                    index = self.read_use(&tokens, index + 1, &here, Vec::new(), shown, inline.is_empty());
                    continue;
                }
                _ if after(1) == Some("::")
                    && is_word(text)
                    && (index == 0 || tokens[index - 1].text != "::") =>
                {
                    let here: Vec<String> =
                        self.module.iter().chain(inline.iter().map(|(name, _)| name)).cloned().collect();
                    let mut path = Vec::new();
                    let token = &tokens[index];
                    loop {
                        path.push(tokens[index].text.clone());
                        let more = tokens.get(index + 1).is_some_and(|token| token.text == "::")
                            && tokens.get(index + 2).is_some_and(|token| is_word(&token.text));
                        if !more {
                            break;
                        }
                        index += 2;
                    }
                    self.refer(path, &here, token, false);
                }
                _ => {}
            }
            index += 1;
        }
        self.tokens = tokens;
    }

    /// Reads one branch of a `use` from `index` on; returns the index behind it.
    fn read_use(
        &mut self,
        tokens: &[Token],
        mut index: usize,
        here: &[String],
        mut path: Vec<String>,
        shown: bool,
        names_count: bool,
    ) -> usize {
        loop {
            let Some(token) = tokens.get(index) else { return index };
            match token.text.as_str() {
                "::" => index += 1,
                "{" => {
                    index += 1;
                    while tokens.get(index).is_some_and(|token| token.text != "}") {
                        if tokens[index].text == "," {
                            index += 1;
                        } else {
                            index = self.read_use(tokens, index, here, path.clone(), shown, names_count);
                        }
                    }
                    return index + 1;
                }
                "*" => {
                    self.refer(path, here, token, shown);
                    return index + 1;
                }
                word if is_word(word) => {
                    path.push(word.to_string());
                    index += 1;
                    let next = tokens.get(index).map(|token| token.text.as_str());
                    if next == Some("::") {
                        continue;
                    }
                    if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
                        path.pop();
                    }
                    let mut name = path.last().cloned();
                    if next == Some("as") {
                        name = tokens.get(index + 1).map(|token| token.text.clone());
                        index += 2;
                    }
                    let absolute = self.refer(path, here, token, shown);
                    if let (true, Some(name), Some(absolute)) = (names_count, name, absolute) {
                        self.names.insert(name, absolute);
                    }
                    return index;
                }
                _ => return index + 1,
            }
        }
    }

    /// Notes where `path`, said in the module `here`, leads, if that is in this crate.
    fn refer(
        &mut self,
        path: Vec<String>,
        here: &[String],
        token: &Token,
        shown: bool,
    ) -> Option<Vec<String>> {
        let mut at = here.to_vec();
        let mut rest = path.as_slice();
        match rest.first()?.as_str() {
            // `outrigger` is what the binary calls the library.
            "crate" | "outrigger" => {
                at.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|part| part == "super") {
                    at.pop();
                    rest = &rest[1..];
                }
            }
            name => {
                at = self.names.get(name)?.clone();
                rest = &rest[1..];
            }
        }
        at.extend_from_slice(rest);
        self.paths.push(Reference { path: at.clone(), line: token.line, in_tests: token.in_tests, shown });
        Some(at)
    }
}

/// Marks what stands in an item under `#[cfg(test)]`.
fn mark_tests(tokens: &mut [Token]) {
    let mut index = 0;
    while index < tokens.len() {
        let said = |offset: usize| tokens.get(index + offset).map_or("", |token| token.text.as_str());
        let attribute = ["#", "[", "cfg", "(", "test", ")", "]"];
        if !attribute.iter().enumerate().all(|(offset, word)| said(offset) == *word) {
            index += 1;
            continue;
        }
        // The item that the attribute stands on ends with its braces, or with a semicolon before them.
        let mut depth = 0;
        while index < tokens.len() {
            tokens[index].in_tests = true;
            match tokens[index].text.as_str() {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            let text = tokens[index].text.as_str();
            index += 1;
            if depth == 0 && matches!(text, "}" | ";") {
                break;
            }
        }
    }
}

fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Words, `::` and single marks; comments, text, characters and lifetimes are left out.
fn tokens(text: &str) -> Vec<Token> {
    let bytes: Vec<char> = text.chars().collect();
    let (mut tokens, mut line, mut at) = (Vec::new(), 1, 0);
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    while at < bytes.len() {
        let rest = &bytes[at..];
        let start = at;
        match rest {
            ['/', '/', ..] => at += rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => at += block_comment(rest),
            ['"', ..] => at += quoted(rest),
            ['b' | 'c', '"', ..] => at += 1 + quoted(&rest[1..]),
            ['r', '"' | '#', ..] if raw(&rest[1..]).is_some() => {
                at += 1 + raw(&rest[1..]).expect("just seen")
            }
            ['b' | 'c', 'r', '"' | '#', ..] if raw(&rest[2..]).is_some() => {
                at += 2 + raw(&rest[2..]).expect("just seen");
            }
            ['b', '\'', '\\', ..] => at += 4 + rest[4..].iter().position(|c| *c == '\'').unwrap_or(0) + 1,
            ['b', '\'', _, '\'', ..] => at += 4,
            ['\'', '\\', ..] => at += 3 + rest[3..].iter().position(|c| *c == '\'').unwrap_or(0) + 1,
            ['\'', _, '\'', ..] => at += 3,
            ['\'', ..] => at += 1 + rest[1..].iter().take_while(|c| is_part(**c)).count(),
            [':', ':', ..] => {
                tokens.push(Token { text: "::".into(), line, in_tests: false });
                at += 2;
            }
            [first, ..] if is_part(*first) => {
                let word: String = rest.iter().take_while(|c| is_part(**c)).collect();
                at += word.chars().count();
                tokens.push(Token { text: word, line, in_tests: false });
            }
            [first, ..] => {
                if !first.is_whitespace() {
                    tokens.push(Token { text: first.to_string(), line, in_tests: false });
                }
                at += 1;
            }
            [] => unreachable!("`at` is below the length"),
        }
        at = at.min(bytes.len());
        line += bytes[start..at].iter().filter(|c| **c == '\n').count();
    }
    tokens
}

/// The length of a string literal that starts here.
fn quoted(text: &[char]) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != '"' {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// The length of a raw string whose hashes or quote start here; `None` if it is none (`r#type`).
fn raw(text: &[char]) -> Option<usize> {
    let hashes = text.iter().take_while(|c| **c == '#').count();
    (text.get(hashes) == Some(&'"')).then_some(())?;
    let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let length = text[hashes + 1..].windows(end.len()).position(|window| window == end)?;
    Some(hashes + 1 + length + end.len())
}

/// The length of a block comment, which may hold others.
fn block_comment(text: &[char]) -> usize {
    let (mut at, mut depth) = (0, 0);
    while at < text.len() {
        match &text[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}
