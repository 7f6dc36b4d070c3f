// SPDX-License-Identifier: GPL-2.0-or-later
//! What a file occupies, sampled by a thread while others write it, in this process or another.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Bytes that a file occupies; none as long as it is not there.
pub(crate) fn occupied(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.blocks() * 512)
}

/// A thread that looks every now and then.
pub(crate) struct Sampler {
    done: Arc<AtomicBool>,
    thread: JoinHandle<(u64, u64)>,
    path: PathBuf,
}

impl Sampler {
    pub(crate) fn new(path: &Path) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let (end, file) = (Arc::clone(&done), path.to_owned());
        let thread = thread::spawn(move || {
            let (mut most, mut samples) = (0, 0);
            while !end.load(Relaxed) {
                most = most.max(occupied(&file));
                samples += 1;
                thread::sleep(Duration::from_micros(100));
            }
            (most, samples)
        });
        Self {
            done,
            thread,
            path: path.to_owned(),
        }
    }

    /// The most that was seen; `--nocapture` shows it.
    pub(crate) fn most(self) -> u64 {
        self.done.store(true, Relaxed);
        let (most, samples) = self.thread.join().unwrap();
        println!(
            "{}: at most {most} bytes in {samples} samples",
            self.path.display()
        );
        assert!(samples > 10, "{samples}");
        most
    }
}
