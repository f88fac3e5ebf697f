// SPDX-License-Identifier: Apache-2.0
//! What becomes of the lists in `bindings.rs`: constants, structs and functions, and beside each kind a table
//! of it, by which the layout test and the loading code go through all.

macro_rules! constants {
    ($($(#[$about:meta])* $name:ident: $type:ty = $value:literal;)*) => {
        $($(#[$about])* pub const $name: $type = $value;)*

        /// Name and value of every constant.
        pub const CONSTANTS: &[(&str, i64)] = &[$((stringify!($name), $name as i64)),*];
    };
}

macro_rules! numbers {
    ($($(#[$about:meta])* $name:ident = $type:ty;)*) => {
        $($(#[$about])* pub type $name = $type;)*

        /// Name, size and whether it is signed, of every named number type.
        pub const TYPES: &[(&str, usize, bool)] =
            &[$((stringify!($name), size_of::<$name>(), $name::MIN != 0)),*];
    };
}

macro_rules! handles {
    ($($(#[$about:meta])* $name:ident;)*) => {$(
        $(#[$about])*
        /// Opaque; only pointers to it are used.
        #[repr(C)]
        #[derive(Debug)]
        pub struct $name {
            _private: [u8; 0],
            _marker: core::marker::PhantomData<(*mut u8, core::marker::PhantomPinned)>,
        }
    )*};
}

macro_rules! structs {
    ($($(#[$about:meta])* $id:ident $name:ident {
        $($(#[$field_about:meta])* $field:ident: $type:ty,)*
    })*) => {
        $(
            $(#[$about])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug)]
            pub struct $name {
                $($(#[$field_about])* pub $field: $type,)*
            }

            impl Default for $name {
                /// All zero, which means the defaults, but for `struct_size`.
                fn default() -> Self {
                    // SAFETY: integers, floats, raw pointers and optional function pointers may all be zero.
                    let mut zero: Self = unsafe { core::mem::zeroed() };
                    zero.struct_size = size_of::<Self>() as u32;
                    zero
                }
            }
        )*

        /// Id for `tq_struct_size`, name and size here of every public struct.
        pub const STRUCTS: &[(i32, &str, usize)] = &[$(($id, stringify!($name), size_of::<$name>())),*];

        /// Name, size, alignment and fields (name, offset, size) of every public struct, for comparison with
        /// what a C compiler says.
        pub const LAYOUT: &[(&str, usize, usize, &[(&str, usize, usize)])] = &[$((
            stringify!($name),
            size_of::<$name>(),
            align_of::<$name>(),
            &[$((stringify!($field), core::mem::offset_of!($name, $field), size_of::<$type>())),*],
        )),*];
    };
}

macro_rules! functions {
    ($($(#[$about:meta])* fn $name:ident($($parameter:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        /// Every function of the library. Made by [`Api::from_symbols`] from an opened library, or by
        /// `Api::linked` with the feature `link`.
        ///
        /// The functions are `unsafe` to call: their contracts are those of `tqkv.h`, repeated here.
        #[derive(Clone, Copy, Debug)]
        pub struct Api {
            $($(#[$about])* pub $name: unsafe extern "C" fn($($parameter: $type),*) $(-> $result)?,)*
        }

        impl Api {
            /// Names of all functions, in the header's order.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];

            /// Fills the table from `symbol`, which returns the address of a name or `None`. If any is
            /// missing, all the missing names are the error.
            ///
            /// # Safety
            /// Every address must be that of the function of `tqkv.h` with that name, and stay valid as long
            /// as the table is used.
            pub unsafe fn from_symbols(
                mut symbol: impl FnMut(&'static str) -> Option<*mut c_void>,
            ) -> Result<Api, Vec<&'static str>> {
                let mut missing = Vec::new();
                let mut find = |name| {
                    let address = symbol(name).unwrap_or(core::ptr::null_mut());
                    if address.is_null() {
                        missing.push(name);
                    }
                    address
                };
                $(let $name = find(stringify!($name));)*
                if !missing.is_empty() {
                    return Err(missing);
                }
                // SAFETY: not null; the caller answers for the types.
                Ok(unsafe {
                    Api {
                        $($name: core::mem::transmute::<
                            *mut c_void,
                            unsafe extern "C" fn($($parameter: $type),*) $(-> $result)?,
                        >($name),)*
                    }
                })
            }

            /// The functions that the program was linked with.
            #[cfg(feature = "link")]
            pub fn linked() -> Api {
                Api { $($name: linked::$name),* }
            }
        }

        /// The functions as symbols of the linked library; described at [`Api`].
        #[cfg(feature = "link")]
        pub mod linked {
            use super::*;
            extern "C" {
                $(pub fn $name($($parameter: $type),*) $(-> $result)?;)*
            }
        }
    };
}
