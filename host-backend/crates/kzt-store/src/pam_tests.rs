// SPDX-License-Identifier: GPL-2.0-or-later
//! What every allocator has to keep, by random calls against a map of what is in use.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use proptest::prelude::*;

use crate::arena::ArenaFile;
use crate::frames::Frames;
use crate::layout::pool::Number as PoolNumber;
use crate::layout::{EXTENT, FRAME, HEADER};
use crate::pam::{Allocator, Block, Need, Pams};
use crate::table::Kind;
use crate::{PAGE_SIZE, codec};

const MIB: u64 = 1 << 20;
const ALLOCATORS: [Allocator; 2] = [Allocator::Zsmalloc, Allocator::Zbud];

/// Frames of an arena whose file has no name any more.
pub(crate) fn frames(memory: u64) -> Arc<Frames> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Relaxed);
    let path = format!("/dev/shm/kzt-store-pam-{}-{number}", std::process::id());
    let file = ArenaFile::open(path.as_ref()).unwrap();
    std::fs::remove_file(path).unwrap();
    let arena = Arc::new(file.map(memory).unwrap());
    Arc::new(Frames::new(arena, memory))
}

/// A block in use.
#[derive(Debug, Clone, Copy)]
struct Live {
    block: Block,
    kind: Kind,
    pool: PoolNumber,
    bytes: usize,
}

#[derive(Debug, Clone)]
enum Op {
    Allocate(Kind, PoolNumber, usize, bool),
    Free(prop::sample::Index),
}

fn op() -> impl Strategy<Value = Op> {
    let bytes = prop_oneof![
        8 => HEADER + 1..=HEADER + codec::RAW_ABOVE,
        1 => Just(HEADER + PAGE_SIZE),
    ];
    let kind = prop::sample::select(&[Kind::Persistent, Kind::Ephemeral]);
    prop_oneof![
        3 => (kind, 0..3_u16, bytes, prop::bool::weighted(0.2)).prop_map(
            |(kind, pool, bytes, anywhere)| Op::Allocate(kind, pool, bytes, anywhere),
        ),
        2 => any::<prop::sample::Index>().prop_map(Op::Free),
    ]
}

/// What is in use, by offset.
#[derive(Default)]
struct Model(BTreeMap<u64, Live>);

impl Model {
    fn add(&mut self, live: Live) {
        let Live { block, bytes, .. } = live;
        let end = block.offset + bytes as u64;
        assert_eq!(block.offset % 16, 0);
        assert_eq!(block.offset / EXTENT, (end - 1) / EXTENT, "in one extent");
        let below = self.0.range(..end).next_back();
        let free = below.is_none_or(|(start, other)| start + other.bytes as u64 <= block.offset);
        assert!(free, "{live:?} overlaps {below:?}");
        self.0.insert(block.offset, live);
    }
}

fn claim(pams: &Pams, live: &Live, offset: u64) -> bool {
    let block = Block {
        offset,
        ..live.block
    };
    pams.claim_page(live.pool, block, live.bytes, &|_| true)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn blocks_do_not_overlap_and_recovery_finds_them(
        allocator in prop::sample::select(&ALLOCATORS),
        ops in prop::collection::vec(op(), 1..400),
    ) {
        let frames_of = || frames(2 * MIB);
        let frames = frames_of();
        let pams = Pams::new(&frames, allocator);
        let mut model = Model::default();
        for op in ops {
            match op {
                Op::Allocate(kind, pool, bytes, anywhere) => {
                    // Lists are a pool's, and a pool is of one kind.
                    let pool = pool + 3 * u16::from(kind == Kind::Ephemeral);
                    if let Ok(block) = pams.allocate_page(kind, pool, bytes, anywhere) {
                        model.add(Live { block, kind, pool, bytes });
                    }
                }
                Op::Free(index) if !model.0.is_empty() => {
                    let offset = *index.get(&model.0.keys().collect::<Vec<_>>());
                    let offset = *offset;
                    model.0.remove(&offset);
                    pams.free(offset);
                }
                Op::Free(_) => {}
            }
        }

        // Nothing that may vanish is recovered.
        model.0.retain(|&offset, live| {
            let lasts = live.kind == Kind::Persistent;
            if !lasts {
                pams.free(offset);
            }
            lasts
        });
        prop_assert_eq!(pams.zbud().holders().filter(|(pool, _)| *pool >= 3).count(), 0);
        let used = frames.in_use();
        let recovered = frames_of();
        let again = Pams::new(&recovered, allocator);
        for (&offset, live) in &model.0 {
            prop_assert!(!claim(&again, live, offset + 16), "no block begins there");
            prop_assert!(claim(&again, live, offset), "{live:?}");
            prop_assert!(!claim(&again, live, offset), "claimed twice: {live:?}");
        }
        again.settle();
        recovered.settle(|_| true).unwrap();
        prop_assert_eq!(recovered.in_use(), used);
        for (pams, frames) in [(pams, frames), (again, recovered)] {
            for &offset in model.0.keys() {
                pams.free(offset);
            }
            prop_assert_eq!(frames.in_use(), 0, "nothing is left");
        }
    }

    /// Damage may say anything of a block.
    #[test]
    fn no_claim_leaves_its_frame(
        allocator in prop::sample::select(&ALLOCATORS),
        claims in prop::collection::vec((0..2 * MIB / 16, 0..1024_u32, 17..4112_usize), 1..50),
    ) {
        let frames = frames(2 * MIB);
        let pams = Pams::new(&frames, allocator);
        let mut model = Model::default();
        for (grain, place, bytes) in claims {
            let block = Block { offset: grain * 16, place };
            let live = Live { block, kind: Kind::Persistent, pool: 0, bytes };
            if claim(&pams, &live, block.offset) {
                model.add(live);
                prop_assert!(block.offset >= EXTENT);
            }
        }
    }
}

