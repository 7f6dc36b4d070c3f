// SPDX-License-Identifier: GPL-2.0-or-later
//! The program as its users see it.

#![expect(
    clippy::unwrap_used,
    reason = "outside #[test] functions clippy does not see a test"
)]

use std::fs::File;
use std::io::{BufRead, BufReader, Lines};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};

fn kzt_load(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kzt-load"))
        .args(arguments)
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// Enough files for a corpus: this package's own sources and what cargo built.
fn corpus() -> &'static str {
    Path::new(env!("CARGO_BIN_EXE_kzt-load"))
        .parent()
        .unwrap()
        .to_str()
        .unwrap()
}

#[test]
fn every_content_in_every_order_verifies() {
    for content in ["real", "text", "zero", "random", "mixed"] {
        for access in ["sequential", "random", "zipf"] {
            let output = kzt_load(&[
                "anon",
                "--size",
                "3MiB",
                "--passes",
                "3",
                "--json",
                "--seed",
                "5",
                "--content",
                content,
                "--access",
                access,
                "--corpus",
                corpus(),
                "--rewrite",
                "40",
            ]);
            assert!(
                output.status.success(),
                "{content} {access}: {}",
                stderr(&output)
            );
            let head = r#"{"ok": true, "pages": 768, "passes": 3, "bad_pages": 0, "seconds": "#;
            assert!(stdout(&output).starts_with(head), "{}", stdout(&output));
            assert!(stdout(&output).contains(", \"longest_access_seconds\": 0."));
            assert!(
                stdout(&output).ends_with("\"errors\": []}\n"),
                "{}",
                stdout(&output)
            );
        }
    }
}

#[test]
fn without_json_it_is_one_line() {
    let output = kzt_load(&["anon", "--size=64K", "--content=text"]);
    assert!(stdout(&output).starts_with("ok: 16 pages, 1 passes, 0 bad pages, "));
    assert_eq!(stdout(&output).lines().count(), 1);
    assert_eq!(stderr(&output), "");
}

/// A run that does not end by itself, killed with its owner, and its lines of progress.
struct Endless {
    child: Child,
    progress: Lines<BufReader<ChildStderr>>,
}

impl Endless {
    fn start(content: &str) -> Endless {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kzt-load"))
            .args([
                "anon",
                "--size",
                "1MiB",
                "--passes",
                "4000000000",
                "--progress",
            ])
            .args(["--content", content])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let progress = BufReader::new(child.stderr.take().unwrap()).lines();
        Endless { child, progress }
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn progress_is_told_on_stderr_only_if_asked() {
    let mut run = Endless::start("random");
    let line = run.progress.next().unwrap().unwrap();
    assert!(line.starts_with("kzt-load: 1 s, pass "), "{line}");
    assert!(line.ends_with(", 0 bad"), "{line}");
}

/// A byte changed behind its back, as a store would that gives back the wrong page.
#[test]
fn a_byte_changed_from_outside_is_a_bad_page() {
    let mut run = Endless::start("zero");
    run.progress.next().unwrap().unwrap(); // the fill is over
    let process = Path::new("/proc").join(run.child.id().to_string());
    let maps = std::fs::read_to_string(process.join("maps")).unwrap();
    let start = maps
        .lines()
        .filter_map(|line| line.split_once(' ')?.0.split_once('-'))
        .map(|(start, end)| [start, end].map(|hex| u64::from_str_radix(hex, 16).unwrap()))
        .find_map(|[start, end]| (end - start == 1 << 20).then_some(start))
        .unwrap();
    let memory = File::options()
        .write(true)
        .open(process.join("mem"))
        .unwrap();
    memory.write_all_at(&[7], start + 5000).unwrap();
    let bad = run
        .progress
        .find(|line| !line.as_ref().unwrap().ends_with(", 0 bad"));
    assert!(bad.unwrap().unwrap().ends_with(", 1 bad"));
}

#[test]
fn bad_usage_is_told_with_the_option_and_ends_with_2() {
    let cases: &[(&[&str], &str)] = &[
        (&[], "what to do is missing: anon"),
        (&["anon"], "--size is missing"),
        (&["file", "--size", "1MiB"], "file"),
        (&["anon", "again", "--size", "1MiB"], "again"),
        (&["anon", "--size"], "--size"),
        (
            &["anon", "--size", "1MB"],
            "--size 1MB: a size is a whole number with",
        ),
        (&["anon", "--size", "MiB"], "--size MiB: not a number"),
        (&["anon", "--size", "-1MiB"], "--size"),
        (&["anon", "--size", "4095"], "--size 4095: less than a page"),
        (&["anon", "--size", "16TiB"], "--size 16TiB: more than"),
        (
            &["anon", "--size", "99999999TiB"],
            "--size 99999999TiB: more than",
        ),
        (
            &["anon", "--size", "1MiB", "--content", "noise"],
            "--content noise: there are real",
        ),
        (
            &["anon", "--size", "1MiB", "--access", "x"],
            "--access x: there are sequential",
        ),
        (&["anon", "--size", "1MiB", "--passes", "-1"], "--passes"),
        (
            &["anon", "--size", "1MiB", "--passes", "4294967296"],
            "--passes 4294967296: not a",
        ),
        (
            &["anon", "--size", "1MiB", "--rewrite", "101"],
            "--rewrite 101: not a percentage",
        ),
        (
            &["anon", "--size", "1MiB", "--corpus", "/nonexistent"],
            "--corpus /nonexistent: ",
        ),
        (
            &["anon", "--size", "1MiB", "--corpus", "/proc/self/fdinfo"],
            "has a whole page",
        ),
        (&["anon", "--size", "1MiB", "--jsn"], "--jsn"),
    ];
    for (arguments, message) in cases {
        let output = kzt_load(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).starts_with("kzt-load: "), "{arguments:?}");
        assert!(
            stderr(&output).contains(message),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert_eq!(stdout(&output), "", "{arguments:?}");
    }
}

#[test]
fn nobody_need_listen_to_what_is_told() {
    let (stderr, other) = UnixStream::pair().unwrap();
    drop(other);
    let status = Command::new(env!("CARGO_BIN_EXE_kzt-load"))
        .stderr(OwnedFd::from(stderr))
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(2));
}

#[test]
fn memory_that_cannot_be_mapped_is_told() {
    let output = Command::new("sh")
        .args([
            "-c",
            "ulimit -v 100000; exec \"$0\" anon --size 1GiB --content zero",
        ])
        .arg(env!("CARGO_BIN_EXE_kzt-load"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("cannot map 1048576 KiB"),
        "{}",
        stderr(&output)
    );
}
