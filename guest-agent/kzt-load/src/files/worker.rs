// SPDX-License-Identifier: GPL-2.0-or-later
//! One process that changes files in every way there is, and checks all it reads.

use std::fs::{self as std_fs, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{self, Advice, FallocateFlags, OFlags};

use super::args::Files;
use super::file_map::FileMap;
use super::table::{Held, Table};
use crate::content::Content;
use crate::mapping::{Mapping, PAGE_SIZE, Page};
use crate::rng::Rng;

/// Pages that one operation reads or writes at most.
pub(crate) const MAX_RANGE: u32 = 64;

/// Of a page, which has 4096.
const LAST_BYTE: u32 = 4095;

/// Wrong pages that a worker reports one by one.
const MAX_REPORTED: usize = 8;

/// An operation, and of how many in a thousand it is.
const OPERATIONS: [(Operation, u64); 13] = [
    (Operation::Read, 430),
    (Operation::ReadMapped, 70),
    (Operation::ReadDirect, 50),
    (Operation::Write, 120),
    (Operation::WriteMapped, 70),
    (Operation::WriteDirect, 80),
    (Operation::Truncate, 20),
    (Operation::CutPage, 20),
    (Operation::PunchHole, 30),
    (Operation::PunchInPage, 20),
    (Operation::ZeroRange, 20),
    (Operation::RenameOver, 10),
    (Operation::DropCache, 60),
];

#[derive(Clone, Copy, Debug)]
enum Operation {
    Read,
    ReadMapped,
    ReadDirect,
    Write,
    WriteMapped,
    WriteDirect,
    /// To any length; what comes back by making it longer are zeros.
    Truncate,
    /// In the middle of a page, and back.
    CutPage,
    PunchHole,
    PunchInPage,
    ZeroRange,
    /// A new file takes the name of the old one.
    RenameOver,
    /// Write it out and ask for its clean pages to be forgotten.
    DropCache,
}

impl Operation {
    fn reads(self) -> bool {
        matches!(
            self,
            Operation::Read | Operation::ReadMapped | Operation::ReadDirect | Operation::DropCache
        )
    }
}

/// What a worker has done and found.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Findings {
    pub(crate) operations: u64,
    pub(crate) pages_read: u64,
    pub(crate) pages_written: u64,
    pub(crate) bad_pages: u64,
    pub(crate) longest_operation: Duration,
    /// Sentences on the first bad pages.
    pub(crate) errors: Vec<String>,
}

