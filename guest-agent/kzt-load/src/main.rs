// SPDX-License-Identifier: GPL-2.0-or-later
//! `kzt-load`: puts memory and files under load and verifies every byte that comes back.
//!
//! No threads and a static binary, as it runs in guests that have nothing and are short of memory.

mod access;
mod args;
mod content;
mod corpus;
mod files;
mod load;
mod mapping;
mod progress;
mod report;
mod rng;
mod vmstat;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use args::{Anon, Command};
use content::Content;
use corpus::Corpus;
use load::Load;
use mapping::Mapping;
use progress::Progress;
use report::Report;
use vmstat::SwapTraffic;

const WRONG_BYTES: u8 = 1;
const CANNOT_RUN: u8 = 2;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(message) => {
            tell(&message);
            ExitCode::from(CANNOT_RUN)
        }
    }
}

fn run() -> Result<ExitCode, String> {
    match args::parse(lexopt::Parser::from_env())? {
        Command::Print(text) => print(&text).map(|()| ExitCode::SUCCESS),
        Command::Anon(anon) => {
            let report = run_anon(&anon)?;
            let text = if anon.json {
                report.json()
            } else {
                report.text()
            };
            conclude(report.ok(), &text)
        }
        Command::Files(files) => match files::run(&files)? {
            Some(report) => {
                let text = if files.json {
                    report.json()
                } else {
                    report.text()
                };
                conclude(report.ok(), &text)
            }
            None => Ok(ExitCode::SUCCESS),
        },
    }
}

fn conclude(ok: bool, text: &str) -> Result<ExitCode, String> {
    print(text)?;
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(WRONG_BYTES)
    })
}

fn run_anon(anon: &Anon) -> Result<Report, String> {
    let corpus = if anon.content.needs_corpus() {
        Corpus::read(&anon.corpus, anon.seed)?
    } else {
        Corpus::default()
    };
    let content = Content::new(anon.content, anon.seed, corpus);
    let mut mapping = Mapping::new(anon.pages)?;
    let mut progress = Progress::new(anon.progress);

    let traffic = SwapTraffic::now();
    let began = Instant::now();
    let mut load = Load::new(&mut mapping, &content, anon.seed, anon.rewrite);
    load.fill(&mut progress);
    let fill_seconds = began.elapsed().as_secs_f64();
    for pass in 1..=anon.passes {
        load.pass(pass, anon.access, &mut progress);
    }
    let seconds = began.elapsed().as_secs_f64();
    let traffic = SwapTraffic::now().since(traffic);

    Ok(Report {
        pages: anon.pages,
        passes: anon.passes,
        seconds,
        fill_seconds,
        traffic,
        findings: load.into_findings(),
    })
}

/// Say something on stderr. Unlike with `eprintln!`, nobody need listen: that is no reason to end.
fn tell(message: &str) {
    let _ = writeln!(std::io::stderr(), "kzt-load: {message}");
}

fn print(text: &str) -> Result<(), String> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .map_err(|error| format!("cannot write the result: {error}"))
}
