// SPDX-License-Identifier: GPL-2.0-or-later
use std::time::{Duration, Instant};

use kzt_wire::nbd::{Handshake, MAX_OPTION_LENGTH, Progress, Session};

use crate::channel::Channel;
use crate::client::Membership;
use crate::connection::End;

/// How long a negotiation may take in all: half-open connections don't pile up.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a negotiation leaves for the transmission phase.
pub(crate) struct Negotiated {
    pub(crate) session: Session,
    /// Bytes the client sent ahead.
    pub(crate) ahead: Vec<u8>,
}

/// Negotiates and fences. `None` when the client ended it.
pub(crate) fn negotiate(
    membership: &Membership<'_>,
    channel: &mut impl Channel,
) -> Result<Option<Negotiated>, End> {
    let deadline = Instant::now() + PATIENCE;
    let mut out = Vec::new();
    let mut handshake = Handshake::begin(membership.client().size, &mut out);
    // Holds the longest option, so that a full buffer always makes progress.
    let mut input = vec![0; MAX_OPTION_LENGTH as usize + 64];
    let mut filled = 0;
    loop {
        // A peer that keeps sending never has to be waited for.
        if Instant::now() >= deadline {
            return Err(End::Timeout);
        }
        channel.send(&out, Some(deadline))?;
        out.clear();
        let room = input.get_mut(filled..).unwrap_or_default();
        let received = channel.receive(room, Some(deadline))?;
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
                channel.send(&out, Some(deadline))?;
                input.truncate(filled);
                return Ok(Some(Negotiated {
                    session,
                    ahead: input,
                }));
            }
            Progress::Aborted => {
                // The client need not wait for the reply.
                let _ = channel.send(&out, Some(deadline));
                return Ok(None);
            }
        }
    }
}
