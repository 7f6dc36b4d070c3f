// SPDX-License-Identifier: GPL-2.0-or-later
//! Deduplication: pages of one trust domain that are stored as the same bytes share a block.
//!
//! What is compared is what is stored, the encoding and the payload: equal ones are equal pages.
//! A keyed hash of both, in the block's header, finds the candidates ([`hints`]); the bytes decide.
//! A block with several users hangs on a record in the arena, which their entries lead to
//! ([`sharing`]). Each user is charged as if the block were its own: what a client is charged says
//! nothing about what others store.

mod hints;
mod sharing;

use std::fmt;
use std::str::FromStr;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::codec::Encoding;
use crate::layout::record::{DOMAIN_WORDS, NAME_BYTES};

pub(crate) use sharing::{Payload, Sharing};

/// With which pages a client's persistent pages may share memory.
///
/// Whoever may share with a page can find out that it is there: a put that finds its bytes stored
/// takes another time. Pages of different domains are never compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Dedup {
    /// With none.
    #[default]
    Off,
    /// With the client's own.
    Client,
    /// With those of every client that names the same domain.
    Domain(DomainName),
}

/// The name of a trust domain: 1 to 32 bytes of printable ASCII without spaces.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DomainName(String);

/// The text names no way to deduplicate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown deduplication {0:?}: off, client or domain:NAME (1 to 32 printable characters)")]
pub struct UnknownDedup(String);

impl FromStr for Dedup {
    type Err = UnknownDedup;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "off" => Ok(Self::Off),
            None if text == "client" => Ok(Self::Client),
            Some(("domain", name)) if padded(name).is_some() => {
                Ok(Self::Domain(DomainName(name.to_owned())))
            }
            _ => Err(UnknownDedup(text.to_owned())),
        }
    }
}

impl fmt::Display for Dedup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Client => f.write_str("client"),
            Self::Domain(name) => write!(f, "domain:{}", name.0),
        }
    }
}

fn padded(name: &str) -> Option<[u8; NAME_BYTES]> {
    let mut bytes = [0; NAME_BYTES];
    let valid = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
    bytes
        .get_mut(..name.len())
        .filter(|_| valid)?
        .copy_from_slice(name.as_bytes());
    Some(bytes)
}

/// A trust domain: its name, and its key for hashes. The key differs from domain to domain, so
/// that equal pages of two of them are not even candidates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Domain {
    /// What the name names, then the name, as records have it.
    words: [u64; DOMAIN_WORDS],
    seed: u64,
}

impl Domain {
    const CLIENT: u64 = 1;
    const NAMED: u64 = 2;

    /// The domain of a client in an arena with that key, if it has one.
    pub(crate) fn new(dedup: &Dedup, client: &str, key: [u64; 3]) -> Option<Self> {
        let (kind, name) = match dedup {
            Dedup::Off => return None,
            Dedup::Client => (Self::CLIENT, client),
            Dedup::Domain(name) => (Self::NAMED, name.0.as_str()),
        };
        let name = padded(name)?;
        let mut words = [kind; DOMAIN_WORDS];
        for (word, bytes) in words.iter_mut().skip(1).zip(name.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.first_chunk().copied().unwrap_or_default());
        }
        let [a, b, c] = key;
        let seed = xxh3_64_with_seed(&name, a ^ b.rotate_left(21) ^ c.rotate_left(42) ^ kind);
        Some(Self { words, seed })
    }

    /// The hash of a stored page, as its block's header has it: never 0.
    fn hash(&self, encoding: Encoding, payload: &[u8]) -> u32 {
        let hash = xxh3_64_with_seed(payload, self.seed ^ encoding as u64);
        ((hash >> u32::BITS) as u32).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(dedup: &str, client: &str) -> Domain {
        Domain::new(&dedup.parse().unwrap(), client, [1, 2, 3]).unwrap()
    }

    #[test]
    fn ways_to_deduplicate_are_named_as_they_are_read() {
        for text in ["off", "client", "domain:a", "domain:client", "domain:a:b"] {
            assert_eq!(text.parse::<Dedup>().unwrap().to_string(), text);
        }
        let long = format!("domain:{}", "x".repeat(33));
        for text in [
            "",
            "on",
            "Client",
            "client:a",
            "domain",
            "domain:",
            "domain:a b",
            &long,
        ] {
            assert_eq!(text.parse::<Dedup>(), Err(UnknownDedup(text.to_owned())));
        }
    }

    /// Else one could tell from a put's time whether another domain holds its page.
    #[test]
    fn domains_hash_the_same_page_differently() {
        let domains = [
            domain("client", "a"),
            domain("client", "b"),
            domain("domain:a", "a"),
            domain("domain:b", "a"),
        ];
        let mut hashes = domains.map(|domain| domain.hash(Encoding::Lzo, &[7; 100]));
        hashes.sort_unstable();
        assert!(
            hashes.windows(2).all(|pair| pair[0] != pair[1]),
            "{hashes:?}"
        );
        assert_eq!(domain("domain:x", "a"), domain("domain:x", "b"));
        assert_ne!(domain("domain:a", "a"), domain("client", "a"));
    }

    #[test]
    fn the_encoding_is_a_part_of_the_hash() {
        let domain = domain("client", "a");
        let hashes = [Encoding::Lzo, Encoding::Lz4].map(|encoding| domain.hash(encoding, &[7; 9]));
        assert_ne!(hashes[0], hashes[1]);
    }
}
