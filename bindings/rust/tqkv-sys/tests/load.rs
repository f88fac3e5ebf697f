// SPDX-License-Identifier: Apache-2.0
//! Missing, foreign, old and newer libraries. The last two are made here with the C compiler that links Rust
//! programs.
#![cfg(feature = "dlopen")]

use std::path::{Path, PathBuf};
use std::process::Command;
use tqkv_sys::{Api, Library, LoadError, LIBRARY_VARIABLE, STRUCTS, TQ_ABI_VERSION};

/// A library that has these functions, this ABI number, and structs this much larger than ours.
fn fake_library(name: &str, functions: &[&str], abi: i32, larger: i64) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("tqkv-load-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut code = String::from("#include <stddef.h>\n#include <stdint.h>\n");
    for function in functions {
        code += &match *function {
            "tq_version" => "const char *tq_version(void) { return \"9.8.7\"; }\n".to_owned(),
            "tq_abi_version" => format!("int32_t tq_abi_version(void) {{ return {abi}; }}\n"),
            "tq_struct_size" => {
                let cases: String = STRUCTS
                    .iter()
                    .map(|(id, _, size)| format!("case {id}: return {};", *size as i64 + larger))
                    .collect();
                format!("size_t tq_struct_size(int32_t id) {{ switch (id) {{ {cases} }} return 0; }}\n")
            }
            other => format!("int32_t {other}(void) {{ return 99; }}\n"),
        };
    }
    let (source, library) = (folder.join(format!("{name}.c")), folder.join(format!("lib{name}.so")));
    std::fs::write(&source, code).unwrap();
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source)
        .status()
        .expect("cc runs");
    assert!(status.success());
    library
}

fn open(path: &Path) -> Result<Library, LoadError> {
    // SAFETY: no file, one that is no library, or one made here, whose functions do nothing.
    unsafe { Library::open_at(path) }
}

fn text_of(path: &Path) -> String {
    open(path).expect_err("it must not load").to_string()
}

#[test]
fn a_missing_library_says_what_was_tried_and_what_helps() {
    let error = open(Path::new("/nonexistent/libtqkv.so")).unwrap_err();
    assert!(matches!(error, LoadError::NotFound { .. }));
    let text = error.to_string();
    for part in ["/nonexistent/libtqkv.so", "the path given", "No such file", "TQKV_LIBRARY", "Install tqkv"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_file_that_is_no_library() {
    let text = text_of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    assert!(text.contains("cannot open") && text.contains("Cargo.toml"), "{text}");
}

#[test]
fn another_library_lacks_the_functions() {
    let text = text_of(&fake_library("other", &["something"], 0, 0));
    assert!(text.contains("lacks tq_status_name") && text.contains("not tqkv"), "{text}");
}

#[test]
fn an_older_library_lacks_a_function() {
    let functions: Vec<&str> =
        Api::NAMES.iter().copied().filter(|&name| name != "tq_sequence_flags").collect();
    let text = text_of(&fake_library("older", &functions, TQ_ABI_VERSION, 0));
    assert!(text.contains("lacks tq_sequence_flags:") && text.contains("older than this crate"), "{text}");
}

#[test]
fn a_library_of_another_abi() {
    let text = text_of(&fake_library("abi", Api::NAMES, TQ_ABI_VERSION + 5, 0));
    assert!(text.contains("tqkv 9.8.7 with ABI 5") && text.contains("speaks ABI 0"), "{text}");
}

#[test]
fn structs_may_be_larger_but_not_smaller() {
    let text = text_of(&fake_library("smaller", Api::NAMES, TQ_ABI_VERSION, -8));
    assert!(text.contains("tq_device_info has") && text.contains("too old"), "{text}");
    open(&fake_library("larger", Api::NAMES, TQ_ABI_VERSION, 8)).expect("a newer library of the same ABI");
}

/// In a process of its own, because the environment is the process's.
#[test]
fn the_variable_is_used_when_no_path_is_given_and_never_fallen_through() {
    if std::env::var_os("TQKV_LOAD_TEST_CHILD").is_some() {
        println!(
            "RESULT {}",
            Library::open().map_or_else(|error| error.to_string(), |library| library.name().to_owned())
        );
        return;
    }
    let good = fake_library("variable", Api::NAMES, TQ_ABI_VERSION, 0);
    for (value, expected) in [
        (good.to_str().unwrap(), "RESULT /"),
        ("/nonexistent/x.so", "RESULT cannot open /nonexistent/x.so (from the variable"),
    ] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "the_variable_is_used_when_no_path_is_given_and_never_fallen_through",
                "--nocapture",
            ])
            .env("TQKV_LOAD_TEST_CHILD", "1")
            .env(LIBRARY_VARIABLE, value)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(expected), "{text}");
    }
}
