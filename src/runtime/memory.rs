//! How much memory is in use, for shedding: read now and then, off the workers.
//!
//! Two numbers. What the process itself holds, from `/proc/self/statm`, for a bound in bytes; and what of its cgroup's
//! limit is used, by whoever is in it (the service too, where both share one): that is what the kernel kills by. Page
//! cache that can be had back at once does not count, as with the kubelet (usage less inactive file pages). Of nested
//! groups the fullest one counts. Version 2 and version 1 of cgroups; where neither says a limit, there is no share.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::process::Process;

/// How often it is read, where any upstream sheds, and how often it is looked whether one does.
const READ: Duration = Duration::from_millis(500);

/// Reads for ever, as long as somebody wants to know.
pub(super) async fn keep_measured(process: Arc<Process>) {
    loop {
        let sheds = process.shared.snapshot.load().chains().any(|(_, chain)| chain.shed.is_some());
        if sheds {
            let read = tokio::task::spawn_blocking(|| (resident(), share(Path::new("/"))));
            if let Ok((bytes, share)) = read.await {
                process.shared.memory.set(bytes.unwrap_or(0), share.unwrap_or(0.0));
            }
        }
        tokio::time::sleep(READ).await;
    }
}

/// Bytes of memory that this process holds (proc_pid_statm(5)).
fn resident() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// What the files of one version of cgroups are called.
struct Version {
    /// Where the hierarchy is mounted.
    mount: &'static str,
    usage: &'static str,
    limit: &'static str,
    /// The line of `memory.stat` that tells what could be had back at once.
    inactive: &'static str,
}

const V2: Version = Version {
    mount: "sys/fs/cgroup",
    usage: "memory.current",
    limit: "memory.max",
    inactive: "inactive_file ",
};
const V1: Version = Version {
    mount: "sys/fs/cgroup/memory",
    usage: "memory.usage_in_bytes",
    limit: "memory.limit_in_bytes",
    inactive: "total_inactive_file ",
};

/// The share of its cgroup's limit that is used, of the fullest group above this process. `root`: of the file system.
fn share(root: &Path) -> Option<f64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mut shares = Vec::new();
    for (version, path) in groups.lines().filter_map(group) {
        let mount = root.join(version.mount);
        // Inside a container the path may be that of the host, and what is mounted is the group itself.
        let mut folder = mount.join(path.trim_start_matches('/'));
        if !folder.join(version.usage).exists() {
            folder.clone_from(&mount);
        }
        while folder.starts_with(&mount) {
            shares.extend(of_group(&folder, version));
            if !folder.pop() {
                break;
            }
        }
    }
    shares.into_iter().reduce(f64::max)
}

/// The group of memory that a line of `/proc/self/cgroup` names (cgroups(7)).
fn group(line: &str) -> Option<(&'static Version, &str)> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    match controllers {
        "" => Some((&V2, path)),
        controllers if controllers.split(',').any(|controller| controller == "memory") => Some((&V1, path)),
        _ => None,
    }
}

fn of_group(folder: &Path, version: &Version) -> Option<f64> {
    let number = |file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
    // "max" is no number; version 1 says a number beyond all memory instead.
    let limit = number(version.limit).filter(|limit| (1..1 << 60).contains(limit))?;
    let usage = number(version.usage)?;
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let inactive =
        stat.lines().find_map(|line| line.strip_prefix(version.inactive)?.trim().parse::<u64>().ok());
    Some(usage.saturating_sub(inactive.unwrap_or(0)) as f64 / limit as f64)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// Why, the files, and the share that they tell.
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Option<f64>);

    /// A file system with these files, gone with the test.
    struct Root(PathBuf);

    impl Root {
        fn with(number: usize, files: &[(&str, &str)]) -> Self {
            let name = format!("outrigger-memory-{}-{number}", std::process::id());
            let root = Self(std::env::temp_dir().join(name));
            for (path, text) in files {
                let path = root.0.join(path);
                fs::create_dir_all(path.parent().expect("a folder above")).expect("a folder");
                fs::write(path, text).expect("a file");
            }
            root
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_fullest_group_with_a_limit_counts() {
        const LINE: &str = "proc/self/cgroup";
        const STAT: &str = "anon 7\ninactive_file 100\nactive_file 9\n";
        #[rustfmt::skip]
        let cases: &[Case] = &[
            ("no cgroup at all", &[], None),
            ("a container sees its own group as the root", &[
                (LINE, "0::/\n"),
                ("sys/fs/cgroup/memory.current", "600\n"), ("sys/fs/cgroup/memory.max", "1000\n"), ("sys/fs/cgroup/memory.stat", STAT),
            ], Some(0.5)),
            ("no limit", &[
                (LINE, "0::/\n"),
                ("sys/fs/cgroup/memory.current", "600\n"), ("sys/fs/cgroup/memory.max", "max\n"),
            ], None),
            ("the limit stands above", &[
                (LINE, "0::/pod/sidecar\n"),
                ("sys/fs/cgroup/pod/sidecar/memory.current", "300\n"), ("sys/fs/cgroup/pod/sidecar/memory.max", "max\n"),
                ("sys/fs/cgroup/pod/memory.current", "900\n"), ("sys/fs/cgroup/pod/memory.max", "1000\n"),
            ], Some(0.9)),
            ("the path is the host's", &[
                (LINE, "0::/kubepods/burstable/pod7/c1\n"),
                ("sys/fs/cgroup/memory.current", "200\n"), ("sys/fs/cgroup/memory.max", "1000\n"),
            ], Some(0.2)),
            ("version 1", &[
                (LINE, "12:cpu,cpuacct:/x\n3:memory:/docker/1\n0::/\n"),
                ("sys/fs/cgroup/memory/docker/1/memory.usage_in_bytes", "800\n"),
                ("sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", "1000\n"),
                ("sys/fs/cgroup/memory/docker/1/memory.stat", "total_inactive_file 100\n"),
            ], Some(0.7)),
            ("version 1 without a limit", &[
                (LINE, "3:memory:/\n"),
                ("sys/fs/cgroup/memory/memory.usage_in_bytes", "800\n"),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ], None),
            ("what cannot be read says nothing", &[
                (LINE, "x\n0::/\n"), ("sys/fs/cgroup/memory.max", "0\n"), ("sys/fs/cgroup/memory.current", "x\n"),
            ], None),
        ];
        for (number, (why, files, expected)) in cases.iter().enumerate() {
            let root = Root::with(number, files);
            assert_eq!(share(&root.0), *expected, "{why}");
        }
    }

    #[test]
    fn this_process_holds_memory() {
        assert!(resident().expect("/proc is mounted where the tests run") > 1 << 20);
        // Whatever this machine says, it is a share.
        assert!(share(Path::new("/")).is_none_or(|share| (0.0..2.0).contains(&share)));
    }
}
