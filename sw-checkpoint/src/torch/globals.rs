//! The globals that a state dict may name. All of them are names only: nothing here is run.

use crate::dtype::Dtype;

/// Whether a pickle of `torch.save` may name a global.
pub(super) fn allowed(module: &str, name: &str) -> bool {
    match module {
        "torch" => {
            storage_dtype(name).is_some() || dtype_of(name).is_some() || matches!(name, "Size" | "device" | "Tensor")
        }
        "torch.storage" => matches!(name, "UntypedStorage" | "TypedStorage" | "_load_from_bytes"),
        "torch._utils" => name.starts_with("_rebuild_"),
        "torch._tensor" => name == "_rebuild_from_type_v2",
        "torch.nn.parameter" => matches!(name, "Parameter" | "Buffer" | "UninitializedParameter"),
        "torch.serialization" => name == "_get_layout",
        "collections" => matches!(name, "OrderedDict" | "defaultdict" | "Counter" | "deque"),
        "builtins" | "__builtin__" => matches!(
            name,
            "set"
                | "frozenset"
                | "complex"
                | "bytearray"
                | "bytes"
                | "dict"
                | "list"
                | "tuple"
                | "int"
                | "float"
                | "str"
                | "bool"
                | "slice"
                | "range"
        ),
        "_codecs" => name == "encode",
        "numpy" => matches!(name, "dtype" | "ndarray"),
        "numpy.core.multiarray" | "numpy._core.multiarray" => matches!(name, "_reconstruct" | "scalar"),
        "numpy.dtypes" => name.ends_with("DType"),
        "argparse" => name == "Namespace",
        "pathlib" | "pathlib._local" => matches!(name, "PosixPath" | "PurePosixPath" | "Path"),
        "datetime" => matches!(name, "datetime" | "timedelta" | "date" | "timezone"),
        _ => false,
    }
}

/// The element type that `torch.NAME` is, if it is one that we know.
pub(crate) fn dtype_of(name: &str) -> Option<Dtype> {
    Dtype::from_torch(name)
}

/// The element type of the storage class `torch.NAME`; bytes for one without a type.
pub(super) fn storage_dtype(name: &str) -> Option<Dtype> {
    Some(match name {
        "DoubleStorage" => Dtype::F64,
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::Bf16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" | "UntypedStorage" => Dtype::U8,
        "BoolStorage" => Dtype::Bool,
        "ComplexFloatStorage" => Dtype::C64,
        "ComplexDoubleStorage" => Dtype::C128,
        _ => return None,
    })
}
