// SPDX-License-Identifier: GPL-2.0-or-later
//! The command line.

use std::fmt::Display;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::str::FromStr;

use lexopt::Arg::{Long, Short, Value};

use crate::access::Access;
use crate::content::Kind;
use crate::files::{self, Files};
use crate::load::Percent;
use crate::mapping::PAGE_SIZE;

const HELP: &str = "\
Usage: kzt-load anon --size SIZE [OPTION]...
       kzt-load files --folder DIR --size SIZE [OPTION]...

kzt-load anon fills memory, drives it out to swap and verifies every byte that comes back.

  --size SIZE       memory to fill: bytes, or with KiB, MiB, GiB, TiB
  --content KIND    what the pages hold, default mixed:
                      real    pages of files below --corpus
                      text    lines of words
                      zero    nothing but zeros
                      random  bytes that no codec can shrink
                      mixed   55 % real, 20 % text, 15 % zero, 10 % random
  --passes N        times to verify every page after the fill, default 1
  --access ORDER    order of a pass, default sequential:
                      sequential
                      random  another permutation in every pass
                      zipf    every page once, and as many returns to few hot ones
  --rewrite PCT     share of the pages that a pass writes anew after it has verified
                    them, so that swapping out goes on; with other content than
                    before, so that a stale page is a wrong one; default 25
  --seed N          the same seed gives the same content and order, default 1
  --corpus DIR      for real and mixed, default /usr/lib: 4 MiB of pages are picked by
                    seed before the clock starts and kept in locked memory; every copy
                    carries its page's number
  --json            one JSON object instead of a line of text
  --progress        lines on stderr even if it is no terminal

  seconds, pswpin and pswpout cover fill and passes; the latter two count pages of the
  whole machine. longest_access_seconds is what the slowest page took to be written, or
  verified and rewritten. A wrong page is counted, reported with what it holds instead as far as
  that is known, and put right, so that it counts once.

kzt-load files has processes change the same files by write, mmap, O_DIRECT, truncate, holes and
renames, and verifies every byte they read: a stale page in a cache is found.

  --folder DIR      where to create the files, which stay
  --size SIZE       of all files together
  --files N         default 16
  --processes N     default 2
  --seconds N       default 10, after the files have been created
  --seed N          the same seed gives the same operations, in an order that the processes
                    decide, default 1
  --json            one JSON object instead of a line of text

Exit status: 0 all bytes right, 1 wrong bytes, 2 bad usage or not enough memory to map.";

const MAX_PAGES: u64 = u32::MAX as u64;

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Command {
    Anon(Anon),
    Files(Files),
    Print(String),
}

/// Options of `kzt-load anon`.
#[derive(Debug)]
pub(crate) struct Anon {
    pub(crate) pages: u32,
    pub(crate) content: Kind,
    pub(crate) passes: u32,
    pub(crate) access: Access,
    pub(crate) rewrite: Percent,
    pub(crate) seed: u64,
    pub(crate) corpus: PathBuf,
    pub(crate) json: bool,
    pub(crate) progress: bool,
}

/// Parse the command line; the error is a sentence for the user.
pub(crate) fn parse(mut parser: lexopt::Parser) -> Result<Command, String> {
    let mut anon = Anon {
        pages: 0,
        content: Kind::Mixed,
        passes: 1,
        access: Access::Sequential,
        rewrite: Percent::new(25),
        seed: 1,
        corpus: PathBuf::from("/usr/lib"),
        json: false,
        progress: std::io::stderr().is_terminal(),
    };
    let mut workload = false;
    while let Some(argument) = parser.next().map_err(usage)? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Print(HELP.to_owned())),
            Short('V') | Long("version") => {
                return Ok(Command::Print(format!(
                    "kzt-load {}",
                    env!("CARGO_PKG_VERSION")
                )));
            }
            Value(word) if !workload && word == "anon" => workload = true,
            Value(word) if !workload && word == "files" => {
                return Ok(match files::parse(&mut parser)? {
                    Some(files) => Command::Files(files),
                    None => Command::Print(HELP.to_owned()),
                });
            }
            Long("json") => anon.json = true,
            Long("progress") => anon.progress = true,
            Long("size") => anon.pages = value(&mut parser, "--size", pages)?,
            Long("content") => anon.content = value(&mut parser, "--content", str::parse)?,
            Long("passes") => anon.passes = value(&mut parser, "--passes", number)?,
            Long("access") => anon.access = value(&mut parser, "--access", str::parse)?,
            Long("rewrite") => anon.rewrite = value(&mut parser, "--rewrite", str::parse)?,
            Long("seed") => anon.seed = value(&mut parser, "--seed", number)?,
            Long("corpus") => anon.corpus = parser.value().map_err(usage)?.into(),
            other => return Err(usage(other.unexpected())),
        }
    }
    if !workload {
        return Err(usage("what to do is missing: anon or files"));
    }
    if anon.pages == 0 {
        return Err(usage("--size is missing"));
    }
    Ok(Command::Anon(anon))
}

pub(crate) fn value<T>(
    parser: &mut lexopt::Parser,
    option: &str,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<T, String> {
    let given = parser.value().map_err(usage)?;
    let text = given.to_string_lossy(); // what is lost is no valid value of any option here
    read(&text).map_err(|reason| usage(format!("{option} {text}: {reason}")))
}

pub(crate) fn usage(error: impl Display) -> String {
    format!("{error} (see kzt-load --help)")
}

pub(crate) fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "not a number in range".to_owned())
}

/// A size in whole pages, as many as fit.
pub(crate) fn pages(text: &str) -> Result<u32, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (amount, unit) = text.split_at(digits);
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "KiB" | "K" => 10,
        "MiB" | "M" => 20,
        "GiB" | "G" => 30,
        "TiB" | "T" => 40,
        _ => return Err("a size is a whole number with B, KiB, MiB, GiB or TiB".to_owned()),
    };
    let amount: u64 = number(amount)?;
    let pages = amount
        .checked_mul(1 << shift)
        .map(|bytes| bytes / PAGE_SIZE as u64);
    match pages {
        Some(0) => Err("less than a page of 4096 bytes".to_owned()),
        Some(pages @ 1..MAX_PAGES) => number(&pages.to_string()),
        _ => Err("more than 16 TiB".to_owned()),
    }
}
