// SPDX-License-Identifier: GPL-2.0-or-later
//! A vhost-user frontend that breaks every rule: at worst it loses its own connection.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::too_many_lines,
    clippy::unwrap_used,
    reason = "tables of cases; a test fails by panicking"
)]

mod common;

use std::fs::File;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use common::driver::{
    DATA, Driver, GET_CONFIG, GET_FEATURES, GET_VRING_BASE, MEMORY, OK, OUT, QEMU, SET_FEATURES,
    SET_LOG_BASE, SET_MEM_TABLE, SET_PROTOCOL_FEATURES, SET_VRING_ADDR, SET_VRING_BASE,
    SET_VRING_CALL, SET_VRING_ENABLE, SET_VRING_KICK, SET_VRING_NUM, USUAL, addresses, bell, memfd,
    state, table,
};
use common::noise;
use common::scene::{Scene, each_ends};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, SealFlags, fcntl_getfl, fcntl_setfl, ftruncate};

fn kick(driver: &mut Driver) {
    let kick = bell();
    driver.ring_by(SET_VRING_KICK, 0, &[kick.as_fd()]);
}

#[test]
fn messages_that_are_none() {
    let raw = |bytes: Vec<u8>| {
        move |scene: &Scene| {
            let mut driver = scene.connect();
            driver.socket.write_all(&bytes).unwrap();
            driver.socket.shutdown(Shutdown::Write).unwrap();
            driver
        }
    };
    let header =
        |code: u32, flags: u32, size: u32| [code, flags, size].map(u32::to_le_bytes).concat();
    each_ends(&[
        ("nothing", &raw(vec![])),
        ("half a header", &raw(vec![1, 0, 0, 0, 1])),
        (
            "a header without its body",
            &raw(header(SET_FEATURES, 1, 8)),
        ),
        (
            "half a body",
            &raw([header(SET_FEATURES, 1, 8), vec![0; 4]].concat()),
        ),
        (
            "a length beyond the limit",
            &raw(header(SET_FEATURES, 1, u32::MAX)),
        ),
        (
            "a length that does not fit",
            &raw([header(SET_FEATURES, 1, 9), vec![0; 9]].concat()),
        ),
        ("another version", &raw(header(1, 2, 0))),
        ("a reply", &raw(header(1, 5, 0))),
        ("an unknown code", &raw(header(4711, 1, 0))),
        ("noise", &raw(noise(4))),
    ]);
}

