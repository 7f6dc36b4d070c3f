// SPDX-License-Identifier: GPL-2.0-or-later
//! Pages of real files.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::mapping::{Mapping, PAGE_SIZE, Page};
use crate::rng::Rng;

/// Pages kept: small beside the smallest guest, many for any codec's window.
const PAGES: u32 = 1024;
/// Pages read from one place at once.
const RUN: u64 = 8;
/// Files looked at, in the order of their paths; bounds the memory for their names.
const MAX_FILES: usize = 1 << 16;
/// Reads that may fail, as files come and go.
const MAX_FAILURES: u32 = 1000;

/// A choice of pages below a folder, kept in memory that is locked if the limits allow it: the
/// measure must not itself come back from swap.
#[derive(Debug, Default)]
pub(crate) struct Corpus(Option<Mapping>);

impl Corpus {
    /// Read pages that `seed` picks from the regular files below `folder`.
    pub(crate) fn read(folder: &Path, seed: u64) -> Result<Corpus, String> {
        let named = |what: &str| format!("--corpus {}: {what}", folder.display());
        let files = list(folder).map_err(|error| named(&error.to_string()))?;
        let total = files.last().map_or(0, |file| file.end);
        if total == 0 {
            return Err(named("no file there has a whole page"));
        }
        let mut mapping = Mapping::new(PAGES)?;
        mapping.lock();
        let mut rng = Rng::keyed(&[seed]);
        let mut failures = 0;
        let mut rest: &mut [Page] = &mut mapping;
        while !rest.is_empty() {
            match read_run(&files, rng.below(total), rest) {
                Some(read) => rest = rest.split_at_mut(read).1,
                None if failures < MAX_FAILURES => failures += 1,
                None => return Err(named("the files there cannot be read")),
            }
        }
        Ok(Corpus(Some(mapping)))
    }

    /// All pages, or none for `Corpus::default()`.
    pub(crate) fn pages(&self) -> &[Page] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// A file's whole pages, numbered through all files.
#[derive(Debug)]
struct Pages {
    path: PathBuf,
    start: u64,
    end: u64,
}

/// All regular files below `folder` by path; what cannot be read is left out.
fn list(folder: &Path) -> std::io::Result<Vec<Pages>> {
    let mut files: Vec<Pages> = Vec::new();
    let mut pending = sorted(folder)?;
    pending.reverse();
    while let Some(path) = pending.pop() {
        let Ok(about) = path.symlink_metadata() else {
            continue;
        };
        if about.is_dir() {
            pending.extend(sorted(&path).unwrap_or_default().into_iter().rev());
        } else if about.is_file() && about.len() >= PAGE_SIZE as u64 {
            let start = files.last().map_or(0, |file| file.end);
            files.push(Pages {
                path,
                start,
                end: start + about.len() / PAGE_SIZE as u64,
            });
        }
        if files.len() == MAX_FILES {
            break;
        }
    }
    Ok(files)
}

fn sorted(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)?.flatten().map(|e| e.path()).collect();
    paths.sort_unstable();
    Ok(paths)
}

/// Read up to `RUN` pages from the page `from` on into `out`; None if that fails.
fn read_run(files: &[Pages], from: u64, out: &mut [Page]) -> Option<usize> {
    let file = files.get(files.partition_point(|file| file.end <= from))?;
    let run = usize::try_from(RUN.min(file.end - from))
        .ok()?
        .min(out.len());
    let out = out.get_mut(..run)?.as_flattened_mut();
    let offset = (from - file.start) * PAGE_SIZE as u64;
    File::open(&file.path)
        .ok()?
        .read_exact_at(out, offset)
        .ok()?;
    Some(run)
}
