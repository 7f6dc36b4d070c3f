// SPDX-License-Identifier: GPL-2.0-or-later
//! The machine's swap traffic.

/// Pages swapped in and out, of the whole machine; None where the kernel does not count them. Those that
/// zswap takes count, too: the kernel counts them by themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct SwapTraffic {
    pub(crate) pages_in: Option<u64>,
    pub(crate) pages_out: Option<u64>,
}

impl SwapTraffic {
    /// The counters since boot.
    pub(crate) fn now() -> SwapTraffic {
        parse(&std::fs::read_to_string("/proc/vmstat").unwrap_or_default())
    }

    pub(crate) fn since(self, earlier: SwapTraffic) -> SwapTraffic {
        let grown = |now: Option<u64>, then: Option<u64>| Some(now?.saturating_sub(then?));
        SwapTraffic {
            pages_in: grown(self.pages_in, earlier.pages_in),
            pages_out: grown(self.pages_out, earlier.pages_out),
        }
    }
}

fn parse(vmstat: &str) -> SwapTraffic {
    let counter = |name: &str| {
        vmstat
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    };
    let both = |name: &str, zswap: &str| {
        let device: u64 = counter(name)?;
        Some(device + counter(zswap).unwrap_or(0))
    };
    SwapTraffic {
        pages_in: both("pswpin", "zswpin"),
        pages_out: both("pswpout", "zswpout"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_its_counters_and_no_other() {
        let traffic = parse("pgpgin 5\npswpinx 6\npswpin 7\npswpout 8\n");
        assert_eq!(
            traffic,
            SwapTraffic {
                pages_in: Some(7),
                pages_out: Some(8)
            }
        );
        assert_eq!(parse("pgpgin 5\n"), SwapTraffic::default());
    }

    #[test]
    fn adds_what_zswap_took() {
        let traffic = parse("pswpin 1\npswpout 2\nzswpin 10\nzswpout 20\nzswpwb 5\n");
        assert_eq!(
            traffic,
            SwapTraffic {
                pages_in: Some(11),
                pages_out: Some(22)
            }
        );
    }

    #[test]
    fn subtracts() {
        let at = |pages_in, pages_out| SwapTraffic {
            pages_in,
            pages_out,
        };
        assert_eq!(
            at(Some(9), None).since(at(Some(4), Some(1))),
            at(Some(5), None)
        );
    }
}
