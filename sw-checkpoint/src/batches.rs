//! Tensors in batches of bounded length, for work that must not hold a checkpoint in memory.

use crate::catalog::{Catalog, Tensor};
use crate::want::Want;

/// Cuts the tensors at `positions` into wants of at most `max_bytes` where a row can be cut, in order, and groups
/// neighbours into batches of at most that much. Each want tells where its bytes begin in its tensor.
pub(crate) fn batches(catalog: &Catalog, positions: &[usize], max_bytes: u64) -> Vec<Vec<(Want, u64)>> {
    let mut all: Vec<Vec<(Want, u64)>> = Vec::new();
    let mut filled = u64::MAX;
    for &position in positions {
        let Some(tensor) = catalog.tensors().get(position) else { continue };
        for (want, at) in pieces(position, tensor, max_bytes) {
            let len = want.len_bytes(catalog).unwrap_or(0);
            match all.last_mut().filter(|_| filled.saturating_add(len) <= max_bytes) {
                Some(batch) => {
                    batch.push((want, at));
                    filled += len;
                }
                None => {
                    all.push(vec![(want, at)]);
                    filled = len;
                }
            }
        }
    }
    all
}

/// A tensor in runs of rows that are contiguous in it, and where each begins, in bytes.
fn pieces(position: usize, tensor: &Tensor, max_bytes: u64) -> Vec<(Want, u64)> {
    let rank = tensor.shape.len();
    let whole = Want { tensor: position, offsets: vec![0; rank].into(), sizes: tensor.shape.clone() };
    if tensor.len_bytes <= max_bytes || rank == 0 {
        return vec![(whole, 0)];
    }
    // The outermost dimension whose single steps fit; a step of it is contiguous.
    let mut step_bytes = tensor.len_bytes;
    let mut cut = rank;
    for d in 0..rank {
        step_bytes /= tensor.shape[d].max(1);
        if step_bytes <= max_bytes {
            cut = d;
            break;
        }
    }
    if cut == rank || !tensor.dtype.bits().is_multiple_of(8) {
        return vec![(whole, 0)];
    }
    let steps = (max_bytes / step_bytes.max(1)).max(1);
    let outer: u64 = tensor.shape[..cut].iter().product();
    let mut made = Vec::new();
    let mut at = 0;
    for number in 0..outer {
        let mut start = 0;
        while start < tensor.shape[cut] {
            let count = steps.min(tensor.shape[cut] - start);
            let (mut offsets, mut sizes) = (vec![0; rank], tensor.shape.to_vec());
            let mut rest = number;
            for d in (0..cut).rev() {
                offsets[d] = rest % tensor.shape[d];
                sizes[d] = 1;
                rest /= tensor.shape[d];
            }
            (offsets[cut], sizes[cut]) = (start, count);
            made.push((Want { tensor: position, offsets: offsets.into(), sizes: sizes.into() }, at));
            at += count * step_bytes;
            start += count;
        }
    }
    made
}