#[test]
fn messages_that_are_refused() {
    let say = |code: u32, payload: Vec<u8>| {
        move |scene: &Scene| {
            let mut driver = scene.shaped();
            driver.say(code, &payload);
            driver
        }
    };
    let place = QEMU;
    let usual = [place, place + 0x8000, place + 0x4000];
    each_ends(&[
        (
            "features not offered",
            &say(SET_FEATURES, (USUAL | 1 << 34).to_le_bytes().to_vec()),
        ),
        (
            "protocol features not offered",
            &say(SET_PROTOCOL_FEATURES, (1_u64 << 12).to_le_bytes().to_vec()),
        ),
        (
            "a queue too many",
            &say(SET_VRING_NUM, state(16, 128).to_vec()),
        ),
        (
            "a queue far too many",
            &say(SET_VRING_BASE, state(u16::MAX, 0).to_vec()),
        ),
        (
            "a queue of no entries",
            &say(SET_VRING_NUM, state(0, 0).to_vec()),
        ),
        (
            "a queue of any number",
            &say(SET_VRING_NUM, state(0, 100).to_vec()),
        ),
        (
            "a queue too long",
            &say(SET_VRING_NUM, state(0, 2048).to_vec()),
        ),
        (
            "a queue far too long",
            &say(SET_VRING_NUM, state(0, 1 << 31).to_vec()),
        ),
        (
            "an index too high",
            &say(SET_VRING_BASE, state(0, 1 << 16).to_vec()),
        ),
        (
            "a queue elsewhere",
            &say(SET_VRING_ADDR, addresses(0, [place - 16, place, place])),
        ),
        (
            "a queue at no address",
            &say(SET_VRING_ADDR, addresses(0, [0, 0, 0])),
        ),
        (
            "a queue at the last address",
            &say(SET_VRING_ADDR, addresses(0, [u64::MAX - 15; 3])),
        ),
        (
            "a queue that is not aligned",
            &say(SET_VRING_ADDR, addresses(0, [place + 1, place, place])),
        ),
        ("a queue to be logged", &|scene| {
            let mut driver = scene.shaped();
            let mut payload = addresses(0, usual);
            payload[4] = 1;
            driver.say(SET_VRING_ADDR, &payload);
            driver
        }),
        (
            "enabled by halves",
            &say(SET_VRING_ENABLE, state(0, 2).to_vec()),
        ),
        (
            "a queue too many stops",
            &say(GET_VRING_BASE, state(99, 0).to_vec()),
        ),
        ("configuration without end", &|scene| {
            let mut driver = scene.shaped();
            let mut question = vec![0xff; 12];
            question.extend([0; 60]);
            driver.say(GET_CONFIG, &question);
            driver
        }),
        (
            "a kick that is missing",
            &say(SET_VRING_KICK, 0_u64.to_le_bytes().to_vec()),
        ),
        (
            "a queue to be polled",
            &say(SET_VRING_KICK, 0x100_u64.to_le_bytes().to_vec()),
        ),
        (
            "a call that is missing",
            &say(SET_VRING_CALL, 0_u64.to_le_bytes().to_vec()),
        ),
        ("a log", &|scene| {
            let mut driver = scene.shaped();
            let log = memfd(4096, SealFlags::SHRINK);
            let payload = [4096_u64, 0].map(u64::to_le_bytes).concat();
            driver.say_with(SET_LOG_BASE, &payload, &[log.as_fd()]);
            driver
        }),
        ("a queue started twice", &|scene| {
            let mut driver = scene.shaped();
            kick(&mut driver);
            kick(&mut driver);
            driver
        }),
        ("a queue changed in use", &|scene| {
            let mut driver = scene.ready();
            driver.say(SET_VRING_NUM, &state(0, 128));
            driver
        }),
        ("a queue moved in use", &|scene| {
            let mut driver = scene.ready();
            driver.say(SET_VRING_ADDR, &addresses(0, usual));
            driver
        }),
        ("a queue without memory", &|scene| {
            let mut driver = scene.connect();
            driver.negotiate(USUAL);
            kick(&mut driver);
            driver
        }),
        ("a queue that reaches beyond the memory", &|scene| {
            let mut driver = scene.shaped();
            let end = QEMU + MEMORY - 64;
            driver.say(SET_VRING_ADDR, &addresses(0, [end, end, end]));
            kick(&mut driver);
            driver
        }),
        ("an enabled queue before features", &|scene| {
            let mut driver = scene.connect();
            driver.say(SET_VRING_ENABLE, &state(0, 1));
            driver
        }),
    ]);
}

#[test]
fn descriptors_that_are_not_what_they_have_to_be() {
    let socket = || UnixStream::pair().unwrap().0;
    each_ends(&[
        ("a socket to be kicked by", &|scene| {
            let mut driver = scene.shaped();
            driver.ring_by(SET_VRING_KICK, 0, &[socket().as_fd()]);
            driver
        }),
        ("a folder to call by", &|scene| {
            let mut driver = scene.shaped();
            let folder = File::open("/").unwrap();
            driver.ring_by(SET_VRING_CALL, 0, &[folder.as_fd()]);
            driver
        }),
        ("two kicks", &|scene| {
            let mut driver = scene.shaped();
            let kick = bell();
            let both = [kick.as_fd(), kick.as_fd()];
            driver.ring_by(SET_VRING_KICK, 0, &both);
            driver
        }),
        ("descriptors with a message that takes none", &|scene| {
            let mut driver = scene.shaped();
            driver.say_with(SET_FEATURES, &USUAL.to_le_bytes(), &[socket().as_fd(); 1]);
            driver
        }),
        ("as many descriptors as go into a message", &|scene| {
            let mut driver = scene.shaped();
            let kick = bell();
            let many = [kick.as_fd(); 64];
            driver.ring_by(SET_VRING_KICK, 0, &many);
            // The library drops them with the message they came with, and waits for another.
            driver.socket.shutdown(Shutdown::Write).unwrap();
            driver
        }),
    ]);
}

