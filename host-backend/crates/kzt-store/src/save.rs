// SPDX-License-Identifier: GPL-2.0-or-later
//! Saving a client's persistent pages, page by page, while its guest may still be running.
//!
//! A client that is being saved is frozen, and a put on an existing key becomes a flush: so its
//! pages only leave, and whatever leaves is noted as invalid. The pages, then what has become
//! invalid, are what the client has; the guest has to be stopped before the latter is read for
//! the last time. The host's own device pool is no part of it: block devices move by other means.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::client::Client;
use crate::codec::Context;
use crate::error::{GetError, PutError, SaveError, StoreError};
use crate::pool::Pool;
use crate::table::{Kind, Uuid};
use crate::{ObjectId, Page};

/// Names a page of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle {
    /// The pool's number in the client.
    pub pool: u8,
    /// The object.
    pub object: ObjectId,
    /// The page's number in it.
    pub index: u32,
}

/// What a client has no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invalid {
    /// A pool.
    Pool(u8),
    /// The pages `first..=last` of an object.
    Pages {
        /// The pool's number in the client.
        pool: u8,
        /// The object.
        object: ObjectId,
        /// The first of them.
        first: u32,
        /// The last of them.
        last: u32,
    },
}

/// What has left a pool.
pub(crate) enum Left {
    Nothing,
    /// `first..=last` of an object.
    Pages(ObjectId, u32, u32),
    /// All of it.
    Pool,
}

/// What became invalid in a pool while it was saved: a bounded list, neighbours in one piece.
#[derive(Default)]
pub(crate) struct Log {
    records: Vec<(ObjectId, u32, u32)>,
    /// More became invalid than there is room for.
    overrun: bool,
}

impl Log {
    /// 2 MiB of them.
    const MAX: usize = 1 << 16;

    /// Notes pages that have left.
    pub(crate) fn add(&mut self, object: ObjectId, first: u32, last: u32) {
        if let Some((known, _, end)) = self.records.last_mut() {
            if *known == object && end.checked_add(1) == Some(first) {
                *end = last;
                return;
            }
        }
        if self.records.len() < Self::MAX {
            self.records.push((object, first, last));
        } else {
            self.overrun = true;
        }
    }

    /// Takes a record out.
    pub(crate) fn take(&mut self) -> Result<Left, SaveError> {
        if self.overrun {
            return Err(SaveError::Overrun);
        }
        let record = self.records.pop();
        Ok(record.map_or(Left::Nothing, |(object, first, last)| {
            Left::Pages(object, first, last)
        }))
    }
}

/// A client that is being saved; dropping it ends that.
pub struct Save {
    client: Arc<Client>,
    /// Its persistent pools.
    pools: Vec<Saved>,
    /// The pool that is being read, and the last page of it that was.
    reading: usize,
    last: Option<(ObjectId, u32)>,
}

struct Saved {
    id: u8,
    pool: Arc<Pool>,
    /// It was destroyed meanwhile, and that has been said.
    gone: bool,
}

impl Save {
    /// The next page of the client, in no particular order; `None` after the last.
    ///
    /// # Errors
    /// `Corrupt` if that page is damaged, each time until it is flushed.
    pub fn next_page(
        &mut self,
        cx: &mut Context,
        out: &mut Page,
    ) -> Result<Option<Handle>, GetError> {
        while let Some(Saved { id, pool, .. }) = self.pools.get(self.reading) {
            if let Some((object, index)) = pool.next_page(cx, self.last, out)? {
                self.last = Some((object, index));
                let pool = *id;
                return Ok(Some(Handle {
                    pool,
                    object,
                    index,
                }));
            }
            self.reading += 1;
            self.last = None;
        }
        Ok(None)
    }

    /// Something that the client has no longer since the save began; `None` if there is nothing
    /// more for now.
    ///
    /// # Errors
    /// `Overrun` if too much has left: the save has to begin anew.
    pub fn next_invalid(&mut self) -> Result<Option<Invalid>, SaveError> {
        for Saved { id, pool, gone } in &mut self.pools {
            if *gone {
                continue;
            }
            let invalid = match pool.next_left()? {
                Left::Nothing => continue,
                Left::Pages(object, first, last) => Invalid::Pages {
                    pool: *id,
                    object,
                    first,
                    last,
                },
                Left::Pool => {
                    *gone = true;
                    Invalid::Pool(*id)
                }
            };
            return Ok(Some(invalid));
        }
        Ok(None)
    }
}

impl Drop for Save {
    fn drop(&mut self) {
        for Saved { pool, .. } in &self.pools {
            pool.set_log(None);
        }
        self.client.account.saving.store(false, Relaxed);
    }
}

impl Client {
    /// Begins to save the client.
    ///
    /// # Errors
    /// `Busy` if it is being saved already.
    pub fn save(self: &Arc<Self>) -> Result<Save, SaveError> {
        if self.account.saving.swap(true, Relaxed) {
            return Err(SaveError::Busy);
        }
        // From here on it is frozen, and gets no new pool.
        let pools = self.guests_pools();
        for (_, pool) in &pools {
            // Whoever takes the pool's lock after this sees that the client is being saved.
            pool.set_log(Some(Log::default()));
        }
        let pools = pools.into_iter().filter_map(|(id, pool)| {
            (pool.kind() == Kind::Persistent).then_some(Saved {
                id,
                pool,
                gone: false,
            })
        });
        Ok(Save {
            client: Arc::clone(self),
            pools: pools.collect(),
            reading: 0,
            last: None,
        })
    }

    /// Makes a pool that a saved client has, under the number that it has there. A shared one is
    /// shared here as well if the host has authorized the client.
    ///
    /// # Errors
    /// `PoolExists`, `TooManyPools`, or `NoDevice` if the client has been removed or a guest's
    /// pools don't have such numbers.
    pub fn restore_pool(&self, id: u8, kind: Kind, uuid: Uuid) -> Result<(), StoreError> {
        let id = Self::guests(id.into()).ok_or(StoreError::NoDevice)?;
        self.create_as(id, self.permitted(kind, uuid), uuid)
    }

    /// Stores a page that a saved client has, though this one be frozen.
    ///
    /// # Errors
    /// As those of a put.
    pub fn restore_put(&self, cx: &mut Context, at: Handle, page: &Page) -> Result<(), PutError> {
        let pool = self.pool(at.pool.into()).ok_or(PutError::NoDevice)?;
        pool.put(cx, at.object, at.index, page)
    }

    /// Removes what a saved client has no longer.
    pub fn restore_flush(&self, invalid: Invalid) {
        match invalid {
            Invalid::Pool(id) => {
                if let Some(id) = Self::guests(id.into()) {
                    self.destroy(id);
                }
            }
            Invalid::Pages {
                pool,
                object,
                first,
                last,
            } => {
                if let Some(pool) = self.pool(pool.into()) {
                    pool.flush_pages(object, first, last);
                }
            }
        }
    }
}
