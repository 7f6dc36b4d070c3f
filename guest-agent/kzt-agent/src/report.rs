// SPDX-License-Identifier: GPL-2.0-or-later
//! What the guest is doing, told to the host once a second.
//!
//! One JSON object: `uptime` in seconds; `meminfo` in bytes; counters of `vmstat`; `pressure` in
//! seconds of stall; `frontswap`, `cleancache` and `kztmem` with the counters of a kernel that has
//! tmem; `agent` with the agent's own figures. What this kernel does not have is missing. Files stay
//! open, and nothing is allocated.

use std::ffi::CStr;
use std::fmt::{self, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use kzt_wire::port::{Counters, MAX_REPORT};
use rustix::fs::{self, Mode, OFlags};
use rustix::io::{self, Errno};

use crate::alloc;
use crate::ledger::Times;
use crate::text::Text;

// What kztlab samples in guests without an agent, too (`kztlab.observe.guest`); a test compares.
const MEMINFO: [&str; 12] = [
    "MemTotal",
    "MemFree",
    "MemAvailable",
    "Buffers",
    "Cached",
    "SwapCached",
    "AnonPages",
    "SReclaimable",
    "Dirty",
    "Writeback",
    "SwapTotal",
    "SwapFree",
];
const VMSTAT: [&str; 11] = [
    "pgpgin",
    "pswpin",
    "pswpout",
    "zswpin",
    "zswpout",
    "pgmajfault",
    "pgscan_kswapd",
    "pgscan_direct",
    "pgsteal_kswapd",
    "pgsteal_direct",
    "oom_kill",
];
const PRESSURES: [(&str, &CStr); 3] = [
    ("memory", c"/proc/pressure/memory"),
    ("io", c"/proc/pressure/io"),
    ("cpu", c"/proc/pressure/cpu"),
];
/// Folders with a counter in each file.
const COUNTERS: [(&str, &str); 3] = [
    ("frontswap", "/sys/kernel/mm/frontswap"),
    ("cleancache", "/sys/kernel/mm/cleancache"),
    ("kztmem", "/sys/class/misc/kztmem/stats"),
];
/// /proc/vmstat is the longest, at 4 KiB.
const MAX_FILE: usize = 8 << 10;

/// Where figures come from, and the place in which reports are written.
pub(crate) struct Reporter {
    uptime: Option<OwnedFd>,
    meminfo: Option<OwnedFd>,
    vmstat: Option<OwnedFd>,
    status: Option<OwnedFd>,
    pressures: [Option<OwnedFd>; PRESSURES.len()],
    counters: [Vec<(String, OwnedFd)>; COUNTERS.len()],
    file: Box<[u8]>,
    text: Box<Text<MAX_REPORT>>,
    /// Allocations up to the first report: those of the start.
    start: Option<u64>,
}

/// The agent's own figures.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) received: Counters,
    pub(crate) frames_sent: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) times: Times,
    /// How long the oldest request has been waiting.
    pub(crate) waiting: Duration,
}

impl Reporter {
    pub(crate) fn open() -> Self {
        Self {
            uptime: open(c"/proc/uptime"),
            meminfo: open(c"/proc/meminfo"),
            vmstat: open(c"/proc/vmstat"),
            status: open(c"/proc/self/status"),
            pressures: PRESSURES.map(|(_, path)| open(path)),
            counters: COUNTERS.map(|(_, folder)| open_all(folder)),
            file: vec![0; MAX_FILE].into_boxed_slice(),
            text: Box::new(Text::new()),
            start: None,
        }
    }

    /// The report of now.
    ///
    /// # Errors
    /// `OVERFLOW` if it does not fit a frame.
    pub(crate) fn write(&mut self, figures: &Figures) -> Result<&[u8], Errno> {
        let start = *self.start.get_or_insert_with(alloc::allocations);
        self.text.clear();
        // Writing to a text never fails; what is cut off is noticed below.
        let _ = self.object(figures, alloc::allocations() - start);
        if self.text.is_cut() {
            return Err(Errno::OVERFLOW);
        }
        Ok(self.text.as_bytes())
    }

