//! Lines on their way out: a bounded buffer that workers append to, and one thread that writes it.
//!
//! Both logs stand on it. Appending takes a lock for the time of a copy, never for that of a write: the writer swaps
//! the buffer for its own empty one and writes outside the lock. Where the disk or the pipe is slower than the
//! lines, the buffer fills, further lines are dropped and counted, and the owner of the log is told how many, once
//! there is room again, at most every ten seconds.
//!
//! Rejected: a channel of lines (an allocation each, and a bound in lines is none in bytes).

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::cells::SharedCounter;

/// How much may wait to be written. Two buffers of this size are the most that a log takes.
const CAPACITY_BYTES: usize = 1 << 20;

/// A buffer that has grown beyond this is given back when it is empty.
const KEPT_BYTES: usize = 64 << 10;

/// How long the end of the process waits for a slow disk or pipe.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a file is looked at: has it been rotated away?
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How often dropped lines are told of.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// How long the writer waits where a non-blocking pipe or terminal is full.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Stdout,
    Stderr,
    /// Appended to; opened anew when somebody renames or removes it (logrotate).
    File(PathBuf),
}

/// The way to the writer; everybody who writes has a clone.
#[derive(Clone, Debug)]
pub(super) struct Spool(Arc<Shared>);

/// Ends the writer when dropped, after it wrote what waits (but for at most a second).
#[derive(Debug)]
pub(super) struct Writer {
    spool: Spool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There is something to do for the writer.
    work: Condvar,
    /// The writer has written everything, or is gone.
    rest: Condvar,
    dropped: Arc<SharedCounter>,
}

#[derive(Debug)]
struct State {
    buffer: Vec<u8>,
    target: Target,
    /// Lines dropped that nobody was told of yet.
    untold: u64,
    /// The writer holds lines that are not written yet.
    is_writing: bool,
    is_ending: bool,
    has_ended: bool,
}

/// Tells of `n` dropped lines; given to [`Spool::start`]. What it returns is written next.
pub(super) type Tell = Box<dyn Fn(u64) -> Vec<u8> + Send>;

impl Spool {
    /// Starts a writer thread called `name`. Lines that are lost count in `dropped`.
    pub(super) fn start(
        name: &str,
        target: Target,
        dropped: Arc<SharedCounter>,
        tell: Tell,
    ) -> io::Result<(Spool, Writer)> {
        let state = State {
            buffer: Vec::new(),
            target,
            untold: 0,
            is_writing: false,
            is_ending: false,
            has_ended: false,
        };
        let shared = Shared { state: Mutex::new(state), work: Condvar::new(), rest: Condvar::new(), dropped };
        let spool = Spool(Arc::new(shared));
        let (writing, outlet) = (spool.clone(), Outlet::default());
        thread::Builder::new().name(name.to_owned()).spawn(move || writing.write_all(outlet, &tell))?;
        Ok((spool.clone(), Writer { spool }))
    }

    /// Appends `lines`, of which there are `count`, or drops them all. Never waits for I/O.
    pub(super) fn append(&self, lines: &[u8], count: u64) {
        let mut state = self.lock();
        // INVARIANT: the buffer never exceeds its capacity; a batch larger than it is dropped.
        if state.is_ending || state.buffer.len() + lines.len() > CAPACITY_BYTES {
            state.untold += count;
            self.0.dropped.add(count);
            return;
        }
        let was_empty = state.buffer.is_empty();
        state.buffer.extend_from_slice(lines);
        drop(state);
        if was_empty {
            self.0.work.notify_one();
        }
    }

    /// Lines that wait and those to come go to `target`.
    pub(super) fn redirect(&self, target: Target) {
        self.lock().target = target;
    }

