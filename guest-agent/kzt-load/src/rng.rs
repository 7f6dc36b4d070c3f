// SPDX-License-Identifier: GPL-2.0-or-later
//! A small generator of reproducible bits: `SplitMix64` (Steele, Lea, Flood 2014).

const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A stream of bits that its key decides. Good enough for tests, not for secrets.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// The stream of a key made of several numbers; their order counts.
    pub(crate) fn keyed(key: &[u64]) -> Rng {
        Rng(key.iter().fold(0, |state, part| {
            mix(state ^ part).wrapping_add(GOLDEN_GAMMA)
        }))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN_GAMMA);
        mix(self.0)
    }

    /// A number below `bound`, which is not 0; the bias of at most `bound` / 2^64 does not matter.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        let product = u128::from(self.next()) * u128::from(bound);
        (product >> 64) as u64
    }

    /// In [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        const BITS: u32 = f64::MANTISSA_DIGITS;
        #[expect(
            clippy::cast_precision_loss,
            reason = "no more bits than a mantissa has"
        )]
        let mantissa = (self.next() >> (u64::BITS - BITS)) as f64;
        mantissa * (-f64::from(BITS)).exp2()
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_published_algorithm() {
        // First outputs of the reference implementation for the state 0.
        let mut rng = Rng(0);
        assert_eq!(rng.next(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(rng.next(), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn every_part_of_a_key_counts() {
        let first = |key: &[u64]| Rng::keyed(key).next();
        assert_ne!(first(&[1, 2]), first(&[2, 1]));
        assert_ne!(first(&[1]), first(&[1, 0]));
    }
}
