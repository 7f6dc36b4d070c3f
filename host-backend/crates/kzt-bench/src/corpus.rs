// SPDX-License-Identifier: GPL-2.0-or-later
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use kzt_store::{PAGE_SIZE, Page, same_filled};

use crate::Error;

/// A page where a page lies: aligned, as direct I/O wants it.
#[derive(Clone)]
#[repr(C, align(4096))]
pub(crate) struct Aligned(pub(crate) Page);

impl Aligned {
    pub(crate) const ZERO: Self = Self([0; PAGE_SIZE]);
}

impl Deref for Aligned {
    type Target = Page;

    fn deref(&self) -> &Page {
        &self.0
    }
}

/// The pages to measure with.
pub struct Corpus {
    pub(crate) pages: Vec<Aligned>,
    /// Pages that the files have; more than are taken if that was the limit.
    pub available: u64,
    /// Pages of one repeated word.
    pub same_filled: u64,
    /// Pages that are not same-filled and equal an earlier one.
    pub duplicates: u64,
}

impl Corpus {
    /// Reads files as a page cache holds them: the last page of each is filled up with zeros. If
    /// there are more pages than `limit`, that many are taken, evenly spread over all.
    ///
    /// # Errors
    /// `Read`, and `Empty` if there is no page.
    pub fn read(files: &[PathBuf], limit: u64) -> Result<Self, Error> {
        let mut sized = Vec::with_capacity(files.len());
        let mut available = 0;
        for path in files {
            let length = fs::metadata(path).map_err(failed(path))?.len();
            let count = length.div_ceil(PAGE_SIZE as u64);
            sized.push((path, count));
            available += count;
        }
        let taken = available.min(limit);
        let mut corpus = Self {
            pages: Vec::with_capacity(usize::try_from(taken).unwrap_or(0)),
            available,
            same_filled: 0,
            duplicates: 0,
        };
        let mut number = 0;
        for (path, count) in sized {
            corpus
                .add(path, count, |page| {
                    let share = |n: u64| u128::from(n) * u128::from(taken) / u128::from(available);
                    let at = number + page;
                    share(at) != share(at + 1)
                })
                .map_err(failed(path))?;
            number += count;
        }
        if corpus.pages.is_empty() {
            return Err(Error::Empty);
        }
        corpus.classify();
        Ok(corpus)
    }

    /// Reads the first `count` pages of a file and keeps the chosen ones.
    fn add(&mut self, path: &Path, count: u64, chosen: impl Fn(u64) -> bool) -> io::Result<()> {
        let mut file = io::BufReader::with_capacity(1 << 20, File::open(path)?);
        for page in 0..count {
            let mut content = Aligned::ZERO;
            let mut rest = content.0.as_mut_slice();
            let mut length = 0;
            while !rest.is_empty() {
                let read = file.read(rest)?;
                if read == 0 {
                    break;
                }
                length += read;
                rest = rest.get_mut(read..).unwrap_or_default();
            }
            // The file may have become shorter.
            if length == 0 {
                break;
            }
            if chosen(page) {
                self.pages.push(content);
            }
        }
        Ok(())
    }

    fn classify(&mut self) {
        let mut seen = HashSet::with_capacity(self.pages.len());
        for page in &self.pages {
            if same_filled(page).is_some() {
                self.same_filled += 1;
            } else if !seen.insert(&page.0) {
                self.duplicates += 1;
            }
        }
    }

    /// Pages taken.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    /// Their bytes.
    #[must_use]
    pub fn logical_bytes(&self) -> u64 {
        self.pages() * PAGE_SIZE as u64
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Error {
    |source| Error::Read {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(folder: &Path, name: &str, content: &[u8]) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, content).unwrap();
        path
    }

    #[test]
    fn files_are_read_by_pages_and_these_are_classified() {
        let folder = tempfile::tempdir().unwrap();
        let mut two = vec![b'a'; 2 * PAGE_SIZE];
        two[0] = b'b';
        let tail = [vec![0; PAGE_SIZE], two[..PAGE_SIZE].to_vec(), vec![b'x']].concat();
        let files = [
            written(folder.path(), "two", &two),
            written(folder.path(), "empty", b""),
            written(folder.path(), "tail", &tail),
        ];
        let corpus = Corpus::read(&files, 100).unwrap();
        assert_eq!((corpus.pages(), corpus.available), (5, 5));
        assert_eq!((corpus.same_filled, corpus.duplicates), (2, 1));
        assert_eq!(corpus.pages[4][..2], [b'x', 0], "the rest of it are zeros");
    }

    #[test]
    fn what_is_beyond_the_limit_is_left_out_evenly() {
        let folder = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..=99).flat_map(|n| [n; PAGE_SIZE]).collect();
        let file = written(folder.path(), "hundred", &content);
        let corpus = Corpus::read(&[file], 10).unwrap();
        let numbers: Vec<u8> = corpus.pages.iter().map(|page| page[0]).collect();
        assert_eq!(corpus.available, 100);
        assert_eq!(numbers, [9, 19, 29, 39, 49, 59, 69, 79, 89, 99]);
    }

    #[test]
    fn nothing_is_no_corpus_and_a_missing_file_is_named() {
        assert!(matches!(Corpus::read(&[], 1), Err(Error::Empty)));
        let error = Corpus::read(&["/nowhere/at/all".into()], 1).err().unwrap();
        assert!(error.to_string().contains("/nowhere/at/all"));
    }
}
