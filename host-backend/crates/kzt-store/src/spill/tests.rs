// SPDX-License-Identifier: GPL-2.0-or-later
use std::cell::Cell;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use super::*;
use crate::codec::Encoding;
use crate::layout::HEADER;

const ARENA: ArenaId = ArenaId {
    boot: [1, 2],
    key: 3,
};

/// A spill file that goes with the test.
struct Path(PathBuf);

impl Path {
    fn new(name: &str) -> Self {
        let name = format!("kzt-store-spill-{}-{name}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn config(&self, clusters: u64) -> SpillConfig {
        SpillConfig {
            path: self.0.clone(),
            size: ALIGN as u64 + clusters * CLUSTER as u64,
        }
    }

    /// Opened for an arena without spilled pages.
    fn open(&self, clusters: u64) -> Spill {
        let spill = Spill::open(&self.config(clusters), ARENA).unwrap();
        spill.settle().unwrap();
        spill
    }

    fn file(&self) -> fs::File {
        OpenOptions::new().write(true).open(&self.0).unwrap()
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn location(number: u64, len: usize) -> Location {
    Location {
        encoding: if len == PAGE_SIZE {
            Encoding::Raw
        } else {
            Encoding::Lzo
        },
        len,
        place: 0,
        slot: 8 * number,
    }
}

/// The block of page `number`.
fn block(number: u64, len: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..len as u64).map(|i| ((i * number) >> 3) as u8).collect();
    let location = location(number, len);
    let checksum = u64::from(Location::checksum(location.encoding, &payload));
    let mut block = location.encode().to_ne_bytes().to_vec();
    block.extend(checksum.to_ne_bytes());
    block.extend(payload);
    block.resize(Spilled::size_of(len), 0);
    block
}

fn add(batch: &mut Batch<'_>, number: u64, len: usize) -> bool {
    batch.add(Entry::Empty, location(number, len), |to| {
        to.copy_from_slice(&block(number, len));
    })
}

/// Writes pages in one batch; where they are.
fn write(spill: &Spill, pages: impl IntoIterator<Item = (u64, usize)>) -> Vec<Spilled> {
    let mut batch = spill.begin().unwrap();
    for (number, len) in pages {
        assert!(add(&mut batch, number, len));
    }
    let mut places = Vec::new();
    batch.write(|page| {
        places.push(page.new);
        true
    });
    places
}

fn read(spill: &Spill, number: u64, at: Spilled) -> Result<Vec<u8>, GetError> {
    // As under its pool's lock: an entry leads there.
    let reading = spill.hold(at);
    let mut bytes = vec![0; at.size()];
    reading.read(8 * number, &mut bytes).map(|_| bytes)
}

#[test]
fn what_was_written_is_read_back_also_by_the_next_process() {
    let path = Path::new("back");
    let pages = [(1, PAGE_SIZE), (2, 100), (3, 3584), (4, 1)];
    let places = write(&path.open(4), pages);
    let spill = Spill::open(&path.config(4), ARENA).unwrap();
    for at in &places {
        assert!(spill.claim(*at));
    }
    spill.settle().unwrap();
    for ((number, len), at) in pages.into_iter().zip(places) {
        assert_eq!(read(&spill, number, at).unwrap(), block(number, len));
        assert_eq!(read(&spill, number + 1, at), Err(GetError::Corrupt));
    }
    let usage = spill.usage(0, 0).unwrap();
    assert_eq!((usage.read, usage.read_errors), (8, 0));
    assert!(usage.allocated >= 8000);
}

#[test]
fn an_older_block_of_the_same_page_is_not_taken_for_it() {
    let path = Path::new("stale");
    let spill = path.open(4);
    let at = write(&spill, [(1, 500)])[0];
    let checksum = header(&block(1, 500)).unwrap().1 as u32;
    let newer = Spilled::new(at.position, at.len, checksum ^ 1);
    let mut bytes = vec![0; at.size()];
    let reading = Reading {
        spill: &spill,
        at: newer,
    };
    assert_eq!(reading.read(8, &mut bytes), Err(GetError::Corrupt));
    std::mem::forget(reading);
}

#[test]
fn a_batch_takes_a_clusters_worth_and_no_more() {
    let path = Path::new("full");
    let spill = path.open(4);
    let mut batch = spill.begin().unwrap();
    let whole = (0..100)
        .take_while(|n| add(&mut batch, *n, PAGE_SIZE))
        .count();
    assert_eq!(whole, CLUSTER / (HEADER + PAGE_SIZE));
    assert!(batch.is_full());
    assert_eq!(batch.write(|page| page.location.slot % 16 == 0), 32);
    assert!(!batch.is_full());
}

#[test]
fn the_file_is_no_longer_than_its_size_and_shrinks_with_what_it_holds() {
    let path = Path::new("size");
    let spill = path.open(20);
    let blocks = || fs::metadata(&path.0).unwrap().blocks() * 512;
    let mut places = Vec::new();
    while spill.begin().unwrap().has_room() {
        places.push(write(&spill, (0..63).map(|n| (n, PAGE_SIZE))));
    }
    assert_eq!(places.len(), 19, "one is kept for collecting");
    let size = path.config(20).size;
    assert!((size / 10 * 9..=size).contains(&blocks()), "{}", blocks());
    places
        .into_iter()
        .flatten()
        .for_each(|place| spill.free(place));
    while spill.maintain() > 0 {}
    let kept = u64::from(KEEP + 1) * CLUSTER as u64;
    assert!(blocks() <= kept, "{}", blocks());
}

#[test]
fn a_cluster_is_not_written_over_while_it_is_read() {
    let path = Path::new("held");
    let spill = path.open(4);
    let at = write(&spill, [(1, PAGE_SIZE)])[0];
    let reading = spill.hold(at);
    spill.free(at);
    for number in 2..5 {
        let other = write(&spill, [(number, PAGE_SIZE)])[0];
        spill.free(other);
        assert_ne!(other.position, at.position);
    }
    let mut bytes = vec![0; at.size()];
    reading.read(8, &mut bytes).unwrap();
    assert_eq!(bytes, block(1, PAGE_SIZE));
    drop(reading);
    assert_eq!(write(&spill, [(6, PAGE_SIZE)])[0].position, at.position);
}

#[test]
fn what_is_left_in_several_clusters_is_collected_into_one() {
    let path = Path::new("collect");
    let spill = path.open(4);
    // Three clusters of which a third is live, and no room.
    let mut live = Vec::new();
    for n in 0..3 {
        let numbers = n * 100 + 1..n * 100 + 61;
        let places = write(&spill, numbers.clone().map(|number| (number, PAGE_SIZE)));
        for (number, at) in numbers.zip(places) {
            if number % 3 == 0 {
                live.push((number, at));
            } else {
                spill.free(at);
            }
        }
    }
    let mut batch = spill.begin().unwrap();
    assert!(!batch.has_room());
    batch.collect(|slot, _, at| live.contains(&(slot / 8, at)));
    let moved = batch.write(|page| {
        let number = page.location.slot / 8;
        let entry = live.iter_mut().find(|(other, _)| *other == number).unwrap();
        assert_eq!(page.old, Entry::Spilled(entry.1));
        spill.free(std::mem::replace(&mut entry.1, page.new));
        true
    });
    assert_eq!(moved, 60);
    assert!(batch.has_room());
    drop(batch);
    for (number, at) in live {
        assert_eq!(read(&spill, number, at).unwrap(), block(number, PAGE_SIZE));
    }
    assert_eq!(spill.usage(0, 0).unwrap().collected, 60);
}

/// Else every batch would begin with reading them all.
#[test]
fn a_damaged_cluster_is_looked_at_once() {
    let path = Path::new("stuck");
    let spill = path.open(6);
    for cluster in 0..2 {
        write(&spill, [(1, 3000)]);
        path.file()
            .write_all_at(&[0xff; 16], file::start(cluster))
            .unwrap();
    }
    let asked = Cell::new(0);
    let collect = || {
        spill.begin().unwrap().collect(|_, _, _| {
            asked.set(asked.get() + 1);
            true
        });
        let stuck = spill.clusters().emptiest(COLLECTABLE, &[]).is_none();
        assert!(stuck);
    };
    collect();
    collect();
    assert_eq!(asked.get(), 0, "there is no block to be found");
}

#[test]
fn a_file_cut_short_is_not_claimed_and_an_error_to_read() {
    let path = Path::new("cut");
    let spill = path.open(4);
    let first = write(&spill, [(1, PAGE_SIZE)])[0];
    let second = write(&spill, [(2, PAGE_SIZE)])[0];
    path.file().set_len(file::start(1)).unwrap();
    assert_eq!(read(&spill, 2, second), Err(GetError::Corrupt));
    drop(spill);
    let spill = Spill::open(&path.config(4), ARENA).unwrap();
    assert!(spill.claim(first) && !spill.claim(second));
    for at in [
        Spilled::new(0, 16, 0),
        Spilled::new(file::start(1) - 32, PAGE_SIZE, 0),
        Spilled::new(Spilled::MAX_POSITION - 16, 16, 0),
    ] {
        assert!(!spill.claim(at), "{at:?}");
    }
}

#[test]
fn a_foreign_file_is_refused_and_one_from_before_a_reboot_begun_anew() {
    let path = Path::new("foreign");
    let at = write(&path.open(4), [(1, PAGE_SIZE)])[0];
    let open = |arena| Spill::open(&path.config(4), arena);
    let other = ArenaId { key: 4, ..ARENA };
    assert!(matches!(open(other), Err(OpenError::SpillForeign { .. })));
    let spill = open(ARENA).unwrap();
    assert!(spill.claim(at), "it was left as it is");
    assert!(matches!(open(ARENA), Err(OpenError::Busy { .. })));
    drop(spill);
    let later = ArenaId {
        boot: [1, 3],
        ..other
    };
    assert!(open(later).unwrap().is_new());
    let spill = open(ARENA).unwrap();
    assert!(
        !spill.is_new() && spill.claim(at),
        "not before it is settled"
    );
    drop(spill);
    let spill = open(later).unwrap();
    spill.settle().unwrap();
    drop(spill);
    let spill = open(later).unwrap();
    assert!(!spill.is_new() && !spill.claim(at));
    drop(spill);
    fs::remove_file(&path.0).unwrap();

    for (offset, byte) in [(0, 1), (8, 9), (39, 1), (40, 1)] {
        drop(path.open(4));
        path.file().write_all_at(&[byte], offset).unwrap();
        let opened = open(ARENA);
        assert!(matches!(opened, Err(OpenError::SpillForeign { .. })));
        drop(opened);
        fs::remove_file(&path.0).unwrap();
    }
    fs::write(&path.0, "somebody's letters").unwrap();
    let opened = open(ARENA);
    assert!(matches!(opened, Err(OpenError::SpillForeign { .. })));
    assert_eq!(fs::read(&path.0).unwrap(), b"somebody's letters");
    for clusters in [3, 1 << 30] {
        let opened = Spill::open(&path.config(clusters), ARENA);
        assert!(matches!(opened, Err(OpenError::SpillSize { .. })));
    }
}
