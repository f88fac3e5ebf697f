// SPDX-License-Identifier: Apache-2.0
//! Is a slice long enough for what the library will read or write in it? This is what makes the calls on
//! slices safe; all else (overlap, ranges) the library checks itself.

use crate::error::{Error, Result};

/// A tensor `[tokens][heads][dim]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub tokens: i64,
    pub heads: i32,
    pub dim: i32,
}

/// Strides (token, head), 0 = dense. A slice may be longer than needed. Counts below 0 need nothing: the
/// library refuses them.
pub(crate) fn check(name: &str, have: usize, shape: Shape, strides: (i64, i64)) -> Result<()> {
    let Shape { tokens, heads, dim } = shape;
    if tokens <= 0 || heads <= 0 || dim <= 0 {
        return Ok(());
    }
    let head = if strides.1 == 0 { i64::from(dim) } else { strides.1 };
    let token = if strides.0 == 0 { i64::from(heads) * i64::from(dim) } else { strides.0 };
    if head < 0 || token < 0 {
        return Err(Error::argument(format!(
            "{name}: token stride {token} and head stride {head} must not be negative"
        )));
    }
    // Below 2^63 * 2^63 each, so that the sum fits.
    let needed = (i128::from(tokens) - 1) * i128::from(token)
        + (i128::from(heads) - 1) * i128::from(head)
        + i128::from(dim);
    if have as i128 >= needed {
        return Ok(());
    }
    Err(Error::argument(format!(
        "{name}: a slice of {have} elements, but {tokens} tokens x {heads} heads x {dim} with strides \
         {token} and {head} need {needed}"
    )))
}

/// `rows * width` numbers without gaps.
pub(crate) fn check_rows(name: &str, have: usize, rows: i64, width: i32) -> Result<()> {
    check(name, have, Shape { tokens: rows, heads: 1, dim: width }, (0, 0))
}

/// A length as the library's int32.
pub(crate) fn count(name: &str, length: usize) -> Result<i32> {
    i32::try_from(length)
        .map_err(|_| Error::argument(format!("{name}: {length} entries are more than 2^31 - 1")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is needed, counted in numbers that cannot overflow, against what fits into a slice.
    #[test]
    fn lengths_never_overflow() {
        let shape = |tokens, heads, dim| Shape { tokens, heads, dim };
        let (most, wide) = (i64::MAX, usize::MAX);
        for (have, shape, strides, fits) in [
            (12, shape(3, 2, 2), (0, 0), true),
            (11, shape(3, 2, 2), (0, 0), false),
            (0, shape(0, 2, 2), (0, 0), true),
            (0, shape(-1, 2, 2), (0, 0), true),
            (8, shape(2, 2, 2), (2, 4), true),
            (7, shape(2, 2, 2), (2, 4), false),
            (100, shape(2, 2, 2), (-4, 0), false),
            (100, shape(2, 2, 2), (0, i64::MIN), false),
            (wide, shape(most, i32::MAX, i32::MAX), (most, most), false),
            (wide, shape(most, 1, 64), (0, 0), false),
            (wide, shape(2, 1, 1), (most, 0), true),
            (wide, shape(4, 1, 1), (most, 0), false),
        ] {
            assert_eq!(check("x", have, shape, strides).is_ok(), fits, "{have} {shape:?} {strides:?}");
        }
    }

    #[test]
    fn counts_are_32_bits_wide() {
        assert_eq!(count("x", i32::MAX as usize).unwrap(), i32::MAX);
        assert!(count("x", i32::MAX as usize + 1).unwrap_err().message.contains("2147483648"));
    }
}
