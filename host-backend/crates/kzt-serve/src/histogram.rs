// SPDX-License-Identifier: GPL-2.0-or-later
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets per power of two are `1 << STEP_BITS`: a value is known to within an eighth.
const STEP_BITS: u32 = 3;
const STEPS: usize = 1 << STEP_BITS;
/// Durations from 2³⁶ ns (69 s) on share the last bucket.
const MAX_BITS: u32 = 36;
const BUCKETS: usize = (MAX_BITS - STEP_BITS + 1) as usize * STEPS;

/// A log-linear histogram of durations that many threads record into.
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
}

/// What a histogram says: how many durations, and the values that 50, 99 and 99.9 % of them do not
/// exceed, as the upper end of their bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Durations recorded.
    pub count: u64,
    /// Median.
    pub p50: Duration,
    /// 99th percentile.
    pub p99: Duration,
    /// 99.9th percentile.
    pub p999: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

impl Histogram {
    /// Records `count` durations that are the same.
    pub(crate) fn record(&self, duration: Duration, count: u64) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get(bucket_of(nanoseconds)) {
            bucket.fetch_add(count, Ordering::Relaxed);
        }
    }

    pub(crate) fn latency(&self) -> Latency {
        let counts = self
            .buckets
            .each_ref()
            .map(|bucket| bucket.load(Ordering::Relaxed));
        let count: u64 = counts.iter().sum();
        let percentile = |per_mille: u64| {
            let wanted = (count * per_mille).div_ceil(1000);
            let mut seen = 0;
            let bucket = counts.iter().position(|in_bucket| {
                seen += in_bucket;
                seen >= wanted
            });
            Duration::from_nanos(bucket.map_or(0, end_of))
        };
        if count == 0 {
            return Latency::default();
        }
        Latency {
            count,
            p50: percentile(500),
            p99: percentile(990),
            p999: percentile(999),
        }
    }
}

/// Below `2 * STEPS` a bucket is a nanosecond wide; from there on the width doubles every `STEPS`.
fn bucket_of(nanoseconds: u64) -> usize {
    let capped = nanoseconds.min((1 << MAX_BITS) - 1);
    let shift = (u64::BITS - capped.leading_zeros()).saturating_sub(STEP_BITS + 1);
    // The top bits, leading one included, count on from the buckets of the smaller powers.
    shift as usize * STEPS + usize::try_from(capped >> shift).unwrap_or(0)
}

/// Largest value of a bucket.
fn end_of(bucket: usize) -> u64 {
    let shift = (bucket / STEPS).saturating_sub(1);
    let top = (bucket - shift * STEPS) as u64;
    ((top + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_and_near_its_end() {
        let values = (0..MAX_BITS).flat_map(|bit| {
            let power = 1u64 << bit;
            [power - 1, power, power + 1, power + power / 3]
        });
        for value in values.filter(|value| *value < 1 << MAX_BITS) {
            let bucket = bucket_of(value);
            assert!(bucket < BUCKETS);
            let end = end_of(bucket);
            assert!(
                end >= value && end - value <= value / 8,
                "{value} in bucket up to {end}"
            );
            assert!(bucket == 0 || end_of(bucket - 1) < value);
        }
    }

    #[test]
    fn the_longest_duration_is_counted() {
        let histogram = Histogram::default();
        histogram.record(Duration::MAX, 1);
        assert_eq!(histogram.latency().count, 1);
    }

    #[test]
    fn percentiles_follow_the_counts() {
        let histogram = Histogram::default();
        assert_eq!(histogram.latency(), Latency::default());
        for nanoseconds in 1..=1000 {
            histogram.record(Duration::from_nanos(nanoseconds * 1000), 1);
        }
        let latency = histogram.latency();
        assert_eq!(latency.count, 1000);
        for (got, exact) in [(latency.p50, 500), (latency.p99, 990), (latency.p999, 999)] {
            let exact = Duration::from_micros(exact);
            assert!(
                got >= exact && got <= exact * 9 / 8,
                "{got:?} for {exact:?}"
            );
        }
    }
}
