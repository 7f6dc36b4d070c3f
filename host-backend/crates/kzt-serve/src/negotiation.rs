// SPDX-License-Identifier: GPL-2.0-or-later
use std::time::{Duration, Instant};

use kzt_wire::nbd::{Handshake, MAX_OPTION_LENGTH, Progress, Session};

use crate::client::Membership;
use crate::connection::{End, Patience};

/// How long a negotiation may take in all: half-open connections don't pile up.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a negotiation leaves for the transmission phase.
pub(crate) struct Negotiated {
    pub(crate) session: Session,
    /// Bytes the client sent ahead.
    pub(crate) ahead: Vec<u8>,
}

/// Negotiates and fences. `None` when the client ended it.
pub(crate) fn negotiate(membership: &Membership<'_>) -> Result<Option<Negotiated>, End> {
    let peer = &membership.peer;
    let deadline = Instant::now() + PATIENCE;
    let mut out = Vec::new();
    let mut handshake = Handshake::begin(membership.client().size, &mut out);
    // Holds the longest option, so that a full buffer always makes progress.
    let mut input = vec![0; MAX_OPTION_LENGTH as usize + 64];
    let mut patience = Patience::default();
    let mut filled = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(End::Timeout);
        }
        peer.set_timeout(Some(left))?;
        peer.send(&out)?;
        out.clear();
        let received = peer.receive(input.get_mut(filled..).unwrap_or_default(), &mut patience)?;
        if received == 0 {
            return if filled == 0 {
                Ok(None)
            } else {
                Err(End::Truncated)
            };
        }
        filled += received;
        let (taken, progress) =
            handshake.advance(input.get(..filled).unwrap_or_default(), &mut out)?;
        input.copy_within(taken..filled, 0);
        filled -= taken;
        match progress {
            Progress::More => {}
            Progress::Transmission(session) => {
                if !membership.fence() {
                    return Err(End::Abandoned);
                }
                peer.send(&out)?;
                peer.set_timeout(None)?;
                input.truncate(filled);
                return Ok(Some(Negotiated {
                    session,
                    ahead: input,
                }));
            }
            Progress::Aborted => {
                // The client need not wait for the reply.
                let _ = peer.send(&out);
                return Ok(None);
            }
        }
    }
}
