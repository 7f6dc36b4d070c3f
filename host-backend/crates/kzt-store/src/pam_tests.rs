// SPDX-License-Identifier: GPL-2.0-or-later
//! What every allocator has to keep, by random calls against a map of what is in use.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use proptest::prelude::*;

use crate::arena::ArenaFile;
use crate::frames::Frames;
use crate::layout::pool::Number as PoolNumber;
use crate::layout::{self, EXTENT, FRAME, HEADER, place};
use crate::pam::{Allocator, Block, Need, Pams};
use crate::table::Kind;
use crate::{PAGE_SIZE, codec, raw};

const MIB: u64 = 1 << 20;
const ALLOCATORS: [Allocator; 3] = [Allocator::Zsmalloc, Allocator::Xvmalloc, Allocator::Zbud];

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

/// What is in use, by offset, and which bytes.
#[derive(Default)]
struct Model {
    live: BTreeMap<u64, Live>,
    spans: BTreeMap<u64, u64>,
}

impl Model {
    fn add(&mut self, pams: &Pams, live: Live) {
        let block = live.block;
        assert_eq!(block.offset % 16, 0);
        for (start, bytes) in spans(pams, &live) {
            let end = start + bytes;
            assert!(start >= EXTENT);
            assert_eq!(start / EXTENT, (end - 1) / EXTENT, "in one extent");
            let below = self.spans.range(..end).next_back();
            let free = below.is_none_or(|(other, bytes)| other + bytes <= start);
            assert!(free, "{live:?} overlaps {below:?}");
            self.spans.insert(start, bytes);
        }
        self.live.insert(block.offset, live);
    }

    fn remove(&mut self, pams: &Pams, offset: u64) {
        let live = self.live.remove(&offset).unwrap();
        for (start, _) in spans(pams, &live) {
            self.spans.remove(&start);
        }
        pams.free(offset);
    }
}

