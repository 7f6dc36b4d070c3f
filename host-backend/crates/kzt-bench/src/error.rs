// SPDX-License-Identifier: GPL-2.0-or-later
use std::io;
use std::path::PathBuf;

use kzt_store::{Codec, GetError, OpenError, PutError, StoreError};

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the corpus cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The files have no bytes.
    #[error("the files hold no page")]
    Empty,
    /// The watch said that nobody waits any more.
    #[error("interrupted")]
    Interrupted,
    /// An engine did not give back what it was given.
    #[error("{engine} gave back another page than it was given, of number {page}")]
    Wrong {
        /// Which.
        engine: &'static str,
        /// Position of the page in the corpus.
        page: usize,
    },
    /// The codec failed on a page.
    #[error("{0} failed on a page")]
    Codec(Codec),
    /// The arena cannot be had.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store has no pool.
    #[error(transparent)]
    Pool(#[from] StoreError),
    /// The store refused a page.
    #[error(transparent)]
    Put(#[from] PutError),
    /// The store lost a page.
    #[error(transparent)]
    Get(#[from] GetError),
    /// The host's zram failed after it had started well.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: String,
        /// What became of it.
        source: io::Error,
    },
}
