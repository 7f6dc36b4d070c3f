// SPDX-License-Identifier: GPL-2.0-or-later
//! Crash points: each place of the source that stores a word in the arena, or changes its file or
//! the spill file, can kill its own process right after it has done so. Only with the feature `crash-points`.
//!
//! A place is named by file and line. What it is worth to be killed there: a crash then hits
//! exactly the states between two stores, in a process whose other threads are at work.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::Location;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How often each place was passed.
pub type Passes = BTreeMap<String, u64>;

/// The file and line to be killed at, and how many passes there are left.
static KILL: OnceLock<(String, u32, AtomicU64)> = OnceLock::new();

thread_local! {
    static SURVEY: RefCell<Option<BTreeMap<(&'static str, u32), u64>>> = const { RefCell::new(None) };
}

/// The process kills itself when the place has been passed that many more times; to be called
/// once at most. Whether the place is named as `survey` names them.
#[must_use]
pub fn kill_at(place: &str, passes: u64) -> bool {
    let Some((file, line)) = place.split_once(':') else {
        return false;
    };
    line.parse()
        .is_ok_and(|line| KILL.set((format!("/{file}"), line, passes.into())).is_ok())
}

/// Calls `f`; counts the places that this thread passes meanwhile.
pub fn survey<T>(f: impl FnOnce() -> T) -> (T, Passes) {
    SURVEY.set(Some(BTreeMap::new()));
    let value = f();
    let passes = SURVEY.take().unwrap_or_default();
    let named = passes.into_iter().map(|((path, line), count)| {
        let file = path.rsplit('/').next().unwrap_or(path);
        (format!("{file}:{line}"), count)
    });
    (value, named.collect())
}

/// Called right after each change of the arena or of a file, by what made it.
#[track_caller]
pub(crate) fn passed() {
    let place = Location::caller();
    let due = KILL.get().is_some_and(|(file, line, left)| {
        place.line() == *line && place.file().ends_with(file) && left.fetch_sub(1, Relaxed) == 1
    });
    if due {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
    SURVEY.with_borrow_mut(|survey| {
        if let Some(survey) = survey {
            *survey.entry((place.file(), place.line())).or_default() += 1;
        }
    });
}
