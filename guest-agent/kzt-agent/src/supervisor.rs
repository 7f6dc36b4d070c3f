// SPDX-License-Identifier: GPL-2.0-or-later
//! The parent, which does nothing but start the pump again when it ends.
//!
//! It forks and never executes: the program's pages are in memory and locked, while a file would
//! have to be read at the very moment that there is no memory to read it into.

use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::process::{self, Pid, Signal, WaitOptions};

use crate::log::{Level, Log};

/// A pump that ends sooner after its start than this found something wrong that will last.
const SOON: Duration = Duration::from_secs(1);

/// Runs `pump` in a child, again and again. Returns in the child only, or when it cannot fork.
pub(crate) fn supervise(log: &Log, pump: impl Fn() -> ExitCode) -> ExitCode {
    loop {
        let began = Instant::now();
        let child = match fork() {
            Ok(None) => {
                die_with_parent();
                return pump();
            }
            Ok(Some(child)) => child,
            Err(error) => {
                log.line(Level::Error, format_args!("cannot fork: {error}"));
                return ExitCode::FAILURE;
            }
        };
        let status = loop {
            match process::waitpid(Some(child), WaitOptions::empty()) {
                Ok(status) => break status.map(|(_, status)| status.as_raw()),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => break None,
            }
        };
        let status = status.unwrap_or(-1);
        log.line(
            Level::Error,
            format_args!("the pump ended (wait status {status:#x}), starting it again"),
        );
        if began.elapsed() < SOON {
            std::thread::sleep(SOON);
        }
    }
}

/// The child's id in the parent, `None` in the child.
fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: this process has one thread, so that the child's memory is as consistent as the
    // parent's.
    let child = unsafe { libc::fork() };
    match child {
        -1 => Err(io::Error::last_os_error()),
        child => Ok(Pid::from_raw(child)),
    }
}

/// Without a parent nobody would restart the pump: init starts both again instead.
fn die_with_parent() {
    let _ = process::set_parent_process_death_signal(Some(Signal::KILL));
}
