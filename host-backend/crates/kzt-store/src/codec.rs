// SPDX-License-Identifier: GPL-2.0-or-later
//! Codecs, and how a page becomes bytes.

use std::fmt;
use std::str::FromStr;

use zstd_safe::{CCtx, CParameter, DCtx};

use crate::{PAGE_SIZE, Page, lz4, lzo};

/// A page that does not shrink to this many bytes is kept raw: seven eighths, as zcache has it.
/// Above it the saving is not worth a decompression for every get.
pub(crate) const RAW_ABOVE: usize = PAGE_SIZE / 8 * 7;

/// Room for what any codec makes of an incompressible page; lzo needs most.
const SCRATCH: usize = 2 * PAGE_SIZE;
const _: () = assert!(lzo::bound(PAGE_SIZE) <= SCRATCH);

/// How pages put from now on are compressed. Pages already stored keep theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// Kept as they are.
    None,
    /// lzo1x-1 of liblzo2.
    Lzo,
    /// lz4.
    Lz4,
    /// zstd at a level.
    Zstd(i32),
}

impl Codec {
    fn encoding(self) -> Encoding {
        match self {
            Self::None => Encoding::Raw,
            Self::Lzo => Encoding::Lzo,
            Self::Lz4 => Encoding::Lz4,
            Self::Zstd(_) => Encoding::Zstd,
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Lzo => f.write_str("lzo"),
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

/// The text names no codec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown codec {0:?}: none, lzo, lz4, zstd or zstd:LEVEL (-7 to 19)")]
pub struct UnknownCodec(String);

impl FromStr for Codec {
    type Err = UnknownCodec;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownCodec(text.to_owned());
        match text.split_once(':') {
            None => match text {
                "none" => Ok(Self::None),
                "lzo" => Ok(Self::Lzo),
                "lz4" => Ok(Self::Lz4),
                "zstd" => Ok(Self::Zstd(3)),
                _ => Err(unknown()),
            },
            Some(("zstd", level)) => match level.parse() {
                Ok(level @ -7..=19) => Ok(Self::Zstd(level)),
                _ => Err(unknown()),
            },
            Some(_) => Err(unknown()),
        }
    }
}

/// How a block's payload is encoded; the value is the one in the block's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Encoding {
    Raw = 0,
    /// One word, repeated.
    Pattern = 1,
    Lzo = 2,
    Lz4 = 3,
    Zstd = 4,
}

impl Encoding {
    pub(crate) fn from_bits(bits: u64) -> Option<Self> {
        Some(match bits {
            0 => Self::Raw,
            1 => Self::Pattern,
            2 => Self::Lzo,
            3 => Self::Lz4,
            4 => Self::Zstd,
            _ => return None,
        })
    }

    /// Whether a payload of this encoding can have `len` bytes.
    pub(crate) fn admits(self, len: usize) -> bool {
        match self {
            Self::Raw => len == PAGE_SIZE,
            Self::Pattern => len == size_of::<u64>(),
            Self::Lzo | Self::Lz4 | Self::Zstd => (1..=RAW_ABOVE).contains(&len),
        }
    }
}

/// The word that fills the whole page, if one does.
#[must_use]
pub fn same_filled(page: &Page) -> Option<u64> {
    let (word, rest) = page.split_first_chunk::<8>()?;
    // A page equals itself shifted by a word exactly if all its words are equal. Pages that are
    // not same-filled mostly differ at once, and the comparison stops there.
    let shifted = page.get(..rest.len())?;
    (rest == shifted).then(|| u64::from_ne_bytes(*word))
}

/// The half of a word that has two like halves: most patterns repeat after four bytes or less.
pub(crate) fn half(word: u64) -> Option<u32> {
    (word == word.rotate_left(32)).then_some(word as u32)
}

/// Fills the whole page with one word.
pub(crate) fn fill(page: &mut Page, word: u64) {
    for chunk in page.chunks_exact_mut(size_of::<u64>()) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
}

/// One thread's working memory for the codecs: 136 KiB, zstd's contexts come with the
/// first page that needs them. After that no page allocates anything.
pub struct Context {
    lzo: lzo::Lzo,
    zstd: Zstd,
    scratch: Box<[u8; SCRATCH]>,
}

impl Context {
    /// Allocates the working memory.
    #[must_use]
    pub fn new() -> Self {
        Self {
            lzo: lzo::Lzo::new(),
            zstd: Zstd::default(),
            scratch: Box::new([0; SCRATCH]),
        }
    }

    /// What the codec makes of a page; `None` if it fails.
    pub fn compress(&mut self, codec: Codec, page: &Page) -> Option<&[u8]> {
        let scratch = self.scratch.as_mut_slice();
        let written = match codec {
            Codec::None => {
                scratch.get_mut(..PAGE_SIZE)?.copy_from_slice(page);
                PAGE_SIZE
            }
            Codec::Lzo => self.lzo.compress(page, scratch)?,
            Codec::Lz4 => lz4::compress(page, scratch)?,
            Codec::Zstd(level) => self.zstd.compress(level, page, scratch)?,
        };
        scratch.get(..written)
    }

    /// Turns what [`compress`](Self::compress) made of a page back into it; `None` if `packed`
    /// is not exactly one page.
    pub fn decompress(&mut self, codec: Codec, packed: &[u8], out: &mut Page) -> Option<()> {
        self.zstd.expand(codec.encoding(), packed, out)
    }

