//! `checkpoint`: what a checkpoint holds, whether it is whole, how two differ, the same in another format, and what dead
//! writers left.

mod clean;
mod convert;
mod diff;
mod show;
mod verify;

pub use clean::run as clean;
pub use convert::run as convert;
pub use diff::run as diff;
pub use show::run as show;
pub use verify::run as verify;
