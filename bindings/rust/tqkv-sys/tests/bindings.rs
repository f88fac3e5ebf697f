// SPDX-License-Identifier: Apache-2.0
//! The checked-in bindings against the header they are made from, and against what a C compiler says of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn repository(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..").join(file)
}

#[test]
fn bindings_are_what_the_generator_makes_of_the_header() {
    let generator = Path::new(env!("CARGO_MANIFEST_DIR")).join("generate.py");
    let output = Command::new("python3").arg(generator).arg("--check").output().expect("python3 runs");
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
}

#[test]
fn generator_refuses_what_it_does_not_understand() {
    let header = std::fs::read_to_string(repository("include/tqkv.h")).unwrap();
    let folder = std::env::temp_dir().join(format!("tqkv-generate-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for (from, to) in [
        ("int32_t num_layers;", "long num_layers;"),
        ("int32_t num_layers;", "int32_t num_layers : 4;"),
        ("#define TQ_ERROR_IO 14", "#define TQ_ERROR_IO (7 * 2)"),
        ("typedef int32_t tq_dtype;", "typedef enum { TQ_A } tq_dtype;"),
        ("#define TQ_STRUCT_ALLOCATOR 8", "#define TQ_STRUCT_OTHER 8"),
        (
            "TQ_API tq_status tq_batch_destroy(tq_batch *batch);",
            "tq_status tq_batch_destroy(tq_batch *batch);",
        ),
    ] {
        assert!(header.contains(from), "the header has no '{from}' any more");
        let path = folder.join("tqkv.h");
        std::fs::write(&path, header.replacen(from, to, 1)).unwrap();
        let mut command = Command::new("python3");
        let generator = Path::new(env!("CARGO_MANIFEST_DIR")).join("generate.py");
        let output =
            command.arg(generator).args([&path, &folder.join("bindings.rs")]).output().expect("python3 runs");
        assert!(!output.status.success(), "'{to}' was accepted");
    }
    std::fs::remove_dir_all(folder).unwrap();
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
