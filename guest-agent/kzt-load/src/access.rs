// SPDX-License-Identifier: GPL-2.0-or-later
//! The order in which a pass visits the pages.

use std::str::FromStr;

use crate::rng::Rng;

/// The order of a pass. Each visits every page at least once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Access {
    Sequential,
    /// A permutation, another one in each pass.
    Random,
    /// A permutation, the same in each pass, and after each of its pages a return to an earlier
    /// one: to the k-th of it with a probability of about 1/k.
    Zipf,
}

impl FromStr for Access {
    type Err = String;

    fn from_str(text: &str) -> Result<Access, String> {
        match text {
            "sequential" => Ok(Access::Sequential),
            "random" => Ok(Access::Random),
            "zipf" => Ok(Access::Zipf),
            _ => Err("there are sequential, random and zipf".to_owned()),
        }
    }
}

/// One visit of a pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Visit {
    /// The first of this page in this pass.
    First(u32),
    /// Not the first.
    Return(u32),
}

impl Access {
    /// The visits of pass `pass` over `pages` pages.
    pub(crate) fn visits(
        self,
        seed: u64,
        pass: u32,
        pages: u32,
    ) -> Box<dyn Iterator<Item = Visit>> {
        match self {
            Access::Sequential => Box::new((0..pages).map(Visit::First)),
            Access::Random => {
                let mut rng = Rng::keyed(&[seed, u64::from(pass)]);
                Box::new(permutation(&mut rng, pages).into_iter().map(Visit::First))
            }
            Access::Zipf => {
                let order = permutation(&mut Rng::keyed(&[seed]), pages);
                let mut rng = Rng::keyed(&[seed, u64::from(pass)]);
                let mut visited = 0;
                Box::new(std::iter::from_fn(move || {
                    let step = visited / 2;
                    let first = *order.get(step)?;
                    visited += 1;
                    if visited % 2 == 1 {
                        return Some(Visit::First(first));
                    }
                    order
                        .get(zipf(&mut rng, step))
                        .map(|page| Visit::Return(*page))
                }))
            }
        }
    }
}

/// A rank from 0 to `last`, the k-th with a probability of about 1/k: x^u for uniform u has the
/// density 1/x.
fn zipf(rng: &mut Rng, last: usize) -> usize {
    #[expect(
        clippy::cast_precision_loss,
        reason = "pages have 32 bits, mantissas 53"
    )]
    let ranks = (last + 2) as f64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at least 1, below `ranks`"
    )]
    let rank = ranks.powf(rng.unit()) as usize;
    rank.saturating_sub(1).min(last)
}

fn permutation(rng: &mut Rng, length: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..length).collect();
    for i in (1..order.len()).rev() {
        #[expect(clippy::cast_possible_truncation, reason = "at most i")]
        order.swap(i, rng.below(i as u64 + 1) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::{Just, Strategy, prop_assert, prop_assert_eq, prop_oneof, proptest};

    use super::*;

    fn any_access() -> impl Strategy<Value = Access> {
        prop_oneof![
            Just(Access::Sequential),
            Just(Access::Random),
            Just(Access::Zipf)
        ]
    }

    proptest! {
        #[test]
        fn every_page_is_visited_first_once_and_only_then_returned_to(
            access in any_access(), seed: u64, pass: u32, pages in 1_u32..300,
        ) {
            let mut seen = BTreeSet::new();
            for visit in access.visits(seed, pass, pages) {
                match visit {
                    Visit::First(page) => prop_assert!(page < pages && seen.insert(page)),
                    Visit::Return(page) => prop_assert!(seen.contains(&page)),
                }
            }
            prop_assert_eq!(seen.len(), pages as usize);
        }
    }

    #[test]
    fn random_differs_from_pass_to_pass() {
        let order = |pass| Access::Random.visits(1, pass, 100).collect::<Vec<_>>();
        assert_ne!(order(1), order(2));
        assert_eq!(order(1), order(1));
    }

    #[test]
    fn zipf_returns_mostly_to_few_pages() {
        let pages = 10_000;
        let hot: BTreeSet<u32> = permutation(&mut Rng::keyed(&[1]), pages)
            .into_iter()
            .take(100)
            .collect();
        let returns = Access::Zipf
            .visits(1, 1, pages)
            .filter(|v| matches!(v, Visit::Return(_)));
        let to_hot = returns
            .filter(|v| matches!(v, Visit::Return(p) if hot.contains(p)))
            .count();
        // ln(100) / ln(10000) = one half of the returns for one percent of the pages.
        assert!((4_500..6_500).contains(&to_hot), "{to_hot}");
    }
}
