// SPDX-License-Identifier: GPL-2.0-or-later
//! The core's messages go to standard error, a line each: the daemon's log.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};

struct StandardError;

impl Log for StandardError {
    /// Libraries tell of everything a hostile peer does, and without bounds: what matters of it is
    /// told by those who use them.
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("kzt_")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = record.level().as_str().to_lowercase();
        // One write a line. A log that can't be written to is no reason to stop serving.
        let line = format!("kztmem: {level}: {}\n", record.args());
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

pub(crate) fn install() {
    // Fails when a logger is installed already: this module was imported before.
    if log::set_logger(&StandardError).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}
