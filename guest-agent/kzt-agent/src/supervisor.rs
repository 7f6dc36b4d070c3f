// SPDX-License-Identifier: GPL-2.0-or-later
//! The parent, which does nothing but start the pump again when it ends.
//!
//! A pump whose parent was killed goes on. Whoever started the parent starts another one, whose pump
//! waits for the lock until it is needed. So nobody has to be up who may be waiting for a page that
//! only a pump can bring back, as the guest's init may be.
//!
//! The parent forks and never executes: the program's pages are in memory and locked, while a file would
//! have to be read at the very moment that there is no memory to read it into.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::fs::{self, FlockOperation, Mode, OFlags};
use rustix::process::{self, Pid, WaitOptions};

use crate::log::{Level, Log};

/// A pump that ends sooner after its start than this found something wrong that will last.
const SOON: Duration = Duration::from_secs(1);

/// Runs `pump` in a child, again and again, once nobody else has the file `lock` locked. Returns in
/// the child only, or when it cannot fork.
pub(crate) fn supervise(log: &Log, lock: &CStr, pump: impl Fn() -> ExitCode) -> ExitCode {
    loop {
        let began = Instant::now();
        let child = match fork() {
            Ok(None) => return alone(log, lock, &pump),
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

/// Tells people and scripts which of the agent's processes relays.
fn write_pid(lock: &OwnedFd) -> rustix::io::Result<()> {
    let pid = format!("{}\n", process::getpid());
    fs::ftruncate(lock, 0)?;
    rustix::io::pwrite(lock, pid.as_bytes(), 0).map(drop)
}

/// Runs `pump` as soon as no other process does.
fn alone(log: &Log, path: &CStr, pump: impl Fn() -> ExitCode) -> ExitCode {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let lock = fs::open(path, flags, Mode::RUSR | Mode::WUSR)
        .and_then(|file| fs::flock(&file, FlockOperation::LockExclusive).map(|()| file))
        .and_then(|file| write_pid(&file).map(|()| file));
    match lock {
        // Held until the process ends.
        Ok(_lock) => pump(),
        Err(error) => {
            log.line(Level::Error, format_args!("cannot lock {path:?}: {error}"));
            ExitCode::FAILURE
        }
    }
}
