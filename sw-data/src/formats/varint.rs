//! Numbers of seven bits a byte, the lowest first (LEB128), as protobuf, Thrift and Parquet write them.

/// Why something was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bad {
    /// The bytes end inside it.
    Short,
    /// It is not what it should be.
    Wrong,
}

/// Takes a number of at most 64 bits from the start of `bytes`; on an error they are as before.
pub(crate) fn unsigned(bytes: &mut &[u8]) -> Result<u64, Bad> {
    let mut number = 0u64;
    let mut rest = *bytes;
    for shift in (0..64).step_by(7) {
        let (byte, behind) = rest.split_first().ok_or(Bad::Short)?;
        rest = behind;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return Err(Bad::Wrong);
        }
        number |= bits << shift;
        if *byte < 0x80 {
            *bytes = rest;
            return Ok(number);
        }
    }
    Err(Bad::Wrong)
}

/// The same with the sign in the lowest bit ("zigzag").
pub(crate) fn signed(bytes: &mut &[u8]) -> Result<i64, Bad> {
    let number = unsigned(bytes)?;
    Ok((number >> 1).cast_signed() ^ -((number & 1).cast_signed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_at_most_64_bits() {
        let mut most = [0xff; 10];
        most[9] = 1;
        let mut bytes = &most[..];
        assert_eq!(unsigned(&mut bytes), Ok(u64::MAX));
        assert!(bytes.is_empty());
        assert_eq!(signed(&mut &most[..]), Ok(i64::MIN));
        for len in 0..10 {
            assert_eq!(unsigned(&mut &most[..len]), Err(Bad::Short));
        }
        most[9] = 2;
        assert_eq!(unsigned(&mut &most[..]), Err(Bad::Wrong));
        assert_eq!(unsigned(&mut &[0xff; 12][..]), Err(Bad::Wrong));
        assert_eq!(signed(&mut &[5, 9][..]), Ok(-3));
    }
}
