// SPDX-License-Identifier: GPL-2.0-or-later
//! `kzt-load files`: several processes change the same files in every way there is, and check all
//! that they read, so that one stale page of a page cache is found.

mod args;
mod file_map;
mod table;
mod worker;

use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) use args::{Files, parse};

use crate::content::{Content, Kind};
use crate::corpus::Corpus;
use args::Part;
use table::Table;
use worker::{Findings, Worker};

/// What all workers have found together.
#[derive(Debug)]
pub(crate) struct Report {
    findings: Findings,
    seconds: f64,
}

impl Report {
    pub(crate) fn ok(&self) -> bool {
        self.findings.bad_pages == 0
    }

    /// One JSON object on one line.
    pub(crate) fn json(&self) -> String {
        let found = &self.findings;
        let errors: Vec<String> = found.errors.iter().map(|it| format!("\"{it}\"")).collect();
        format!(
            "{{\"ok\": {}, \"operations\": {}, \"pages_read\": {}, \"pages_written\": {}, \"bad_pages\": {}, \
             \"seconds\": {:.3}, \"longest_operation_seconds\": {:.6}, \"errors\": [{}]}}",
            self.ok(),
            found.operations,
            found.pages_read,
            found.pages_written,
            found.bad_pages,
            self.seconds,
            found.longest_operation.as_secs_f64(),
            errors.join(", "),
        )
    }

    /// One line, and one more for each bad page reported.
    pub(crate) fn text(&self) -> String {
        let found = &self.findings;
        let mut text = format!(
            "{}: {} operations, {} pages read, {} written, {} bad, {:.1} s, longest operation {:.3} s",
            if self.ok() { "ok" } else { "FAILED" },
            found.operations,
            found.pages_read,
            found.pages_written,
            found.bad_pages,
            self.seconds,
            found.longest_operation.as_secs_f64(),
        );
        for error in &found.errors {
            text.push('\n');
            text.push_str(error);
        }
        text
    }
}

/// Start the workers and gather what they find; None in a worker, which has told that itself.
pub(crate) fn run(options: &Files) -> Result<Option<Report>, String> {
    let (files, pages) = (options.count as usize, options.pages as usize);
    if let Some(part) = options.worker {
        print_findings(&work(options, part)?);
        return Ok(None);
    }
    std::fs::create_dir_all(&options.folder)
        .map_err(|error| format!("{}: {error}", options.folder.display()))?;
    let shared = Table::create(files, pages)?;
    let table = Table::map(&shared, files, pages)?;
    let began = Instant::now();
    let workers: Vec<Child> = (0..options.processes)
        .map(|number| start(number, shared.as_raw_fd()))
        .collect::<Result<_, _>>()?;
    let mut findings = Findings::default();
    let mut outcome = Ok(());
    for worker in workers {
        if let Err(error) = gather(worker, &mut findings) {
            table.fail();
            outcome = Err(error);
        }
    }
    outcome.map(|()| {
        Some(Report {
            findings,
            seconds: began.elapsed().as_secs_f64(),
        })
    })
}

/// This program again, with the same arguments and one more.
fn start(number: u32, table: i32) -> Result<Child, String> {
    Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .args(["--worker", &number.to_string(), &table.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start a worker: {error}"))
}

fn work(options: &Files, part: Part) -> Result<Findings, String> {
    // SAFETY: the descriptor was inherited for this, and stays open as long as the process lives.
    let shared = unsafe { BorrowedFd::borrow_raw(part.table) };
    let table = Table::map(shared, options.count as usize, options.pages as usize)?;
    let content = Content::new(Kind::Text, options.seed, Corpus::default());
    let mut worker = Worker::new(options, &table, content, part.number)?;
    let outcome = worker.fill().and_then(|()| worker.run());
    if outcome.is_err() {
        table.fail();
    }
    outcome
}

/// A worker's findings on stdout: a line of numbers, and one for each error.
fn print_findings(found: &Findings) {
    println!(
        "{} {} {} {} {}",
        found.operations,
        found.pages_read,
        found.pages_written,
        found.bad_pages,
        found.longest_operation.as_micros()
    );
    for error in &found.errors {
        println!("{error}");
    }
}

fn gather(mut worker: Child, all: &mut Findings) -> Result<(), String> {
    let mut said = String::new();
    if let Some(mut stdout) = worker.stdout.take() {
        stdout
            .read_to_string(&mut said)
            .map_err(|error| format!("cannot hear a worker: {error}"))?;
    }
    let status = worker
        .wait()
        .map_err(|error| format!("cannot wait for a worker: {error}"))?;
    let mut lines = said.lines();
    let numbers: Vec<u64> = lines
        .next()
        .unwrap_or_default()
        .split(' ')
        .filter_map(|number| number.parse().ok())
        .collect();
    let [operations, read, written, bad, longest] = numbers[..] else {
        return Err(format!("a worker has ended: {status}"));
    };
    all.operations += operations;
    all.pages_read += read;
    all.pages_written += written;
    all.bad_pages += bad;
    all.longest_operation = all.longest_operation.max(Duration::from_micros(longest));
    all.errors.extend(lines.map(str::to_owned));
    Ok(())
}
