//! A stand-in libcuda.
