// SPDX-License-Identifier: GPL-2.0-or-later
use crate::client::Membership;
use crate::connection::{End, nbd};
use crate::port::Port;

/// Serves the sessions of one relay port, one after the other, until QEMU hangs up.
///
/// Whatever an agent sends ends at worst its session: the port has no other way to begin anew.
pub(crate) fn serve(membership: &Membership<'_>) -> Result<(), End> {
    let client = membership.client();
    let mut port = Port::new(client, &membership.peer)?;
    // An agent that has not noticed that this is another connection is in a session.
    port.reset()?;
    loop {
        let session = match port.accept() {
            Ok(true) => nbd(membership, &mut port),
            Ok(false) => return Ok(()),
            Err(end) => Err(end),
        };
        match session {
            // The agent has left the device and may come back; or it is back already.
            Ok(()) | Err(End::NewSession) => {}
            Err(end @ (End::Io(_) | End::Abandoned)) => return Err(end),
            Err(end) if port.ended() => return Err(end),
            Err(end) => {
                client.log.warn(format_args!("relay session ended: {end}"));
                port.reset()?;
            }
        }
    }
}
