// SPDX-License-Identifier: GPL-2.0-or-later
use kzt_wire::nbd::{Command, Decoder, Errno, Event, MIN_INPUT, Request, Session, flags, reply};

use crate::channel::Channel;
use crate::client::{Client, Membership};
use crate::connection::{End, Peer};
use crate::device::{Device, strides};
use crate::negotiation::Negotiated;
use crate::stopwatch::{Op, Stopwatch};

/// Receive buffer: as many requests as the client has in flight arrive in one system call.
const INPUT: usize = 1 << 20;
/// Replies are sent when this much has gathered, at the latest.
const SEND_AT: usize = 256 << 10;
/// The most data of a read that is in memory at a time.
const PIECE: u32 = 256 << 10;
/// Extents of one block status reply.
const MAX_EXTENTS: u32 = 4096;

/// Room for what gathers before it is sent, and the longest addition to it.
const OUTPUT: usize = SEND_AT + reply::DATA_LENGTH + PIECE as usize;
const _: () = assert!(INPUT >= MIN_INPUT);

const _: () =
    assert!(PIECE as usize >= reply::STATUS_LENGTH + (MAX_EXTENTS * reply::EXTENT_LENGTH) as usize);

/// Serves requests in order until the client leaves.
///
/// All memory is taken here, before the first request: [`INPUT`] and [`OUTPUT`] bytes and a codec's
/// context, however long the requests and however slow the reader.
pub(crate) fn transmit(
    membership: &Membership<'_>,
    channel: &mut impl Channel,
    negotiated: Negotiated,
) -> Result<(), End> {
    let mut input = vec![0; INPUT];
    let ahead = &negotiated.ahead;
    input
        .get_mut(..ahead.len())
        .unwrap_or_default()
        .copy_from_slice(ahead);
    let mut filled = ahead.len();
    drop(negotiated.ahead);
    let mut decoder = Decoder::default();
    let mut service = Service::new(membership, channel, negotiated.session);
    loop {
        let mut taken = 0;
        while let Some((event, length)) =
            decoder.next(input.get(taken..filled).unwrap_or_default())?
        {
            // What has arrived is dropped as well: see `Membership::fence`.
            if membership.peer.abandoned() {
                return Err(End::Abandoned);
            }
            taken += length;
            if service.handle(event)? == Flow::Leave {
                return service.send();
            }
        }
        input.copy_within(taken..filled, 0);
        filled -= taken;
        service.send()?;
        let room = input.get_mut(filled..).unwrap_or_default();
        let received = service.channel.receive(room, None)?;
        if received == 0 {
            return if filled == 0 {
                Ok(())
            } else {
                Err(End::Truncated)
            };
        }
        filled += received;
        service.stopwatch.arrived();
    }
}

#[derive(PartialEq, Eq)]
enum Flow {
    Stay,
    Leave,
}

/// Carries out one connection's requests.
struct Service<'a, C> {
    client: &'a Client,
    peer: &'a Peer,
    channel: &'a mut C,
    session: Session,
    device: Device<'a>,
    /// Replies to be sent.
    out: Vec<u8>,
    /// How the write whose parts are arriving goes so far.
    write: Result<(), Errno>,
    stopwatch: Stopwatch<'a>,
}

impl<'a, C: Channel> Service<'a, C> {
    fn new(membership: &'a Membership<'_>, channel: &'a mut C, session: Session) -> Self {
        let client = membership.client();
        Self {
            client,
            peer: &membership.peer,
            channel,
            session,
            device: Device::new(&client.pool),
            out: Vec::with_capacity(OUTPUT),
            write: Ok(()),
            stopwatch: Stopwatch::new(&client.latency, C::MEASURE),
        }
    }

