// SPDX-License-Identifier: GPL-2.0-or-later
use rustix::rand::{GetRandomFlags, getrandom};

use crate::connection::End;

/// A number for a port's connection that no program in the guest can know.
pub(crate) fn draw() -> Result<u64, End> {
    let mut bytes = [0; size_of::<u64>()];
    getrandom(&mut bytes, GetRandomFlags::empty()).map_err(|error| End::Io(error.into()))?;
    // A guest that does not know it says 0.
    Ok(u64::from_ne_bytes(bytes).max(1))
}
