//! Many small pieces by one request (AIStore, "GetBatch"): a target gathers them from all the others and sends them in the order in which they
//! were asked for, as an archive.
//!
//! ```text
//!   pieces ─► one request ─► proxy ─► a target ◄─ the others
//!   each in its place ◄── the archive, entry by entry ┘
//! ```
//!
//! The archive says nothing of versions and checksums: a piece is of whatever its object is at that moment.

use std::ops::Range;

use bytes::Bytes;
use futures_util::StreamExt;
use http::Method;
use object_store::client::HttpError;
use serde_json::{Value, json};
use sw_engine::{Error, ErrorKind, Verb};
use tokio::sync::mpsc;

use super::{
    super::{ObjectStores, fault},
    cluster::{Call, Tries, nonsense},
    tar::{Next, NoArchive, Tar},
    told,
};
use crate::address::{ARCHPATH, Address};

/// Pieces of a request, at most.
const PIECES_MAX: usize = 4096;
/// Pieces of bytes that wait to be taken.
const AHEAD: usize = 64;
/// What stands before the name of what is not there.
const MISSING: &str = "__404__/";

/// A piece of an object, and where it goes.
#[derive(Debug)]
pub struct Piece<'a> {
    /// `ais://BUCKET/KEY`, or a member of an archive.
    pub name: &'a str,
    /// From which byte on. `None`: all of it, which has as many bytes as there is room.
    pub offset: Option<u64>,
    /// Where it goes: filled to its end if all is well.
    pub to: &'a mut [u8],
}

/// What came of a piece; the rest of a batch is none the worse.
pub type PieceResult = Result<(), Error>;

/// A piece as AIStore is asked for it, and its name in the archive.
struct Asked {
    at: Address,
    name: String,
    message: Value,
}

impl Asked {
    fn of(piece: &Piece<'_>) -> Result<Self, Error> {
        let at = ObjectStores::parse(piece.name, Verb::Read)?.of_object(Verb::Read)?;
        if at.scheme != crate::Scheme::Ais {
            return Err(Error::new(ErrorKind::Unsupported, Verb::Read)
                .at(piece.name)
                .detail("only AIStore gives many pieces by one request")
                .remedy("read them one by one"));
        }
        let (object, member) = at.key.split_once(ARCHPATH).map_or((at.key.as_str(), None), |(o, m)| (o, Some(m)));
        let mut message = json!({"objname": object, "bucket": at.bucket, "provider": "ais"});
        let mut name = format!("{}/{object}", at.bucket);
        if let Some(member) = member {
            message["archpath"] = member.into();
            name = format!("{name}/{member}");
        }
        if let Some(offset) = piece.offset {
            message["start"] = offset.into();
            message["length"] = piece.to.len().into();
        }
        Ok(Self { at, name, message })
    }
}

/// Pieces that come.
struct Coming<'a, 'b> {
    stores: &'a ObjectStores,
    asked: &'a [Asked],
    pieces: &'a mut [Piece<'b>],
    results: &'a mut [Option<PieceResult>],
    /// The one that is next.
    next: usize,
}

/// Where an entry's bytes go.
enum Place {
    Piece(usize, usize),
    /// They are not wanted.
    Nowhere,
}

impl ObjectStores {
    /// Reads many pieces of objects of AIStore: as few requests as can be. What came of each, in their order.
    ///
    /// # Errors
    /// What stops all of them: names that are none, or a cluster that does not answer for as long as is patient.
    pub fn read_batch(&self, pieces: &mut [Piece<'_>]) -> Result<Vec<PieceResult>, Error> {
        let mut results = Vec::with_capacity(pieces.len());
        for pieces in pieces.chunks_mut(PIECES_MAX) {
            let asked = pieces.iter().map(Asked::of).collect::<Result<Vec<_>, _>>()?;
            let mut told: Vec<Option<PieceResult>> = (0..pieces.len()).map(|_| None).collect();
            // A range of no bytes is none for AIStore.
            for (piece, told) in pieces.iter().zip(&mut told) {
                if piece.to.is_empty() && piece.offset.is_some() {
                    *told = Some(Ok(()));
                }
            }
            Coming { stores: self, asked: &asked, pieces, results: &mut told, next: 0 }.run()?;
            results.extend(told.into_iter().flatten());
        }
        Ok(results)
    }
}

impl Coming<'_, '_> {
    /// Those that are asked for, from `next` on.
    fn left(&self) -> Vec<usize> {
        let open = |index: &usize| self.results.get(*index).is_some_and(Option::is_none);
        (self.next..self.asked.len()).filter(open).collect()
    }

    fn run(&mut self) -> Result<(), Error> {
        let Some(first) = self.asked.first() else { return Ok(()) };
        let patience = self.stores.config.patience;
        let mut tries = Tries::new(patience);
        loop {
            let left = self.left();
            if left.is_empty() {
                return Ok(());
            }
            let before = self.next;
            let Err(failed) = self.request(first, &left)? else { continue };
            if self.next > before {
                tries = Tries::new(patience);
            }
            let wait = async move {
                let waited = tries.again(failed).await;
                waited.map(|()| tries).map_err(told)
            };
            tries = self.stores.ask(&first.at, Verb::Read, wait)?;
        }
    }

