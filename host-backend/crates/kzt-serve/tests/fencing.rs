// SPDX-License-Identifier: GPL-2.0-or-later
//! A client that lost its connection repeats its requests on a new one: the old copies, still on
//! their way, must not overtake them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::Write;

use common::{Lab, NO_HOLE, WRITE, WRITE_ZEROES, request};

const OLD: [u8; 4096] = [1; 4096];
const NEW: [u8; 4096] = [2; 4096];

/// Requests that keep a connection busy for a good while, and then a write of the first page.
fn slow_then_write() -> Vec<u8> {
    let mut out = Vec::new();
    for cookie in 0..4 {
        out.extend(request(WRITE_ZEROES, NO_HOLE, cookie, 1 << 30, 2 << 30));
    }
    out.extend(request(WRITE, 0, 9, 0, 4096));
    out.extend(OLD);
    out
}

#[test]
fn a_delayed_old_write_never_overtakes_a_newer_one() {
    let lab = Lab::new(256 << 20);
    lab.add("a", 4 << 30);
    let mut old = lab.nbd("a");
    old.stream.write_all(&slow_then_write()).unwrap();
    drop(old);

    let mut new = lab.nbd("a");
    assert_eq!(new.write(0, &NEW), 0);
    // Whatever the old connection was to do, it is done or never will be.
    lab.settle("a", 1);
    assert!(
        new.read(0, 4096).unwrap() == NEW,
        "the old write came after the new one"
    );
}

#[test]
fn connections_alive_are_left_alone() {
    let lab = Lab::new(64 << 20);
    lab.add("a", 1 << 30);
    let mut first = lab.nbd("a");
    let mut second = lab.nbd("a");
    assert_eq!(first.write(0, &OLD), 0);
    assert_eq!(second.read(0, 4096).unwrap(), OLD);
    assert_eq!(second.write(0, &NEW), 0);
    assert_eq!(first.read(0, 4096).unwrap(), NEW);
}
