// SPDX-License-Identifier: GPL-2.0-or-later
use kzt_store::tmem as abi;
use kzt_store::{Context, ObjectId, PAGE_SIZE, Uuid};
use kzt_wire::tmem::{
    self, Counters, Frame, Header, Hello, HostEvent, HostReceiver, MAX_FRAME, MAX_PAGES, Refusal,
    Reply, Request, Run, op,
};
use rustix::io::Errno;

use crate::client::{Client, Membership};
use crate::connection::{End, Peer};
use crate::intake::{Filled, Intake};
use crate::nonce;
use crate::stopwatch::{Measure, Op, Stopwatch};

/// Receive buffer: a longest frame is served while another one comes.
const INPUT: usize = 2 * MAX_FRAME;
/// Replies are sent when this much has gathered, at the latest.
const SEND_AT: usize = 64 << 10;
/// Room for what gathers before it is sent, and the longest addition to it.
const OUTPUT: usize = SEND_AT + MAX_FRAME;

const _: () = assert!(tmem::PAGE == PAGE_SIZE);
const _: () = assert!(
    op::NEW_POOL as u32 == abi::op::NEW_POOL
        && op::DESTROY_POOL as u32 == abi::op::DESTROY_POOL
        && op::PUT_PAGE as u32 == abi::op::PUT_PAGE
        && op::GET_PAGE as u32 == abi::op::GET_PAGE
        && op::FLUSH_PAGE as u32 == abi::op::FLUSH_PAGE
        && op::FLUSH_OBJECT as u32 == abi::op::FLUSH_OBJECT
);

/// Serves the sessions of a tmem port, one after the other, until QEMU hangs up.
///
/// Whatever a guest sends ends at worst its session: the port has no other way to begin anew.
pub(crate) fn serve(membership: &Membership<'_>) -> Result<(), End> {
    // What a former connection has brought must not be served behind this one's.
    if !membership.fence() {
        return Err(End::Abandoned);
    }
    let client = membership.client();
    let Ok(_seat) = client.tmem.seat.try_lock() else {
        return Err(End::Occupied);
    };
    let nonce = nonce::draw()?;
    let mut port = Port {
        peer: &membership.peer,
        receiver: HostReceiver::new(nonce),
        told: Counters::default(),
        intake: Intake::new(INPUT),
        service: Service::new(client, nonce),
    };
    // A guest that has not noticed that this is another connection is in a session.
    port.service.reset();
    port.run()
}

struct Port<'a> {
    peer: &'a Peer,
    receiver: HostReceiver,
    /// What of the receiver's counters the client has been told.
    told: Counters,
    intake: Intake,
    service: Service<'a>,
}

impl Port<'_> {
    fn run(&mut self) -> Result<(), End> {
        loop {
            self.serve_what_is_there()?;
            self.service.send(self.peer)?;
            self.count();
            match self.intake.fill(self.peer, None)? {
                Filled::Bytes => self.service.stopwatch.arrived(),
                Filled::Stalled => {
                    let step = self.receiver.stalled(self.intake.rest());
                    if let Some(event) = step.event {
                        self.service.handle(event);
                    }
                    self.intake.take(step.taken, 0);
                }
                Filled::Ended => return Ok(()),
            }
        }
    }

    fn serve_what_is_there(&mut self) -> Result<(), End> {
        loop {
            // What has arrived is dropped as well: see `Membership::fence`.
            if self.peer.abandoned() {
                return Err(End::Abandoned);
            }
            let step = self.receiver.next(self.intake.rest());
            let done = step.event.is_none();
            if let Some(event) = step.event {
                self.service.handle(event);
            }
            self.intake.take(step.taken, 0);
            if done {
                return Ok(());
            }
            if self.service.out.len() > SEND_AT {
                self.service.send(self.peer)?;
            }
        }
    }

    /// Tells the client what has been seen since the last time.
    fn count(&mut self) {
        let seen = self.receiver.counters();
        self.service.client.tmem.totals.add(&self.told, &seen);
        self.told = seen;
    }
}

/// Carries out a guest's requests.
struct Service<'a> {
    client: &'a Client,
    nonce: u64,
    /// Most pages that the guest takes in one reply.
    most: u32,
    context: Context,
    /// Replies to be sent.
    out: Vec<u8>,
    stopwatch: Stopwatch<'a>,
}