#[test]
fn memory_that_must_not_be_mapped() {
    let share = |regions: &'static [(u64, u64, u64, u64)], seals: SealFlags| {
        move |scene: &Scene| {
            let mut driver = scene.connect();
            driver.negotiate(USUAL);
            let file = memfd(MEMORY, seals);
            driver.share_as(&file, regions);
            driver
        }
    };
    let sealed = SealFlags::SHRINK;
    each_ends(&[
        (
            "that can be cut short",
            &share(&[(0, MEMORY, 0, 0)], SealFlags::GROW),
        ),
        (
            "that ends too early",
            &share(&[(0, MEMORY + 4096, 0, 0)], sealed),
        ),
        (
            "that begins too late",
            &share(&[(0, 4096, 0, MEMORY)], sealed),
        ),
        ("of no size", &share(&[(0, 0, 0, 0)], sealed)),
        ("of every size", &share(&[(0, u64::MAX, 0, 0)], sealed)),
        (
            "beyond the last address",
            &share(&[(u64::MAX - 4095, 8192, 0, 0)], sealed),
        ),
        ("at an odd offset", &share(&[(0, 4096, 0, 5)], sealed)),
        (
            "that overlaps",
            &share(&[(0, 8192, 0, 0), (4096, 8192, 1 << 40, 0)], sealed),
        ),
        (
            "that may not be written",
            &share(&[(0, MEMORY, 0, 0)], sealed | SealFlags::WRITE),
        ),
        ("of more regions than descriptors", &|scene| {
            let mut driver = scene.connect();
            let file = memfd(MEMORY, sealed);
            let regions = [(0, 4096, 0, 0), (8192, 4096, 8192, 0)];
            driver.say_with(SET_MEM_TABLE, &table(&regions), &[file.as_fd()]);
            driver
        }),
        ("of more regions than it says", &|scene| {
            let mut driver = scene.connect();
            let file = memfd(MEMORY, sealed);
            let mut regions = table(&[(0, 4096, 0, 0), (8192, 4096, 8192, 0)]);
            regions[0] = 1;
            driver.say_with(SET_MEM_TABLE, &regions, &[file.as_fd()]);
            driver
        }),
        ("without a descriptor", &|scene| {
            let mut driver = scene.connect();
            driver.say(SET_MEM_TABLE, &table(&[(0, 4096, 0, 0)]));
            driver
        }),
        ("that is a file", &|scene| {
            let mut driver = scene.connect();
            let file = tempfile::tempfile().unwrap();
            file.set_len(MEMORY).unwrap();
            driver.share_as(&file, &[(0, MEMORY, 0, 0)]);
            driver
        }),
        ("of over a tebibyte", &|scene| {
            let mut driver = scene.connect();
            let file = memfd(2 << 40, sealed);
            driver.share_as(&file, &[(0, 2 << 40, 0, 0)]);
            driver
        }),
        ("that takes a queue in use away", &|scene| {
            let mut driver = scene.ready();
            let file = memfd(MEMORY, sealed);
            driver.share_as(&file, &[(0, 4096, 0, 0)]);
            driver
        }),
    ]);
}

#[test]
fn messages_under_load() {
    let scene = Scene::new();
    let mut driver = scene.ready();
    for round in 0..200_u64 {
        driver.fill(DATA, &noise(round));
        for slot in 0..16 {
            driver.request(0, 3 * slot, OUT, 2048 + u64::from(slot) * 8, (DATA, 4096));
            driver.offer(0, 3 * slot);
        }
        driver.kick(0);
        match round % 4 {
            0 => driver.share(),
            1 => {
                driver.enable(0, false);
                driver.enable(0, true);
            }
            2 => {
                let base = driver.ask(GET_VRING_BASE, &state(0, 0));
                let base = u16::from_le_bytes([base[4], base[5]]);
                let offered = (16 * (round + 1)) as u16;
                driver.start(0, base);
                driver.set_available(0, offered);
                while driver.used(0) != offered {
                    thread::sleep(Duration::from_micros(50));
                }
                // `start` has begun to count at the base.
                driver.settle();
                driver.resume(0, offered);
            }
            _ => driver.say(SET_FEATURES, &USUAL.to_le_bytes()),
        }
    }
    let offered = (16 * 200) as u16;
    while driver.used(0) != offered {
        thread::sleep(Duration::from_millis(1));
    }
    drop(driver);
    scene.unharmed();
}

