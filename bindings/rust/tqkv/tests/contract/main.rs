// SPDX-License-Identifier: Apache-2.0
//! Runs the cases that all bindings share (tests/contract/cases.json, described in the README beside it)
//! through the safe interface, except where a step needs memory of its own (workspace) or a value that the
//! types exclude: those go through the `_raw` calls.
//!
//! One line a case, "ok - name" or "not ok - name: why"; arguments select cases by part of their name. The
//! library is the one that Library::open finds.

mod fields;
mod runner;
mod tensors;
mod travel;

use runner::Runner;
use std::path::Path;
use std::process::ExitCode;
use tensors::Tensors;

fn main() -> ExitCode {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/contract/cases.json");
    let text = std::fs::read_to_string(path).expect("tests/contract/cases.json");
    let file: serde_json::Value = serde_json::from_str(&text).expect("valid JSON");
    assert_eq!(file["version"], 1, "version of cases.json");
    let library = tqkv::Library::open().unwrap_or_else(|error| panic!("{error}"));
    let tensors = Tensors::new(&file["tensors"]);
    let (mut passed, mut failed) = (0, 0);
    for case in file["cases"].as_array().expect("cases") {
        let name = case["name"].as_str().expect("name");
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        match Runner::new(&library, &tensors).run(case) {
            Ok(()) => {
                passed += 1;
                println!("ok - contract {name}");
            }
            Err(why) => {
                failed += 1;
                println!("not ok - contract {name}: {}", why.replace('\n', "; "));
            }
        }
    }
    println!("contract: {passed} passed, {failed} failed");
    if failed == 0 && passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
