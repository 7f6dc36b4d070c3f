// SPDX-License-Identifier: GPL-2.0-or-later
use std::fmt;

/// Why a connection has to end: the peer broke the protocol in a way no reply can answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Client flags the server never offered.
    ClientFlags(u32),
    /// An option does not start with the option magic.
    OptionMagic(u64),
    /// An option longer than [`MAX_OPTION_LENGTH`](super::MAX_OPTION_LENGTH).
    OptionLength(u32),
    /// More than [`MAX_OPTIONS`](super::MAX_OPTIONS) options.
    TooManyOptions,
    /// `NBD_OPT_EXPORT_NAME` for an export that does not exist; the option has no error reply.
    UnknownExport,
    /// A request does not start with the request magic.
    RequestMagic(u32),
    /// A write longer than [`MAX_PAYLOAD`](super::MAX_PAYLOAD).
    PayloadLength(u32),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientFlags(flags) => write!(f, "unknown client flags {flags:#x}"),
            Self::OptionMagic(magic) => write!(f, "bad option magic {magic:#x}"),
            Self::OptionLength(length) => write!(f, "option of {length} bytes is too long"),
            Self::TooManyOptions => f.write_str("too many options in one handshake"),
            Self::UnknownExport => f.write_str("no such export"),
            Self::RequestMagic(magic) => write!(f, "bad request magic {magic:#x}"),
            Self::PayloadLength(length) => write!(f, "write of {length} bytes is too long"),
        }
    }
}

impl std::error::Error for Violation {}
