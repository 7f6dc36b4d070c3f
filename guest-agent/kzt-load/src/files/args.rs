// SPDX-License-Identifier: GPL-2.0-or-later
//! The command line of `kzt-load files`.

use std::path::PathBuf;
use std::time::Duration;

use lexopt::Arg::Long;

use crate::args::{number, pages, usage, value};

const MAX_FILES: u32 = 1024;
const MAX_PROCESSES: u32 = 64;

/// Options of `kzt-load files`.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) folder: PathBuf,
    /// How many.
    pub(crate) count: u32,
    /// Of each file.
    pub(crate) pages: u32,
    pub(crate) processes: u32,
    pub(crate) time: Duration,
    pub(crate) seed: u64,
    pub(crate) json: bool,
    /// For a process that was started by the first one.
    pub(crate) worker: Option<Part>,
}

/// A worker's number and the descriptor of the table that it has inherited.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) number: u32,
    pub(crate) table: i32,
}

/// Parse what comes behind `files`; None where help is asked for.
pub(crate) fn parse(parser: &mut lexopt::Parser) -> Result<Option<Files>, String> {
    let mut files = Files {
        folder: PathBuf::new(),
        count: 16,
        pages: 0,
        processes: 2,
        time: Duration::from_secs(10),
        seed: 1,
        json: false,
        worker: None,
    };
    let mut size = 0;
    while let Some(argument) = parser.next().map_err(usage)? {
        match argument {
            lexopt::Arg::Short('h') | Long("help") => return Ok(None),
            Long("json") => files.json = true,
            Long("folder") => files.folder = parser.value().map_err(usage)?.into(),
            Long("size") => size = value(parser, "--size", pages)?,
            Long("files") => files.count = value(parser, "--files", upto(MAX_FILES))?,
            Long("processes") => {
                files.processes = value(parser, "--processes", upto(MAX_PROCESSES))?;
            }
            Long("seconds") => {
                files.time = Duration::from_secs(value(parser, "--seconds", number)?);
            }
            Long("seed") => files.seed = value(parser, "--seed", number)?,
            Long("worker") => {
                let number = value(parser, "--worker", number)?;
                let table = value(parser, "--worker", crate::args::number)?;
                files.worker = Some(Part { number, table });
            }
            other => return Err(usage(other.unexpected())),
        }
    }
    if files.folder.as_os_str().is_empty() {
        return Err(usage("--folder is missing"));
    }
    if size == 0 {
        return Err(usage("--size is missing"));
    }
    files.pages = (size / files.count).max(1);
    Ok(Some(files))
}

fn upto(most: u32) -> impl Fn(&str) -> Result<u32, String> {
    move |text| match number(text)? {
        amount if (1..=most).contains(&amount) => Ok(amount),
        _ => Err(format!("not from 1 to {most}")),
    }
}
