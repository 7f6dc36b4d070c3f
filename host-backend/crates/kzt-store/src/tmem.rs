// SPDX-License-Identifier: GPL-2.0-or-later
//! The tmem ABI: what a guest may ask of its client, and what it is answered.
//!
//! Every number that a guest says is taken from it as it came. docs/semantics.md has the rules,
//! and the test of each.

use rustix::io::Errno;

use crate::client::Client;
use crate::codec::Context;
use crate::error::{GetError, PutError, StoreError};
use crate::pool::Got;
use crate::table::{Kind, Uuid};
use crate::{ObjectId, Page};

/// Version of the interface.
pub const VERSION: u32 = 1;
/// Pools that a client may have.
pub const MAX_POOLS: u8 = 16;

/// The client is frozen.
pub const EFROZEN: i32 = 1000;
/// There is no page in the pool.
pub const EEMPTY: i32 = 1001;

/// Flags of `NEW_POOL`.
pub mod flags {
    /// The pool's pages stay until they are flushed.
    pub const PERSIST: u32 = 1;
    /// The pool is for all that know its UUID.
    pub const SHARED: u32 = 2;
    /// Where the interface's version stands.
    pub const VERSION_SHIFT: u32 = 24;

    /// The version and all that no pool can have: precompressed pages, pages of another size than
    /// 4 KiB, reserved bits, and the one bit that the interface says nothing of.
    pub(super) const FIXED: u32 = !(PERSIST | SHARED);
}

/// Numbers of the operations.
pub mod op {
    /// The host's: freeze, list, save and so on.
    pub const CONTROL: u32 = 0;
    /// [`Client::new_pool`](crate::Client::new_pool)
    pub const NEW_POOL: u32 = 1;
    /// [`Client::destroy_pool`](crate::Client::destroy_pool)
    pub const DESTROY_POOL: u32 = 2;
    /// [`Client::put_page`](crate::Client::put_page)
    pub const PUT_PAGE: u32 = 4;
    /// [`Client::get_page`](crate::Client::get_page)
    pub const GET_PAGE: u32 = 5;
    /// [`Client::flush_page`](crate::Client::flush_page)
    pub const FLUSH_PAGE: u32 = 6;
    /// [`Client::flush_object`](crate::Client::flush_object)
    pub const FLUSH_OBJECT: u32 = 7;
    /// The host's: [`Store::authorize`](crate::Store::authorize).
    pub const AUTH: u32 = 101;
    /// The host's: a pool of a client that was saved elsewhere.
    pub const RESTORE_NEW: u32 = 102;

    /// What a guest is answered that asks for an operation which no method of its client is: the
    /// host's are not permitted, and there are no others (pages made in place, parts of pages and
    /// exchanges were dropped from the interface).
    #[must_use]
    pub fn refusal(op: u32) -> i32 {
        use rustix::io::Errno;

        let errno = match op {
            CONTROL | AUTH | RESTORE_NEW => Errno::PERM,
            _ => Errno::NOSYS,
        };
        -errno.raw_os_error()
    }
}

/// The guest's side. Errors are negative errno values, the interface's own two included.
impl Client {
    /// `NEW_POOL`: the pool's number. A shared pool is the one that others of this UUID have, if
    /// the host has authorized the client; otherwise the pool is the client's own.
    ///
    /// −EPERM: no pool has such flags. −ENOMEM: there is no room for another pool, or the client
    /// is being saved. −ENODEV: the
    /// client is being removed.
    pub fn new_pool(&self, flags: u32, uuid: Uuid) -> i32 {
        if flags & flags::FIXED != VERSION << flags::VERSION_SHIFT {
            return error(Errno::PERM);
        }
        let kind = match (flags & flags::PERSIST != 0, flags & flags::SHARED != 0) {
            (true, true) => return error(Errno::PERM),
            (true, false) => Kind::Persistent,
            (false, true) => Kind::Shared,
            (false, false) => Kind::Ephemeral,
        };
        match self.create(self.permitted(kind, uuid), uuid) {
            Ok(id) => id.into(),
            Err(StoreError::TooManyPools) => error(Errno::NOMEM),
            Err(_) => error(Errno::NODEV),
        }
    }

