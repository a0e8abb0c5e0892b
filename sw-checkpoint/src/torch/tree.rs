//! From the tree of a pickle to named tensors and other leaves.

use crate::catalog::LeafValue;
use crate::dtype::Dtype;
use crate::pickle::{Id, Node, Pickle, PickleError, Walk};

use super::globals::{dtype_of, storage_dtype};

/// Longest text that a leaf keeps, in characters.
const TEXT_CHARS_MAX: usize = 200;

/// A tensor as a pickle describes it: a view of a storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RawTensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    /// In elements.
    pub strides: Vec<u64>,
    /// In elements of `dtype`.
    pub storage_offset: u64,
    /// Key of the storage.
    pub storage: String,
    pub storage_len_bytes: u64,
}

impl RawTensor {
    /// Whether its elements lie row-major without gaps. A dimension of one element has no stride that matters.
    pub(crate) fn is_dense(&self) -> bool {
        let mut expected = 1_u64;
        let empty = self.shape.contains(&0);
        let dense = self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == expected;
            expected = expected.saturating_mul(size);
            fits
        });
        empty || dense
    }
}

/// What a file of `torch.save` holds.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub tensors: Vec<RawTensor>,
    pub leaves: Vec<(String, LeafValue)>,
}

impl State {
    /// Names every value of a tree: keys and positions joined by dots; the root has the empty name.
    pub(crate) fn of(pickle: &Pickle<'_>) -> Result<Self, PickleError> {
        let mut flat = Flat { pickle, state: Self::default(), walk: Walk::default() };
        flat.value(&mut String::new(), pickle.root(), 0)?;
        Ok(flat.state)
    }
}

struct Flat<'p, 'b> {
    pickle: &'p Pickle<'b>,
    state: State,
    walk: Walk,
}

impl Flat<'_, '_> {
    /// `path` is as it was afterwards. Recursion is bounded by the walk.
    fn value(&mut self, path: &mut String, id: Id, depth: usize) -> Result<(), PickleError> {
        self.walk.step(depth)?;
        let pickle = self.pickle;
        if let Some(pairs) = pickle.as_pairs(id) {
            // A mapping that is empty is a leaf, so that nothing of the file goes unsaid.
            if pairs.is_empty() {
                return self.leaf(path, id);
            }
            for &(key, value) in pairs {
                let key = self.key(key)?;
                self.below(path, &key, value, depth)?;
            }
            return Ok(());
        }
        match pickle.node(id) {
            Node::List(items) | Node::Tuple(items) if !items.is_empty() => {
                for (at, &item) in items.iter().enumerate() {
                    self.below(path, &at.to_string(), item, depth)?;
                }
                Ok(())
            }
            Node::Call(_) => self.call(path, id, depth),
            _ => self.leaf(path, id),
        }
    }

    fn below(&mut self, path: &mut String, key: &str, id: Id, depth: usize) -> Result<(), PickleError> {
        let len = path.len();
        if depth > 0 {
            path.push('.');
        }
        path.push_str(key);
        self.walk.makes(path.len())?;
        let done = self.value(path, id, depth + 1);
        path.truncate(len);
        done
    }

    fn key(&mut self, id: Id) -> Result<String, PickleError> {
        let pickle = self.pickle;
        let text = |walk: &mut Walk, id: Id| match pickle.node(id) {
            // Counted before it is copied: one long text may be shared by many keys.
            Node::Text(piece) => walk.makes(piece.len()).map(|()| pickle.text(*piece).to_owned()),
            Node::Int(number) => Ok(number.to_string()),
            _ => Ok(pickle.describe(id)),
        };
        Ok(match pickle.node(id) {
            Node::Bool(value) => value.to_string(),
            Node::Tuple(items) => {
                let mut keys = Vec::new();
                for &item in items {
                    self.walk.step(0)?;
                    keys.push(text(&mut self.walk, item)?);
                }
                format!("({})", keys.join(", "))
            }
            _ => text(&mut self.walk, id)?,
        })
    }

    fn call(&mut self, path: &mut String, id: Id, depth: usize) -> Result<(), PickleError> {
        let pickle = self.pickle;
        let Some((callee, arguments, _)) = pickle.as_call(id) else { return self.leaf(path, id) };
        match (callee, arguments) {
            (("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state"), [data, ..]) => {
                self.walk.step(depth + 1)?;
                self.value(path, *data, depth + 1)
            }
            (("torch._tensor", "_rebuild_from_type_v2"), [function, _, inner, ..]) => {
                self.rebuilt(path, id, pickle.as_global(*function), pickle.as_items(*inner))
            }
            (("torch._utils", _), arguments) => self.rebuilt(path, id, Some(callee), Some(arguments)),
            _ => self.leaf(path, id),
        }
    }

