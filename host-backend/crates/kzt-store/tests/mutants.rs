// SPDX-License-Identifier: GPL-2.0-or-later
//! Bugs put into a copy of the source, one at a time: the ancestors', races that the source is careful
//! to avoid, and what a page could forge on a guest's ports. The test that is there because of the bug
//! has to fail. A test that cannot fail says nothing.
//!
//! A mutant is a text of the source and what takes its place. Whoever changes that source changes
//! the mutant with it: a text that is not found is a failure.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A bug, and the test that it must not pass.
struct Mutant {
    bug: &'static str,
    file: &'static str,
    /// Every place of each text changes.
    changes: &'static [(&'static str, &'static str)],
    /// Test binary and test.
    test: (&'static str, &'static str),
}

const WIRE: &[Mutant] = &[
    Mutant {
        bug: "a relay port's HELLO counts whatever its nonce",
        file: "src/port/host.rs",
        changes: &[("if hello.nonce != self.nonce {", "if false {")],
        test: (
            "port",
            "a_page_of_forged_frames_begins_no_session_when_its_frame_breaks_off",
        ),
    },
    Mutant {
        bug: "a tmem port's HELLO counts whatever its nonce",
        file: "src/tmem/host.rs",
        changes: &[("if hello.nonce != self.nonce {", "if false {")],
        test: (
            "tmem",
            "the_last_hello_within_a_broken_frame_counts_if_it_has_the_nonce",
        ),
    },
    Mutant {
        bug: "an agent takes the WELCOME of any session",
        file: "src/port/agent.rs",
        changes: &[(
            "Kind::Welcome => header.session == session,",
            "Kind::Welcome => true,",
        )],
        test: ("port", "pages_that_an_agent_finds_begin_no_session"),
    },
];

const STORE: &[Mutant] = &[
    Mutant {
        bug: "a save skips the first page of each object",
        file: "src/pool.rs",
        changes: &[(
            "Some((last, index)) if last == object => index + 1,\n                _ => 0,",
            "Some((last, index)) if last == object => index + 1,\n                _ => 1,",
        )],
        test: (
            "ancestors",
            "a_save_begins_with_the_first_page_of_each_pool",
        ),
    },
    Mutant {
        bug: "a save forgets what leaves meanwhile",
        file: "src/pool.rs",
        changes: &[("filter(|_| freed.pages > 0)", "filter(|_| freed.pages > 1)")],
        test: (
            "save",
            "rule_5_what_is_restored_is_what_the_client_has_in_the_end",
        ),
    },
    Mutant {
        bug: "an exclusive get takes the page out of the tree alone",
        file: "src/radix.rs",
        changes: &[(
            "                self.free_block(offset)\n",
            "                Location::decode(self.arena.load(offset)).map_or_else(Held::default, Held::block)\n",
        )],
        test: (
            "ancestors",
            "an_exclusive_get_that_fails_leaves_nothing_behind",
        ),
    },
    Mutant {
        bug: "an exclusive get that fails leaves the page",
        file: "src/pool.rs",
        changes: &[(
            "Kind::Ephemeral => Leave::AtOnce",
            "Kind::Ephemeral => Leave::Once",
        )],
        test: (
            "ancestors",
            "an_exclusive_get_that_fails_leaves_nothing_behind",
        ),
    },
    Mutant {
        bug: "every operation takes a global lock first",
        file: "src/put.rs",
        changes: &[
            (
                "\nimpl State {",
                "\nstatic ALL: std::sync::Mutex<()> = std::sync::Mutex::new(());\n\nimpl State {",
            ),
            (
                "let mut state = self.lock();",
                "let _all = crate::lock(&ALL);\n            let mut state = self.lock();",
            ),
        ],
        test: ("ancestors", "no_operation_waits_for_another_clients"),
    },
    Mutant {
        bug: "a pool's number is used without its sign",
        file: "src/client.rs",
        changes: &[(
            "u8::try_from(id).ok()",
            "u8::try_from(id.unsigned_abs()).ok()",
        )],
        test: ("ancestors", "a_negative_pool_number_is_no_index"),
    },
    Mutant {
        bug: "a guest reaches the host's own pool",
        file: "src/client.rs",
        changes: &[(
            "filter(|&id| id < MAX_POOLS)",
            "filter(|&id| id <= MAX_POOLS)",
        )],
        test: ("ancestors", "what_is_the_hosts_is_out_of_a_guests_reach"),
    },
    Mutant {
        bug: "whoever knows a UUID shares its pool",
        file: "src/client.rs",
        changes: &[(
            "Kind::Shared if !self.shared.admits(uuid, &self.name) => Kind::Ephemeral,",
            "Kind::Shared if self.name.is_empty() => Kind::Ephemeral,",
        )],
        test: ("ancestors", "a_client_is_not_who_it_says"),
    },
    Mutant {
        bug: "whatever begins with a page is one",
        file: "src/tmem.rs",
        changes: &[(
            "let Ok(page) = <&Page>::try_from(page) else {",
            "let Some(page) = page.first_chunk() else {",
        )],
        test: ("ancestors", "a_page_has_a_pages_bytes"),
    },
    Mutant {
        bug: "a guest's number is asserted",
        file: "src/client.rs",
        changes: &[(
            "u8::try_from(id).ok()",
            "u8::try_from(id).map_or_else(|_| panic!(), Some)",
        )],
        test: ("ancestors", "nothing_that_a_guest_says_is_asserted"),
    },
    Mutant {
        bug: "persistent pages have no way out",
        file: "src/put.rs",
        changes: &[("spills && self.space.spill()", "spills && false")],
        test: (
            "spill",
            "pages_that_memory_has_no_room_for_come_back_from_the_disk",
        ),
    },
    Mutant {
        bug: "who holds least for his weight is evicted from",
        file: "src/limits.rs",
        changes: &[(
            "share(self, other).cmp(&share(other, self))",
            "share(other, self).cmp(&share(self, other))",
        )],
        test: ("limits", "who_has_most_for_his_weight_gives_way"),
    },
    Mutant {
        bug: "caps are documented and not enforced",
        file: "src/limits.rs",
        changes: &[("<= persistent.cap;", "<= u64::MAX;")],
        test: ("limits", "no_client_has_more_than_its_cap"),
    },
    Mutant {
        bug: "a refused put leaves the old page",
        file: "src/tmem.rs",
        changes: &[(
            "            pool.flush(object, index);\n            return error(Errno::FAULT);",
            "            return error(Errno::FAULT);",
        )],
        test: (
            "operations",
            "put_page_of_what_is_no_page_is_a_fault_and_flushes_the_old_one",
        ),
    },
    Mutant {
        bug: "a page is spilled though it was replaced meanwhile",
        file: "src/tier.rs",
        changes: &[(
            "owned.offset == offset && self.is_block",
            "owned.offset > 0 || self.is_block",
        )],
        test: ("schedules", "pages_in_use_are_spilled_and_collected"),
    },
    Mutant {
        bug: "a page is moved from where it was before its owner was locked",
        file: "src/owner.rs",
        changes: &[("(page.offset == offset).then", "(page.offset > 0).then")],
        test: ("schedules", "pages_in_use_move_between_chunks"),
    },
    Mutant {
        bug: "memory that is on its way is taken for none",
        file: "src/frames.rs",
        changes: &[("if extents.moving > 0 {", "if extents.moving > 100 {")],
        test: ("schedules", "the_last_extent_is_waited_for"),
    },
];

