//! A restricted unpickler: the bytes of a pickle become a tree of plain values, and nothing is ever run.
//!
//! ```text
//!   bytes ──► Machine (stack, memo) ──► Pickle { nodes }   a call stays a node: which global, which arguments
//!                └── each global against an allow-list; each opcode against a list; all lengths against the input
//! ```
//!
//! Invariants:
//! - A global that is not on the caller's list is an error that names it. One that is on the list is still only a name:
//!   what a call of it means is decided by whoever reads the tree.
//! - Memory follows the input: an opcode makes at most one node, and texts and bytes are ranges of the input. A memo
//!   shares nodes, it copies none; a tree that shares much ("memo bomb") is small here, and [`Walk`] bounds who reads it.
//! - Nothing recurses, neither here nor when a tree is dropped.
//!
//! Source: Python `Lib/pickletools.py` (opcodes of protocols 2 to 5); protocol 0 and 1 opcodes that no writer of
//! checkpoints emits are refused.

mod machine;

use thiserror::Error;

use crate::header::RANK_MAX;
use crate::quote::Quoted;

/// Longest pickle in bytes. The `.metadata` of a checkpoint of 154 GB was reported with 227 MiB.
pub(crate) const PICKLE_LEN_MAX_BYTES: u64 = 2 << 30;

/// Most values that a reader of a tree looks at: shared parts count each time.
/// 4 million take a second or two at most; the largest checkpoints have some 100,000.
const WALK_MAX: u64 = 4_000_000;

/// Most bytes of names and texts that it makes of them.
const WALK_MAX_BYTES: u64 = 1 << 30;

/// Why a pickle is refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PickleError {
    /// Longer than the limit.
    #[error(
        "pickle has {len_bytes} bytes, over the limit of {PICKLE_LEN_MAX_BYTES}; this is not the head of a checkpoint"
    )]
    TooLong {
        /// Its length.
        len_bytes: u64,
    },
    /// The input ends inside an opcode, or before `STOP`.
    #[error("pickle ends at byte {at} in the middle; the copy is incomplete, so fetch it again")]
    Cut {
        /// Where the opcode begins.
        at: u64,
    },
    /// An opcode that no writer of checkpoints emits, or that is none.
    #[error(
        "pickle has opcode 0x{opcode:02x} at byte {at}, which no writer of checkpoints uses; the file is damaged, or another format"
    )]
    Opcode {
        /// The opcode.
        opcode: u8,
        /// Where.
        at: u64,
    },
    /// An opcode finds something else on the stack than it needs, or names a memo entry that is not there.
    #[error("pickle is wrong at byte {at}: {what}; the file is damaged")]
    Malformed {
        /// Where the opcode begins.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// A text that is not UTF-8.
    #[error("pickle has text that is not UTF-8 at byte {at}; the file is damaged")]
    NotUtf8 {
        /// Where the opcode begins.
        at: u64,
    },
    /// A global that is not on the list.
    #[error(
        "pickle names the global {} at byte {at}, which is not one that a checkpoint needs; it was not run, and nothing was: save the tensors alone, or convert the file where you trust it",
        Quoted(.name)
    )]
    Global {
        /// Module and name, joined by a dot.
        name: String,
        /// Where.
        at: u64,
    },
    /// Deeper than the limit, or in a circle.
    #[error(
        "values are nested deeper than {DEPTH_MAX}, or in a circle; no checkpoint needs that, so the file is damaged"
    )]
    TooDeep,
    /// More values than the limit, shared ones counted each time.
    #[error(
        "over {WALK_MAX} values or {WALK_MAX_BYTES} bytes of names, shared ones counted each time; no checkpoint needs that, so the file is damaged"
    )]
    TooMany,
    /// A value is not what the format says it must be.
    #[error("{} of the pickle is {found}, expected was {expected}; the file is damaged, or of a version that this one does not know", Quoted(.place))]
    Unexpected {
        /// Where in the tree.
        place: String,
        /// What stands there.
        found: String,
        /// What should.
        expected: &'static str,
    },
}

