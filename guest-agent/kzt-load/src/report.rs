// SPDX-License-Identifier: GPL-2.0-or-later
//! The result, for programs and for people.

use std::fmt::Write;

use crate::load::{Findings, WrongPage};
use crate::vmstat::SwapTraffic;

/// What a run has found.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) pages: u32,
    pub(crate) passes: u32,
    /// Of fill and passes.
    pub(crate) seconds: f64,
    pub(crate) fill_seconds: f64,
    /// In the same time.
    pub(crate) traffic: SwapTraffic,
    pub(crate) findings: Findings,
}

impl Report {
    pub(crate) fn ok(&self) -> bool {
        self.findings.bad_pages == 0
    }

    /// One JSON object on one line; counters that the kernel lacks are null.
    pub(crate) fn json(&self) -> String {
        let errors: Vec<String> = self.findings.wrong_pages.iter().map(json_error).collect();
        format!(
            "{{\"ok\": {}, \"pages\": {}, \"passes\": {}, \"bad_pages\": {}, \"seconds\": {:.3}, \
             \"fill_seconds\": {:.3}, \"longest_access_seconds\": {:.6}, \"pswpin\": {}, \"pswpout\": {}, \"errors\": [{}]}}",
            self.ok(),
            self.pages,
            self.passes,
            self.findings.bad_pages,
            self.seconds,
            self.fill_seconds,
            self.findings.longest_access.as_secs_f64(),
            or_else(self.traffic.pages_in, "null"),
            or_else(self.traffic.pages_out, "null"),
            errors.join(", "),
        )
    }

    /// One line, and one more for each wrong page reported.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "{}: {} pages, {} passes, {} bad pages, {:.1} s (fill {:.1} s), \
             longest access {:.3} s, swapped in {}, out {}",
            if self.ok() { "ok" } else { "FAILED" },
            self.pages,
            self.passes,
            self.findings.bad_pages,
            self.seconds,
            self.fill_seconds,
            self.findings.longest_access.as_secs_f64(),
            or_else(self.traffic.pages_in, "?"),
            or_else(self.traffic.pages_out, "?"),
        );
        for wrong in &self.findings.wrong_pages {
            let WrongPage {
                pass,
                address,
                offset,
                expected,
                found,
                wrong_bytes,
                holds,
            } = wrong;
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "\npass {pass}: address {address:#x} (offset {offset:#x}): \
                 expected {expected:#04x}, found {found:#04x}; \
                 {wrong_bytes} bytes wrong, the page holds {holds}"
            );
        }
        text
    }
}

fn json_error(wrong: &WrongPage) -> String {
    let WrongPage {
        pass,
        address,
        offset,
        expected,
        found,
        wrong_bytes,
        holds,
    } = wrong;
    format!(
        "{{\"pass\": {pass}, \"address\": \"{address:#x}\", \"offset\": {offset}, \
         \"expected\": {expected}, \"found\": {found}, \"wrong_bytes\": {wrong_bytes}, \
         \"holds\": \"{holds}\"}}"
    )
}

fn or_else(counter: Option<u64>, missing: &str) -> String {
    counter.map_or_else(|| missing.to_owned(), |counter| counter.to_string())
}
