// SPDX-License-Identifier: GPL-2.0-or-later
use std::ops::RangeInclusive;

use super::frame::{Frame, Header, MAX_PAGES, PAGE, op};

/// What a guest asks for. Numbers of pools and objects are as the guest said them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// A pool.
    NewPool {
        /// Its flags.
        flags: u32,
        /// Its UUID.
        uuid: [u64; 2],
    },
    /// The end of a pool.
    DestroyPool {
        /// Its number.
        pool: i32,
    },
    /// Pages are to be stored.
    Put {
        /// Where.
        run: Run,
        /// Their bytes, one page after the other.
        pages: &'a [u8],
    },
    /// Pages are to be fetched.
    Get {
        /// Which.
        run: Run,
    },
    /// Pages are to be dropped.
    Flush {
        /// Which.
        run: Run,
    },
    /// All pages of an object are to be dropped.
    FlushObject {
        /// The object's pool.
        pool: i32,
        /// The object.
        object: [u64; 3],
    },
}

/// Consecutive pages of an object: at least one, and none beyond index 2³² − 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The object's pool.
    pub pool: i32,
    /// The object.
    pub object: [u64; 3],
    /// The first page.
    pub index: u32,
    /// How many pages.
    pub count: u32,
}

/// Why a frame is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such operation for guests.
    Operation(u16),
    /// Its numbers do not go together.
    Malformed,
}

impl<'a> Request<'a> {
    /// What a frame asks for whose guest is to be sent at most `most` pages at once.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is to be done.
    pub fn decode(frame: &Frame<'a>, most: u32) -> Result<Self, Refusal> {
        let Header {
            op,
            flags,
            pool,
            object,
            index,
            ..
        } = frame.header;
        let request = match op {
            op::NEW_POOL => {
                let [low, high, _] = object;
                Self::NewPool {
                    flags: index,
                    uuid: [low, high],
                }
            }
            op::DESTROY_POOL => Self::DestroyPool { pool },
            op::PUT_PAGE => Self::Put {
                run: Run::exactly(&frame.header, MAX_PAGES)?,
                pages: frame.payload,
            },
            op::GET_PAGE => Self::Get {
                run: Run::exactly(&frame.header, most)?,
            },
            op::FLUSH_PAGE => Self::Flush {
                run: Run::capped(&frame.header)?,
            },
            op::FLUSH_OBJECT => Self::FlushObject { pool, object },
            other => return Err(Refusal::Operation(other)),
        };
        let payload = match request {
            Self::Put { run, .. } => run.count as usize * PAGE,
            _ => 0,
        };
        if flags != 0 || frame.payload.len() != payload {
            return Err(Refusal::Malformed);
        }
        Ok(request)
    }
}

impl Run {
    /// The pages' indices.
    #[must_use]
    pub fn indices(&self) -> RangeInclusive<u32> {
        self.index..=self.index.saturating_add(self.count.saturating_sub(1))
    }

    /// At most `most` pages, all of which there can be.
    fn exactly(header: &Header, most: u32) -> Result<Self, Refusal> {
        let run = Self::capped(header)?;
        let possible = run.count == header.count && run.count <= most;
        possible.then_some(run).ok_or(Refusal::Malformed)
    }

    /// As many pages as there can be.
    fn capped(header: &Header) -> Result<Self, Refusal> {
        if header.count == 0 {
            return Err(Refusal::Malformed);
        }
        // From index 0 on there is one page more than the longest run has.
        let behind = u32::MAX - header.index;
        Ok(Self {
            pool: header.pool,
            object: header.object,
            index: header.index,
            count: header.count.min(behind.saturating_add(1)),
        })
    }
}
