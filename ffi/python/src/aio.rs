//! Completions for asyncio: threads of the engine write a byte to a socket, and the loop that watches it takes the tokens.
//!
//! No thread of the engine attaches to the interpreter for that, so a busy interpreter never stops the data path.

use std::{
    io::{Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    sync::{Arc, Mutex, PoisonError},
    task::{Wake, Waker},
};

use pyo3::prelude::*;

/// Where completed operations of one event loop are announced.
///
/// `fileno()` becomes readable when there are some, and `drain()` takes their tokens.
#[pyclass(frozen, module = "straightway._native")]
#[derive(Debug)]
pub struct Completions {
    shared: Arc<Shared>,
    ear: UnixStream,
}

#[derive(Debug)]
struct Shared {
    ready: Mutex<Vec<u64>>,
    bell: UnixStream,
}

/// Announces one operation.
#[derive(Debug)]
struct Announce {
    shared: Arc<Shared>,
    token: u64,
}

impl Wake for Announce {
    fn wake(self: Arc<Self>) {
        let mut ready = self.shared.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.push(self.token);
        // The first one rings; the loop takes all that came until it drains. The socket is not blocking, and full means
        // that it was rung.
        if ready.len() == 1 {
            let _ = (&self.shared.bell).write(&[1]);
        }
    }
}

impl Completions {
    /// A waker that announces `token`.
    pub fn waker(&self, token: u64) -> Waker {
        Waker::from(Arc::new(Announce { shared: self.shared.clone(), token }))
    }
}

#[pymethods]
impl Completions {
    #[new]
    fn new() -> PyResult<Self> {
        let (ear, bell) = UnixStream::pair()?;
        ear.set_nonblocking(true)?;
        bell.set_nonblocking(true)?;
        Ok(Self { shared: Arc::new(Shared { ready: Mutex::default(), bell }), ear })
    }

    fn fileno(&self) -> i32 {
        self.ear.as_raw_fd()
    }

    /// Tokens announced since the last call, in that order; a token may come more than once.
    fn drain(&self) -> Vec<u64> {
        let mut ready = self.shared.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = [0; 16];
        while (&self.ear).read(&mut bytes).is_ok_and(|read| read == bytes.len()) {}
        std::mem::take(&mut *ready)
    }
}
