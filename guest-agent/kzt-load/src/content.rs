// SPDX-License-Identifier: GPL-2.0-or-later
//! What pages hold: decided by kind, seed, page number and generation, so that any page can be
//! made again to compare it with.

use std::fmt;
use std::str::FromStr;

use crate::corpus::Corpus;
use crate::mapping::{PAGE_SIZE, Page};
use crate::rng::Rng;

/// A kind of content.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Real,
    Text,
    Zero,
    Random,
    /// Each page has one of the other kinds, and keeps it.
    Mixed,
}

impl Kind {
    pub(crate) fn needs_corpus(self) -> bool {
        matches!(self, Kind::Real | Kind::Mixed)
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Kind, String> {
        match text {
            "real" => Ok(Kind::Real),
            "text" => Ok(Kind::Text),
            "zero" => Ok(Kind::Zero),
            "random" => Ok(Kind::Random),
            "mixed" => Ok(Kind::Mixed),
            _ => Err("there are real, text, zero, random and mixed".to_owned()),
        }
    }
}

/// Bytes in a phrase of `Kind::Text`.
const PHRASE: usize = 32;
const PHRASES: usize = 64;

const WORDS: [&str; 32] = [
    "page",
    "memory",
    "swap",
    "request",
    "worker",
    "connection",
    "from",
    "client",
    "with",
    "cache",
    "the",
    "and",
    "of",
    "to",
    "value",
    "error",
    "session",
    "index",
    "user",
    "query",
    "time",
    "for",
    "record",
    "status",
    "result",
    "was",
    "not",
    "found",
    "update",
    "after",
    "thread",
    "message",
];

/// Tells the streams of bits for different purposes apart.
enum Purpose {
    Kind,
    Phrases,
    Bytes,
}

/// How many earlier generations of a page are tried to tell what it holds.
const EARLIER: usize = 8;
/// Bytes that are shown of a page that nobody knows.
const SHOWN: usize = 16;

/// What a page holds that should hold something else.
#[derive(Debug, PartialEq)]
pub(crate) enum Holds {
    Zeros,
    /// What some page held in that generation: another one, or the same before.
    Page {
        number: u32,
        generation: u32,
    },
    /// Neither: its first bytes.
    Other([u8; SHOWN]),
}

impl fmt::Display for Holds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zeros => f.write_str("zeros"),
            Self::Page { number, generation } => write!(f, "page {number} of pass {generation}"),
            Self::Other(bytes) => {
                f.write_str("bytes that begin with ")?;
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

/// Makes pages.
#[derive(Debug)]
pub(crate) struct Content {
    kind: Kind,
    seed: u64,
    corpus: Corpus,
    phrases: [[u8; PHRASE]; PHRASES],
}

impl Content {
    /// `corpus` may be empty for kinds that need none.
    pub(crate) fn new(kind: Kind, seed: u64, corpus: Corpus) -> Content {
        Content {
            kind,
            seed,
            corpus,
            phrases: phrases(seed),
        }
    }

    /// Write what page `page` holds in its generation `generation`. The generations of a page
    /// differ, as do the pages, but for those of zeros.
    pub(crate) fn write(&self, page: u32, generation: u32, out: &mut Page) {
        let mut rng = self.stream(Purpose::Bytes, page, generation);
        match self.kind_of(page) {
            Kind::Zero | Kind::Mixed => out.fill(0),
            Kind::Random => {
                for word in out.chunks_exact_mut(8) {
                    word.copy_from_slice(&rng.next().to_le_bytes());
                }
            }
            Kind::Text => {
                for place in out.chunks_exact_mut(PHRASE) {
                    place.copy_from_slice(pick(&self.phrases, &mut rng).unwrap_or(&[b' '; PHRASE]));
                }
                let line = format!("page {page:08x} {generation:08x}\n");
                stamp(out, line.as_bytes());
            }
            Kind::Real => {
                *out = *pick(self.corpus.pages(), &mut rng).unwrap_or(&[0; PAGE_SIZE]);
                stamp(out, &page.to_le_bytes());
                stamp(out.split_at_mut(4).1, &generation.to_le_bytes());
            }
        }
    }

    /// What is there in place of page `page` in its generation `generation`. Pages of random bytes
    /// are known by their place only.
    pub(crate) fn identify(&self, found: &Page, page: u32, generation: u32) -> Holds {
        if found.iter().all(|byte| *byte == 0) {
            return Holds::Zeros;
        }
        let earlier = (0..generation).rev().take(EARLIER).map(|past| (page, past));
        let mut candidates = stamps(found).into_iter().flatten().chain(earlier);
        let mut content = [0; PAGE_SIZE];
        let whose = candidates.find(|(number, generation)| {
            self.write(*number, *generation, &mut content);
            content == *found
        });
        match whose {
            Some((number, generation)) => Holds::Page { number, generation },
            None => Holds::Other(found.first_chunk().copied().unwrap_or_default()),
        }
    }

    /// The kind of one page: never `Mixed`.
    fn kind_of(&self, page: u32) -> Kind {
        if self.kind != Kind::Mixed {
            return self.kind;
        }
        match self.stream(Purpose::Kind, page, 0).below(100) {
            0..55 => Kind::Real,
            55..75 => Kind::Text,
            75..90 => Kind::Zero,
            _ => Kind::Random,
        }
    }

    fn stream(&self, purpose: Purpose, page: u32, generation: u32) -> Rng {
        Rng::keyed(&[self.seed, purpose as u64, page.into(), generation.into()])
    }
}

/// Number and generation that a page has on it, as one of text and as a real one.
fn stamps(found: &Page) -> [Option<(u32, u32)>; 2] {
    let line = found.first_chunk::<22>().and_then(|line| {
        let line = std::str::from_utf8(line).ok()?;
        let (number, generation) = line.strip_prefix("page ")?.split_once(' ')?;
        let read = |digits| u32::from_str_radix(digits, 16).ok();
        Some((read(number)?, read(generation)?))
    });
    let words = found.first_chunk().map(|[a, b, c, d, e, f, g, h]| {
        (
            u32::from_le_bytes([*a, *b, *c, *d]),
            u32::from_le_bytes([*e, *f, *g, *h]),
        )
    });
    [line, words]
}

fn phrases(seed: u64) -> [[u8; PHRASE]; PHRASES] {
    let mut rng = Rng::keyed(&[seed, Purpose::Phrases as u64]);
    std::array::from_fn(|_| {
        let mut phrase = [b' '; PHRASE];
        let mut rest = phrase.as_mut_slice();
        while let Some(word) = pick(&WORDS, &mut rng).filter(|word| word.len() < rest.len()) {
            stamp(rest, word.as_bytes());
            rest = rest.split_at_mut(word.len() + 1).1;
        }
        phrase
    })
}

fn pick<'a, T>(choices: &'a [T], rng: &mut Rng) -> Option<&'a T> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "below the length of a slice"
    )]
    choices.get(rng.below(choices.len() as u64) as usize)
}

/// Put `bytes` at the start of `out`, as many as fit.
fn stamp(out: &mut [u8], bytes: &[u8]) {
    for (to, from) in out.iter_mut().zip(bytes) {
        *to = *from;
    }
}
