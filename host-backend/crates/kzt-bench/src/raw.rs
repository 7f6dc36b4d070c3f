// SPDX-License-Identifier: GPL-2.0-or-later
//! The codec alone: its library, called on every page with a context that is reused.

use std::hint::black_box;
use std::sync::Arc;

use kzt_store::{Codec, Context, Page};

use crate::corpus::Corpus;
use crate::engine::{Engine, Worker};
use crate::{Error, Memory};

/// Every page as the codec packs it, one after the other.
struct Packed {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Packed {
    fn get(&self, index: usize) -> Option<&[u8]> {
        let start = match index.checked_sub(1) {
            None => 0,
            Some(before) => *self.ends.get(before)?,
        };
        self.bytes.get(start..*self.ends.get(index)?)
    }
}

pub(crate) struct Raw {
    codec: Codec,
    packed: Arc<Packed>,
}

impl Raw {
    /// Packs the corpus once, for the gets.
    pub(crate) fn new(codec: Codec, corpus: &Corpus) -> Result<Self, Error> {
        let mut cx = Context::new();
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(corpus.pages.len()));
        for page in &corpus.pages {
            let packed = cx.compress(codec, page).ok_or(Error::Codec(codec))?;
            bytes.extend_from_slice(packed);
            ends.push(bytes.len());
        }
        let packed = Arc::new(Packed { bytes, ends });
        Ok(Self { codec, packed })
    }
}

impl Engine for Raw {
    const NAME: &str = "raw";

    type Worker = RawWorker;

    fn workers(&self, threads: usize) -> Result<Vec<RawWorker>, Error> {
        let worker = || RawWorker {
            cx: Context::new(),
            codec: self.codec,
            packed: Arc::clone(&self.packed),
        };
        Ok((0..threads).map(|_| worker()).collect())
    }

    fn memory(&self) -> Result<Memory, Error> {
        Ok(Memory {
            data: self.packed.bytes.len() as u64,
            ..Memory::default()
        })
    }
}

pub(crate) struct RawWorker {
    cx: Context,
    codec: Codec,
    packed: Arc<Packed>,
}

impl Worker for RawWorker {
    fn put(&mut self, _: usize, page: &Page) -> Result<(), Error> {
        let packed = self.cx.compress(self.codec, page);
        black_box(packed).map(drop).ok_or(Error::Codec(self.codec))
    }

    fn get(&mut self, index: usize, out: &mut Page) -> Result<(), Error> {
        self.packed
            .get(index)
            .and_then(|packed| self.cx.decompress(self.codec, packed, out))
            .ok_or(Error::Codec(self.codec))
    }
}
