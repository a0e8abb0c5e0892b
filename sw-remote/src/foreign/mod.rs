//! What client libraries in C have in common: they are loaded at run time, called on threads that may wait, and have memory of ours until
//! they say that they are done with it.

pub(crate) mod connections;
pub(crate) mod draft;
pub(crate) mod held;
pub(crate) mod library;
pub(crate) mod slabs;
