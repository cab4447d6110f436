//! Notices that files have changed, and are whole: the configuration's, or those that it names.
//!
//! A file changes by rename (most editors), by writing in place, or by a swapped symlink above it (Kubernetes:
//! `outrigger.toml -> ..data/outrigger.toml`, where `..data` is replaced). The parent directory sees all three,
//! so it is watched, not the file: a watch on a file follows the old inode and is blind after the first swap.
//! A slow poll stands behind it for what no event tells (network file systems, a directory that was replaced).
//!
//! Events only say "look"; what counts is the content. It must differ from the last one that was tried, and be
//! read equal twice [`SETTLE`] apart: a file that is being written is not taken half.
//!
//! It runs on its own thread: a file system that hangs stalls neither a worker nor the admin API.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;
use notify::{RecursiveMode, Watcher as _};

use crate::config;

/// Two reads this far apart must be equal.
const SETTLE: Duration = Duration::from_millis(500);
/// How often the file is read without any event.
const POLL: Duration = Duration::from_secs(5);

/// What the files hold, as far as it matters here: a hash.
type Content = u64;

/// What has been seen. Pure: time and content are parameters.
#[derive(Debug, PartialEq, Eq)]
struct Sight {
    /// What was last taken, good or bad; none before the first look, which tells of whatever is there.
    taken: Option<Content>,
    /// Something else, and since when it is there unchanged.
    candidate: Option<(Content, Instant)>,
}

/// What to do after a look.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Wait for an event, or for the poll.
    Wait,
    /// Look again in this time.
    LookAgain(Duration),
    /// Changed and whole: reload.
    Reload,
}

impl Sight {
    /// The state and the step after `content` was read at `now`.
    fn look(&mut self, now: Instant, content: Content) -> Next {
        if self.taken.is_none() {
            *self = Self { taken: Some(content), candidate: None };
            return Next::Reload;
        }
        if self.taken == Some(content) {
            self.candidate = None;
            return Next::Wait;
        }
        match self.candidate {
            Some((seen, since)) if seen == content => {
                let age = now.duration_since(since);
                if age < SETTLE {
                    return Next::LookAgain(SETTLE - age);
                }
                *self = Self { taken: Some(content), candidate: None };
                Next::Reload
            }
            _ => {
                self.candidate = Some((content, now));
                Next::LookAgain(SETTLE)
            }
        }
    }
}

/// What the watching thread is told.
enum Wake {
    /// Something happened in the directory.
    Look,
    /// Nobody watches any more.
    Stop,
}

/// A running watch; ends when dropped.
#[derive(Debug)]
pub(super) struct Watch {
    wake: mpsc::Sender<Wake>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        // An error means that the thread has ended already.
        let _ = self.wake.send(Wake::Stop);
    }
}

impl Watch {
    /// Watches `files`, whose present content counts as taken, and calls `changed` for each change. They are read here,
    /// on the caller's thread.
    ///
    /// # Errors
    /// If the thread cannot be started. A directory that cannot be watched is only logged: the poll is left.
    pub(super) fn start(files: Vec<PathBuf>, changed: impl Fn() + Send + 'static) -> io::Result<Self> {
        let taken = Some(read(&files));
        Self::begin(files, Sight { taken, candidate: None }, changed)
    }

    /// The same, but nothing is read on the caller's thread: `changed` is called once more when the files have first
    /// been read, for what happened to them before.
    ///
    /// # Errors
    /// As [`Watch::start`].
    pub(super) fn start_unread(files: Vec<PathBuf>, changed: impl Fn() + Send + 'static) -> io::Result<Self> {
        Self::begin(files, Sight { taken: None, candidate: None }, changed)
    }

    fn begin(files: Vec<PathBuf>, sight: Sight, changed: impl Fn() + Send + 'static) -> io::Result<Self> {
        let (wake, wakes) = mpsc::channel();
        let events = wake.clone();
        thread::Builder::new().name("outrigger-watch".to_owned()).spawn(move || {
            let _events = watch_directories(&files, events);
            run(&files, sight, &wakes, changed);
        })?;
        Ok(Self { wake })
    }
}

/// Looks whenever something happened, and now and then, until told to stop.
fn run(files: &[PathBuf], mut sight: Sight, wakes: &mpsc::Receiver<Wake>, changed: impl Fn()) {
    // The first look at once: for what happened before the directory was watched.
    let mut wait = Duration::ZERO;
    loop {
        match wakes.recv_timeout(wait) {
            Ok(Wake::Look) | Err(RecvTimeoutError::Timeout) => {}
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
        // A burst of events is one look.
        while let Ok(wake) = wakes.try_recv() {
            if matches!(wake, Wake::Stop) {
                return;
            }
        }
        wait = match sight.look(Instant::now(), read(files)) {
            Next::Wait => POLL,
            Next::LookAgain(after) => after,
            Next::Reload => {
                changed();
                POLL
            }
        };
    }
}

/// Tells `wake` about what happens in the directories of `files`. The watch lives as long as what is returned.
fn watch_directories(files: &[PathBuf], wake: mpsc::Sender<Wake>) -> Option<notify::RecommendedWatcher> {
    let directories: BTreeSet<&Path> = files
        .iter()
        .map(|file| file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))
        .collect();
    let look = move |event: notify::Result<notify::Event>| {
        // Reads cause events too; ours would wake us for ever.
        if event.is_err() || event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = wake.send(Wake::Look);
        }
    };
    let mut watcher = notify::recommended_watcher(look)
        .inspect_err(
            |error| tracing::warn!(%error, "files are not watched, but read every {} s", POLL.as_secs()),
        )
        .ok()?;
    for directory in directories {
        if let Err(error) = watcher.watch(directory, RecursiveMode::NonRecursive) {
            tracing::warn!(%error, directory = %directory.display(),
                "this directory cannot be watched; its files are read every {} s instead", POLL.as_secs());
        }
    }
    Some(watcher)
}

