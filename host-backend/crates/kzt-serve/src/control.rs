// SPDX-License-Identifier: GPL-2.0-or-later
use std::time::Instant;

use kzt_wire::port::{Frame, ReportReceiver};

use crate::client::Membership;
use crate::connection::End;
use crate::intake::{Filled, Intake};
use crate::port::INPUT;

/// What a guest's agent last said of its guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// When it arrived.
    pub received: Instant,
    /// The agent's number: another one is another process.
    pub session: u64,
    /// How many reports this agent had sent before.
    pub sequence: u32,
    /// Said to be JSON; whatever the guest sent, up to 16 KiB.
    pub content: Vec<u8>,
}

/// Takes the reports of one control port until QEMU hangs up.
pub(crate) fn serve(membership: &Membership<'_>) -> Result<(), End> {
    let mut receiver = ReportReceiver::default();
    let mut intake = Intake::new(INPUT);
    let mut silent = false;
    loop {
        let rest = intake.rest();
        let step = if silent {
            receiver.stalled(rest)
        } else {
            receiver.next(rest)
        };
        let found = step.event.as_ref().map(Report::new);
        intake.take(step.taken, 0);
        silent = false;
        if let Some(report) = found {
            membership.client().set_report(report);
            continue;
        }
        match intake.fill(&membership.peer, None)? {
            Filled::Bytes => {}
            Filled::Stalled => silent = true,
            Filled::Ended => return Ok(()),
        }
    }
}

impl Report {
    fn new(frame: &Frame<'_>) -> Self {
        Self {
            received: Instant::now(),
            session: frame.header.session,
            sequence: frame.header.sequence,
            content: frame.payload.to_vec(),
        }
    }
}