impl<'a> Service<'a> {
    fn new(client: &'a Client, nonce: u64) -> Self {
        Self {
            client,
            nonce,
            most: MAX_PAGES,
            context: Context::new(),
            out: Vec::with_capacity(OUTPUT),
            stopwatch: Stopwatch::new(&client.latency, Measure::Turnaround),
        }
    }

    /// Does what the port says. It adds no more than the longest frame to `out`.
    fn handle(&mut self, event: HostEvent<'_>) {
        match event {
            HostEvent::Request(frame) => self.request(&frame),
            HostEvent::Hello(hello) => self.begin(&hello),
            HostEvent::Version(hello) => {
                let version = hello.version;
                let log = &self.client.log;
                log.warn(format_args!(
                    "tmem session refused: protocol version {version}"
                ));
                self.out.clear();
                self.out.extend(hello.answer(error(Errno::PROTONOSUPPORT)));
            }
            HostEvent::Stranger => self.reset(),
            HostEvent::Lost(damage) => {
                let log = &self.client.log;
                log.warn(format_args!("tmem session ended: {damage}"));
                self.reset();
            }
        }
    }

    /// Tells the guest that it has no session. Replies that were not sent are void.
    fn reset(&mut self) {
        self.out.clear();
        self.out.extend(tmem::reset(self.nonce));
    }

    /// Begins a session. Flushes of the one before may have been lost on the way: what can be
    /// dropped is, so that no page comes back that was to be flushed.
    fn begin(&mut self, hello: &Hello) {
        self.out.clear();
        self.most = hello.pages();
        // For the test that has to notice that the rule is missing.
        if !cfg!(feature = "no-session-check") {
            self.client.stored.drop_pools(hello.fresh);
        }
        self.out.extend(hello.answer(0));
    }

    fn request(&mut self, frame: &Frame<'_>) {
        let header = &frame.header;
        let stored = &self.client.stored;
        let (status, op) = match Request::decode(frame, self.most) {
            Ok(Request::Put { run, pages }) => return self.put(header, run, pages),
            Ok(Request::Get { run }) => return self.get(header, run),
            Ok(Request::Flush { run }) => {
                let Run {
                    pool,
                    object,
                    index,
                    count,
                } = run;
                let flushed = stored.flush_pages(pool, ObjectId(object), index, count);
                (flushed, Some(Op::Flush))
            }
            Ok(Request::FlushObject { pool, object }) => {
                (stored.flush_object(pool, ObjectId(object)), Some(Op::Flush))
            }
            Ok(Request::NewPool { flags, uuid }) => (stored.new_pool(flags, Uuid(uuid)), None),
            Ok(Request::DestroyPool { pool }) => (stored.destroy_pool(pool), None),
            Err(Refusal::Operation(op)) => (abi::op::refusal(op.into()), None),
            Err(Refusal::Malformed) => (error(Errno::INVAL), None),
        };
        tmem::reply(&mut self.out, header, status);
        self.stopwatch.done(op);
    }

    fn put(&mut self, header: &Header, run: Run, pages: &[u8]) {
        let mut reply = Reply::begin(&mut self.out, header, run.count);
        for (page, index) in pages.chunks_exact(PAGE_SIZE).zip(run.indices()) {
            let object = ObjectId(run.object);
            let stored = &self.client.stored;
            reply.status(stored.put_page(&mut self.context, run.pool, object, index, page));
        }
        reply.finish();
        self.stopwatch.done(Some(Op::Put));
    }

    fn get(&mut self, header: &Header, run: Run) {
        let mut reply = Reply::begin(&mut self.out, header, run.count);
        for index in run.indices() {
            let object = ObjectId(run.object);
            let stored = &self.client.stored;
            reply.page(|page| stored.get_page(&mut self.context, run.pool, object, index, page));
        }
        reply.finish();
        self.stopwatch.done(Some(Op::Get));
    }

    fn send(&mut self, peer: &Peer) -> Result<(), End> {
        // A port is waited for without limit: a guest may be paused.
        peer.send(&self.out, None)?;
        self.out.clear();
        self.stopwatch.sent();
        Ok(())
    }
}

fn error(errno: Errno) -> i32 {
    -errno.raw_os_error()
}
