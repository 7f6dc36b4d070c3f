// SPDX-License-Identifier: GPL-2.0-or-later
//! `kzt-load files` as its users see it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A folder of a test's own, on a disk: tmpfs has no direct access everywhere.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    folder
}

fn kzt_load(folder: &Path, seconds: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kzt-load"));
    command
        .args(["files", "--size", "4MiB", "--files", "3", "--json"])
        .args(["--seconds", seconds, "--folder"])
        .arg(folder);
    command
}

#[test]
fn every_operation_verifies_with_several_processes() {
    let folder = folder("verifies");
    let output = kzt_load(&folder, "2")
        .args(["--processes", "3"])
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stdout}");
    assert!(
        stdout.starts_with("{\"ok\": true, \"operations\": "),
        "{stdout}"
    );
    assert!(stdout.contains("\"bad_pages\": 0"), "{stdout}");
    fs::remove_dir_all(folder).unwrap();
}

/// Bytes changed behind its back, as a cache would that gives back an old page.
#[test]
fn bytes_changed_from_outside_are_bad_pages() {
    let folder = folder("changed");
    let child = kzt_load(&folder, "3")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let file = folder.join("0001");
    while !file.metadata().is_ok_and(|file| file.len() > 40_000) {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    // So many that one of them is read before it is written anew.
    for page in (0..40_000).step_by(4096) {
        let opened = fs::File::options().write(true).open(&file).unwrap();
        opened.write_all_at(&[7], page + 99).unwrap();
    }
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stdout}");
    assert!(stdout.contains("file 1 page "), "{stdout}");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_worker_that_cannot_work_ends_all() {
    let folder = folder("closed");
    fs::create_dir_all(folder.join("0002")).unwrap(); // where a file should be
    let output = kzt_load(&folder, "1000").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("0002: "), "{stderr}");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn bad_usage_is_told() {
    let cases: &[(&[&str], &str)] = &[
        (&["--size", "1MiB"], "--folder is missing"),
        (&["--folder", "/tmp"], "--size is missing"),
        (&["--files", "0"], "--files 0: not from 1 to 1024"),
        (&["--processes", "65"], "--processes 65: not from 1 to 64"),
        (&["again"], "again"),
    ];
    for (arguments, message) in cases {
        let output = Command::new(env!("CARGO_BIN_EXE_kzt-load"))
            .arg("files")
            .args(*arguments)
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr.contains(message), "{arguments:?}: {stderr}");
    }
}
