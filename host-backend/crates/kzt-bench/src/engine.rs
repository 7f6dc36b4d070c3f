// SPDX-License-Identifier: GPL-2.0-or-later
use kzt_store::Page;

use crate::{Error, Memory};

/// One thread's way into an engine.
pub(crate) trait Worker: Send {
    /// Stores a page of the corpus under its position there.
    fn put(&mut self, index: usize, page: &Page) -> Result<(), Error>;

    /// Fetches it again.
    fn get(&mut self, index: usize, out: &mut Page) -> Result<(), Error>;
}

/// Something that pages can be put into, fresh: no memory of it has been touched yet.
pub(crate) trait Engine {
    const NAME: &str;

    type Worker: Worker;

    /// A worker for each thread.
    fn workers(&self, threads: usize) -> Result<Vec<Self::Worker>, Error>;

    /// The memory it holds.
    fn memory(&self) -> Result<Memory, Error>;
}
