// SPDX-License-Identifier: GPL-2.0-or-later
//! Filling pages, and verifying them.

use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::access::{Access, Visit};
use crate::content::{Content, Holds};
use crate::mapping::{PAGE_SIZE, Page};
use crate::progress::Progress;
use crate::rng::Rng;

/// Bad pages that are reported one by one.
const MAX_WRONG_PAGES: usize = 16;

/// A whole number from 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Percent(u64);

impl Percent {
    pub(crate) const fn new(percent: u64) -> Percent {
        Percent(percent)
    }
}

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Percent, String> {
        match text.strip_suffix('%').unwrap_or(text).parse() {
            Ok(percent @ 0..=100) => Ok(Percent(percent)),
            _ => Err("not a percentage".to_owned()),
        }
    }
}

/// A bad page, by its first wrong byte.
#[derive(Debug, PartialEq)]
pub(crate) struct WrongPage {
    pub(crate) pass: u32,
    pub(crate) address: usize,
    /// From the start of the filled memory.
    pub(crate) offset: u64,
    pub(crate) expected: u8,
    pub(crate) found: u8,
    /// How many are wrong.
    pub(crate) wrong_bytes: usize,
    pub(crate) holds: Holds,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) bad_pages: u64,
    /// The first of them.
    pub(crate) wrong_pages: Vec<WrongPage>,
    /// Of one page: to write it, or to verify and perhaps rewrite it.
    pub(crate) longest_access: Duration,
}

impl Findings {
    fn accessed(&mut self, began: Instant) {
        self.longest_access = self.longest_access.max(began.elapsed());
    }
}

/// Pages with known content.
///
/// A page's *generation* is the last pass that has written it, 0 after the fill. It is a function
/// of seed, page and pass, so that nothing has to be remembered for any page.
pub(crate) struct Load<'a> {
    pages: &'a mut [Page],
    content: &'a Content,
    seed: u64,
    rewrite: Percent,
    expected: Box<Page>,
    findings: Findings,
}

impl<'a> Load<'a> {
    /// `pages` are at most 2^32 - 1.
    pub(crate) fn new(
        pages: &'a mut [Page],
        content: &'a Content,
        seed: u64,
        rewrite: Percent,
    ) -> Load<'a> {
        let expected = Box::new([0; PAGE_SIZE]);
        Load {
            pages,
            content,
            seed,
            rewrite,
            expected,
            findings: Findings::default(),
        }
    }

    /// Give every page its first content.
    pub(crate) fn fill(&mut self, progress: &mut Progress) {
        for (number, page) in (0..).zip(self.pages.iter_mut()) {
            let began = Instant::now();
            self.content.write(number, 0, page);
            self.findings.accessed(began);
            progress.tick("fill", 0);
        }
    }

    /// Verify every page in the order of `access`, and rewrite some.
    pub(crate) fn pass(&mut self, pass: u32, access: Access, progress: &mut Progress) {
        let name = format!("pass {pass}");
        let pages = u32::try_from(self.pages.len()).unwrap_or(u32::MAX);
        for visit in access.visits(self.seed, pass, pages) {
            let began = Instant::now();
            match visit {
                Visit::First(page) => {
                    self.verify(page, pass, self.generation(page, pass - 1));
                    if self.rewrites(page, pass) {
                        self.write(page, pass);
                    }
                }
                Visit::Return(page) => self.verify(page, pass, self.generation(page, pass)),
            }
            self.findings.accessed(began);
            progress.tick(&name, self.findings.bad_pages);
        }
    }

    pub(crate) fn into_findings(self) -> Findings {
        self.findings
    }

    /// Compare a page with what it has to hold; a bad one is put right, to be counted once.
    fn verify(&mut self, number: u32, pass: u32, generation: u32) {
        let Some(page) = self.pages.get_mut(number as usize) else {
            return;
        };
        self.content.write(number, generation, &mut self.expected);
        let Some((at, expected, found)) = first_difference(&self.expected, page) else {
            return;
        };
        self.findings.bad_pages += 1;
        if self.findings.wrong_pages.len() < MAX_WRONG_PAGES {
            let pairs = self.expected.iter().zip(page.iter());
            self.findings.wrong_pages.push(WrongPage {
                pass,
                address: page.as_ptr().addr() + at,
                offset: u64::from(number) * PAGE_SIZE as u64 + at as u64,
                expected,
                found,
                wrong_bytes: pairs.filter(|(a, b)| a != b).count(),
                holds: self.content.identify(page, number, generation),
            });
        }
        *page = *self.expected;
    }

    fn write(&mut self, number: u32, generation: u32) {
        if let Some(page) = self.pages.get_mut(number as usize) {
            self.content.write(number, generation, page);
        }
    }

    fn rewrites(&self, page: u32, pass: u32) -> bool {
        Rng::keyed(&[self.seed, page.into(), pass.into()]).below(100) < self.rewrite.0
    }

    /// The generation of a page after its first visit in `pass`.
    fn generation(&self, page: u32, pass: u32) -> u32 {
        if self.rewrite.0 == 0 {
            return 0;
        }
        (1..=pass)
            .rev()
            .find(|pass| self.rewrites(page, *pass))
            .unwrap_or(0)
    }
}

