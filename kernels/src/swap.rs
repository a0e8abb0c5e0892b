//! The bytes of each element turned: what files of the other byte order need.

use crate::launch::PlanError;

/// Size of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// 2 bytes.
    Two,
    /// 4 bytes.
    Four,
    /// 8 bytes.
    Eight,
}

impl Element {
    /// Every one.
    pub const ALL: &[Self] = &[Self::Two, Self::Four, Self::Eight];

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Two => 2,
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

/// The twin of the kernel: `source` with the bytes of each element turned.
///
/// # Errors
/// `Length` if the two differ in length; `Misaligned` if that is no multiple of the element.
pub fn swap(element: Element, source: &[u8], target: &mut [u8]) -> Result<(), PlanError> {
    if source.len() != target.len() {
        return Err(PlanError::Length);
    }
    match element {
        Element::Two => turn::<2>(source, target),
        Element::Four => turn::<4>(source, target),
        Element::Eight => turn::<8>(source, target),
    }
}

fn turn<const N: usize>(source: &[u8], target: &mut [u8]) -> Result<(), PlanError> {
    let (elements, rest) = source.as_chunks::<N>();
    if !rest.is_empty() {
        return Err(PlanError::Misaligned);
    }
    for (to, from) in target.as_chunks_mut::<N>().0.iter_mut().zip(elements) {
        *to = *from;
        to.reverse();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_turn_and_turn_back() {
        let source: Vec<u8> = (0..16).collect();
        let mut out = vec![0; 16];
        swap(Element::Eight, &source, &mut out).unwrap();
        assert_eq!(out, [7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8]);
        for element in Element::ALL {
            let (mut once, mut twice) = (vec![0; 16], vec![0; 16]);
            swap(*element, &source, &mut once).unwrap();
            assert_ne!(once, source);
            swap(*element, &once, &mut twice).unwrap();
            assert_eq!(twice, source);
        }
        let number = 0x0102_0304_0506_0708u64;
        swap(Element::Eight, &number.to_be_bytes(), &mut out[..8]).unwrap();
        assert_eq!(out[..8], number.to_le_bytes());
        assert_eq!(swap(Element::Four, &source[..6], &mut out[..6]), Err(PlanError::Misaligned));
        assert_eq!(swap(Element::Two, &source[..6], &mut out), Err(PlanError::Length));
    }
}
