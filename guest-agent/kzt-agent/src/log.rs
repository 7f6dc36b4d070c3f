// SPDX-License-Identifier: GPL-2.0-or-later
//! Lines in the kernel's log, where they stand beside what nbd and the memory management say, and
//! reach the console if they are severe enough.

use std::fmt::{self, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{self, Mode, OFlags};
use rustix::io;

use crate::text::Text;

/// Where lines go: the kernel's log.
pub(crate) struct Log(Option<OwnedFd>);

/// The kernel's numbers; what is below 4 reaches a quiet console.
#[derive(Clone, Copy)]
pub(crate) enum Level {
    Error = 3,
    Notice = 5,
}

impl Log {
    /// A guest without /dev/kmsg has no log, and works all the same.
    pub(crate) fn open() -> Self {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Self(fs::open(c"/dev/kmsg", flags, Mode::empty()).ok())
    }

    pub(crate) fn line(&self, level: Level, message: fmt::Arguments<'_>) {
        let Some(file) = &self.0 else { return };
        let mut line = Text::<256>::new();
        let _ = writeln!(line, "<{}>kzt-agent: {message}", level as u8);
        let _ = io::write(file, line.as_bytes());
    }
}