    /// `DESTROY_POOL`: 1 when the pool is gone with its pages, a shared one with its last member.
    ///
    /// −ENODEV: there is none.
    pub fn destroy_pool(&self, pool: i32) -> i32 {
        let destroyed = Self::guests(pool).is_some_and(|id| self.destroy(id));
        if destroyed { 1 } else { error(Errno::NODEV) }
    }

    /// `PUT_PAGE`: 1 when the page is stored. Whatever was at the key before is never readable
    /// again, unless the answer is −ENODEV, −EFROZEN or −ENOMEM: then there was nothing. A client
    /// that is being saved replaces no page: the old one is flushed, and the answer −ENOSPC.
    ///
    /// −ENODEV: there is no such pool. −EFAULT: that is not a page. −EFROZEN: the key is new, and
    /// the client frozen. −ENOMEM: the key is new, and there is no memory for it. −ENOSPC: there
    /// is none for what replaces an old page.
    pub fn put_page(
        &self,
        cx: &mut Context,
        pool: i32,
        object: ObjectId,
        index: u32,
        page: &[u8],
    ) -> i32 {
        let Some(pool) = self.pool(pool) else {
            return error(Errno::NODEV);
        };
        let Ok(page) = <&Page>::try_from(page) else {
            pool.flush(object, index);
            return error(Errno::FAULT);
        };
        match pool.put_by(Some(&self.account), cx, object, index, page) {
            Ok(true) => 1,
            Ok(false) => -EFROZEN,
            Err(PutError::NoMemory) => error(Errno::NOMEM),
            Err(PutError::NoSpace) => error(Errno::NOSPC),
            Err(PutError::NoDevice) => error(Errno::NODEV),
        }
    }

    /// `GET_PAGE`: 1 when `out` is the page, 0 when there is none. What `out` holds after any other
    /// answer than 1 is not to be used.
    ///
    /// −ENODEV: there is no such pool. −EEMPTY: nor is there any page in the pool. −EIO: the
    /// stored page is damaged, or its disk can't be read.
    pub fn get_page(
        &self,
        cx: &mut Context,
        pool: i32,
        object: ObjectId,
        index: u32,
        out: &mut Page,
    ) -> i32 {
        let Some(pool) = self.pool(pool) else {
            return error(Errno::NODEV);
        };
        match pool.look_up(cx, object, index, out) {
            Ok(Got::Page) => 1,
            Ok(Got::Nothing) => 0,
            Ok(Got::EmptyPool) => -EEMPTY,
            Err(GetError::Corrupt | GetError::Io) => error(Errno::IO),
            Err(GetError::NoDevice) => error(Errno::NODEV),
        }
    }

    /// `FLUSH_PAGE`: 1 when there is no such page any more, whether or not there was one.
    ///
    /// −ENODEV: there is no such pool. −EFROZEN: the client is frozen; the page is gone as well.
    pub fn flush_page(&self, pool: i32, object: ObjectId, index: u32) -> i32 {
        self.flush_pages(pool, object, index, 1)
    }

    /// `FLUSH_PAGE` for `count` pages from `first` on, as far as there are indices: the answer is
    /// one for all of them.
    pub fn flush_pages(&self, pool: i32, object: ObjectId, first: u32, count: u32) -> i32 {
        let Some(pool) = self.pool(pool) else {
            return error(Errno::NODEV);
        };
        pool.flush_range(object, first, count);
        self.flushed()
    }

    /// `FLUSH_OBJECT`: the same for all pages of an object.
    pub fn flush_object(&self, pool: i32, object: ObjectId) -> i32 {
        let Some(pool) = self.pool(pool) else {
            return error(Errno::NODEV);
        };
        pool.flush_object(object);
        self.flushed()
    }

    fn flushed(&self) -> i32 {
        if self.account.frozen() { -EFROZEN } else { 1 }
    }
}

fn error(errno: Errno) -> i32 {
    -errno.raw_os_error()
}
