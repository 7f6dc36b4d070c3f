// SPDX-License-Identifier: GPL-2.0-or-later
//! What is under way, once a second on stderr.

use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(1);
/// Pages between two looks at the clock.
const STRIDE: u64 = 64;

/// Counts visits and tells of them.
#[derive(Debug)]
pub(crate) struct Progress {
    enabled: bool,
    began: Instant,
    next: Instant,
    visits: u64,
}

impl Progress {
    pub(crate) fn new(enabled: bool) -> Progress {
        let began = Instant::now();
        Progress {
            enabled,
            began,
            next: began + INTERVAL,
            visits: 0,
        }
    }

    /// One more page visited in `stage`.
    pub(crate) fn tick(&mut self, stage: &str, bad_pages: u64) {
        self.visits += 1;
        if !self.enabled || self.visits % STRIDE != 0 {
            return;
        }
        let now = Instant::now();
        if now >= self.next {
            let seconds = (now - self.began).as_secs();
            crate::tell(&format!(
                "{seconds} s, {stage}: {} pages, {bad_pages} bad",
                self.visits
            ));
            self.next = now + INTERVAL;
        }
    }
}