    /// A tensor, or something made like one that is none for us.
    fn rebuilt(
        &mut self,
        path: &str,
        id: Id,
        function: Option<(&str, &str)>,
        arguments: Option<&[Id]>,
    ) -> Result<(), PickleError> {
        let tensor = match (function, arguments) {
            // storage, offset, size, stride, requires_grad, hooks, ...
            (
                Some(("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2")),
                Some([storage, offset, size, stride, ..]),
            ) => self.tensor(path, (*storage, *offset, *size, *stride), None)?,
            // ... with the element type, since the storage has none.
            (Some(("torch._utils", "_rebuild_tensor_v3")), Some([storage, offset, size, stride, _, _, dtype, ..])) => {
                self.tensor(path, (*storage, *offset, *size, *stride), Some(*dtype))?
            }
            _ => return self.leaf(path, id),
        };
        self.state.tensors.push(tensor);
        Ok(())
    }

    fn tensor(
        &mut self,
        path: &str,
        (storage, offset, size, stride): (Id, Id, Id, Id),
        dtype: Option<Id>,
    ) -> Result<RawTensor, PickleError> {
        let pickle = self.pickle;
        let wrong = |id: Id, expected: &'static str| pickle.unexpected(path, id, expected);
        let key = match pickle.node(storage) {
            Node::Persistent(id) => pickle.as_items(*id),
            _ => None,
        };
        let Some(&[tag, class, key, _, numel]) = key else { return Err(wrong(storage, "a storage")) };
        let stored = pickle.as_global(class).and_then(|(module, name)| {
            if matches!(module, "torch" | "torch.storage") { storage_dtype(name) } else { None }
        });
        let stored = stored.ok_or_else(|| wrong(class, "a class of storages of a known element type"))?;
        let dtype = match dtype {
            None => stored,
            Some(dtype) => match pickle.as_global(dtype) {
                Some(("torch", name)) => dtype_of(name).ok_or_else(|| wrong(dtype, "a known element type"))?,
                _ => return Err(wrong(dtype, "a known element type")),
            },
        };
        if pickle.as_text(tag) != Some("storage") {
            return Err(wrong(tag, "the text storage"));
        }
        if let Node::Text(piece) = pickle.node(key) {
            self.walk.makes(piece.len())?;
        }
        let key_text = pickle.as_text(key).ok_or_else(|| wrong(key, "the key of a storage"))?;
        let numel_count = pickle.as_u64(numel).ok_or_else(|| wrong(numel, "a number of elements"))?;
        let storage_len_bytes = numel_count.checked_mul(stored.bits() / 8);
        let shape = pickle.as_dims(size).ok_or_else(|| wrong(size, "a shape"))?;
        let strides = pickle.as_dims(stride).ok_or_else(|| wrong(stride, "strides"))?;
        if shape.len() != strides.len() {
            return Err(wrong(stride, "as many strides as dimensions"));
        }
        Ok(RawTensor {
            name: path.to_owned(),
            dtype,
            shape,
            strides,
            storage_offset: pickle.as_u64(offset).ok_or_else(|| wrong(offset, "an offset"))?,
            storage: key_text.to_owned(),
            storage_len_bytes: storage_len_bytes.ok_or_else(|| wrong(numel, "a number of elements in memory"))?,
        })
    }

    fn leaf(&mut self, path: &str, id: Id) -> Result<(), PickleError> {
        let pickle = self.pickle;
        let value = match pickle.node(id) {
            Node::None => LeafValue::None,
            Node::Bool(value) => LeafValue::Bool(*value),
            Node::Int(value) => LeafValue::Int(*value),
            Node::Float(value) => LeafValue::Float(*value),
            Node::Text(piece) => {
                // All of it is looked at, each time.
                self.walk.makes(piece.len())?;
                let text = pickle.text(*piece);
                let short: String = text.chars().take(TEXT_CHARS_MAX).collect();
                LeafValue::Text(if short.len() < text.len() { format!("{short}…") } else { short })
            }
            _ => LeafValue::Other(pickle.describe(id)),
        };
        self.walk.makes(path.len())?;
        self.state.leaves.push((path.to_owned(), value));
        Ok(())
    }
}