    /// Waits until all that was appended is written, but for at most a second.
    pub(super) fn flush(&self) {
        let is_busy = |state: &mut State| !state.has_ended && (state.is_writing || !state.buffer.is_empty());
        drop(self.0.rest.wait_timeout_while(self.lock(), FLUSH_TIMEOUT, is_busy));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer thread's life.
    fn write_all(self, mut outlet: Outlet, tell: &Tell) {
        let mut batch = Vec::new();
        let mut told_at: Option<Instant> = None;
        loop {
            let mut state = self.wait_for_work();
            if state.is_ending && state.buffer.is_empty() && state.untold == 0 {
                state.has_ended = true;
                self.0.rest.notify_all();
                return;
            }
            std::mem::swap(&mut state.buffer, &mut batch);
            if outlet.target.as_ref() != Some(&state.target) {
                outlet = Outlet { target: Some(state.target.clone()), ..Outlet::default() };
            }
            state.is_writing = true;
            let is_ending = state.is_ending;
            let may_tell = is_ending || told_at.is_none_or(|at| at.elapsed() >= TELL_INTERVAL);
            let untold = if may_tell { std::mem::take(&mut state.untold) } else { 0 };
            drop(state);

            let lost = outlet.write(&batch);
            self.0.dropped.add(lost);
            if untold > 0 {
                told_at = Some(Instant::now());
                // If this line is lost as well, the counter still says how many were.
                outlet.write(&tell(untold));
            }
            // Not at the end: it would come only later than it does.
            if lost > 0 && !is_ending {
                self.lock().untold += lost;
            }
            batch.clear();
            if batch.capacity() > KEPT_BYTES {
                batch = Vec::new();
            }
        }
    }

    /// Waits for lines, for the end, or for the time to tell of dropped lines.
    fn wait_for_work(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.is_writing = false;
        if state.buffer.is_empty() {
            self.0.rest.notify_all();
        }
        let timeout = if state.untold > 0 { TELL_INTERVAL } else { Duration::MAX };
        let is_idle = |state: &mut State| state.buffer.is_empty() && !state.is_ending;
        self.0.work.wait_timeout_while(state, timeout, is_idle).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let Spool(shared) = &self.spool;
        let mut state = self.spool.lock();
        state.is_ending = true;
        shared.work.notify_one();
        // Timed out or not: there is nothing more to be done for these lines.
        drop(shared.rest.wait_timeout_while(state, FLUSH_TIMEOUT, |state| !state.has_ended));
    }
}

/// The open file, pipe or terminal.
#[derive(Default)]
struct Outlet {
    target: Option<Target>,
    file: Option<File>,
    /// A file's device and number, by which one that was rotated away is told.
    identity: Option<(u64, u64)>,
    looked_at: Option<Instant>,
    /// The last write ended within a line.
    is_torn: bool,
}

impl Outlet {
    /// Writes `lines`; says how many of them were lost.
    fn write(&mut self, lines: &[u8]) -> u64 {
        if lines.is_empty() {
            return 0;
        }
        let result = self.look().and_then(|()| {
            let mut rest = lines;
            if self.is_torn {
                // What follows a line that was cut must not be read as its end.
                self.write_some(&mut &b"\n"[..])?;
                self.is_torn = false;
            }
            match self.write_some(&mut rest) {
                Ok(()) => Ok(0),
                Err(_) => {
                    let written = &lines[..lines.len() - rest.len()];
                    self.is_torn = written.last().is_some_and(|byte| *byte != b'\n');
                    Ok(count_lines(rest))
                }
            }
        });
        match result {
            Ok(0) => 0,
            // Opened anew the next time: the directory may be back, the disk may have room.
            Ok(lost) => {
                self.file = None;
                lost
            }
            Err::<_, io::Error>(_) => {
                self.file = None;
                count_lines(lines)
            }
        }
    }

