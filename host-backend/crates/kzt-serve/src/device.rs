// SPDX-License-Identifier: GPL-2.0-or-later
use std::ops::Range;

use kzt_store::{Context, GetError, ObjectId, PAGE_SIZE, Page, Pool, PutError, UpdateError};
use kzt_wire::nbd::Errno;

/// The swap device's object in its client's pool.
pub(crate) const SWAP: ObjectId = ObjectId([0, 0, 0]);

const PAGE: u64 = PAGE_SIZE as u64;
const ZEROES: Page = [0; PAGE_SIZE];
/// Who zeroes or trims looks up from the work whenever this much of the device has been passed.
const STRIDE: u64 = 32 << 20;

/// A client's swap device: byte ranges on top of the pool's pages.
///
/// Ranges lie within the device, whose size is a multiple of the page size and at most 2³² pages:
/// the caller has checked it. A range that fails may have taken effect in part.
pub(crate) struct Device<'a> {
    pool: &'a Pool,
    context: Context,
}

impl<'a> Device<'a> {
    pub(crate) fn new(pool: &'a Pool) -> Self {
        Self {
            pool,
            context: Context::new(),
        }
    }

    /// Stores `data`. Whole pages go to the codec from where they are.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let mut rest = data;
        for (index, within) in pages(offset, data.len() as u64) {
            let (part, tail) = rest.split_at(within.len().min(rest.len()));
            rest = tail;
            if let Ok(page) = <&Page>::try_from(part) {
                self.pool
                    .put(&mut self.context, SWAP, index, page)
                    .map_err(put_errno)?;
            } else {
                self.update(index, |page| {
                    if let Some(target) = page.get_mut(within.clone()) {
                        target.copy_from_slice(part);
                    }
                })?;
            }
        }
        Ok(())
    }

    /// Appends the range's bytes to `out`. On an error it has appended some of them.
    pub(crate) fn read(
        &mut self,
        offset: u64,
        length: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        for (index, within) in pages(offset, length.into()) {
            if within.len() == PAGE_SIZE {
                out.resize(out.len() + PAGE_SIZE, 0);
                if let Some(page) = out.last_chunk_mut() {
                    self.get(index, page)?;
                }
            } else {
                let mut page = ZEROES;
                self.get(index, &mut page)?;
                out.extend_from_slice(page.get(within).unwrap_or_default());
            }
        }
        Ok(())
    }

    /// Forgets the range's whole pages; they read as zeroes.
    pub(crate) fn trim(&self, offset: u64, length: u64) {
        let first = offset.div_ceil(PAGE);
        let end = (offset + length) / PAGE;
        self.pool.flush_range(
            SWAP,
            page_number(first),
            page_number(end.saturating_sub(first)),
        );
    }

    /// Makes the range read as zeroes: forgets its whole pages and clears the others' part.
    pub(crate) fn punch(&mut self, offset: u64, length: u64) -> Result<(), Errno> {
        self.trim(offset, length);
        let mut pages = pages(offset, length);
        for (index, within) in [pages.next(), pages.next_back()].into_iter().flatten() {
            if within.len() < PAGE_SIZE {
                self.clear(index, within)?;
            }
        }
        Ok(())
    }

    /// Makes the range read as zeroes that stay stored.
    pub(crate) fn write_zeroes(&mut self, offset: u64, length: u64) -> Result<(), Errno> {
        for (index, within) in pages(offset, length) {
            if within.len() == PAGE_SIZE {
                self.pool
                    .put(&mut self.context, SWAP, index, &ZEROES)
                    .map_err(put_errno)?;
            } else {
                self.clear(index, within)?;
            }
        }
        Ok(())
    }

    /// Calls `extent` with the length in bytes of each run of the range, and whether it is stored;
    /// stops once `extent` says `false`.
    pub(crate) fn runs(&self, offset: u64, length: u64, mut extent: impl FnMut(u32, bool) -> bool) {
        /// Pages asked for at a time, so that a full reply ends the walk soon.
        const STRIDE: u64 = 8192;
        let (mut at, end) = (offset, offset + length);
        let mut more = true;
        while more && at < end {
            let first = at / PAGE;
            let count = (end.div_ceil(PAGE) - first).min(STRIDE);
            self.pool.runs(
                SWAP,
                page_number(first),
                page_number(count),
                |run, stored| {
                    // Pages reach beyond the range at both ends.
                    let run_end = ((at / PAGE + u64::from(run)) * PAGE).min(end);
                    let bytes = u32::try_from(run_end - at).unwrap_or(u32::MAX);
                    more = more && extent(bytes, stored);
                    at = run_end;
                },
            );
        }
    }

    fn get(&mut self, index: u32, page: &mut Page) -> Result<(), Errno> {
        // A page that was never put reads as the zeroes that are there.
        match self.pool.get(&mut self.context, SWAP, index, page) {
            Ok(_) => Ok(()),
            Err(GetError::Corrupt | GetError::Io) => Err(Errno::Io),
            Err(GetError::NoDevice) => Err(Errno::Shutdown),
        }
    }

    fn clear(&mut self, index: u32, within: Range<usize>) -> Result<(), Errno> {
        self.update(index, |page| {
            if let Some(target) = page.get_mut(within.clone()) {
                target.fill(0);
            }
        })
    }

    fn update(&mut self, index: u32, change: impl FnMut(&mut Page)) -> Result<(), Errno> {
        self.pool
            .update(&mut self.context, SWAP, index, change)
            .map_err(|error| match error {
                UpdateError::NoMemory => Errno::NoSpace,
                UpdateError::Corrupt | UpdateError::Io => Errno::Io,
                UpdateError::NoDevice => Errno::Shutdown,
            })
    }
}

fn put_errno(error: PutError) -> Errno {
    match error {
        PutError::NoMemory | PutError::NoSpace => Errno::NoSpace,
        PutError::NoDevice => Errno::Shutdown,
    }
}

/// The pages a byte range touches, each with the part of the page that lies in the range.
pub(crate) fn pages(
    offset: u64,
    length: u64,
) -> impl DoubleEndedIterator<Item = (u32, Range<usize>)> {
    let end = offset + length;
    let first = offset / PAGE;
    // A range of no bytes touches nothing, even within a page.
    let last = if length == 0 {
        first
    } else {
        end.div_ceil(PAGE)
    };
    (first..last).map(move |index| {
        let start = offset.saturating_sub(index * PAGE).min(PAGE);
        let stop = (end - index * PAGE).min(PAGE);
        (page_number(index), start as usize..stop as usize)
    })
}

/// Cuts a byte range at the multiples of [`STRIDE`], so that no page is cut that was whole.
pub(crate) fn strides(offset: u64, length: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + length;
    (offset / STRIDE..end.div_ceil(STRIDE)).map(move |number| {
        let start = offset.max(number * STRIDE);
        (start, end.min((number + 1) * STRIDE) - start)
    })
}

/// The number of a page, or of pages, of a device that has at most 2³².
fn page_number(page: u64) -> u32 {
    u32::try_from(page).unwrap_or(u32::MAX)
}
