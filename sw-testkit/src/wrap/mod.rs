//! Transports around a transport: the same trait, one more property.

mod checked;
mod faulty;
mod recording;

pub use checked::Checked;
pub use faulty::{Act, Faulty, On, Rule};
pub use recording::{Event, Recording};
