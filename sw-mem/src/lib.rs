//! Addresses that carry their space and unit, DMA-safe memory, slabs, device barriers.