/// A copy of a crate, in a workspace of its own.
struct Copy {
    crate_dir: PathBuf,
}

impl Copy {
    fn make(name: &str) -> Self {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let workspace = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants");
        let crate_dir = workspace.join(name);
        let _ = fs::remove_dir_all(&workspace);
        copy(&here.with_file_name(name), &crate_dir);
        let root = here.ancestors().nth(3).unwrap();
        fs::copy(root.join("Cargo.lock"), workspace.join("Cargo.lock")).unwrap();
        let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
        let members = r#"members = ["host-backend/crates/*", "guest-agent/*"]"#;
        assert!(manifest.contains(members));
        let alone = manifest.replace(members, &format!("members = [{name:?}]"));
        fs::write(workspace.join("Cargo.toml"), alone).unwrap();
        Self { crate_dir }
    }

    fn cargo(&self, test: &str, arguments: &[&str]) -> Output {
        let features: &[&str] = match test {
            "schedules" => &["--features", "shuttle"],
            _ => &[],
        };
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        Command::new(env!("CARGO"))
            .current_dir(&self.crate_dir)
            .args(["test", "--offline", "--test", test])
            .args(features)
            .args(arguments)
            // Where the crates are built already that this one needs.
            .env("CARGO_TARGET_DIR", built)
            .env_remove("RUSTFLAGS")
            .output()
            .unwrap()
    }

    /// Whether a test passes, in a source that compiles.
    fn passes(&self, (binary, test): (&str, &str)) -> bool {
        let built = self.cargo(binary, &["--no-run"]);
        let errors = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "{errors}");
        let run = self.cargo(binary, &["--", "--exact", test]);
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(said.contains("running 1 test"), "no test {test}: {said}");
        run.status.success()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Puts each bug into a copy of that crate.
fn put_back(mutants: &[Mutant], name: &str) {
    let copy = Copy::make(name);
    for mutant in mutants {
        assert!(copy.passes(mutant.test), "{:?} as it is", mutant.test);
    }
    for mutant in mutants {
        let file = copy.crate_dir.join(mutant.file);
        let sound = fs::read_to_string(&file).unwrap();
        let mut text = sound.clone();
        for (old, new) in mutant.changes {
            assert!(
                text.contains(old),
                "{}: not in {}: {old}",
                mutant.bug,
                mutant.file
            );
            text = text.replace(old, new);
        }
        fs::write(&file, text).unwrap();
        let passes = copy.passes(mutant.test);
        fs::write(&file, sound).unwrap();
        assert!(!passes, "{}: {} passes", mutant.bug, mutant.test.1);
        println!("{}: caught by {}", mutant.bug, mutant.test.1);
    }
}

/// One after the other: cargo builds both in the same folder.
#[test]
fn every_bug_put_back_fails_its_test() {
    put_back(WIRE, "kzt-wire");
    put_back(STORE, "kzt-store");
}
