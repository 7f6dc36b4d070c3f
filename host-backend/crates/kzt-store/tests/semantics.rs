// SPDX-License-Identifier: GPL-2.0-or-later
//! docs/semantics.md and the tests that it names.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

/// docs/semantics.md names tests: they are there, and so is every test of the ABI in it.
#[test]
fn the_document_names_tests_that_exist() {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(here.join("../../../docs/semantics.md")).unwrap();
    let tests = |binary: &str| {
        let path = here.join("tests").join(binary).with_extension("rs");
        std::fs::read_to_string(path).unwrap_or_default()
    };
    let named: Vec<_> = document
        .split('`')
        .filter_map(|code| code.split_once("::"))
        .filter(|(binary, _)| !tests(binary).is_empty())
        .collect();
    assert!(named.len() > 60);
    for (binary, test) in &named {
        let there = tests(binary).contains(&format!("#[test]\nfn {test}() {{"));
        assert!(there, "{binary}::{test}");
    }
    for binary in ["operations", "rules", "pools", "host", "ancestors", "save"] {
        for test in tests(binary).split("#[test]\nfn ").skip(1) {
            let test = test.split('(').next().unwrap();
            assert!(named.contains(&(binary, test)), "{binary}::{test}");
        }
    }
}
