//! Work that waits for its place in a stream: nobody tells when a stream has come so far, so it is looked at again and again.

use std::time::Duration;

/// Between two looks at streams that work waits for: twenty thousand a second, of half a microsecond each.
pub const GATE_PAUSE: Duration = Duration::from_micros(50);

/// Those of `placed`, which has the order of their places, that are the first of their streams. The others are behind one that is
/// not over: the stream cannot have come to them, and a driver that runs a stream when it is asked would wait for the asking thread.
pub fn first_of_streams<T, S: PartialEq>(placed: &[T], stream: impl Fn(&T) -> S) -> impl Iterator<Item = &T> {
    let mut seen = Vec::new();
    placed.iter().filter(move |placed| {
        let stream = stream(placed);
        let first = !seen.contains(&stream);
        if first {
            seen.push(stream);
        }
        first
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_each_stream_is_the_first() {
        let placed = [(1, 'a'), (2, 'b'), (1, 'c'), (3, 'd'), (2, 'e')];
        let first: Vec<char> = first_of_streams(&placed, |(stream, _)| *stream).map(|(_, name)| *name).collect();
        assert_eq!(first, ['a', 'b', 'd']);
        assert_eq!(first_of_streams(&[] as &[u8], |stream| *stream).count(), 0);
    }
}
