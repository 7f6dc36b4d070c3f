// SPDX-License-Identifier: GPL-2.0-or-later
//! The command line.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use lexopt::Arg::{Long, Short};

const HELP: &str = "\
Relays this guest's swap device /dev/nbd0 over a virtio-serial port to the page store,
or with --tmem what its kernel asks for at /dev/kztmem.

Usage: kzt-agent [OPTION]...

  --tmem            carry the frames of /dev/kztmem
  --port NAME       the port, default org.kztlab.relay.0 or org.kztlab.tmem.0
  --ctl PORT        the port that reports go to, default org.kztlab.ctl.0
  --write HOW       how frames go to the port: `splice`, or in writes of at most that
                    many bytes; default splice
  --fifo N          real-time priority, 0 for none, default 10
  --gather US       microseconds to wait for the rest of a request, default 100
  --timeout S       seconds until nbd sends a request anew, default 5";

/// What the command line asks for.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) tmem: bool,
    pub(crate) port: String,
    pub(crate) ctl: String,
    pub(crate) writing: Writing,
    pub(crate) fifo: u8,
    pub(crate) gather: Duration,
    pub(crate) timeout: u64,
}

/// How frames go to the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writing {
    /// Through a pipe, whose pages the port takes as they are: any number of pages at once, and no
    /// allocation of more than one page.
    Splice,
    /// In writes of at most so many bytes, each of which the port copies to one allocation.
    Chunks(usize),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tmem: false,
            port: String::new(),
            ctl: "org.kztlab.ctl.0".to_owned(),
            writing: Writing::Splice,
            fifo: 10,
            gather: Duration::from_micros(100),
            timeout: 5,
        }
    }
}

/// The options, or a text to print instead; the error is a sentence for the user.
pub(crate) fn parse(mut parser: lexopt::Parser) -> Result<Result<Options, &'static str>, String> {
    let mut options = Options::default();
    while let Some(argument) = parser.next().map_err(describe)? {
        match argument {
            Short('h') | Long("help") => return Ok(Err(HELP)),
            Long("tmem") => options.tmem = true,
            Long("port") => options.port = value(&mut parser)?,
            Long("ctl") => options.ctl = value(&mut parser)?,
            Long("write") => options.writing = value(&mut parser)?,
            Long("fifo") => options.fifo = value(&mut parser)?,
            Long("gather") => options.gather = Duration::from_micros(value(&mut parser)?),
            Long("timeout") => options.timeout = value(&mut parser)?,
            other => return Err(describe(other.unexpected())),
        }
    }
    if options.port.is_empty() {
        let usual = if options.tmem {
            "org.kztlab.tmem.0"
        } else {
            "org.kztlab.relay.0"
        };
        usual.clone_into(&mut options.port);
    }
    Ok(Ok(options))
}

fn value<T: FromStr<Err: Display>>(parser: &mut lexopt::Parser) -> Result<T, String> {
    let text = parser.value().map_err(describe)?;
    let text = text.to_str().ok_or("a value is not UTF-8")?;
    text.parse()
        .map_err(|error| format!("{text:?} makes no sense: {error}"))
}

fn describe(error: impl Display) -> String {
    error.to_string()
}

impl FromStr for Writing {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            _ if text == "splice" => Ok(Self::Splice),
            Ok(bytes) if bytes > 0 => Ok(Self::Chunks(bytes)),
            _ => Err("neither splice nor a number of bytes"),
        }
    }
}