#[test]
fn buddies_share_frames_with_their_pool_alone() {
    let frames = frames(MIB);
    let pams = Pams::new(&frames, Allocator::Zbud);
    let half = FRAME as usize / 2;
    let mut model = Model::default();
    let mut frame_of = |pool, bytes| {
        let block = pams
            .allocate_page(Kind::Persistent, pool, bytes, false)
            .unwrap();
        model.add(Live {
            block,
            kind: Kind::Persistent,
            pool,
            bytes,
        });
        block.offset / FRAME
    };
    let first = frame_of(1, half);
    assert_ne!(frame_of(2, half), first);
    assert_eq!(frame_of(1, half), first);
    // The tighter of two fits.
    let tight = frame_of(1, half + 64);
    let loose = frame_of(1, half);
    assert_ne!(tight, loose);
    assert_eq!(frame_of(1, half - 64), tight);
    assert_eq!(frame_of(1, half - 64), loose);
    assert_eq!(frames.in_use(), 4);
    for offset in model.0.into_keys() {
        pams.free(offset);
    }
    assert_eq!(frames.in_use(), 0);
}

/// Fifteen raw pages leave room for one that shrank a little; it does not hold their frames back.
#[test]
fn the_tail_of_raw_pages_is_used_and_moves_away() {
    const LARGE: usize = 3500;
    let frames = frames(2 * MIB);
    let pams = Pams::new(&frames, Allocator::Zsmalloc);
    let allocate = |bytes| {
        let block = pams.allocate_page(Kind::Persistent, 0, bytes, false);
        block.unwrap()
    };
    let mut model = Model::default();
    let mut add = |bytes| {
        let block = allocate(bytes);
        model.add(Live {
            block,
            kind: Kind::Persistent,
            pool: 0,
            bytes,
        });
        block.offset
    };
    let raw: Vec<u64> = (0..30).map(|_| add(HEADER + PAGE_SIZE)).collect();
    let large: Vec<u64> = (0..3).map(|_| add(LARGE)).collect();
    let extent = |offset: &u64| offset / EXTENT;
    assert_eq!(extent(&large[1]), extent(&raw[0]));
    assert_eq!(extent(&large[0]), extent(&raw[29]));
    let beside = frames.in_use();
    assert!(beside > 32, "the third has a run of its class");
    assert_eq!(pams.compact(Need::Short, &|_, _| panic!("all are full")), 0);

    for offset in raw[1..15].iter().chain(&raw[22..]) {
        pams.free(*offset);
    }
    assert_eq!(frames.in_use(), beside);
    let mut moved = vec![large[0], large[2]];
    moved.extend(&raw[15..22]);
    let places = std::cell::RefCell::new(moved);
    let emptied = pams.compact(Need::Short, &|from, to| {
        assert_eq!(extent(&from), extent(&raw[0]));
        places.borrow_mut().push(to().unwrap().offset);
        pams.free(from);
        true
    });
    assert_eq!((emptied, frames.in_use()), (1, beside - 16));
    let moved = places.into_inner();
    assert_eq!(moved.len(), 11);
    for offset in moved {
        assert_ne!(extent(&offset), extent(&raw[0]));
        pams.free(offset);
    }
    assert_eq!(frames.in_use(), 0);
}
