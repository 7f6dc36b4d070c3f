// SPDX-License-Identifier: GPL-2.0-or-later
//! What keeps the process that swaps from waiting for the memory that only it can free.
//!
//! - Its own memory is locked: it never waits for a page of its own to come back through itself.
//! - As an I/O flusher its allocations in the kernel start no further writes to swap.
//! - The real-time class does more than schedule it first: the page allocator lets real-time tasks
//!   into half of the reserve below `min_free_kbytes`, where nobody else gets who would have to
//!   wait for it.
//! - The kernel does not choose it when memory runs out.

use std::fs;
use std::io;

use rustix::mm::{self, MlockAllFlags};
use rustix::process;

/// Puts the guards in place for this process. Memory locks don't reach a child, which calls this
/// again.
///
/// `fifo` is the real-time priority, 0 for none. The error is a sentence.
pub(crate) fn apply(fifo: u8) -> Result<(), String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("cannot {what}: {error}");
    fs::write("/proc/self/oom_score_adj", "-1000")
        .map_err(|error| failed("be spared when memory runs out", &error))?;
    process::configure_io_flusher_behavior(true)
        .map_err(|error| failed("become an I/O flusher", &error))?;
    mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE)
        .map_err(|error| failed("lock memory", &error))?;
    if fifo > 0 {
        schedule_first(fifo).map_err(|error| failed("become a real-time process", &error))?;
    }
    Ok(())
}

fn schedule_first(priority: u8) -> io::Result<()> {
    let parameters = libc::sched_param {
        sched_priority: priority.into(),
    };
    // SAFETY: 0 is the calling process; the parameters are read during the call only.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
