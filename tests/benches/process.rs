//! What the operating system says of this process. Linux only; elsewhere those measures are errors.

use std::{fs, path::Path, time::Duration};

use crate::Failure;

/// Processor time that the threads of this process have used so far.
pub(crate) fn cpu_time() -> Result<Duration, Failure> {
    cpu_time_of(|_| true)
}

/// Processor time of the threads with such a name. Threads that have ended are not counted.
pub(crate) fn cpu_time_of(counts: impl Fn(&str) -> bool) -> Result<Duration, Failure> {
    let mut total = 0;
    for thread in fs::read_dir("/proc/self/task")? {
        let thread = thread?.path();
        // A thread may end while it is looked at.
        let Ok(name) = fs::read_to_string(thread.join("comm")) else { continue };
        let Ok(times) = fs::read_to_string(thread.join("schedstat")) else { continue };
        if counts(name.trim_end()) {
            total += times.split_whitespace().next().unwrap_or_default().parse::<u64>()?;
        }
    }
    Ok(Duration::from_nanos(total))
}

/// Memory of this process, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) now: u64,
    pub(crate) peak: u64,
}

pub(crate) fn memory() -> Result<Memory, Failure> {
    let status = fs::read_to_string("/proc/self/status")?;
    let field = |name: &str| -> Result<u64, Failure> {
        let line =
            status.lines().find_map(|line| line.strip_prefix(name)).ok_or_else(|| format!("no {name}"))?;
        let kib: u64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024)
    };
    Ok(Memory { now: field("VmRSS")?, peak: field("VmHWM")? })
}

/// Has the system end this thread's sleeps when they are over, and not up to 50 µs later. Does nothing where it cannot.
pub(crate) fn sleep_precisely() {
    if let Ok(task) = fs::read_link("/proc/thread-self")
        && let Some(thread) = task.file_name()
    {
        let _ = fs::write(Path::new("/proc").join(thread).join("timerslack_ns"), "1");
    }
}

/// While it lives, this thread and those that it starts share one processor, and what passes between them waits for no
/// other to wake up. Does nothing where the system cannot.
pub(crate) struct OneProcessor {
    #[cfg(target_os = "linux")]
    before: Option<rustix::thread::CpuSet>,
}

impl OneProcessor {
    #[cfg(target_os = "linux")]
    pub(crate) fn share() -> Self {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        let before = sched_getaffinity(None).ok();
        let last = before.and_then(|set| (0..CpuSet::MAX_CPU).rev().find(|&cpu| set.is_set(cpu)));
        if let Some(last) = last {
            let mut one = CpuSet::new();
            one.set(last);
            // Where it is not allowed, the figures are what they are with all processors.
            let _ = sched_setaffinity(None, &one);
        }
        Self { before }
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn share() -> Self {
        Self {}
    }
}

#[cfg(target_os = "linux")]
impl Drop for OneProcessor {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = rustix::thread::sched_setaffinity(None, before);
        }
    }
}