    /// One request. What ended it early.
    fn request(&mut self, first: &Asked, left: &[usize]) -> Result<Result<(), HttpError>, Error> {
        let store = self.stores.bucket(&first.at)?.ais.clone();
        let store = store.ok_or_else(|| Error::new(ErrorKind::Unsupported, Verb::Read).at(first.at.to_string()))?;
        let messages: Vec<&Value> = left.iter().filter_map(|index| Some(&self.asked.get(*index)?.message)).collect();
        let message = json!({"in": messages, "mime": ".tar", "strm": true, "coer": true});
        let mut call = Call::json(Method::GET, format!("/v1/ml/moss/{}?provider=ais", first.at.bucket), &message);
        call.most = Some(u64::MAX);
        let (to, mut come) = mpsc::channel::<Result<Bytes, HttpError>>(AHEAD);
        let pump = async move {
            let answer = match store.cluster.ask(&call).await {
                Ok(answer) => answer,
                Err(error) => return drop(to.send(Err(error)).await),
            };
            let mut body = answer.into_body().bytes_stream();
            while let Some(piece) = body.next().await {
                // Whoever takes them may be gone.
                if to.send(piece).await.is_err() {
                    return;
                }
            }
        };
        self.stores.context.runtime().handle()?.spawn(pump);
        let (mut tar, mut left, mut place, mut len) = (Tar::new(), left.iter().copied(), Place::Nowhere, 0);
        loop {
            match tar.next() {
                Err(NoArchive) => return Ok(Err(nonsense("a batch is no archive"))),
                Ok(Next::More) => {
                    let next = async move {
                        let mut some = Vec::new();
                        come.recv_many(&mut some, AHEAD).await;
                        Ok((some, come))
                    };
                    let (some, rest) = self.stores.ask(&first.at, Verb::Read, next)?;
                    come = rest;
                    if some.is_empty() {
                        return Ok(Err(nonsense("a batch ended before its end")));
                    }
                    for piece in some {
                        match piece {
                            Ok(piece) => tar.put(piece),
                            Err(error) => return Ok(Err(error)),
                        }
                    }
                }
                Ok(Next::Entry { name, len: has }) => {
                    let Some(index) = left.next() else {
                        return Ok(Err(nonsense("a batch has more than was asked for")));
                    };
                    (place, len) = (self.place(index, &name, has).map_err(|error| fault_of(error, first))?, has);
                }
                Ok(Next::Bytes(bytes)) => self.land(&mut place, &bytes),
                Ok(Next::Whole) => {
                    tar.pad(len);
                    if let Place::Piece(index, _) = place {
                        self.end(index, Ok(()));
                    }
                    place = Place::Nowhere;
                    if self.left().is_empty() {
                        return Ok(Ok(()));
                    }
                }
                Ok(Next::End) => return Ok(Err(nonsense("a batch has less than was asked for"))),
            }
        }
    }

    fn end(&mut self, index: usize, result: PieceResult) {
        self.next = index + 1;
        if let Some(told) = self.results.get_mut(index) {
            *told = Some(result);
        }
    }

    /// Where an entry goes.
    fn place(&mut self, index: usize, name: &str, len: u64) -> Result<Place, HttpError> {
        let (Some(asked), Some(piece)) = (self.asked.get(index), self.pieces.get(index)) else {
            return Err(nonsense("a batch has more than was asked for"));
        };
        let fail = |kind| Error::new(kind, Verb::Read).at(asked.at.to_string());
        if name.strip_prefix(MISSING) == Some(asked.name.as_str()) {
            let error = fail(ErrorKind::NotFound).detail("there is no such piece, or its target did not give it");
            self.end(index, Err(error.remedy("look for the name with `straightway ls`, and read it alone")));
            return Ok(Place::Nowhere);
        }
        if name != asked.name {
            return Err(nonsense("a batch has something else than was asked for"));
        }
        if len != piece.to.len() as u64 {
            let text = format!("it has {len} bytes, where {} are wanted", piece.to.len());
            self.end(index, Err(fail(ErrorKind::ShortData).detail(text).remedy("look how long it is now")));
            return Ok(Place::Nowhere);
        }
        Ok(Place::Piece(index, 0))
    }

    fn land(&mut self, place: &mut Place, bytes: &[u8]) {
        let Place::Piece(index, at) = place else { return };
        let range: Range<usize> = *at..*at + bytes.len();
        // The entry has as many as there is room.
        if let Some(to) = self.pieces.get_mut(*index).and_then(|piece| piece.to.get_mut(range)) {
            to.copy_from_slice(bytes);
        }
        *at += bytes.len();
    }
}

fn fault_of(error: HttpError, first: &Asked) -> Error {
    fault::told(told(error), Verb::Read, &first.at.to_string())
}
