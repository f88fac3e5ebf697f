// SPDX-License-Identifier: Apache-2.0
//! With the feature `link`: finds the library. `TQKV_LIB_DIR` names its folder, else pkg-config is asked for
//! the module `tqkv`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "link")]
    link();
}

#[cfg(feature = "link")]
fn link() {
    println!("cargo:rerun-if-env-changed=TQKV_LIB_DIR");
    println!("cargo:rerun-if-env-changed=DOCS_RS");
    if std::env::var_os("DOCS_RS").is_some() {
        return; // documentation is made where the library is not
    }
    if let Ok(folder) = std::env::var("TQKV_LIB_DIR") {
        println!("cargo:rustc-link-search=native={folder}");
        println!("cargo:rustc-link-lib=dylib=tqkv");
        return;
    }
    let wanted = env!("CARGO_PKG_VERSION");
    if let Err(error) = pkg_config::Config::new().atleast_version(wanted).probe("tqkv") {
        eprintln!(
            "tqkv >= {wanted} was not found, and the feature `link` needs it when the program is built. \
             Either install it (Debian: libtqkv-dev), or set PKG_CONFIG_PATH to the folder of tqkv.pc, or \
             TQKV_LIB_DIR to the folder of libtqkv.so, or leave the feature `link` out to open the library \
             at run time.\n{error}"
        );
        std::process::exit(1);
    }
}
