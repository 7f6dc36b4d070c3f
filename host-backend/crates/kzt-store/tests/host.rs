// SPDX-License-Identifier: GPL-2.0-or-later
//! What the host may ask and settle, and no guest.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

mod common;

use common::abi::{CACHE, Lab, NOBODY, UUID};
use common::{MIB, page};
use kzt_store::tmem::EEMPTY;
use kzt_store::tmem::flags::PERSIST;
use kzt_store::{PAGE_SIZE, Terms};

/// Uncompressed where the host says so; same-filled pages take no room either way.
#[test]
fn a_clients_pages_are_compressed_unless_the_host_says_otherwise() {
    let mut lab = Lab::with_pools();
    assert_eq!(lab.put(0, 0, 1), 1);
    let plain = Terms {
        compress: false,
        ..Terms::default()
    };
    lab.client.settle(plain).unwrap();
    assert_eq!(lab.put(0, 1, 1), 1);
    assert_eq!(lab.put(0, 2, 4), 1);
    let stats = lab.client.stats().pools[0].stats;
    assert_eq!((stats.pages, stats.raw, stats.same_filled), (3, 1, 1));
    assert_eq!(lab.get(0, 0), Ok(page(1)));
    assert_eq!(lab.get(0, 1), Ok(page(1)));
}

#[test]
fn the_host_lists_its_clients() {
    let mut lab = Lab::with_pools();
    assert_eq!(lab.client.new_pool(CACHE | PERSIST, UUID), 2);
    for index in 0..5 {
        assert_eq!(lab.put(2, index, 1), 1);
    }
    lab.store
        .client("b")
        .unwrap()
        .settle(Terms {
            weight: 7,
            cap: Some(3 * MIB),
            reservation: MIB,
            compress: false,
            exclusive: true,
        })
        .unwrap();
    lab.store.client("b").unwrap().freeze();
    let list = lab.store.list();
    let names: Vec<_> = list.iter().map(|client| client.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!((list[0].flags(), list[1].flags()), (1, 2));
    assert_eq!(
        (list[1].terms.weight, list[1].terms.cap),
        (7, Some(3 * MIB))
    );
    let pools: Vec<_> = list[0]
        .pools
        .iter()
        .map(|pool| (pool.id, pool.flags(), pool.uuid, pool.stats.pages))
        .collect();
    let expected = [
        (Some(0), CACHE | PERSIST, NOBODY, 0),
        (Some(1), CACHE, NOBODY, 0),
        (Some(2), CACHE | PERSIST, UUID, 5),
    ];
    assert_eq!(pools, expected);
}

#[test]
fn the_host_takes_back_what_may_vanish_and_nothing_else() {
    let mut lab = Lab::with_pools();
    for pool in [0, 1] {
        for index in 0..200 {
            assert_eq!(lab.put(pool, index, 3), 1);
        }
    }
    // Half the pages, which do not shrink, may vanish.
    assert!(lab.store.freeable().unwrap() > 200 * PAGE_SIZE as u64);
    assert_eq!(lab.client.flush_ephemeral(), 200);
    assert_eq!(lab.client.flush_ephemeral(), 0);
    assert_eq!(lab.get(1, 0), Err(-EEMPTY));
    assert_eq!(lab.get(0, 0), Ok(page(3)));
    let (usage, freeable) = (lab.store.usage().unwrap(), lab.store.freeable().unwrap());
    assert_eq!((usage.pages, usage.spare), (200, freeable));
}

#[test]
fn a_clients_totals_outlast_its_pools() {
    let mut lab = Lab::with_pools();
    for pool in [0, 1] {
        for index in 0..3 {
            assert_eq!(lab.put(pool, index, 3), 1);
        }
        assert_eq!(lab.get(pool, 0), Ok(page(3)));
    }
    let before = lab.client.stats().totals;
    assert_eq!((before.persistent.pages, before.ephemeral.pages), (3, 2));
    assert_eq!((before.persistent.puts, before.ephemeral.get_hits), (3, 1));
    lab.client.drop_pools(true);
    assert_eq!(lab.client.new_pool(CACHE, NOBODY), 0);
    assert_eq!(lab.put(0, 0, 3), 1);
    let after = lab.client.stats().totals;
    assert_eq!((after.persistent.pages, after.ephemeral.pages), (0, 1));
    assert_eq!((after.persistent.puts, after.ephemeral.puts), (3, 4));
    assert_eq!(after.persistent.stored_bytes, 0);
}