    fn object(&mut self, figures: &Figures, allocations: u64) -> fmt::Result {
        let text = &mut *self.text;
        text.write_str("{")?;
        let uptime = read(self.uptime.as_ref(), &mut self.file);
        if let Some(seconds) = uptime.split(' ').next().filter(|word| is_number(word)) {
            write!(text, "\"uptime\":{seconds},")?;
        }
        text.write_str("\"meminfo\":{")?;
        let meminfo = read(self.meminfo.as_ref(), &mut self.file);
        for (name, kib) in fields(meminfo, &MEMINFO) {
            write!(text, "\"{name}\":{},", kib.saturating_mul(1024))?;
        }
        close(text);
        text.write_str(",\"vmstat\":{")?;
        let vmstat = read(self.vmstat.as_ref(), &mut self.file);
        for (name, count) in fields(vmstat, &VMSTAT) {
            write!(text, "\"{name}\":{count},")?;
        }
        close(text);
        text.write_str(",\"pressure\":{")?;
        for ((name, _), file) in PRESSURES.iter().zip(&self.pressures) {
            write!(text, "\"{name}\":{{")?;
            for line in read(file.as_ref(), &mut self.file).lines() {
                if let Some((kind, micros)) = stall(line) {
                    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
                    write!(text, "\"{kind}\":{seconds}.{micros:06},")?;
                }
            }
            close(text);
            text.write_str(",")?;
        }
        close(text);
        for ((name, _), files) in COUNTERS.iter().zip(&self.counters) {
            if files.is_empty() {
                continue;
            }
            write!(text, ",\"{name}\":{{")?;
            for (name, file) in files {
                let count = read(Some(file), &mut self.file).trim_end();
                if is_number(count) {
                    write!(text, "\"{name}\":{count},")?;
                }
            }
            close(text);
        }
        let status = read(self.status.as_ref(), &mut self.file);
        let locked = fields(status, &["VmLck"]).next().map_or(0, |(_, kib)| kib);
        let Figures {
            received, times, ..
        } = figures;
        write!(
            text,
            ",\"agent\":{{\"sessions\":{},\"damaged\":{},\"skipped_bytes\":{},\
             \"frames_received\":{},\"bytes_received\":{},\"frames_sent\":{},\"bytes_sent\":{},\
             \"replies\":{},\"errors\":{},\"reply_seconds\":{},\"longest_stall_seconds\":{},\
             \"waiting_seconds\":{},\"allocations\":{allocations},\"locked_bytes\":{}}}}}",
            received.sessions,
            received.damaged,
            received.skipped,
            received.frames,
            figures.bytes_received,
            figures.frames_sent,
            figures.bytes_sent,
            times.replies,
            times.errors,
            Seconds(times.total),
            Seconds(times.longest),
            Seconds(figures.waiting),
            locked.saturating_mul(1024),
        )
    }
}

struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0.as_secs(), self.0.subsec_micros())
    }
}

/// Ends an object, whose last member has a comma behind it.
fn close(text: &mut Text<MAX_REPORT>) {
    if text.as_bytes().ends_with(b",") {
        text.pop();
    }
    let _ = text.write_str("}");
}

fn open(path: &CStr) -> Option<OwnedFd> {
    fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// The files of a folder by name; none if there is no such folder.
fn open_all(folder: &str) -> Vec<(String, OwnedFd)> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.filter_map(|entry| {
        let file = fs::open(entry.path(), flags, Mode::empty()).ok()?;
        Some((entry.file_name().into_string().ok()?, file))
    });
    let mut files: Vec<_> = files.collect();
    files.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    files
}

/// What a file of /proc says now; empty if it can't be read.
fn read<'a>(file: Option<&OwnedFd>, buffer: &'a mut [u8]) -> &'a str {
    let length = file.and_then(|file| io::pread(file, &mut *buffer, 0).ok());
    let bytes = buffer.get(..length.unwrap_or(0)).unwrap_or_default();
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// The wanted lines of a file whose lines are a name and a number.
fn fields<'a>(text: &'a str, wanted: &'a [&str]) -> impl Iterator<Item = (&'a str, u64)> {
    text.lines().filter_map(move |line| {
        let mut words = line.split_ascii_whitespace();
        let name = words.next()?.trim_end_matches(':');
        let value = words.next()?.parse().ok()?;
        wanted.contains(&name).then_some((name, value))
    })
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`: the kind and the microseconds.
fn stall(line: &str) -> Option<(&str, u64)> {
    let kind = line.split(' ').next()?;
    let (_, total) = line.rsplit_once("total=")?;
    matches!(kind, "some" | "full").then_some((kind, total.parse().ok()?))
}

fn is_number(word: &str) -> bool {
    !word.is_empty()
        && word
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_json_and_tells_of_this_machine() {
        let mut reporter = Reporter::open();
        let report = reporter.write(&Figures::default()).unwrap();
        let report = std::str::from_utf8(report).unwrap();
        assert!(report.starts_with("{\"uptime\":") && report.ends_with("}}"));
        assert!(report.contains("\"MemTotal\":") && report.contains("\"allocations\":0"));
        assert!(!report.contains(",}") && !report.contains(",,"));
        let depth = |open, close| {
            report
                .matches(open)
                .count()
                .checked_sub(report.matches(close).count())
        };
        assert_eq!(depth('{', '}'), Some(0));
    }

    #[test]
    fn pressure_is_read_by_its_total() {
        let line = "full avg10=0.12 avg60=0.00 avg300=0.00 total=1234567";
        assert_eq!(stall(line), Some(("full", 1_234_567)));
        assert_eq!(stall("nonsense total=1"), None);
    }
}