#[test]
fn a_call_that_nobody_answers() {
    let scene = Scene::new();
    let mut driver = scene.ready();
    // Its count is at the end: another write would block.
    let call = bell();
    rustix::io::write(&call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    driver.ring_by(SET_VRING_CALL, 0, &[call.as_fd()]);
    assert_eq!(driver.write(1 << 20, &noise(5)), Some(OK));
    assert_eq!(driver.read(1 << 20, 4096).unwrap(), noise(5));
    drop(driver);
    scene.unharmed();
}

/// Takes from an eventfd of the server's what keeps it from blocking.
fn make_it_block(bell: &OwnedFd) {
    let flags = fcntl_getfl(bell).unwrap();
    assert!(flags.contains(OFlags::NONBLOCK));
    fcntl_setfl(bell, flags - OFlags::NONBLOCK).unwrap();
}

/// A frontend whose server waits for its call to be answered when this returns, or is about to.
fn stuck(scene: &Scene) -> (Driver, OwnedFd) {
    let mut driver = scene.ready();
    let call = bell();
    driver.ring_by(SET_VRING_CALL, 0, &[call.as_fd()]);
    driver.settle();
    make_it_block(&call);
    // It was rung once when it was taken.
    rustix::io::write(&call, &(u64::MAX - 2).to_ne_bytes()).unwrap();
    assert_eq!(driver.write(1 << 20, &noise(5)), Some(OK));
    (driver, call)
}

#[test]
fn a_call_that_blocks_keeps_nobody_but_its_sender_waiting() {
    let scene = Scene::new();
    let (driver, _call) = stuck(&scene);
    assert_eq!(scene.lab.nbd("victim").read(0, 4096).unwrap(), noise(1));
    // The next connection gets past it.
    drop(driver);
    scene.unharmed();
    let (driver, _call) = stuck(&scene);
    scene.lab.server.remove_client("attacker").unwrap();
    assert!(driver.ended());
    scene.lab.add("attacker", 16 << 20);
    let (_driver, _call) = stuck(&scene);
    scene.lab.server.shutdown(Duration::from_millis(10));
}

#[test]
fn a_kick_that_blocks_keeps_nobody_but_its_sender_waiting() {
    let scene = Scene::new();
    let mut driver = scene.shaped();
    let kick = bell();
    driver.ring_by(SET_VRING_KICK, 0, &[kick.as_fd()]);
    driver.enable(0, true);
    driver.settle();
    make_it_block(&kick);
    // The server wakes for a message, and clears a kick that there was not.
    driver.say(GET_FEATURES, &[]);
    scene.lab.server.remove_client("attacker").unwrap();
    assert!(driver.ended());
    assert_eq!(scene.lab.nbd("victim").read(0, 4096).unwrap(), noise(1));
}

#[test]
fn a_kick_that_never_ends() {
    let scene = Scene::new();
    let mut driver = scene.shaped();
    // A semaphore counts down by one for each look.
    let kick = eventfd(u32::MAX, EventfdFlags::CLOEXEC | EventfdFlags::SEMAPHORE).unwrap();
    driver.ring_by(SET_VRING_KICK, 0, &[kick.as_fd()]);
    driver.enable(0, true);
    assert_eq!(driver.write(1 << 20, &noise(5)), Some(OK));
    drop(driver);
    scene.unharmed();
}

#[test]
fn memory_is_cut_short_only_if_it_may_be() {
    let scene = Scene::new();
    let mut driver = scene.ready();
    assert!(ftruncate(&driver.file, 4096).is_err());
    assert_eq!(driver.write(1 << 20, &noise(5)), Some(OK));
}

#[test]
fn a_message_that_does_not_end_keeps_nobody_but_its_sender_waiting() {
    let scene = Scene::new();
    let mut driver = scene.ready();
    driver.settle();
    driver.socket.write_all(&[1, 0, 0, 0, 1]).unwrap();
    assert_eq!(scene.lab.nbd("victim").read(0, 4096).unwrap(), noise(1));
    assert_eq!(scene.lab.nbd("attacker").read(0, 4096).unwrap(), noise(2));
    scene.lab.server.remove_client("attacker").unwrap();
    assert!(driver.ended());
}
