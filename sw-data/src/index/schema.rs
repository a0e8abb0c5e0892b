//! The columns of an index and their form in Arrow's IPC format.
//!
//! One description serves both directions: the schema that is written, and what a file's schema is held against.
//! Source: Apache Arrow `format/Schema.fbs`, `docs/source/format/Columnar.rst`.

use arrow_ipc as ipc;
use flatbuffers::{FlatBufferBuilder, WIPOffset};

/// The dictionary that column `object` counts in.
pub(super) const OBJECTS_ID: i64 = 0;

/// A column or a part of one.
pub(super) struct Column {
    pub name: &'static str,
    pub nullable: Nullable,
    pub kind: Kind,
}

/// Whether values may be missing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Nullable {
    Never,
    Maybe,
}

/// Types that an index uses.
pub(super) enum Kind {
    U32,
    U64,
    /// Text with offsets of 32 bits.
    Text,
    /// Text with offsets of 64 bits.
    LongText,
    List(&'static [Column]),
    Struct(&'static [Column]),
    /// A number of 32 bits in the dictionary [`OBJECTS_ID`], whose values are of this type.
    ObjectOf(&'static [Column]),
}

const fn column(name: &'static str, kind: Kind) -> Column {
    Column { name, nullable: Nullable::Never, kind }
}

const fn maybe(name: &'static str, kind: Kind) -> Column {
    Column { name, nullable: Nullable::Maybe, kind }
}

/// An object: a row of the dictionary.
pub(super) const OBJECT: &[Column] = &[
    column("uri", Kind::LongText),
    column("length", Kind::U64),
    column("version", Kind::LongText),
    column("format", Kind::LongText),
    // What must be known to decode its blocks; empty where there is nothing.
    column("coding", Kind::LongText),
    // Its samples are numbered from here on.
    column("first", Kind::U64),
    column("samples", Kind::U64),
    // Of them, with a checksum.
    column("checksums", Kind::U64),
];

/// A named part of a sample.
const PART: &[Column] = &[column("name", Kind::Text), column("offset", Kind::U64), column("length", Kind::U64)];

/// A sample: a row of a batch.
pub(super) const SAMPLE: &[Column] = &[
    column("object", Kind::ObjectOf(OBJECT)),
    column("offset", Kind::U64),
    column("length", Kind::U64),
    maybe("row", Kind::U32),
    maybe("crc32c", Kind::U32),
    column("key", Kind::Text),
    column("group", Kind::U32),
    column("fields", Kind::List(&[column("item", Kind::Struct(PART))])),
];

/// The schema in a message or footer.
pub(super) fn schema<'a>(to: &mut FlatBufferBuilder<'a>) -> WIPOffset<ipc::Schema<'a>> {
    let fields = fields(to, SAMPLE);
    let args = ipc::SchemaArgs { endianness: ipc::Endianness::Little, fields: Some(fields), ..Default::default() };
    ipc::Schema::create(to, &args)
}

type Fields<'a> = WIPOffset<flatbuffers::Vector<'a, flatbuffers::ForwardsUOffset<ipc::Field<'a>>>>;

fn fields<'a>(to: &mut FlatBufferBuilder<'a>, columns: &[Column]) -> Fields<'a> {
    let all: Vec<_> = columns.iter().map(|column| field(to, column)).collect();
    to.create_vector(&all)
}

fn field<'a>(to: &mut FlatBufferBuilder<'a>, column: &Column) -> WIPOffset<ipc::Field<'a>> {
    let name = to.create_string(column.name);
    let children = match &column.kind {
        Kind::List(children) | Kind::Struct(children) | Kind::ObjectOf(children) => *children,
        Kind::U32 | Kind::U64 | Kind::Text | Kind::LongText => &[],
    };
    let children = fields(to, children);
    let (type_type, type_) = match column.kind {
        Kind::U32 => (ipc::Type::Int, number(to, 32).as_union_value()),
        Kind::U64 => (ipc::Type::Int, number(to, 64).as_union_value()),
        Kind::Text => (ipc::Type::Utf8, ipc::Utf8::create(to, &ipc::Utf8Args {}).as_union_value()),
        Kind::LongText => (ipc::Type::LargeUtf8, ipc::LargeUtf8::create(to, &ipc::LargeUtf8Args {}).as_union_value()),
        Kind::List(_) => (ipc::Type::List, ipc::List::create(to, &ipc::ListArgs {}).as_union_value()),
        Kind::Struct(_) | Kind::ObjectOf(_) => {
            (ipc::Type::Struct_, ipc::Struct_::create(to, &ipc::Struct_Args {}).as_union_value())
        }
    };
    let dictionary = matches!(column.kind, Kind::ObjectOf(_)).then(|| {
        let index = number(to, 32);
        let args = ipc::DictionaryEncodingArgs { id: OBJECTS_ID, indexType: Some(index), ..Default::default() };
        ipc::DictionaryEncoding::create(to, &args)
    });
    let args = ipc::FieldArgs {
        name: Some(name),
        nullable: column.nullable == Nullable::Maybe,
        type_type,
        type_: Some(type_),
        dictionary,
        children: Some(children),
        custom_metadata: None,
    };
    ipc::Field::create(to, &args)
}

fn number<'a>(to: &mut FlatBufferBuilder<'a>, bits: i32) -> WIPOffset<ipc::Int<'a>> {
    ipc::Int::create(to, &ipc::IntArgs { bitWidth: bits, is_signed: false })
}

/// Whether a file's schema is that of an index.
pub(super) fn is_ours(schema: ipc::Schema<'_>) -> bool {
    schema.endianness() == ipc::Endianness::Little && schema.fields().is_some_and(|fields| are(&fields, SAMPLE))
}

type FieldVector<'a> = flatbuffers::Vector<'a, flatbuffers::ForwardsUOffset<ipc::Field<'a>>>;

fn are(fields: &FieldVector<'_>, columns: &[Column]) -> bool {
    fields.len() == columns.len() && fields.iter().zip(columns).all(|(field, column)| is(field, column))
}

fn is(field: ipc::Field<'_>, column: &Column) -> bool {
    let int = |bits| {
        let is_it = |int: ipc::Int<'_>| int.bitWidth() == bits && !int.is_signed();
        field.type_as_int().is_some_and(is_it)
    };
    let kind = match column.kind {
        Kind::U32 => int(32),
        Kind::U64 => int(64),
        Kind::Text => field.type_type() == ipc::Type::Utf8,
        Kind::LongText => field.type_type() == ipc::Type::LargeUtf8,
        Kind::List(_) => field.type_type() == ipc::Type::List,
        Kind::Struct(_) | Kind::ObjectOf(_) => field.type_type() == ipc::Type::Struct_,
    };
    let dictionary = match (&column.kind, field.dictionary()) {
        (Kind::ObjectOf(_), Some(encoding)) => {
            let index = |int: ipc::Int<'_>| int.bitWidth() == 32 && !int.is_signed();
            encoding.id() == OBJECTS_ID && encoding.indexType().is_some_and(index)
        }
        (Kind::ObjectOf(_), None) | (_, Some(_)) => false,
        (_, None) => true,
    };
    let children = match column.kind {
        Kind::List(children) | Kind::Struct(children) | Kind::ObjectOf(children) => {
            field.children().is_some_and(|fields| are(&fields, children))
        }
        Kind::U32 | Kind::U64 | Kind::Text | Kind::LongText => field.children().is_none_or(|fields| fields.is_empty()),
    };
    field.name() == Some(column.name) && kind && dictionary && children
}