    /// Writes as much as can be written, and takes it off `rest`.
    fn write_some(&mut self, rest: &mut &[u8]) -> io::Result<()> {
        let file = self.file.as_mut().ok_or(ErrorKind::NotConnected)?;
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => *rest = &rest[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(FULL_PAUSE),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Opens the target unless it is open; a file that is no longer the one of this name is opened anew.
    fn look(&mut self) -> io::Result<()> {
        let is_stale = self.looked_at.is_none_or(|at| at.elapsed() >= LOOK_INTERVAL);
        if let Some(Target::File(path)) = &self.target
            && is_stale
        {
            self.looked_at = Some(Instant::now());
            if self.identity.is_some() && self.identity != identity(path) {
                self.file = None;
            }
        }
        if self.file.is_none() {
            self.file = Some(match &self.target {
                Some(Target::Stdout) => File::from(io::stdout().as_fd().try_clone_to_owned()?),
                Some(Target::Stderr) => File::from(io::stderr().as_fd().try_clone_to_owned()?),
                Some(Target::File(path)) => open(path)?,
                None => return Err(ErrorKind::NotConnected.into()),
            });
            if let Some(Target::File(path)) = &self.target {
                self.identity = identity(path);
            }
        }
        Ok(())
    }
}

/// Opens a log file for appending; makes it if it is missing.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn count_lines(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;
    use std::process::Command;

    /// A directory that goes with the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("outrigger-spool-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("a directory for temporary files");
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn tell() -> Tell {
        Box::new(|lines| format!("dropped {lines}\n").into_bytes())
    }

    fn outlet(path: &Path) -> Outlet {
        Outlet { target: Some(Target::File(path.to_owned())), ..Outlet::default() }
    }

    #[test]
    fn everything_is_written_before_the_end() {
        let scratch = Scratch::new("end");
        let path = scratch.0.join("log");
        let dropped = Arc::new(SharedCounter::default());
        let (spool, writer) =
            Spool::start("test", Target::File(path.clone()), dropped.clone(), tell()).expect("a thread");
        let lines: String = (0..1000).map(|number| format!("{number}\n")).collect();
        lines.split_inclusive('\n').for_each(|line| spool.append(line.as_bytes(), 1));
        spool.flush();
        assert_eq!(fs::read_to_string(&path).expect("written"), lines);
        let lines = lines + "last\n";
        spool.append(b"last\n", 1);
        drop(writer);
        assert_eq!(fs::read_to_string(&path).expect("written"), lines);
        spool.append(b"too late\n", 1);
        assert_eq!(dropped.get(), 1);
    }

    /// A named pipe that nobody reads holds the writer fast; whoever appends does not notice.
    #[test]
    fn a_stuck_reader_costs_lines_and_no_time() {
        let scratch = Scratch::new("stuck");
        let path = scratch.0.join("pipe");
        assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo runs").success());
        let dropped = Arc::new(SharedCounter::default());
        let (spool, writer) =
            Spool::start("test", Target::File(path.clone()), dropped.clone(), tell()).expect("a thread");
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        for _ in 0..3 * CAPACITY_BYTES / line.len() {
            spool.append(&line, 1);
        }
        // The writer may hold one buffer while the other fills up.
        assert!(dropped.get() >= 1024, "{}", dropped.get());

        let reader = thread::spawn(move || fs::read_to_string(path).expect("it is read now"));
        drop(writer);
        let read = reader.join().expect("no panic");
        let lines = read.lines().filter(|line| line.starts_with('x')).count() as u64;
        assert_eq!(lines + dropped.get(), 3072, "each line came or is counted");
        assert_eq!(read.lines().last(), Some(&*format!("dropped {}", dropped.get())), "and it is told");
    }

    #[test]
    fn a_full_disk_costs_lines_that_are_counted() {
        let mut outlet = outlet(Path::new("/dev/full"));
        assert_eq!(outlet.write(b"one\ntwo\n"), 2);
        assert_eq!(outlet.write(b""), 0);
    }

    #[test]
    fn a_file_that_was_rotated_away_is_opened_anew() {
        let scratch = Scratch::new("rotate");
        let (path, old) = (scratch.0.join("log"), scratch.0.join("log.1"));
        fs::write(&path, "before\n").expect("a file");
        let mut outlet = outlet(&path);
        outlet.write(b"one\n");
        fs::rename(&path, &old).expect("renamed");
        outlet.write(b"two\n");
        outlet.looked_at = None; // a second has passed
        outlet.write(b"three\n");
        assert_eq!(fs::read_to_string(&old).expect("kept"), "before\none\ntwo\n");
        assert_eq!(fs::read_to_string(&path).expect("made"), "three\n");

        fs::remove_file(&path).expect("removed");
        outlet.looked_at = None;
        outlet.write(b"four\n");
        assert_eq!(fs::read_to_string(&path).expect("made"), "four\n");
    }

    #[test]
    fn a_line_that_was_cut_does_not_run_into_the_next() {
        let scratch = Scratch::new("torn");
        let mut outlet = outlet(&scratch.0.join("log"));
        outlet.write(b"half a li");
        outlet.is_torn = true;
        assert_eq!(outlet.write(b"whole\n"), 0);
        assert_eq!(fs::read_to_string(scratch.0.join("log")).expect("written"), "half a li\nwhole\n");
    }

    #[test]
    fn lines_go_to_the_new_target_after_a_reload() {
        let scratch = Scratch::new("redirect");
        let [old, new] = ["old", "new"].map(|name| scratch.0.join(name));
        let (spool, writer) =
            Spool::start("test", Target::File(old), Arc::default(), tell()).expect("a thread");
        spool.redirect(Target::File(new.clone()));
        spool.append(b"one\n", 1);
        drop(writer);
        assert_eq!(fs::read_to_string(new).expect("written"), "one\n");
    }
}
