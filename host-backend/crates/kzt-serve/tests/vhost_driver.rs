// SPDX-License-Identifier: GPL-2.0-or-later
//! A guest's driver that breaks every rule: at worst its frontend loses the connection.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::too_many_lines,
    clippy::unwrap_used,
    reason = "tables of cases; a test fails by panicking"
)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::driver::{
    DATA, Driver, GUEST, IN, INDIRECT, MEMORY, NEXT, OK, OUT, SIZE, WRITABLE, WRITE_ZEROES,
    available_of, descriptor, header_of, range, request_header, status_of, table_of,
};
use common::noise;
use common::scene::{Scene, each_ends};

/// Offers what `write` has put at descriptor 0.
fn chain(write: impl Fn(&Driver)) -> impl Fn(&Scene) -> Driver {
    move |scene| {
        let mut driver = scene.ready();
        driver.put(header_of(0, 0), request_header(OUT, 16));
        write(&driver);
        driver.offer(0, 0);
        driver.kick(0);
        driver
    }
}

#[test]
fn chains_that_are_none() {
    let head = (header_of(0, 0), 16, 0);
    let header = |driver: &Driver| {
        driver.descriptor(0, 0, descriptor(header_of(0, 0), 16, NEXT, 1));
    };
    each_ends(&[
        (
            "a loop of one",
            &chain(|driver| {
                driver.descriptor(0, 0, descriptor(header_of(0, 0), 16, NEXT, 0));
            }),
        ),
        (
            "a loop of two",
            &chain(|driver| {
                header(driver);
                driver.descriptor(0, 1, descriptor(DATA, 4096, NEXT, 0));
            }),
        ),
        (
            "a loop of nothing",
            &chain(|driver| {
                header(driver);
                driver.descriptor(0, 1, descriptor(DATA, 0, NEXT, 1));
            }),
        ),
        (
            "beyond the table",
            &chain(|driver| {
                driver.descriptor(0, 0, descriptor(header_of(0, 0), 16, NEXT, SIZE));
            }),
        ),
        (
            "no status",
            &chain(|driver| {
                driver.link(&[head, (DATA, 4096, 0)]);
            }),
        ),
        (
            "a status of no length",
            &chain(|driver| {
                driver.link(&[head, (DATA, 0, WRITABLE)]);
            }),
        ),
        (
            "no header",
            &chain(|driver| {
                driver.descriptor(0, 0, descriptor(DATA, 4096, WRITABLE, 0));
            }),
        ),
        (
            "a short header",
            &chain(|driver| {
                driver.link(&[(header_of(0, 0), 15, 0), (DATA, 1, WRITABLE)]);
            }),
        ),
        (
            "to be read after to be written",
            &chain(|driver| {
                driver.link(&[head, (DATA, 1, WRITABLE), (DATA, 4096, 0)]);
            }),
        ),
        (
            "a header outside the memory",
            &chain(|driver| {
                driver.link(&[(0, 16, 0), (DATA, 1, WRITABLE)]);
            }),
        ),
        (
            "data outside the memory",
            &chain(|driver| {
                driver.link(&[head, (GUEST + MEMORY - 512, 4096, 0), (DATA, 1, WRITABLE)]);
            }),
        ),
        (
            "data around the last address",
            &chain(|driver| {
                driver.link(&[head, (u64::MAX - 511, 4096, 0), (DATA, 1, WRITABLE)]);
            }),
        ),
        (
            "a status outside the memory",
            &chain(|driver| {
                driver.link(&[head, (GUEST + MEMORY, 1, WRITABLE)]);
            }),
        ),
        (
            "a status at the last address",
            &chain(|driver| {
                driver.link(&[head, (u64::MAX, u32::MAX, WRITABLE)]);
            }),
        ),
        (
            "lengths whose sum overflows",
            &chain(|driver| {
                driver.link(&[head, (DATA, u32::MAX, 0), (DATA, u32::MAX, WRITABLE)]);
            }),
        ),
        (
            "more segments than announced",
            &chain(|driver| {
                driver.descriptor(0, 0, descriptor(header_of(0, 0), 16, NEXT, 1));
                for slot in 1..200 {
                    driver.descriptor(0, slot, descriptor(DATA, 512, NEXT, slot + 1));
                }
                driver.descriptor(0, 200, descriptor(DATA, 1, WRITABLE, 0));
            }),
        ),
        (
            "a table in a table",
            &chain(|driver| {
                driver.put(DATA, descriptor(DATA, 32, INDIRECT, 0));
                driver.descriptor(0, 0, descriptor(DATA, 16, INDIRECT, 0));
            }),
        ),
        (
            "a table of odd length",
            &chain(|driver| {
                driver.descriptor(0, 0, descriptor(DATA, 17, INDIRECT, 0));
            }),
        ),
        (
            "a table of no length",
            &chain(|driver| {
                driver.descriptor(0, 0, descriptor(DATA, 0, INDIRECT, 0));
            }),
        ),
        (
            "a table without end",
            &chain(|driver| {
                driver.descriptor(0, 0, descriptor(DATA, 0xffff_fff0, INDIRECT, 0));
            }),
        ),
        (
            "a table outside the memory",
            &chain(|driver| {
                driver.descriptor(0, 0, descriptor(GUEST - 16, 32, INDIRECT, 0));
            }),
        ),
        (
            "a loop in a table",
            &chain(|driver| {
                driver.put(DATA, descriptor(header_of(0, 0), 16, NEXT, 1));
                driver.put(DATA + 16, descriptor(DATA, 16, NEXT, 0));
                driver.descriptor(0, 0, descriptor(DATA, 32, INDIRECT, 0));
            }),
        ),
        (
            "a table with what follows it",
            &chain(|driver| {
                driver.put(DATA, descriptor(header_of(0, 0), 16, 0, 0));
                driver.link(&[(DATA, 16, INDIRECT), (DATA, 1, WRITABLE)]);
            }),
        ),
        ("a head beyond the table", &|scene| {
            let mut driver = scene.ready();
            driver.offer(0, SIZE);
            driver.kick(0);
            driver
        }),
        ("an index ahead of the queue", &|scene| {
            let driver = scene.ready();
            driver.set_available(0, SIZE + 1);
            driver.kick(0);
            driver
        }),
        ("an index behind", &|scene| {
            let driver = scene.ready();
            driver.set_available(0, u16::MAX);
            driver.kick(0);
            driver
        }),
    ]);
}