    /// The payload that stores `page`, which is not same-filled.
    pub(crate) fn encode<'a>(&'a mut self, codec: Codec, page: &'a Page) -> (Encoding, &'a [u8]) {
        if codec == Codec::None {
            return (Encoding::Raw, page);
        }
        match self.compress(codec, page) {
            Some(payload) if payload.len() <= RAW_ABOVE => (codec.encoding(), payload),
            _ => (Encoding::Raw, page),
        }
    }

    /// Where a stored payload is copied to before it is decoded.
    pub(crate) fn payload_mut(&mut self, len: usize) -> &mut [u8] {
        let len = len.min(SCRATCH);
        self.scratch.get_mut(..len).unwrap_or_default()
    }

    /// Drops the first bytes of what was last copied in.
    pub(crate) fn skip(&mut self, bytes: usize) {
        self.scratch.copy_within(bytes.min(SCRATCH).., 0);
    }

    /// The payload last copied in.
    pub(crate) fn payload(&self, len: usize) -> &[u8] {
        self.scratch.get(..len).unwrap_or_default()
    }

    /// Decodes the payload last copied in; `None` if it is not exactly one page.
    pub(crate) fn decode(&mut self, encoding: Encoding, len: usize, out: &mut Page) -> Option<()> {
        self.zstd.expand(encoding, self.scratch.get(..len)?, out)
    }
}

impl Default for Context {
    fn default() -> Self {
        Self::new()
    }
}

/// zstd's contexts; frames carry neither a content size nor a checksum: the block has both.
#[derive(Default)]
struct Zstd {
    compressor: Option<(i32, CCtx<'static>)>,
    decompressor: Option<DCtx<'static>>,
}

impl Zstd {
    fn compress(&mut self, level: i32, source: &[u8], target: &mut [u8]) -> Option<usize> {
        if self
            .compressor
            .as_ref()
            .is_none_or(|&(current, _)| current != level)
        {
            let mut context = CCtx::try_create()?;
            context
                .set_parameter(CParameter::CompressionLevel(level))
                .ok()?;
            context
                .set_parameter(CParameter::ContentSizeFlag(false))
                .ok()?;
            self.compressor = Some((level, context));
        }
        let (_, context) = self.compressor.as_mut()?;
        context.compress2(target, source).ok()
    }

    /// Decodes any payload: only zstd needs working memory for it.
    fn expand(&mut self, encoding: Encoding, payload: &[u8], out: &mut Page) -> Option<()> {
        let written = match encoding {
            Encoding::Raw => {
                *out = *payload.first_chunk()?;
                PAGE_SIZE
            }
            Encoding::Pattern => {
                fill(out, u64::from_ne_bytes(*payload.first_chunk()?));
                PAGE_SIZE
            }
            Encoding::Lzo => lzo::decompress(payload, out)?,
            Encoding::Lz4 => lz4::decompress(payload, out)?,
            Encoding::Zstd => self.decompress(payload, out)?,
        };
        (written == PAGE_SIZE).then_some(())
    }

    fn decompress(&mut self, source: &[u8], target: &mut [u8]) -> Option<usize> {
        if self.decompressor.is_none() {
            self.decompressor = DCtx::try_create();
        }
        self.decompressor.as_mut()?.decompress(target, source).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CODECS: [Codec; 4] = [Codec::Lzo, Codec::Lz4, Codec::Zstd(3), Codec::Zstd(-7)];

    #[test]
    fn codecs_are_named_as_they_are_read() {
        for codec in CODECS.into_iter().chain([Codec::None]) {
            assert_eq!(codec.to_string().parse(), Ok(codec));
        }
        assert_eq!("zstd".parse(), Ok(Codec::Zstd(3)));
        for text in [
            "", "LZO", "lzo:1", "zstd:", "zstd:20", "zstd:-8", "zstd:x", "gzip",
        ] {
            assert_eq!(text.parse::<Codec>(), Err(UnknownCodec(text.to_owned())));
        }
    }

    #[test]
    fn only_pages_of_one_word_are_same_filled() {
        let mut page = [0; PAGE_SIZE];
        fill(&mut page, 0x0102_0304_0506_0708);
        assert_eq!(same_filled(&page), Some(0x0102_0304_0506_0708));
        for at in [0, 7, 8, 2000, PAGE_SIZE - 1] {
            page[at] ^= 1;
            assert_eq!(same_filled(&page), None, "byte {at}");
            page[at] ^= 1;
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn pages_come_back_as_they_were(
            start in proptest::collection::vec(any::<u8>(), 0..PAGE_SIZE),
            codec in proptest::sample::select(CODECS.to_vec()),
        ) {
            let mut page = [7; PAGE_SIZE];
            page[..start.len()].copy_from_slice(&start);
            let mut cx = Context::new();
            let (encoding, payload) = cx.encode(codec, &page);
            let payload = payload.to_vec();
            prop_assert!(encoding.admits(payload.len()));
            cx.payload_mut(payload.len()).copy_from_slice(&payload);
            let mut out = [0; PAGE_SIZE];
            prop_assert_eq!(cx.decode(encoding, payload.len(), &mut out), Some(()));
            prop_assert_eq!(out, page);
        }

        /// The checksum keeps damage from the decoders; they must bear it all the same.
        #[test]
        fn decoders_bear_any_bytes(
            payload in proptest::collection::vec(any::<u8>(), 1..RAW_ABOVE),
            encoding in (0_u64..5).prop_map(|bits| Encoding::from_bits(bits).unwrap()),
        ) {
            let mut cx = Context::new();
            cx.payload_mut(payload.len()).copy_from_slice(&payload);
            let mut out = [0; PAGE_SIZE];
            let decoded = cx.decode(encoding, payload.len(), &mut out);
            prop_assert!(decoded.is_none() || !matches!(encoding, Encoding::Raw));
        }
    }
}
