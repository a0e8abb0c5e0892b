//! Several processes on one directory.
//!
//! ```text
//!   owner   has the lock, the index and the slots; serves the socket
//!   guest   asks it where blocks are, reads the data file itself, hands it blocks that it read from where the object is
//!
//!   guest ─ Find(blocks) ─► owner: holds their slots for the answer
//!         ◄─ slots ────────
//!         locks the slots in the data file (shared), then looks whether the owner's epoch is still the answer's
//!         ─ Taken ────────► owner: lets go of its holds
//!         reads, unlocks
//! ```
//!
//! An owner writes in no slot on which somebody has a lock. A lock that came before a new owner wrote its epoch is one that this owner sees;
//! one that came later is found to be void by whoever took it. So a slot is never written while a process that lives reads it, whoever
//! dies or stands still meanwhile.
//!
//! When an owner is gone, the first guest that gets the lock is the next one, in its place: objects that are open stay so.

pub(crate) mod claims;
pub(crate) mod guest;
pub(crate) mod locks;
pub(crate) mod owner;
pub(crate) mod wire;

#[cfg(test)]
mod tests;