pub(crate) struct Worker<'a> {
    options: &'a Files,
    table: &'a Table,
    content: Content,
    rng: Rng,
    number: u32,
    /// Page-aligned, as direct access wants it.
    buffer: Mapping,
    expected: Box<Page>,
    findings: Findings,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(
        options: &'a Files,
        table: &'a Table,
        content: Content,
        number: u32,
    ) -> Result<Worker<'a>, String> {
        Ok(Worker {
            options,
            table,
            content,
            rng: Rng::keyed(&[options.seed, number.into()]),
            number,
            buffer: Mapping::new(MAX_RANGE)?,
            expected: Box::new([0; PAGE_SIZE]),
            findings: Findings::default(),
        })
    }

    /// Create this worker's share of the files.
    pub(crate) fn fill(&mut self) -> Result<(), String> {
        for file in (self.number..self.options.count).step_by(self.options.processes as usize) {
            self.guarded(file, false, Self::fill_one)?;
        }
        Ok(())
    }

    /// Work until the time is over, then read all of this worker's share once more.
    pub(crate) fn run(mut self) -> Result<Findings, String> {
        let end = Instant::now() + self.options.time;
        while Instant::now() < end && !self.table.failed() {
            let file = self.below(self.options.count);
            let operation = self.choose();
            let began = Instant::now();
            self.guarded(file, operation.reads(), |worker, held, file, path| {
                worker.apply(operation, held, file, path)
            })
            .map_err(|error| format!("{operation:?}: {error}"))?;
            let findings = &mut self.findings;
            findings.operations += 1;
            findings.longest_operation = findings.longest_operation.max(began.elapsed());
        }
        for file in (self.number..self.options.count).step_by(self.options.processes as usize) {
            self.guarded(file, true, |worker, held, file, path| {
                let opened = open(path, OFlags::empty())?;
                for first in (0..held.length()).step_by(MAX_RANGE as usize) {
                    let count = (held.length() - first).min(MAX_RANGE);
                    worker.read(held, file, &opened, first, count, "at the end")?;
                }
                Ok(())
            })?;
        }
        Ok(self.findings)
    }

    fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(self.rng.below(bound.into())).unwrap_or(0)
    }

    fn choose(&mut self) -> Operation {
        let mut place = self
            .rng
            .below(OPERATIONS.iter().map(|(_, share)| share).sum());
        for (operation, share) in OPERATIONS {
            if place < share {
                return operation;
            }
            place -= share;
        }
        Operation::Read
    }

    /// Run `work` on a file that is locked for it, with other readers if it only reads.
    fn guarded(
        &mut self,
        file: u32,
        reads: bool,
        work: impl FnOnce(&mut Self, &Held<'_>, u32, &Path) -> std::io::Result<()>,
    ) -> Result<(), String> {
        let table = self.table;
        let held = if reads {
            table.shared(file as usize)
        } else {
            table.exclusive(file as usize)
        };
        let Some(held) = held else {
            return Ok(());
        };
        let path = self.options.folder.join(format!("{file:04}"));
        work(self, &held, file, &path).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn fill_one(&mut self, held: &Held<'_>, file: u32, path: &Path) -> std::io::Result<()> {
        let created = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        for first in (0..self.options.pages).step_by(MAX_RANGE as usize) {
            let count = (self.options.pages - first).min(MAX_RANGE);
            self.write(held, file, &created, first, count)?;
        }
        held.set_length(self.options.pages);
        created.sync_all()
    }

    fn apply(
        &mut self,
        operation: Operation,
        held: &Held<'_>,
        file: u32,
        path: &Path,
    ) -> std::io::Result<()> {
        let length = held.length();
        if length == 0 {
            return Ok(()); // not created yet
        }
        let first = self.below(length);
        let count = 1 + self.below((length - first).min(MAX_RANGE));
        match operation {
            Operation::Read => {
                let opened = open(path, OFlags::empty())?;
                self.read(held, file, &opened, first, count, "read")
            }
            Operation::ReadDirect => {
                let opened = open(path, OFlags::DIRECT)?;
                self.read(held, file, &opened, first, count, "direct read")
            }
            Operation::ReadMapped => {
                let opened = open(path, OFlags::empty())?;
                let map = FileMap::new(&opened, first, count)?;
                for index in 0..count {
                    map.read(index, self.page(index));
                    self.verify(held, file, first + index, index, "mapped read");
                }
                Ok(())
            }
            Operation::Write => {
                let opened = open(path, OFlags::empty())?;
                self.write(held, file, &opened, first, count)
            }
            Operation::WriteDirect => {
                let opened = open(path, OFlags::DIRECT)?;
                self.write(held, file, &opened, first, count)
            }
            Operation::WriteMapped => {
                let opened = open(path, OFlags::empty())?;
                let map = FileMap::new(&opened, first, count)?;
                self.make(held, file, first, count);
                for index in 0..count {
                    map.write(index, self.page(index));
                }
                Ok(())
            }
            Operation::Truncate => {
                let opened = open(path, OFlags::empty())?;
                let kept = first + 1;
                opened.set_len(bytes(kept))?;
                forget(held, kept, length - kept);
                let next = 1 + self.below(self.options.pages);
                opened.set_len(bytes(next))?;
                forget(held, next, kept.saturating_sub(next));
                held.set_length(next);
                Ok(())
            }
            Operation::CutPage => {
                let opened = open(path, OFlags::empty())?;
                let rest = 1 + self.below(LAST_BYTE) as usize;
                opened.set_len(bytes(first) + rest as u64)?;
                opened.set_len(bytes(length))?;
                self.verify_cut(held, file, &opened, first, rest..PAGE_SIZE)?;
                forget(held, first, length - first);
                self.write(held, file, &opened, first, 1)
            }
            Operation::PunchInPage => {
                let opened = open(path, OFlags::empty())?;
                let start = self.below(LAST_BYTE);
                let size = 1 + self.below(LAST_BYTE - start);
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fs::fallocate(&opened, flags, bytes(first) + u64::from(start), size.into())?;
                self.verify_cut(
                    held,
                    file,
                    &opened,
                    first,
                    start as usize..(start + size) as usize,
                )?;
                self.write(held, file, &opened, first, 1)
            }
            Operation::PunchHole => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                zero(held, path, flags, first, count)
            }
            Operation::ZeroRange => zero(
                held,
                path,
                FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
                first,
                count,
            ),
            Operation::RenameOver => {
                let other = path.with_extension("new");
                self.fill_one(held, file, &other)?;
                std_fs::rename(&other, path)
            }
            Operation::DropCache => {
                let opened = open(path, OFlags::empty())?;
                opened.sync_data()?;
                fs::fadvise(&opened, 0, None, Advice::DontNeed)?;
                Ok(())
            }
        }
    }

    /// A page of the buffer.
    fn page(&mut self, index: u32) -> &mut Page {
        let index = (index as usize).min(self.buffer.len() - 1);
        #[expect(clippy::indexing_slicing, reason = "the buffer is not empty")]
        &mut self.buffer[index]
    }

    fn bytes_of_buffer(&mut self, count: u32) -> &mut [u8] {
        let bytes = self.buffer.as_flattened_mut();
        let wanted = (count as usize * PAGE_SIZE).min(bytes.len());
        bytes.split_at_mut(wanted).0
    }

    /// What a page is for [`Content`].
    fn id(&self, file: u32, page: u32) -> u32 {
        file * self.options.pages + page
    }

    /// Put the next versions of pages into the buffer.
    fn make(&mut self, held: &Held<'_>, file: u32, first: u32, count: u32) {
        for index in 0..count {
            let page = first + index;
            // Drawn, not counted: what a page held before a hole is never right again.
            let version = u32::try_from(self.rng.below(u32::MAX.into())).unwrap_or(0) + 1;
            held.set_version(page, version);
            let id = self.id(file, page);
            let index = (index as usize).min(self.buffer.len() - 1);
            #[expect(clippy::indexing_slicing, reason = "the buffer is not empty")]
            self.content.write(id, version, &mut self.buffer[index]);
        }
    }

    fn write(
        &mut self,
        held: &Held<'_>,
        file: u32,
        to: &File,
        first: u32,
        count: u32,
    ) -> std::io::Result<()> {
        self.make(held, file, first, count);
        self.findings.pages_written += u64::from(count);
        to.write_all_at(self.bytes_of_buffer(count), bytes(first))
    }

    fn read(
        &mut self,
        held: &Held<'_>,
        file: u32,
        from: &File,
        first: u32,
        count: u32,
        how: &str,
    ) -> std::io::Result<()> {
        from.read_exact_at(self.bytes_of_buffer(count), bytes(first))?;
        for index in 0..count {
            self.verify(held, file, first + index, index, how);
        }
        Ok(())
    }

    fn verify(&mut self, held: &Held<'_>, file: u32, page: u32, index: u32, how: &str) {
        self.expect(held, file, page);
        self.compare(file, page, index, how, held.version(page));
    }

    fn expect(&mut self, held: &Held<'_>, file: u32, page: u32) {
        match held.version(page) {
            0 => self.expected.fill(0),
            version => {
                let id = self.id(file, page);
                self.content.write(id, version, &mut self.expected);
            }
        }
    }

    fn compare(&mut self, file: u32, page: u32, index: u32, how: &str, version: u32) {
        self.findings.pages_read += 1;
        let expected = *self.expected;
        let found = self.page(index);
        if *found == expected {
            return;
        }
        let at = found.iter().zip(&expected).position(|(a, b)| a != b);
        self.findings.bad_pages += 1;
        if self.findings.errors.len() < MAX_REPORTED {
            self.findings.errors.push(format!(
                "file {file} page {page}, {how}: not version {version} from byte {}",
                at.unwrap_or(0)
            ));
        }
    }

    /// A page with a hole in it, that must show nothing of what was there.
    fn verify_cut(
        &mut self,
        held: &Held<'_>,
        file: u32,
        from: &File,
        page: u32,
        hole: std::ops::Range<usize>,
    ) -> std::io::Result<()> {
        from.read_exact_at(self.bytes_of_buffer(1), bytes(page))?;
        self.expect(held, file, page);
        self.expected.get_mut(hole).unwrap_or_default().fill(0);
        self.compare(file, page, 0, "after a cut", held.version(page));
        Ok(())
    }
}

fn bytes(pages: u32) -> u64 {
    u64::from(pages) * PAGE_SIZE as u64
}

fn open(path: &Path, flags: OFlags) -> std::io::Result<File> {
    let flags = flags.bits().try_into().unwrap_or(0);
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
}

/// Pages become zeros.
fn forget(held: &Held<'_>, first: u32, count: u32) {
    for page in first..first + count {
        held.set_version(page, 0);
    }
}

fn zero(
    held: &Held<'_>,
    path: &Path,
    flags: FallocateFlags,
    first: u32,
    count: u32,
) -> std::io::Result<()> {
    let opened = open(path, OFlags::empty())?;
    fs::fallocate(&opened, flags, bytes(first), bytes(count))?;
    forget(held, first, count);
    Ok(())
}
