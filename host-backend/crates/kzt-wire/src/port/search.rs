// SPDX-License-Identifier: GPL-2.0-or-later
use super::frame::{Frame, Header, MAGIC};

/// Finds the first whole frame in `input` whose header is `wanted` and whose checksum holds.
///
/// Returns how many bytes come before it; without one, how many can be no part of one whatever
/// follows.
pub(super) fn first(input: &[u8], wanted: impl Fn(&Header) -> bool) -> (usize, Option<Frame<'_>>) {
    let mut at = 0;
    loop {
        let rest = input.get(at..).unwrap_or_default();
        let Some(skipped) = rest.iter().position(|byte| *byte == MAGIC[0]) else {
            return (input.len(), None);
        };
        at += skipped;
        let candidate = input.get(at..).unwrap_or_default();
        let possible = match Header::decode(candidate) {
            Ok(Some((header, _))) => wanted(&header),
            Ok(None) => true,
            Err(_) => false,
        };
        if possible {
            match Frame::parse(candidate) {
                Ok(Some(frame)) => return (at, Some(frame)),
                Ok(None) => return (at, None),
                Err(_) => {}
            }
        }
        at += 1;
    }
}
