//! A writer of pickles: the few opcodes of protocol 2 that tensors and their metadata need.
//!
//! Opcodes: Python `Lib/pickletools.py`, protocol 2. `torch.load(weights_only=True)` accepts every one that is written here
//! (torch 2.15 `torch/_weights_only_unpickler.py`). A class or function is written once and fetched from the memo after.

use std::collections::HashMap;

/// Builds one pickle, front to back.
#[derive(Debug)]
pub(super) struct Pickle {
    out: Vec<u8>,
    known: HashMap<String, u32>,
}

impl Pickle {
    pub(super) fn new() -> Self {
        Self { out: vec![0x80, 2], known: HashMap::new() }
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.out.push(b'.');
        self.out
    }

    fn op(&mut self, op: u8) -> &mut Self {
        self.out.push(op);
        self
    }

    pub(super) fn none(&mut self) -> &mut Self {
        self.op(b'N')
    }

    pub(super) fn no(&mut self) -> &mut Self {
        self.op(0x89)
    }

    /// A whole number, in the shortest form.
    pub(super) fn int(&mut self, value: u64) -> &mut Self {
        if let Ok(byte) = u8::try_from(value) {
            self.out.extend([b'K', byte]);
        } else if let Ok(word) = u16::try_from(value) {
            self.out.push(b'M');
            self.out.extend(word.to_le_bytes());
        } else if let Ok(word) = i32::try_from(value) {
            self.out.push(b'J');
            self.out.extend(word.to_le_bytes());
        } else {
            // LONG1 is signed: nine bytes keep the highest bit from being a sign.
            self.out.extend([0x8a, 9]);
            self.out.extend(value.to_le_bytes());
            self.out.push(0);
        }
        self
    }

    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.out.push(b'X');
        // A name longer than 4 GiB does not fit in memory beside its tensor.
        self.out.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.out.extend(text.as_bytes());
        self
    }

    /// A class or function by module and name: constants of ours, without line breaks.
    pub(super) fn global(&mut self, module: &str, name: &str) -> &mut Self {
        let key = format!("{module}\n{name}\n");
        if let Some(&at) = self.known.get(&key) {
            return self.memo(at, (b'h', b'j'));
        }
        self.op(b'c').out.extend(key.as_bytes());
        let at = u32::try_from(self.known.len()).unwrap_or(u32::MAX);
        self.known.insert(key, at);
        self.memo(at, (b'q', b'r'))
    }

    fn memo(&mut self, at: u32, (short, long): (u8, u8)) -> &mut Self {
        match u8::try_from(at) {
            Ok(at) => self.out.extend([short, at]),
            Err(_) => {
                self.out.push(long);
                self.out.extend(at.to_le_bytes());
            }
        }
        self
    }

    /// A tuple of what `each` puts on the stack.
    pub(super) fn tuple(&mut self, each: impl FnOnce(&mut Self)) -> &mut Self {
        self.op(b'(');
        each(self);
        self.op(b't')
    }

    /// A tuple of whole numbers.
    pub(super) fn ints(&mut self, numbers: &[u64]) -> &mut Self {
        self.tuple(|pickle| {
            for number in numbers {
                pickle.int(*number);
            }
        })
    }

    /// A list of what `each` puts on the stack.
    pub(super) fn list(&mut self, each: impl FnOnce(&mut Self)) -> &mut Self {
        self.op(b']').op(b'(');
        each(self);
        self.op(b'e')
    }

    /// A dict of the keys and values that `each` puts on the stack in turn.
    pub(super) fn dict(&mut self, each: impl FnOnce(&mut Self)) -> &mut Self {
        self.op(b'}').op(b'(');
        each(self);
        self.op(b'u')
    }

    /// Calls what is on the stack with the arguments that `each` puts there.
    pub(super) fn call(&mut self, each: impl FnOnce(&mut Self)) -> &mut Self {
        self.tuple(each).op(b'R')
    }

    /// An object of the class on the stack, without its `__init__`, with the state that `each` puts there.
    pub(super) fn object(&mut self, each: impl FnOnce(&mut Self)) -> &mut Self {
        self.op(b')').op(0x81);
        each(self);
        self.op(b'b')
    }

    /// What the reader knows by the tuple on the stack.
    pub(super) fn persistent(&mut self) -> &mut Self {
        self.op(b'Q')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_form_that_python_writes() {
        let of = |value| {
            let mut pickle = Pickle::new();
            pickle.int(value);
            pickle.finish()
        };
        // python3: pickle.dumps(n, 2)
        assert_eq!(of(7), b"\x80\x02K\x07.");
        assert_eq!(of(300), b"\x80\x02M\x2c\x01.");
        assert_eq!(of(70_000), b"\x80\x02J\x70\x11\x01\x00.");
        assert_eq!(of(u64::MAX), b"\x80\x02\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00.");
    }

    #[test]
    fn a_global_is_written_once() {
        let mut pickle = Pickle::new();
        pickle.tuple(|pickle| {
            pickle.global("a", "b").global("a", "b").global("c", "d");
        });
        assert_eq!(pickle.finish(), b"\x80\x02(ca\nb\nq\x00h\x00cc\nd\nq\x01t.");
    }
}
