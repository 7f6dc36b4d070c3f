// SPDX-License-Identifier: GPL-2.0-or-later
//! The two functions of liblz4 that the store uses, made safe.

/// Compresses `source` into `target`; `None` if it does not fit. Its 16 KiB of working memory
/// are on the stack.
pub(crate) fn compress(source: &[u8], target: &mut [u8]) -> Option<usize> {
    let source_len = i32::try_from(source.len()).ok()?;
    let target_len = i32::try_from(target.len()).ok()?;
    // SAFETY: both slices are valid for the lengths given, and liblz4 stays within them.
    let written = unsafe {
        lz4_sys::LZ4_compress_default(
            source.as_ptr().cast(),
            target.as_mut_ptr().cast(),
            source_len,
            target_len,
        )
    };
    usize::try_from(written).ok().filter(|&written| written > 0)
}

/// Decompresses `source` into `target`; the bytes written, or `None` if `source` is damaged or
/// does not fit.
pub(crate) fn decompress(source: &[u8], target: &mut [u8]) -> Option<usize> {
    let source_len = i32::try_from(source.len()).ok()?;
    let target_len = i32::try_from(target.len()).ok()?;
    // SAFETY: both slices are valid for the lengths given; the `_safe` decompressor reads and
    // writes within them whatever `source` holds.
    let written = unsafe {
        lz4_sys::LZ4_decompress_safe(
            source.as_ptr().cast(),
            target.as_mut_ptr().cast(),
            source_len,
            target_len,
        )
    };
    usize::try_from(written).ok()
}
