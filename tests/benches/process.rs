//! What the operating system says of this process. Linux only; elsewhere those measures are errors.

use std::{fs, time::Duration};

use crate::Failure;

/// Ticks per second in `/proc`: fixed by Linux for programs, whatever the kernel's own.
const TICKS: f64 = 100.0;

/// Processor time of all threads so far.
pub(crate) fn cpu_time() -> Result<Duration, Failure> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The second field is the name, in parentheses, and may hold spaces; utime and stime are fields 14 and 15.
    let behind_name = stat.rsplit_once(')').ok_or("/proc/self/stat has no name")?.1;
    let ticks: u64 =
        behind_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_secs_f64(ticks as f64 / TICKS))
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
