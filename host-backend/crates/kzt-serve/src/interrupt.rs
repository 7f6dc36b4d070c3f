// SPDX-License-Identifier: GPL-2.0-or-later
//! Takes a thread out of a system call that a peer has made wait.
//!
//! Most of what a connection's thread may wait for ends with its socket. An eventfd does not: the
//! peer has the same open file description, may make it block at any moment, and a write to a full
//! one then waits for ever. No flag of the call prevents that, as Linux takes none for writing to
//! an eventfd. But a signal ends the wait.

use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use libc::{SIGURG, c_int, pthread_t};

/// Where a thread is to be found while it may be interrupted.
#[derive(Default)]
pub(crate) struct Interruptible(Mutex<Option<pthread_t>>);

impl Interruptible {
    /// Does this thread's work, which others may interrupt meanwhile.
    pub(crate) fn during<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        static HANDLED: OnceLock<Result<(), i32>> = OnceLock::new();
        HANDLED
            .get_or_init(handle)
            .map_err(io::Error::from_raw_os_error)?;
        // SAFETY: it has no preconditions.
        self.set(Some(unsafe { libc::pthread_self() }));
        let _leave = Leave(self);
        Ok(work())
    }

    /// Has the thread, if there is one, return from the system call that it waits in at this
    /// moment, if it waits in one. Where it may be about to wait, it has to be interrupted again.
    pub(crate) fn interrupt(&self) {
        let thread = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = *thread {
            // SAFETY: the thread is in `during`, and can't leave it while the lock is held. The
            // signal has a handler since before it came there.
            unsafe { libc::pthread_kill(thread, SIGURG) };
        }
    }

    fn set(&self, thread: Option<pthread_t>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = thread;
    }
}

/// Takes the thread out of its place, also when its work panics.
struct Leave<'a>(&'a Interruptible);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

/// Gives the signal a handler that does nothing: then it interrupts, and does nothing else. It is
/// one that is ignored by default, so that nobody is harmed by one who sends it for other reasons.
fn handle() -> Result<(), i32> {
    extern "C" fn nothing(_: c_int) {}
    // SAFETY: all zeroes are a `sigaction` with an empty mask and no flags. Without SA_RESTART a
    // call that was interrupted is not taken up again.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(c_int) as usize;
    // SAFETY: the handler may run at any point of any thread, as it does nothing.
    if unsafe { libc::sigaction(SIGURG, &raw const action, std::ptr::null_mut()) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or_default())
}
