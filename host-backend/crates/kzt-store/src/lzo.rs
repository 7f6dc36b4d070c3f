// SPDX-License-Identifier: GPL-2.0-or-later
//! The two functions of liblzo2 that the store uses, made safe.

use std::ffi::{c_int, c_void};

/// Words of working memory of lzo1x-1: 16384 dictionary entries of a pointer's size.
const WORK_WORDS: usize = 16 * 1024;

/// Most bytes that `source` bytes can become: incompressible data grows a little.
pub(crate) const fn bound(source: usize) -> usize {
    source + source / 16 + 64 + 3
}

#[link(name = "lzo2")]
unsafe extern "C" {
    fn lzo1x_1_compress(
        source: *const u8,
        source_len: usize,
        target: *mut u8,
        target_len: *mut usize,
        work: *mut c_void,
    ) -> c_int;
    fn lzo1x_decompress_safe(
        source: *const u8,
        source_len: usize,
        target: *mut u8,
        target_len: *mut usize,
        work: *mut c_void,
    ) -> c_int;
}

/// A compressor: its working memory, reused from call to call.
pub(crate) struct Lzo {
    work: Box<[u64]>,
}

impl Lzo {
    pub(crate) fn new() -> Self {
        Self {
            work: vec![0; WORK_WORDS].into_boxed_slice(),
        }
    }

    /// Compresses `source` into `target`, which has `bound(source.len())` bytes or more;
    /// `None` when it is smaller or liblzo2 fails.
    pub(crate) fn compress(&mut self, source: &[u8], target: &mut [u8]) -> Option<usize> {
        if target.len() < bound(source.len()) {
            return None;
        }
        let mut written = target.len();
        // SAFETY: `source` and `target` are valid for their lengths and do not overlap (one is
        // borrowed mutably); lzo1x-1 writes at most `bound(source.len())` bytes, checked above,
        // and `work` has the LZO1X_1_MEM_COMPRESS bytes it needs.
        let status = unsafe {
            lzo1x_1_compress(
                source.as_ptr(),
                source.len(),
                target.as_mut_ptr(),
                &raw mut written,
                self.work.as_mut_ptr().cast(),
            )
        };
        (status == 0).then_some(written)
    }
}

/// Decompresses `source` into `target`; the bytes written, or `None` if `source` is damaged or
/// does not fit.
pub(crate) fn decompress(source: &[u8], target: &mut [u8]) -> Option<usize> {
    let mut written = target.len();
    // SAFETY: both slices are valid for the lengths given; the `_safe` decompressor reads and
    // writes within them whatever `source` holds, and needs no working memory.
    let status = unsafe {
        lzo1x_decompress_safe(
            source.as_ptr(),
            source.len(),
            target.as_mut_ptr(),
            &raw mut written,
            std::ptr::null_mut(),
        )
    };
    (status == 0).then_some(written)
}
