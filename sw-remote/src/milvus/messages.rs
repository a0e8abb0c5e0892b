//! Messages of Milvus's API that are asked here, with the fields that are looked at.
//!
//! Source: milvus-io/milvus-proto `proto/milvus.proto`, `proto/schema.proto`, `proto/common.proto`. Fields that are not named are gone over.

use prost::Message;

/// `common.Status`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Status {
    /// The older code.
    #[prost(int32, tag = "1")]
    pub error_code: i32,
    #[prost(string, tag = "2")]
    pub reason: String,
    #[prost(int32, tag = "3")]
    pub code: i32,
}

/// A request that names a database and a collection as most do: `DescribeCollectionRequest`, `ShowPartitionsRequest`,
/// `ShowCollectionsRequest` (without a collection).
#[derive(Clone, PartialEq, Message)]
pub(super) struct Named {
    #[prost(string, tag = "2")]
    pub database: String,
    #[prost(string, tag = "3")]
    pub collection: String,
}

/// `ShowCollectionsRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct OfDatabase {
    #[prost(string, tag = "2")]
    pub database: String,
}

/// A request without fields: `ListDatabasesRequest`, `GetVersionRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Nothing {}

/// `GetVersionResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Version {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(string, tag = "2")]
    pub version: String,
}

/// `ListDatabasesResponse`, `ShowCollectionsResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Names {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(string, repeated, tag = "2")]
    pub names: Vec<String>,
}

/// `ShowPartitionsResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Partitions {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(string, repeated, tag = "2")]
    pub names: Vec<String>,
    #[prost(int64, repeated, tag = "3")]
    pub ids: Vec<i64>,
}

/// `DescribeCollectionResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Described {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(message, optional, tag = "2")]
    pub schema: Option<Schema>,
    #[prost(int64, tag = "3")]
    pub id: i64,
}

/// `schema.CollectionSchema`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Schema {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, repeated, tag = "4")]
    pub fields: Vec<Field>,
}

/// `schema.FieldSchema`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Field {
    #[prost(int64, tag = "1")]
    pub id: i64,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(bool, tag = "3")]
    pub is_primary_key: bool,
    #[prost(int32, tag = "5")]
    pub data_type: i32,
    #[prost(message, repeated, tag = "6")]
    pub type_params: Vec<Pair>,
}

/// `common.KeyValuePair`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Pair {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// `GetPersistentSegmentInfoResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Segments {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(message, repeated, tag = "2")]
    pub infos: Vec<Segment>,
}

/// `PersistentSegmentInfo`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Segment {
    #[prost(int64, tag = "1")]
    pub id: i64,
    #[prost(int64, tag = "3")]
    pub partition: i64,
    #[prost(int64, tag = "4")]
    pub rows: i64,
    #[prost(int32, tag = "5")]
    pub state: i32,
    #[prost(int32, tag = "6")]
    pub level: i32,
    #[prost(int64, tag = "8")]
    pub storage_version: i64,
}

/// `SegmentState::Flushed`, `SegmentState::Dropped`.
pub(super) const FLUSHED: i32 = 4;
pub(super) const DROPPED: i32 = 6;
/// `SegmentLevel::L0`: deletes alone.
pub(super) const LEVEL_ZERO: i32 = 1;

/// What Milvus calls a type; `None` for those that are not known here.
pub(super) fn type_name(data_type: i32) -> Option<&'static str> {
    Some(match data_type {
        1 => "bool",
        2 => "int8",
        3 => "int16",
        4 => "int32",
        5 => "int64",
        10 => "float",
        11 => "double",
        20 => "string",
        21 => "varchar",
        22 => "array",
        23 => "json",
        100 => "binary_vector",
        101 => "float_vector",
        102 => "float16_vector",
        103 => "bfloat16_vector",
        104 => "sparse_float_vector",
        105 => "int8_vector",
        _ => return None,
    })
}

/// Answers that carry a [`Status`].
pub(super) trait Answer: Message + Default {
    /// It.
    fn status(&self) -> Option<&Status>;
}

macro_rules! answers {
    ($($answer:ty),*) => {
        $(impl Answer for $answer {
            fn status(&self) -> Option<&Status> {
                self.status.as_ref()
            }
        })*
    };
}
answers!(Version, Names, Partitions, Described, Segments);
