// SPDX-License-Identifier: GPL-2.0-or-later
//! The host's zram, through its block device: a system call and the block layer are in its times,
//! as they are not in the other engines'.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use kzt_store::{Codec, PAGE_SIZE, Page};
use rustix::fs::OFlags;

use crate::corpus::Corpus;
use crate::engine::{Engine, Worker};
use crate::{Error, Memory};

const CONTROL: &str = "/sys/class/zram-control";
const DIRECT: i32 = i32::from_ne_bytes(OFlags::DIRECT.bits().to_ne_bytes());

/// A zram device of our own, removed with this value.
pub(crate) struct Device {
    number: String,
    node: PathBuf,
    sys: PathBuf,
}

impl Device {
    /// Adds a device to the host; the text says why there can be none.
    pub(crate) fn add() -> Result<Self, String> {
        if !Path::new(CONTROL).exists() {
            let loaded = Command::new("modprobe")
                .arg("zram")
                .stderr(Stdio::null())
                .status();
            if !loaded.is_ok_and(|status| status.success()) {
                return Err("this kernel has no zram, and modprobe finds none".into());
            }
        }
        // Reading adds a device: its number is what is read.
        let number = fs::read_to_string(format!("{CONTROL}/hot_add"))
            .map_err(|error| format!("cannot add a zram device: {error} (it takes root)"))?;
        let number = number.trim().to_owned();
        let device = Self {
            node: format!("/dev/zram{number}").into(),
            sys: format!("/sys/block/zram{number}").into(),
            number,
        };
        if device.node.exists() {
            Ok(device)
        } else {
            Err(format!("{} has not appeared", device.node.display()))
        }
    }

    /// Empties the device and sets it up for a codec; the text says why it cannot be.
    pub(crate) fn fresh(&self, codec: Codec, corpus: &Corpus) -> Result<Zram, String> {
        let set = |key: &str, value: &str| {
            fs::write(self.sys.join(key), value)
                .map_err(|error| format!("zram refuses {key} {value:?}: {error}"))
        };
        set("reset", "1")?;
        match codec {
            Codec::None => return Err("zram always compresses".into()),
            Codec::Lzo => set("comp_algorithm", "lzo")?,
            Codec::Lz4 => set("comp_algorithm", "lz4")?,
            Codec::Zstd(level) => {
                set("comp_algorithm", "zstd")?;
                set("algorithm_params", &format!("algo=zstd level={level}"))?;
            }
        }
        set("disksize", &corpus.logical_bytes().to_string())?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(DIRECT)
            .open(&self.node)
            .map_err(|error| format!("cannot open {}: {error}", self.node.display()))?;
        Ok(Zram {
            file: Arc::new(file),
            statistics: self.sys.join("mm_stat"),
        })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = fs::write(self.sys.join("reset"), "1");
        let _ = fs::write(format!("{CONTROL}/hot_remove"), &self.number);
    }
}

pub(crate) struct Zram {
    file: Arc<File>,
    statistics: PathBuf,
}

impl Engine for Zram {
    const NAME: &str = "zram";

    type Worker = ZramWorker;

    fn workers(&self, threads: usize) -> Result<Vec<ZramWorker>, Error> {
        let worker = || ZramWorker {
            file: Arc::clone(&self.file),
        };
        Ok((0..threads).map(|_| worker()).collect())
    }

    fn memory(&self) -> Result<Memory, Error> {
        let read = fs::read_to_string(&self.statistics);
        let text = read.map_err(failed("cannot read mm_stat"))?;
        let mut fields = text.split_ascii_whitespace().map(str::parse::<u64>);
        // orig_data_size, compr_data_size, mem_used_total
        match (fields.next(), fields.next(), fields.next()) {
            (Some(Ok(_)), Some(Ok(data)), Some(Ok(used))) => Ok(Memory {
                data,
                fragmentation: Some(used.saturating_sub(data)),
                // It has some, but does not tell how much.
                meta: None,
            }),
            _ => Err(failed("cannot understand mm_stat")(
                io::ErrorKind::InvalidData.into(),
            )),
        }
    }
}

fn failed(what: &str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Host {
        what: format!("zram: {what}"),
        source,
    }
}

pub(crate) struct ZramWorker {
    file: Arc<File>,
}

impl Worker for ZramWorker {
    fn put(&mut self, index: usize, page: &Page) -> Result<(), Error> {
        self.file
            .write_all_at(page, position(index))
            .map_err(failed("cannot write"))
    }

    fn get(&mut self, index: usize, out: &mut Page) -> Result<(), Error> {
        self.file
            .read_exact_at(out, position(index))
            .map_err(failed("cannot read"))
    }
}

fn position(index: usize) -> u64 {
    index as u64 * PAGE_SIZE as u64
}
