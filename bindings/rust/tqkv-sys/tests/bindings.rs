// SPDX-License-Identifier: Apache-2.0
//! The bindings against what a C compiler says of the header. That they are what generate.py makes of it,
//! tests/run.sh header checks.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn repository(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").join(file)
}

/// The same lines as the table that a C program prints: every type, struct, field and constant, and no other.
#[test]
fn layout_is_that_of_c() {
    let text = std::fs::read_to_string(repository("tests/capi/layout.txt")).expect("tests/capi/layout.txt");
    let expected: BTreeSet<String> = text.lines().map(str::to_owned).collect();
    let mut found = BTreeSet::new();
    for &(name, value) in tqkv_sys::CONSTANTS {
        found.insert(format!("constant {name} {value}"));
    }
    for &(name, size, signed) in tqkv_sys::TYPES {
        found.insert(format!("type {name} size {size} signed {}", i32::from(signed)));
    }
    for &(name, size, align, fields) in tqkv_sys::LAYOUT {
        found.insert(format!("struct {name} size {size} align {align}"));
        for &(field, offset, size) in fields {
            found.insert(format!("{name}.{field} offset {offset} size {size}"));
        }
    }
    assert!(expected.len() > 100);
    let (only_c, only_rust): (Vec<_>, Vec<_>) =
        (expected.difference(&found).collect(), found.difference(&expected).collect());
    assert!(only_c.is_empty() && only_rust.is_empty(), "only in C: {only_c:#?}, only here: {only_rust:#?}");
}

#[test]
fn versions_agree() {
    let header = format!(
        "{}.{}.{}",
        tqkv_sys::TQ_VERSION_MAJOR,
        tqkv_sys::TQ_VERSION_MINOR,
        tqkv_sys::TQ_VERSION_PATCH
    );
    assert_eq!(env!("CARGO_PKG_VERSION"), header);
    assert_eq!(tqkv_sys::SONAME, format!("libtqkv.so.{}", tqkv_sys::TQ_ABI_VERSION));
    let manifest =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tqkv/Cargo.toml")).unwrap();
    assert!(
        manifest.contains(&format!("tqkv-sys = {{ version = \"{header}\"")),
        "the crate tqkv wants another tqkv-sys than {header}"
    );
}
