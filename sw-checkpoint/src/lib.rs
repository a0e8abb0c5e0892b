//! Checkpoint formats to tensor ranges, load and save.
