//! Virtual time and modelled devices, faults, shadow memory; deterministic.