/// What the files hold, as a hash; that a file cannot be read is content as well.
fn read(files: &[PathBuf]) -> Content {
    let mut hasher = FixedState::default().build_hasher();
    for file in files {
        // What is no file, or larger than it may be, is not read here either; the reload says so.
        let content = std::fs::metadata(file).and_then(|about| {
            match about.is_file() && about.len() <= config::MAX_FILE_SIZE as u64 {
                true => std::fs::read(file),
                false => Ok(about.len().to_le_bytes().to_vec()),
            }
        });
        hasher.write_usize(content.as_ref().map_or(usize::MAX, Vec::len));
        hasher.write(&content.unwrap_or_default());
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Content = 1;
    const B: Content = 2;
    const C: Content = 3;
    const GONE: Content = 4;

    /// Looks at the given milliseconds; returns what each look led to.
    fn looks(looks: &[(u64, Content)]) -> Vec<Next> {
        let start = Instant::now();
        let mut sight = Sight { taken: Some(A), candidate: None };
        looks.iter().map(|(at, content)| sight.look(start + Duration::from_millis(*at), *content)).collect()
    }

    fn again(millis: u64) -> Next {
        Next::LookAgain(Duration::from_millis(millis))
    }

    #[test]
    fn a_change_counts_when_it_was_read_equal_twice() {
        use Next::{Reload, Wait};
        #[rustfmt::skip]
        let cases = [
            // why                                    at ms, content                   what follows
            ("nothing changed",                       vec![(0, A), (100, A)],           vec![Wait, Wait]),
            ("seen twice, far enough apart",          vec![(0, B), (500, B)],           vec![again(500), Reload]),
            ("an event in between moves nothing",     vec![(0, B), (200, B), (500, B)], vec![again(500), again(300), Reload]),
            ("still being written",                   vec![(0, B), (400, C), (900, C)], vec![again(500), again(500), Reload]),
            ("changed back",                          vec![(0, B), (400, A), (900, B)], vec![again(500), Wait, again(500)]),
            ("taken once only",                       vec![(0, B), (500, B), (900, B)], vec![again(500), Reload, Wait]),
            ("gone for a moment, as editors do",      vec![(0, GONE), (100, A)],        vec![again(500), Wait]),
            ("gone for good is a change as well",     vec![(0, GONE), (600, GONE)],     vec![again(500), Reload]),
        ];
        for (why, at, expected) in cases {
            assert_eq!(looks(&at), expected, "{why}");
        }
    }

    /// A directory of its own that goes with the test.
    struct Directory(std::path::PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("outrigger-watch-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).expect("a directory");
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// Starts a watch on `file`, acts, and waits until the watch has told `times` changes, one act at a time.
    fn every_act_is_told(file: &Path, acts: &[&dyn Fn()]) {
        let (told, tellings) = mpsc::channel();
        let _watch = Watch::start(vec![file.to_owned()], move || told.send(()).expect("the test waits"))
            .expect("a thread");
        for act in acts {
            act();
            tellings.recv_timeout(Duration::from_secs(20)).expect("the change is told");
        }
    }

    #[test]
    fn what_nobody_has_read_is_told_at_the_first_look() {
        let start = Instant::now();
        let mut sight = Sight { taken: None, candidate: None };
        assert_eq!(sight.look(start, A), Next::Reload);
        assert_eq!(sight.look(start, A), Next::Wait);
        assert_eq!(sight.look(start, B), again(500));

        let directory = Directory::new("unread");
        let (told, tellings) = mpsc::channel();
        let files = vec![directory.0.join("endpoints")];
        let _watch = Watch::start_unread(files, move || told.send(()).expect("the test waits"));
        tellings.recv_timeout(Duration::from_secs(20)).expect("it is told");
    }

    #[test]
    fn writing_in_place_and_renaming_over_are_both_told() {
        let directory = Directory::new("plain");
        let (file, other) = (directory.0.join("outrigger.toml"), directory.0.join("new"));
        let write = |path: &Path, text: &str| std::fs::write(path, text).expect("it is written");
        write(&file, "one");
        every_act_is_told(
            &file,
            &[
                &|| write(&file, "two"),
                &|| {
                    write(&other, "three");
                    std::fs::rename(&other, &file).expect("renamed");
                },
                &|| write(&file, "four"),
            ],
        );
    }

    #[test]
    fn each_swap_of_a_config_map_is_told() {
        let directory = Directory::new("configmap");
        let root = &directory.0;
        let version = |n: u32| {
            let target = root.join(format!("..{n}"));
            std::fs::create_dir_all(&target).expect("a directory");
            std::fs::write(target.join("outrigger.toml"), format!("version {n}")).expect("written");
            std::os::unix::fs::symlink(format!("..{n}"), root.join("..data_tmp")).expect("a link");
            std::fs::rename(root.join("..data_tmp"), root.join("..data")).expect("swapped");
        };
        version(1);
        let file = root.join("outrigger.toml");
        std::os::unix::fs::symlink("..data/outrigger.toml", &file).expect("a link");
        every_act_is_told(&file, &[&|| version(2), &|| version(3)]);
    }
}