impl PickleError {
    /// Stable code for machines.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "pickle-too-long",
            Self::Cut { .. } => "pickle-cut",
            Self::Opcode { .. } => "pickle-opcode",
            Self::Malformed { .. } => "pickle-malformed",
            Self::NotUtf8 { .. } => "pickle-not-utf8",
            Self::Global { .. } => "pickle-global",
            Self::TooDeep => "pickle-too-deep",
            Self::TooMany => "pickle-too-many",
            Self::Unexpected { .. } => "pickle-unexpected",
        }
    }
}

/// Deepest nesting that a reader of a tree follows.
pub(crate) const DEPTH_MAX: usize = 64;

/// A value in a tree.
pub(crate) type Id = u32;

/// What a value is. Texts and bytes are ranges of the input.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// A whole number that does not fit 64 bits, by its length in bytes.
    BigInt(u32),
    Float(f64),
    Text(Piece),
    Bytes(Piece),
    /// `list`, `set` and `frozenset`.
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// Module and name.
    Global(Piece, Piece),
    /// What a global makes of arguments, and what was put into it afterwards.
    Call(Box<Call>),
    /// A persistent id.
    Persistent(Id),
}

/// A range of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub start: usize,
    pub end: usize,
}

impl Piece {
    pub(crate) const fn len(self) -> usize {
        self.end - self.start
    }
}

/// A call that was not made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub callee: Id,
    pub arguments: Id,
    /// What `BUILD` gave it.
    pub state: Option<Id>,
    /// What `APPENDS` gave it.
    pub items: Vec<Id>,
    /// What `SETITEMS` gave it.
    pub pairs: Vec<(Id, Id)>,
}

/// Whether a global may be named: module, name.
pub(crate) type Allow = fn(&str, &str) -> bool;

/// A pickle, read.
#[derive(Debug)]
pub(crate) struct Pickle<'b> {
    bytes: &'b [u8],
    nodes: Vec<Node>,
    root: Id,
}

impl<'b> Pickle<'b> {
    /// Reads a whole pickle; bytes after its end are not looked at.
    ///
    /// # Errors
    /// Every [`PickleError`] but those of a walk.
    pub(crate) fn read(bytes: &'b [u8], allow: Allow) -> Result<Self, PickleError> {
        let len_bytes = bytes.len() as u64;
        if len_bytes > PICKLE_LEN_MAX_BYTES {
            return Err(PickleError::TooLong { len_bytes });
        }
        let (nodes, root) = machine::run(bytes, allow)?;
        Ok(Self { bytes, nodes, root })
    }

    pub(crate) const fn root(&self) -> Id {
        self.root
    }

    pub(crate) fn node(&self, id: Id) -> &Node {
        // The machine hands out no other ids.
        self.nodes.get(id as usize).unwrap_or(&Node::None)
    }