/// The bytes that a block has.
fn spans(pams: &Pams, live: &Live) -> Vec<(u64, u64)> {
    let Live { block, bytes, .. } = *live;
    if block.place != place::RAW {
        return vec![(block.offset, bytes as u64)];
    }
    assert_eq!(bytes, raw::BLOCK);
    let page = pams.raw().page(block.offset);
    let word = layout::raw::frame_word(block.offset);
    vec![(block.offset, HEADER as u64), (word, 8), (page, FRAME)]
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
        let frames = frames(2 * MIB);
        let pams = Pams::new(&frames, allocator);
        let mut model = Model::default();
        for op in ops {
            match op {
                Op::Allocate(kind, pool, bytes, anywhere) => {
                    // Lists are a pool's, and a pool is of one kind.
                    let pool = pool + 3 * u16::from(kind == Kind::Ephemeral);
                    if let Ok(block) = pams.allocate_page(kind, pool, bytes, anywhere) {
                        model.add(&pams, Live { block, kind, pool, bytes });
                    }
                }
                Op::Free(index) if !model.live.is_empty() => {
                    let offset = **index.get(&model.live.keys().collect::<Vec<_>>());
                    model.remove(&pams, offset);
                }
                Op::Free(_) => {}
            }
        }

        // Nothing that may vanish is recovered.
        model.live.retain(|&offset, live| {
            let lasts = live.kind == Kind::Persistent;
            if !lasts {
                pams.free(offset);
            }
            lasts
        });
        prop_assert_eq!(pams.zbud().holders().filter(|(pool, _)| *pool >= 3).count(), 0);
        let used = frames.in_use();
        let recovered = Arc::new(Frames::new(Arc::clone(frames.arena()), 2 * MIB));
        let again = Pams::new(&recovered, allocator);
        for (&offset, live) in &model.live {
            // A place for a header may have been one.
            let header = live.block.place == place::RAW;
            prop_assert!(header || !claim(&again, live, offset + 16), "no block begins there");
            prop_assert!(claim(&again, live, offset), "{live:?}");
            prop_assert!(!claim(&again, live, offset), "claimed twice: {live:?}");
        }
        again.settle();
        recovered.settle(|_| true).unwrap();
        prop_assert_eq!(recovered.in_use(), used);
        for (pams, frames) in [(pams, frames), (again, recovered)] {
            for &offset in model.live.keys() {
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
                model.add(&pams, live);
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
        model.add(
            &pams,
            Live {
                block,
                kind: Kind::Persistent,
                pool,
                bytes,
            },
        );
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
    for offset in model.live.into_keys() {
        pams.free(offset);
    }
    assert_eq!(frames.in_use(), 0);
}

/// A raw page takes its frame and 24 bytes. Headers move, pages stay.
#[test]
fn the_headers_of_raw_pages_are_packed_and_move_together() {
    const HEADERS: usize = layout::raw::HEADERS as usize;
    let frames = frames(2 * MIB);
    let pams = Pams::new(&frames, Allocator::Zsmalloc);
    let allocate = || {
        let block = pams.allocate_page(Kind::Persistent, 0, raw::BLOCK, false);
        block.unwrap().offset
    };
    let headers: Vec<u64> = (0..2 * HEADERS).map(|_| allocate()).collect();
    let pages: BTreeSet<u64> = headers.iter().map(|it| pams.raw().page(*it)).collect();
    assert_eq!(frames.in_use() as usize, 2 * HEADERS + 2);
    let frame = |header: &u64| header / FRAME;
    assert!(
        headers[..HEADERS]
            .iter()
            .all(|it| frame(it) == frame(&headers[0]))
    );
    assert_eq!(pams.compact(Need::Short, &|_, _| panic!("all are full")), 0);

    let (few, many) = headers.split_at(HEADERS);
    let (stay, go) = few.split_at(10);
    let mut left = pages;
    for header in go.iter().chain(&many[..10]) {
        left.remove(&pams.raw().page(*header));
        pams.free(*header);
    }
    assert_eq!(frames.in_use() as usize, left.len() + 2);
    let moved = std::cell::RefCell::new(Vec::new());
    let emptied = pams.compact(Need::Short, &|from, to| {
        let page = pams.raw().page(from);
        let to = to().unwrap();
        assert_eq!((to.place, pams.raw().page(to.offset)), (place::RAW, page));
        moved.borrow_mut().push(to.offset);
        pams.free(from);
        true
    });
    let moved = moved.into_inner();
    assert_eq!((emptied, moved.len()), (1, stay.len()));
    assert!(moved.iter().all(|it| frame(it) == frame(&many[0])));
    assert_eq!(frames.in_use() as usize, left.len() + 1);
    for header in moved.iter().chain(&many[10..]) {
        assert!(left.remove(&pams.raw().page(*header)), "pages stay");
        pams.free(*header);
    }
    assert_eq!((left.len(), frames.in_use()), (0, 0));
}

/// The word beside a header may say anything, and an entry may lead anywhere.
#[test]
fn no_header_gets_a_page_that_is_none() {
    let frames = frames(2 * MIB);
    let pams = Pams::new(&frames, Allocator::Zsmalloc);
    let header = EXTENT;
    let claim = |offset, place, bytes, page: u64, present: &dyn Fn(u32) -> bool| {
        let word = layout::raw::frame_word(offset);
        let link = crate::entry::frame_link(page, word);
        frames.arena().store(word, link);
        let block = Block { offset, place };
        pams.claim_page(0, block, bytes, present)
    };
    let page = EXTENT + FRAME;
    let all = |_| true;
    let raw = |offset, page| claim(offset, place::RAW, raw::BLOCK, page, &all);
    assert!(!raw(header, 0), "the first extent is no page");
    assert!(!raw(header, 2 * MIB), "behind the arena");
    assert!(!raw(header, EXTENT), "the headers' own frame");
    assert!(!raw(header + 8, page), "between two headers");
    assert!(!raw(header + 16 * layout::raw::HEADERS, page), "a word");
    assert!(!raw(16, page), "no headers are there");
    assert!(!claim(header, place::RAW, 100, page, &all), "it shrank");
    let hole = |frame: u32| u64::from(frame) != page / FRAME;
    assert!(!claim(header, place::RAW, raw::BLOCK, page, &hole));
    assert!(!claim(header, 3, raw::BLOCK, page, &all), "a size class");
    frames.arena().store(layout::raw::frame_word(header), page);
    let block = Block {
        offset: header,
        place: place::RAW,
    };
    assert!(!pams.claim_page(0, block, raw::BLOCK, &all), "damaged");
    assert!(raw(header, page));
    assert!(!raw(header + 16, page), "it has its header");
    assert!(!raw(page, page + FRAME), "a page has no headers");
    assert!(raw(header + 16, page + FRAME));
    pams.settle();
    frames.settle(all).unwrap();
    assert_eq!(frames.in_use(), 3);
    pams.free(header);
    pams.free(header + 16);
    assert_eq!(frames.in_use(), 0);
}
