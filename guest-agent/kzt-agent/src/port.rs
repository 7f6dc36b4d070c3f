// SPDX-License-Identifier: GPL-2.0-or-later
//! virtio-serial ports.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kzt_wire::port::MAX_FRAME;
use rustix::event::{self, PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{self, PipeFlags, SpliceFlags};

use crate::args::Writing;

const CLASS: &str = "/sys/class/virtio-ports";

/// How often to look whether somebody has opened the host's side: the port tells nobody.
pub(crate) const ABSENT_INTERVAL: Duration = Duration::from_millis(50);

/// Opens the port called `name` for reading and writing, neither of which then waits.
///
/// `NotFound` if there is none; busy while another process has it.
pub(crate) fn open(name: &str) -> io::Result<OwnedFd> {
    let path = find(Path::new(CLASS), name)?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// The device of a port. Nothing but the kernel is asked: a guest without udev has no links.
fn find(class: &Path, name: &str) -> io::Result<PathBuf> {
    for entry in fs::read_dir(class)? {
        let entry = entry?;
        let given = fs::read_to_string(entry.path().join("name"));
        if given.is_ok_and(|given| given.trim_end() == name) {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Whether nobody is at the other end of a file.
pub(crate) fn is_hung_up(file: &OwnedFd) -> Result<bool, Errno> {
    let mut poll = [PollFd::new(file, PollFlags::empty())];
    event::poll(&mut poll, Some(&Timespec::default()))?;
    let [file] = poll;
    Ok(file.revents().contains(PollFlags::HUP))
}

/// Whether nobody has the host's side of a port open.
///
/// `NODEV` if the port has been unplugged: it hangs up for good, and another one may have its name.
pub(crate) fn is_absent(port: &OwnedFd) -> Result<bool, Errno> {
    if !is_hung_up(port)? {
        return Ok(false);
    }
    // Reads nothing; the kernel looks for the port first.
    match rustix::io::read(port, &mut [0; 0]) {
        Err(Errno::NODEV) => Err(Errno::NODEV),
        _ => Ok(true),
    }
}

/// Puts frames into a port, one after the other.
pub(crate) struct Outlet {
    way: Way,
    /// Bytes of the current frame that the port has.
    sent: usize,
}

enum Way {
    Chunks(usize),
    Splice {
        reader: OwnedFd,
        writer: OwnedFd,
        /// Bytes of the current frame in the pipe.
        filled: usize,
    },
}

impl Outlet {
    pub(crate) fn new(writing: Writing) -> Result<Self, Errno> {
        let way = match writing {
            Writing::Chunks(bytes) => Way::Chunks(bytes),
            Writing::Splice => {
                let (reader, writer) = pipe::pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
                pipe::fcntl_setpipe_size(&writer, MAX_FRAME)?;
                Way::Splice {
                    reader,
                    writer,
                    filled: 0,
                }
            }
        };
        Ok(Self { way, sent: 0 })
    }

    /// Goes on with `frame`, the same one until all of it is sent; whether it is.
    ///
    /// `AGAIN` when the port takes no more for now; any other error has lost a part of the frame.
    pub(crate) fn send(&mut self, port: &OwnedFd, frame: &[u8]) -> Result<bool, Errno> {
        let rest = frame.get(self.sent..).unwrap_or_default();
        match &mut self.way {
            Way::Chunks(bytes) => {
                let chunk = rest.get(..*bytes).unwrap_or(rest);
                self.sent += rustix::io::write(port, chunk)?;
            }
            Way::Splice {
                reader,
                writer,
                filled,
            } => {
                if *filled == 0 {
                    *filled = rustix::io::write(writer, rest)?;
                }
                let moved =
                    pipe::splice(&*reader, None, port, None, *filled, SpliceFlags::NONBLOCK)?;
                if moved == 0 {
                    return Err(Errno::NOBUFS);
                }
                *filled = filled.saturating_sub(moved);
                self.sent += moved;
            }
        }
        let done = self.sent >= frame.len();
        if done {
            self.sent = 0;
        }
        Ok(done)
    }

    /// Forgets the current frame, the rest of which is never sent.
    pub(crate) fn abandon(&mut self) -> Result<(), Errno> {
        self.sent = 0;
        let Way::Splice { reader, filled, .. } = &mut self.way else {
            return Ok(());
        };
        *filled = 0;
        let mut sink = [0; 4096];
        loop {
            match rustix::io::read(&*reader, &mut sink[..]) {
                Ok(_) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Else the agent would end, and its ledger with it, whenever the host's side is closed.
    #[test]
    fn a_peer_that_hangs_up_is_absent_and_not_unplugged() {
        let (host, port) = UnixStream::pair().unwrap();
        let port = OwnedFd::from(port);
        assert_eq!(is_absent(&port), Ok(false));
        drop(host);
        assert_eq!(is_absent(&port), Ok(true));
    }
}
