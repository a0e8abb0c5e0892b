//! CUDA through the driver loaded at run time: memory, copies, streams, capabilities.
