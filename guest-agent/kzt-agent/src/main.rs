// SPDX-License-Identifier: GPL-2.0-or-later
//! `kzt-agent`: relays a guest's swap device over a virtio-serial port to the page store, or what
//! its kernel asks of tmem.
//!
//! A guest that swaps through a process of its own can stop for ever: the process needs memory, and
//! memory needs the process. See `guard` for what is done about it, and `pump` and `bridge` for the
//! work.

mod alloc;
mod args;
mod bridge;
mod control;
mod device;
mod guard;
mod inbox;
mod ledger;
mod log;
mod netlink;
mod outbox;
mod port;
mod pump;
mod report;
mod rest;
mod supervisor;
mod text;

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use args::Options;
use bridge::Bridge;
use control::Control;
use device::BlockDevice;
use ledger::MAX_WRITE;
use log::{Level, Log};
use pump::Pump;

#[global_allocator]
static HEAP: alloc::Counting = alloc::Counting;

const BAD_USAGE: u8 = 2;

fn main() -> ExitCode {
    let options = match args::parse(lexopt::Parser::from_env()) {
        Ok(Ok(options)) => options,
        Ok(Err(text)) => {
            println!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("kzt-agent: {message}");
            return ExitCode::from(BAD_USAGE);
        }
    };
    let log = Log::open();
    let complain = |message: String| {
        eprintln!("kzt-agent: {message}");
        log.line(Level::Error, format_args!("{message}"));
        ExitCode::FAILURE
    };
    if let Err(message) = guard::apply(options.fifo) {
        return complain(message);
    }
    let lock = if options.tmem {
        c"/run/kzt-agent-tmem.lock"
    } else {
        c"/run/kzt-agent.lock"
    };
    supervisor::supervise(&log, lock, || {
        let work = if options.tmem { bridge } else { relay };
        match guard::apply(options.fifo).and_then(|()| work(&options, &log)) {
            Ok(never) => match never {},
            Err(message) => complain(message),
        }
    })
}

fn open_port(name: &str) -> Result<OwnedFd, String> {
    port::open(name).map_err(|error| format!("cannot open the port {name}: {error}"))
}

/// Carries what the kernel asks of tmem.
fn bridge(options: &Options, log: &Log) -> Result<Infallible, String> {
    let port = open_port(&options.port)?;
    let control = control(options)?;
    let mut bridge = Bridge::open(options.writing, log, port, control)
        .map_err(|error| format!("cannot open {}: {error}", bridge::DEVICE))?;
    bridge
        .run()
        .map_err(|error| format!("the bridge failed: {error}"))
}

/// What the pump needs, and the pump.
fn relay(options: &Options, log: &Log) -> Result<Infallible, String> {
    let port = open_port(&options.port)?;
    let device = BlockDevice::open(options.timeout, MAX_WRITE).map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            "this kernel has no network block device: nbd is not loaded".to_owned()
        } else {
            format!("cannot reach the network block device: {error}")
        }
    })?;
    let control = control(options)?;
    Pump::new(options, log, port, control, device)
        .and_then(|mut pump| pump.run())
        .map_err(|error| format!("the relay failed: {error}"))
}

/// Reports go to a port that there may not be, or that another agent of this guest reports to.
fn control(options: &Options) -> Result<Option<Control>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot report: {error}");
    match port::open(&options.ctl) {
        Ok(port) => {
            let session = pump::random_session().map_err(|error| failed(&error))?;
            Ok(Some(Control::new(port, session)))
        }
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ResourceBusy => Ok(None),
            _ => Err(failed(&error)),
        },
    }
}