/// Where two pages differ first, with the byte of each.
fn first_difference(expected: &Page, found: &Page) -> Option<(usize, u8, u8)> {
    if expected == found {
        return None; // by memcmp; the search below is only for the unlucky
    }
    let pairs = expected.iter().zip(found).enumerate();
    pairs
        .map(|(at, (a, b))| (at, *a, *b))
        .find(|(_, a, b)| a != b)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, Strategy, prop_assert, prop_assert_eq, prop_oneof, proptest};

    use super::*;
    use crate::content::Kind;
    use crate::corpus::Corpus;

    const ACCESSES: [Access; 3] = [Access::Sequential, Access::Random, Access::Zipf];

    fn any_kind() -> impl Strategy<Value = Kind> {
        // Real pages: tests/cli.rs.
        prop_oneof![Just(Kind::Text), Just(Kind::Zero), Just(Kind::Random)]
    }

    fn quiet() -> Progress {
        Progress::new(false)
    }

    proptest! {
        #[test]
        fn untouched_pages_are_right_in_every_pass(
            kind in any_kind(), seed: u64, count in 1_usize..20, rewrite in 0_u64..=100,
        ) {
            let mut pages = vec![[0xaa; PAGE_SIZE]; count];
            let content = Content::new(kind, seed, Corpus::default());
            let mut load = Load::new(&mut pages, &content, seed, Percent(rewrite));
            load.fill(&mut quiet());
            for (pass, access) in (1..).zip(ACCESSES.repeat(2)) {
                load.pass(pass, access, &mut quiet());
            }
            prop_assert_eq!(load.into_findings().wrong_pages, []);
        }

        #[test]
        fn any_flipped_byte_is_found_reported_and_counted_once(
            kind in any_kind(), seed: u64, number in 0_usize..8, at in 0..PAGE_SIZE,
            flip in 1_u8.., rewrite in 0_u64..=100,
        ) {
            let mut pages = vec![[0; PAGE_SIZE]; 8];
            let content = Content::new(kind, seed, Corpus::default());
            Load::new(&mut pages, &content, seed, Percent(rewrite)).fill(&mut quiet());
            let expected = pages[number][at];
            pages[number][at] ^= flip;
            let address = pages.as_ptr().addr() + number * PAGE_SIZE + at;

            let mut load = Load::new(&mut pages, &content, seed, Percent(rewrite));
            for (pass, access) in (1..).zip(ACCESSES) {
                load.pass(pass, access, &mut quiet());
            }
            let findings = load.into_findings();
            prop_assert_eq!(findings.bad_pages, 1);
            let offset = (number * PAGE_SIZE + at) as u64;
            let [wrong] = findings.wrong_pages.as_slice() else {
                panic!("{:?}", findings.wrong_pages);
            };
            prop_assert_eq!((wrong.pass, wrong.address, wrong.offset), (1, address, offset));
            prop_assert_eq!((wrong.expected, wrong.found), (expected, expected ^ flip));
            prop_assert_eq!(wrong.wrong_bytes, 1);
            prop_assert!(matches!(wrong.holds, Holds::Other(_)));
        }
    }

    fn held(load: Load<'_>) -> Vec<Holds> {
        let wrong = load.into_findings().wrong_pages;
        wrong.into_iter().map(|page| page.holds).collect()
    }

    /// A store that answers with a page's former content must not pass.
    #[test]
    fn a_stale_page_is_a_bad_page_and_known() {
        for kind in [Kind::Text, Kind::Random] {
            let content = Content::new(kind, 1, Corpus::default());
            let mut pages = vec![[0; PAGE_SIZE]; 1];
            let always = Percent(100);
            Load::new(&mut pages, &content, 1, always).fill(&mut quiet());
            let stale = pages.clone();
            Load::new(&mut pages, &content, 1, always).pass(1, Access::Sequential, &mut quiet());
            pages.copy_from_slice(&stale);
            let mut load = Load::new(&mut pages, &content, 1, always);
            load.pass(2, Access::Sequential, &mut quiet());
            let (number, generation) = (0, 0);
            assert_eq!(held(load), [Holds::Page { number, generation }]);
        }
    }

    #[test]
    fn a_page_that_was_lost_is_known_by_its_zeros() {
        let content = Content::new(Kind::Text, 1, Corpus::default());
        let mut pages = vec![[0; PAGE_SIZE]; 1];
        let mut load = Load::new(&mut pages, &content, 1, Percent(0));
        load.pass(1, Access::Sequential, &mut quiet());
        assert_eq!(held(load), [Holds::Zeros]);
    }

    /// Pages that were exchanged must not pass either.
    #[test]
    fn exchanged_pages_are_bad_pages() {
        for kind in [Kind::Text, Kind::Random] {
            let content = Content::new(kind, 1, Corpus::default());
            let mut pages = vec![[0; PAGE_SIZE]; 2];
            Load::new(&mut pages, &content, 1, Percent(0)).fill(&mut quiet());
            pages.swap(0, 1);
            let mut load = Load::new(&mut pages, &content, 1, Percent(0));
            load.pass(1, Access::Sequential, &mut quiet());
            let held = held(load);
            assert_eq!(held.len(), 2);
            if kind == Kind::Text {
                let page = |number| Holds::Page {
                    number,
                    generation: 0,
                };
                assert_eq!(held, [page(1), page(0)]);
            }
        }
    }

    #[test]
    fn reports_the_first_bad_pages_and_counts_all() {
        let content = Content::new(Kind::Zero, 1, Corpus::default());
        let mut pages = vec![[1; PAGE_SIZE]; 40];
        let mut load = Load::new(&mut pages, &content, 1, Percent(0));
        load.pass(1, Access::Sequential, &mut quiet());
        let findings = load.into_findings();
        assert_eq!(
            (findings.bad_pages, findings.wrong_pages.len()),
            (40, MAX_WRONG_PAGES)
        );
    }

    #[test]
    fn rewrites_about_the_given_share() {
        let content = Content::new(Kind::Zero, 1, Corpus::default());
        let load = Load::new(&mut [], &content, 7, Percent(25));
        let share = (0..10_000).filter(|page| load.rewrites(*page, 3)).count();
        assert!((2_300..2_700).contains(&share), "{share}");
    }

    proptest! {
        #[test]
        fn percentages_are_whole_and_at_most_100(number: u64) {
            let parsed = number.to_string().parse::<Percent>();
            prop_assert!(parsed.is_ok() == (number <= 100));
        }
    }
}
