// SPDX-License-Identifier: GPL-2.0-or-later

/// Error numbers of the protocol: Linux's values, whatever the host's are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// The stored page is damaged.
    Io = 5,
    /// The request makes no sense: unknown command or flag, or beyond the device's end.
    Invalid = 22,
    /// The store is full, or a write reaches beyond the device's end.
    NoSpace = 28,
    /// The reply would be longer than the server can send in one piece.
    Overflow = 75,
    /// The client is being removed.
    Shutdown = 108,
}

impl Errno {
    /// The number as it is sent.
    #[must_use]
    pub const fn code(self) -> u32 {
        self as u32
    }
}
