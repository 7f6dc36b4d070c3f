// SPDX-License-Identifier: GPL-2.0-or-later
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Messages per window: a hostile client cannot flood the log.
const BURST: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

/// A client's voice in the log.
pub(crate) struct ClientLog {
    client: String,
    window: Mutex<Window>,
}

struct Window {
    since: Instant,
    messages: u32,
}

impl ClientLog {
    pub(crate) fn new(client: &str) -> Self {
        let window = Mutex::new(Window {
            since: Instant::now(),
            messages: 0,
        });
        Self {
            client: client.to_owned(),
            window,
        }
    }

    /// Says why a connection was closed or refused.
    pub(crate) fn warn(&self, message: impl std::fmt::Display) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.since.elapsed() > WINDOW {
            if window.messages > BURST {
                let lost = window.messages - BURST;
                log::warn!("client {}: {lost} more messages left out", self.client);
            }
            *window = Window {
                since: Instant::now(),
                messages: 0,
            };
        }
        window.messages = window.messages.saturating_add(1);
        if window.messages <= BURST {
            log::warn!("client {}: {message}", self.client);
        }
    }
}