    pub(crate) fn text(&self, piece: Piece) -> &'b str {
        // The machine has looked at the bytes.
        self.bytes.get(piece.start..piece.end).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or("")
    }

    /// The text at `id`, if it is one.
    pub(crate) fn as_text(&self, id: Id) -> Option<&'b str> {
        match self.node(id) {
            Node::Text(piece) => Some(self.text(*piece)),
            _ => None,
        }
    }

    /// Whether `id` is this text. Costs the length of `text`, however long the one at `id` is.
    pub(crate) fn is_text(&self, id: Id, text: &str) -> bool {
        matches!(self.node(id), Node::Text(Piece { start, end }) if self.bytes.get(*start..*end) == Some(text.as_bytes()))
    }

    /// The number at `id`, if it is a whole one that is not negative.
    pub(crate) fn as_u64(&self, id: Id) -> Option<u64> {
        match self.node(id) {
            Node::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The elements of a tuple or list.
    pub(crate) fn as_items(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) | Node::List(items) => Some(items),
            _ => None,
        }
    }

    /// Module and name of a global.
    pub(crate) fn as_global(&self, id: Id) -> Option<(&'b str, &'b str)> {
        match self.node(id) {
            Node::Global(module, name) => Some((self.text(*module), self.text(*name))),
            _ => None,
        }
    }

    /// A call: module and name of the callee, its positional arguments, all of it.
    pub(crate) fn as_call(&self, id: Id) -> Option<((&'b str, &'b str), &[Id], &Call)> {
        match self.node(id) {
            Node::Call(call) => Some((self.as_global(call.callee)?, self.as_items(call.arguments)?, call)),
            _ => None,
        }
    }

    /// The pairs of a mapping: a `dict`, or a call that was given pairs (`OrderedDict`).
    pub(crate) fn as_pairs(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.node(id) {
            Node::Dict(pairs) => Some(pairs),
            Node::Call(call) => match self.as_global(call.callee)? {
                ("collections", "OrderedDict" | "defaultdict" | "Counter") => Some(&call.pairs),
                _ => None,
            },
            _ => None,
        }
    }

    /// A shape: a tuple of at most [`RANK_MAX`] whole numbers, or `torch.Size` of one. The limit is here since shapes are
    /// copied, and many tensors may share one.
    pub(crate) fn as_dims(&self, id: Id) -> Option<Vec<u64>> {
        let items = match self.as_call(id) {
            Some((("torch", "Size"), [items], _)) => *items,
            Some(_) => return None,
            None => id,
        };
        let items = self.as_items(items).filter(|items| items.len() <= RANK_MAX)?;
        items.iter().map(|&item| self.as_u64(item)).collect()
    }

    /// What stands at `id`, in a few words.
    pub(crate) fn describe(&self, id: Id) -> String {
        match self.node(id) {
            Node::None => "None".to_owned(),
            Node::Bool(value) => format!("the truth value {value}"),
            Node::Int(value) => format!("the number {value}"),
            Node::BigInt(len) => format!("a whole number of {len} bytes"),
            Node::Float(value) => format!("the number {value}"),
            Node::Text(piece) => format!("a text of {} bytes", piece.end - piece.start),
            Node::Bytes(piece) => format!("{} bytes", piece.end - piece.start),
            Node::List(items) => format!("a list of {}", items.len()),
            Node::Tuple(items) => format!("a tuple of {}", items.len()),
            Node::Dict(pairs) => format!("a dict of {}", pairs.len()),
            Node::Global(module, name) => format!("{}.{}", self.text(*module), self.text(*name)),
            Node::Call(call) => match self.as_global(call.callee) {
                Some((module, name)) => format!("an object of {module}.{name}"),
                None => "an object".to_owned(),
            },
            Node::Persistent(_) => "a storage".to_owned(),
        }
    }

    /// The error that `id` is not what it must be.
    pub(crate) fn unexpected(&self, place: impl Into<String>, id: Id, expected: &'static str) -> PickleError {
        PickleError::Unexpected { place: place.into(), found: self.describe(id), expected }
    }
}

/// Bounds how much of a tree a reader looks at.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    seen: u64,
    made_bytes: u64,
}

impl Walk {
    /// Counts a value at `depth`.
    ///
    /// # Errors
    /// `TooDeep`, `TooMany`.
    pub(crate) const fn step(&mut self, depth: usize) -> Result<(), PickleError> {
        self.seen += 1;
        if depth > DEPTH_MAX {
            return Err(PickleError::TooDeep);
        }
        if self.seen > WALK_MAX {
            return Err(PickleError::TooMany);
        }
        Ok(())
    }

    /// Counts bytes that are made of values.
    ///
    /// # Errors
    /// `TooMany`.
    pub(crate) const fn makes(&mut self, len: usize) -> Result<(), PickleError> {
        self.made_bytes = self.made_bytes.saturating_add(len as u64);
        if self.made_bytes > WALK_MAX_BYTES { Err(PickleError::TooMany) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
