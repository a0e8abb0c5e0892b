//! The machine that reads opcodes: a stack of values, marks, and a memo.

use std::collections::HashMap;

use super::{Allow, Call, Id, Node, PickleError, Piece};

/// Reads `bytes` up to `STOP`. Gives all nodes and the root.
pub(super) fn run(bytes: &[u8], allow: Allow) -> Result<(Vec<Node>, Id), PickleError> {
    let mut machine = Machine {
        bytes,
        at: 0,
        opcode_at: 0,
        allow,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    loop {
        machine.opcode_at = machine.at;
        let opcode = machine.byte()?;
        // STOP
        if opcode == b'.' {
            let root = machine.pop()?;
            return Ok((machine.nodes, root));
        }
        machine.step(opcode)?;
    }
}

struct Machine<'b> {
    bytes: &'b [u8],
    at: usize,
    /// Where the opcode in hand begins.
    opcode_at: usize,
    allow: Allow,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

type Done = Result<(), PickleError>;

impl Machine<'_> {
    fn step(&mut self, opcode: u8) -> Done {
        match opcode {
            // PROTO: a version; FRAME: a length that is only a hint.
            0x80 => self.take(1).map(drop),
            0x95 => self.take(8).map(drop),
            b'N' | 0x88 | 0x89 | b'J' | b'K' | b'M' | 0x8a | 0x8b | b'G' => self.scalar(opcode),
            b'X' | 0x8c | 0x8d | b'U' | b'T' | b'B' | b'C' | 0x8e | 0x96 => self.text_or_bytes(opcode),
            b'(' | b'0' | b'1' | b'2' => self.stack_only(opcode),
            b']' | b')' | b'}' | 0x8f | b'l' | b't' | b'd' | 0x91 | 0x85..=0x87 => self.container(opcode),
            b'a' | b'e' | b's' | b'u' | 0x90 => self.put_into(opcode),
            b'h' | b'j' | b'q' | b'r' | 0x94 => self.memo(opcode),
            b'c' | 0x93 => self.global(opcode),
            b'R' | 0x81 | 0x92 | b'b' | b'Q' => self.call(opcode),
            opcode => Err(PickleError::Opcode { opcode, at: self.opcode_at as u64 }),
        }
    }

    fn scalar(&mut self, opcode: u8) -> Done {
        let node = match opcode {
            b'N' => Node::None,
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            // BININT, BININT1, BININT2
            b'J' => Node::Int(i32::from_le_bytes(self.array()?).into()),
            b'K' => Node::Int(self.byte()?.into()),
            b'M' => Node::Int(u16::from_le_bytes(self.array()?).into()),
            // LONG1, LONG4
            0x8a => {
                let len = self.byte()?;
                self.long(len.into())?
            }
            0x8b => {
                let len = u32::from_le_bytes(self.array()?);
                self.long(len)?
            }
            _ => Node::Float(f64::from_be_bytes(self.array()?)),
        };
        self.push(node)
    }

    /// A whole number, two's complement, least significant byte first.
    fn long(&mut self, len: u32) -> Result<Node, PickleError> {
        let bytes = self.take(u64::from(len))?;
        let sign = if bytes.last().is_some_and(|byte| *byte >= 0x80) { 0xff } else { 0 };
        let (low, high) = bytes.split_at(bytes.len().min(8));
        let mut word = [sign; 8];
        word[..low.len()].copy_from_slice(low);
        let number = i64::from_le_bytes(word);
        let fits = high.iter().all(|byte| *byte == sign) && (number < 0) == (sign == 0xff);
        Ok(if fits { Node::Int(number) } else { Node::BigInt(len) })
    }

    fn text_or_bytes(&mut self, opcode: u8) -> Done {
        let len = match opcode {
            // SHORT_BINUNICODE, SHORT_BINSTRING, SHORT_BINBYTES
            0x8c | b'U' | b'C' => self.byte()?.into(),
            // BINUNICODE, BINSTRING, BINBYTES
            b'X' | b'T' | b'B' => u32::from_le_bytes(self.array()?).into(),
            // BINUNICODE8, BINBYTES8, BYTEARRAY8
            _ => u64::from_le_bytes(self.array()?),
        };
        let start = self.at;
        let bytes = self.take(len)?;
        // A text of Python 2 that is not UTF-8 is kept as bytes.
        let utf8 = std::str::from_utf8(bytes).is_ok();
        let piece = Piece { start, end: self.at };
        match opcode {
            b'X' | 0x8c | 0x8d if !utf8 => Err(PickleError::NotUtf8 { at: self.opcode_at as u64 }),
            b'X' | 0x8c | 0x8d => self.push(Node::Text(piece)),
            b'U' | b'T' if utf8 => self.push(Node::Text(piece)),
            _ => self.push(Node::Bytes(piece)),
        }
    }

    fn stack_only(&mut self, opcode: u8) -> Done {
        match opcode {
            b'(' => self.marks.push(self.stack.len()),
            // POP takes a mark off if that is on top.
            b'0' if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.take_to_mark()?),
            _ => {
                let top = self.top()?;
                self.stack.push(top);
            }
        }
        Ok(())
    }

    fn container(&mut self, opcode: u8) -> Done {
        let node = match opcode {
            b']' | 0x8f => Node::List(Vec::new()),
            b')' => Node::Tuple(Vec::new()),
            b'}' => Node::Dict(Vec::new()),
            // LIST, FROZENSET
            b'l' | 0x91 => Node::List(self.take_to_mark()?),
            b't' => Node::Tuple(self.take_to_mark()?),
            b'd' => {
                let items = self.take_to_mark()?;
                Node::Dict(self.pairs(&items)?)
            }
            // TUPLE1, TUPLE2, TUPLE3
            count => {
                let mut items = Vec::with_capacity(3);
                for _ in 0x84..count {
                    items.push(self.pop()?);
                }
                items.reverse();
                Node::Tuple(items)
            }
        };
        self.push(node)
    }

    fn put_into(&mut self, opcode: u8) -> Done {
        let items = match opcode {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.take_to_mark()?,
        };
        let target = self.top()?;
        let pairs = if matches!(opcode, b's' | b'u') { Some(self.pairs(&items)?) } else { None };
        match (self.nodes.get_mut(target as usize), pairs) {
            (Some(Node::Dict(all)), Some(more)) => all.extend(more),
            (Some(Node::List(all)), None) => all.extend(items),
            (Some(Node::Call(call)), Some(more)) => call.pairs.extend(more),
            (Some(Node::Call(call)), None) => call.items.extend(items),
            _ => return Err(self.wrong("items are put into something that takes none")),
        }
        Ok(())
    }

    fn memo(&mut self, opcode: u8) -> Done {
        let number = match opcode {
            b'h' | b'q' => self.byte()?.into(),
            b'j' | b'r' => u32::from_le_bytes(self.array()?),
            // MEMOIZE takes the next number; there are fewer entries than bytes of input.
            _ => u32::try_from(self.memo.len()).map_err(|_| self.wrong("the memo is full"))?,
        };
        if matches!(opcode, b'h' | b'j') {
            let known = self.memo.get(&number).copied();
            let id = known.ok_or_else(|| self.wrong("a memo entry is used that was never made"))?;
            self.stack.push(id);
        } else {
            let top = self.top()?;
            self.memo.insert(number, top);
        }
        Ok(())
    }

    fn global(&mut self, opcode: u8) -> Done {
        let (module, name) = if opcode == b'c' {
            (self.line()?, self.line()?)
        } else {
            // STACK_GLOBAL
            let (name, module) = (self.pop()?, self.pop()?);
            match (self.nodes.get(module as usize), self.nodes.get(name as usize)) {
                (Some(Node::Text(module)), Some(Node::Text(name))) => (*module, *name),
                _ => return Err(self.wrong("a global is named by something that is no text")),
            }
        };
        let text = |piece: Piece| self.bytes.get(piece.start..piece.end).and_then(|b| std::str::from_utf8(b).ok());
        let (Some(module_text), Some(name_text)) = (text(module), text(name)) else {
            return Err(PickleError::NotUtf8 { at: self.opcode_at as u64 });
        };
        if !(self.allow)(module_text, name_text) {
            let name = format!("{module_text}.{name_text}");
            return Err(PickleError::Global { name, at: self.opcode_at as u64 });
        }
        self.push(Node::Global(module, name))
    }

    fn call(&mut self, opcode: u8) -> Done {
        match opcode {
            // BUILD
            b'b' => {
                let state = self.pop()?;
                let target = self.top()?;
                match self.nodes.get_mut(target as usize) {
                    Some(Node::Call(call)) => call.state = Some(state),
                    _ => return Err(self.wrong("a state is given to something that takes none")),
                }
                Ok(())
            }
            // BINPERSID
            b'Q' => {
                let id = self.pop()?;
                self.push(Node::Persistent(id))
            }
            // REDUCE, NEWOBJ, NEWOBJ_EX: the last has named arguments too, which no reader needs.
            _ => {
                if opcode == 0x92 {
                    self.pop()?;
                }
                let (arguments, callee) = (self.pop()?, self.pop()?);
                let fits = matches!(self.nodes.get(callee as usize), Some(Node::Global(..)))
                    && matches!(self.nodes.get(arguments as usize), Some(Node::Tuple(_)));
                if !fits {
                    return Err(self.wrong("a call is not one of a global with a tuple"));
                }
                let call = Call { callee, arguments, state: None, items: Vec::new(), pairs: Vec::new() };
                self.push(Node::Call(Box::new(call)))
            }
        }
    }

    fn pairs(&self, items: &[Id]) -> Result<Vec<(Id, Id)>, PickleError> {
        if !items.len().is_multiple_of(2) {
            return Err(self.wrong("a key has no value"));
        }
        Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    fn push(&mut self, node: Node) -> Done {
        let id = Id::try_from(self.nodes.len()).map_err(|_| self.wrong("there are more values than 32 bits count"))?;
        self.nodes.push(node);
        self.stack.push(id);
        Ok(())
    }

    /// The value on top, not below the last mark.
    fn top(&self) -> Result<Id, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let top = self.stack.last().copied().filter(|_| self.stack.len() > floor);
        top.ok_or_else(|| self.wrong("the stack is empty"))
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// Everything above the last mark, and the mark.
    fn take_to_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        let mark = self.marks.pop().ok_or_else(|| self.wrong("there is no mark"))?;
        if mark > self.stack.len() {
            return Err(self.wrong("the mark is gone"));
        }
        Ok(self.stack.split_off(mark))
    }

    fn wrong(&self, what: &'static str) -> PickleError {
        PickleError::Malformed { at: self.opcode_at as u64, what }
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let cut = PickleError::Cut { at: self.opcode_at as u64 };
        self.take(N as u64)?.first_chunk().copied().ok_or(cut)
    }

    fn take(&mut self, len: u64) -> Result<&[u8], PickleError> {
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        let range = end.and_then(|end| Some((end, self.bytes.get(self.at..end)?)));
        let (end, bytes) = range.ok_or(PickleError::Cut { at: self.opcode_at as u64 })?;
        self.at = end;
        Ok(bytes)
    }

    /// Bytes up to a line feed.
    fn line(&mut self) -> Result<Piece, PickleError> {
        let start = self.at;
        let rest = self.bytes.get(start..).unwrap_or_default();
        let len = rest.iter().position(|byte| *byte == b'\n').ok_or(PickleError::Cut { at: self.opcode_at as u64 })?;
        self.at = start + len + 1;
        Ok(Piece { start, end: start + len })
    }
}