#[test]
fn requests_that_overlap_do_what_they_can() {
    let scene = Scene::new();
    let mut driver = scene.ready();
    // Into its own descriptors, header, rings and status.
    for target in [table_of(0), header_of(0, 0), available_of(0), DATA] {
        driver.submit(0, 0, IN, 0, (target, 4096));
        if driver.next_used(0).is_none() {
            driver = scene.ready();
        }
    }
    drop(driver);
    scene.unharmed();
}

#[test]
fn memory_that_changes_while_it_is_read() {
    let scene = Scene::new();
    let done = AtomicBool::new(false);
    let mut driver = scene.ready();
    let memory = driver.memory.clone();
    thread::scope(|scope| {
        scope.spawn(|| {
            use vm_memory::{Bytes, GuestAddress};
            let mut turn = 0_u64;
            while !done.load(Ordering::Relaxed) {
                turn += 1;
                // The page on its way: compressible, then not.
                let page = if turn % 2 == 0 {
                    vec![7; 4096]
                } else {
                    noise(turn)
                };
                memory.write_slice(&page, GuestAddress(DATA)).unwrap();
                // And the data's length: a page, or many.
                let length: u32 = if turn % 2 == 0 { 4096 } else { 64 << 10 };
                let place = table_of(0) + 16 + 8;
                memory
                    .write_slice(&length.to_le_bytes(), GuestAddress(place))
                    .unwrap();
            }
        });
        for _ in 0..2000 {
            driver.submit(0, 0, OUT, 2048, (DATA, 4096));
            assert!(driver.next_used(0).is_some());
            assert_eq!(driver.bytes(status_of(0, 0), 1), [OK]);
        }
        done.store(true, Ordering::Relaxed);
    });
    // What is stored is some mixture, and it is sound: its checksum holds.
    let mut nbd = scene.lab.nbd("attacker");
    assert_eq!(nbd.read(1 << 20, 64 << 10).unwrap().len(), 64 << 10);
    assert_eq!(
        scene
            .lab
            .server
            .client_stats("attacker")
            .unwrap()
            .pool
            .crc_errors,
        0
    );
    drop(driver);
    scene.unharmed();
}

#[test]
fn the_longest_requests_let_go_when_told_to() {
    let scene = Scene::new();
    let mut driver = scene.ready();
    let ranges: Vec<u8> = (0..64).flat_map(|_| range(0, 32768, 0)).collect();
    driver.fill(DATA, &ranges);
    for slot in 0..64 {
        driver.request(0, 3 * slot, WRITE_ZEROES, 0, (DATA, 64 * 16));
        driver.offer(0, 3 * slot);
    }
    driver.kick(0);
    // Some 17 million pages wait: removing the client does not.
    scene.lab.server.remove_client("attacker").unwrap();
    assert!(driver.ended());
    scene.lab.add("attacker", 16 << 20);
    assert_eq!(scene.lab.nbd("victim").read(0, 4096).unwrap(), noise(1));
}