    fn handle(&mut self, event: Event<'_>) -> Result<Flow, End> {
        match event {
            Event::Write {
                request,
                start,
                data,
                last,
            } => {
                self.write_part(&request, start, data);
                if last {
                    self.reply(&request, self.write)?;
                    self.stopwatch.done(Op::of(&request));
                } else {
                    self.stopwatch.lap();
                }
            }
            Event::Request(Request {
                command: Command::Disconnect,
                ..
            }) => return Ok(Flow::Leave),
            Event::Request(request) => {
                match request.check(&self.session) {
                    Ok(()) => self.carry_out(&request)?,
                    refused => self.reply(&request, refused)?,
                }
                self.stopwatch.done(Op::of(&request));
            }
        }
        Ok(Flow::Stay)
    }

    fn write_part(&mut self, request: &Request, start: usize, data: &[u8]) {
        if start == 0 {
            self.write = request.check(&self.session);
        }
        if self.write.is_ok() {
            self.write = self.device.write(request.offset + start as u64, data);
        }
    }

    /// A request without payload that has passed its check.
    fn carry_out(&mut self, request: &Request) -> Result<(), End> {
        match request.command {
            Command::Read if request.length > 0 => self.read(request),
            Command::BlockStatus => self.block_status(request),
            Command::Trim | Command::WriteZeroes => {
                let result = self.drop_or_clear(request)?;
                self.reply(request, result)
            }
            // What was acknowledged is committed to the arena: there is nothing left to flush.
            _ => self.reply(request, Ok(())),
        }
    }

    fn read(&mut self, request: &Request) -> Result<(), End> {
        let structured = self.session.structured_replies;
        if request.has(flags::DF) && request.length > PIECE {
            return self.reply(request, Err(Errno::Overflow));
        }
        for start in (0..request.length).step_by(PIECE as usize) {
            let offset = request.offset + u64::from(start);
            let length = PIECE.min(request.length - start);
            self.make_room(reply::DATA_LENGTH + length as usize)?;
            let mark = self.out.len();
            if structured {
                let last = start + length == request.length;
                reply::data_chunk(&mut self.out, request, last, offset, length);
            } else if start == 0 {
                reply::simple_data(&mut self.out, request);
            }
            if let Err(error) = self.device.read(offset, length, &mut self.out) {
                self.out.truncate(mark);
                self.client
                    .log
                    .warn(format_args!("read at {offset} failed: {error:?}"));
                if !structured && start > 0 {
                    // The reply has promised success, and data is all that may follow.
                    return Err(End::DamagedPage);
                }
                return self.reply(request, Err(error));
            }
        }
        Ok(())
    }

    fn block_status(&mut self, request: &Request) -> Result<(), End> {
        let limit = if request.has(flags::REQ_ONE) {
            1
        } else {
            MAX_EXTENTS
        };
        self.make_room(reply::STATUS_LENGTH + (limit * reply::EXTENT_LENGTH) as usize)?;
        let out = &mut self.out;
        let mut status = reply::BlockStatus::begin(out, request, limit);
        self.device
            .runs(request.offset, request.length.into(), |length, stored| {
                status.push(out, length, stored)
            });
        status.finish(out);
        Ok(())
    }

    fn drop_or_clear(&mut self, request: &Request) -> Result<Result<(), Errno>, End> {
        for (offset, length) in strides(request.offset, request.length.into()) {
            if self.peer.abandoned() {
                return Err(End::Abandoned);
            }
            let result = match request.command {
                Command::Trim => {
                    self.device.trim(offset, length);
                    Ok(())
                }
                _ if request.has(flags::NO_HOLE) => self.device.write_zeroes(offset, length),
                _ => self.device.punch(offset, length),
            };
            if result.is_err() {
                return Ok(result);
            }
        }
        Ok(Ok(()))
    }

    fn reply(&mut self, request: &Request, result: Result<(), Errno>) -> Result<(), End> {
        self.make_room(reply::LONGEST_BARE)?;
        reply::bare(&mut self.out, &self.session, request, result);
        Ok(())
    }

    /// Sends replies if there are so many that `length` more bytes would not fit.
    fn make_room(&mut self, length: usize) -> Result<(), End> {
        if self.out.len() > SEND_AT || self.out.len() + length > self.out.capacity() {
            self.send()?;
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), End> {
        self.channel.send(&self.out, None)?;
        self.out.clear();
        self.stopwatch.sent();
        Ok(())
    }
}
