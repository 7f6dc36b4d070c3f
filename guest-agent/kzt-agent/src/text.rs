// SPDX-License-Identifier: GPL-2.0-or-later
//! Text in a fixed place: formatting without a heap.

use std::fmt;

/// At most `N` bytes of text; what does not fit is cut off, and `Text` remembers that.
pub(crate) struct Text<const N: usize> {
    bytes: [u8; N],
    length: usize,
    cut: bool,
}

impl<const N: usize> Text<N> {
    pub(crate) const fn new() -> Self {
        Self {
            bytes: [0; N],
            length: 0,
            cut: false,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.length = 0;
        self.cut = false;
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// Whether something did not fit.
    pub(crate) const fn is_cut(&self) -> bool {
        self.cut
    }

    /// Takes the last byte back.
    pub(crate) fn pop(&mut self) {
        self.length = self.length.saturating_sub(1);
    }
}

impl<const N: usize> fmt::Write for Text<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let free = self.bytes.get_mut(self.length..).unwrap_or_default();
        let taken = text.len().min(free.len());
        if let (Some(free), Some(text)) = (free.get_mut(..taken), text.as_bytes().get(..taken)) {
            free.copy_from_slice(text);
        }
        self.length += taken;
        self.cut |= taken < text.len();
        Ok(())
    }
}
