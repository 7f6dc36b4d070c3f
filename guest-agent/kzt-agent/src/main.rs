// SPDX-License-Identifier: GPL-2.0-or-later
//! `kzt-agent`: relays a guest's swap device over a virtio-serial port to the page store.
//!
//! A guest that swaps through a process of its own can stop for ever: the process needs memory, and
//! memory needs the process. See `guard` for what is done about it, and `pump` for the work.

mod alloc;
mod args;
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
mod supervisor;
mod text;

use std::io;
use std::process::ExitCode;

use args::Options;
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
    supervisor::supervise(&log, || match relay(&options, &log) {
        Ok(never) => match never {},
        Err(message) => complain(message),
    })
}

/// What the pump needs, and the pump.
fn relay(options: &Options, log: &Log) -> Result<std::convert::Infallible, String> {
    guard::apply(options.fifo)?;
    let port = port::open(&options.relay)
        .map_err(|error| format!("cannot open the port {}: {error}", options.relay))?;
    let device = BlockDevice::open(options.timeout, MAX_WRITE).map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            "this kernel has no network block device: nbd is not loaded".to_owned()
        } else {
            format!("cannot reach the network block device: {error}")
        }
    })?;
    let control = control(options).map_err(|error| format!("cannot report: {error}"))?;
    Pump::new(options, log, port, control, device)
        .and_then(|mut pump| pump.run())
        .map_err(|error| format!("the relay failed: {error}"))
}

/// Reports go to a port that there may not be.
fn control(options: &Options) -> Result<Option<Control>, io::Error> {
    match port::open(&options.ctl) {
        Ok(port) => Ok(Some(Control::new(port, pump::random_session()?))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
