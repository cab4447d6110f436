//! What the kernel knows about this process: the numbers of the `process_*` metrics, read from `/proc/self`.
//!
//! Read at each scrape (some 50 us, off the workers). Where `/proc` is not mounted there are none, and the metrics
//! are left out.

use std::fs;

/// One reading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Process {
    /// User and system time, in seconds.
    pub(super) cpu_seconds: f64,
    pub(super) open_fds: u64,
    /// Infinite if there is no limit.
    pub(super) max_fds: f64,
    pub(super) virtual_bytes: u64,
    pub(super) resident_bytes: u64,
    /// Seconds since 1970.
    pub(super) start_seconds: f64,
    pub(super) threads: u64,
}

impl Process {
    /// Reads them now.
    pub(super) fn read() -> Option<Process> {
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let stat = Stat::parse(&fs::read_to_string("/proc/self/stat").ok()?)?;
        let limits = fs::read_to_string("/proc/self/limits").ok()?;
        let boot = boot_seconds(&fs::read_to_string("/proc/stat").ok()?)?;
        Some(Process {
            cpu_seconds: stat.cpu_ticks as f64 / ticks,
            // The directory that is being read is open too.
            open_fds: (fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1),
            max_fds: max_fds(&limits)?,
            virtual_bytes: stat.virtual_bytes,
            resident_bytes: stat.resident_pages * rustix::param::page_size() as u64,
            start_seconds: boot as f64 + stat.start_ticks as f64 / ticks,
            threads: stat.threads,
        })
    }
}

/// What `/proc/self/stat` says (proc_pid_stat(5)).
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Stat> {
        // The program's name stands in parentheses and may hold anything; the numbers come after the last one.
        let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_ascii_whitespace().collect();
        // proc_pid_stat(5) counts from 1, and the first field after the name is its third.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Stat {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

/// When the machine started, in seconds since 1970, as `/proc/stat` says.
fn boot_seconds(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// The soft limit on open files, as `/proc/self/limits` says.
fn max_fds(text: &str) -> Option<f64> {
    let soft =
        text.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_ascii_whitespace().next()?;
    if soft == "unlimited" { Some(f64::INFINITY) } else { soft.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b ( 1) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 1234 1048576 77 18446744073709551615";
        let expected = Stat {
            cpu_ticks: 300,
            threads: 9,
            start_ticks: 1234,
            virtual_bytes: 1_048_576,
            resident_pages: 77,
        };
        assert_eq!(Stat::parse(text), Some(expected));
        for broken in ["", "7 (a", "7 (a) S 1 2", "7 (a) S x x x x x x x x x x x x x x x x x x x x x"] {
            assert_eq!(Stat::parse(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn limits_are_numbers_or_none() {
        let text =
            |soft| format!("Max processes  5 6 x\nMax open files            {soft}   524288   files\n");
        assert_eq!(max_fds(&text("1024")), Some(1024.0));
        assert_eq!(max_fds(&text("unlimited")), Some(f64::INFINITY));
        assert_eq!(max_fds(""), None);
    }

    #[test]
    fn this_process_can_be_read() {
        let process = Process::read().expect("/proc is mounted where the tests run");
        let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs_f64();
        // The machine's clock may have been set since it started.
        assert!((now - 86_400.0..now + 60.0).contains(&process.start_seconds), "{process:?}");
        assert!(process.resident_bytes > 1 << 20 && process.virtual_bytes > process.resident_bytes);
        assert!(process.open_fds >= 3 && process.max_fds >= process.open_fds as f64);
        assert!(process.threads >= 1);
    }
}
