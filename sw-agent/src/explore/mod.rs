//! Every order of events in small worlds: a host, an agent, and a wire between them that may be cut.
//!
//! ```text
//!   World ──moves()──► each enabled move ──step()──► World' (seen before? dropped : kept)      breadth first, so the first
//!     │                                                                                        violation has the shortest way to it
//!     └── nothing enabled ──► at_rest(): every operation has ended, credits are whole
//! ```
//!
//! There are two streams in each direction, control and I/O, which are in order and overtake each other. A cut loses what is under
//! way, but completions and data may still come later, as from a ring that outlives its writer. What is checked after each move is in
//! [`world`], the worlds are in [`tests`].

mod tests;
mod world;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use world::{Move, World};

/// What an exploration came to.
#[derive(Debug, Default)]
struct Explored {
    states: usize,
    at_rest: usize,
    /// What was reached, by name.
    marks: std::collections::BTreeSet<&'static str>,
}

/// A promise that was broken, and the moves that lead to it.
#[derive(Debug)]
struct Broken {
    promise: String,
    moves: Vec<Move>,
}

/// A world as 128 bits. Two worlds of one name would hide one of them: at a million states that has a chance of 10^-27.
fn name(world: &World) -> u128 {
    let half = |salt: u64| {
        let mut hasher = DefaultHasher::new();
        salt.hash(&mut hasher);
        world.hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(1) << 64 | half(2)
}

/// Goes through all worlds that `start` can become; `states_max` is a limit that a world of the tests must not reach.
fn explore(start: World, states_max: usize) -> Result<Explored, Broken> {
    let mut explored = Explored::default();
    let mut seen = HashSet::from([name(&start)]);
    // Who came from whom, and how.
    let mut from: Vec<(usize, Move)> = vec![(0, Move::Start)];
    let mut level = vec![(0, start)];
    while !level.is_empty() {
        let mut next = Vec::new();
        for (index, world) in level {
            let moves = world.moves();
            let broken = |from: &[_], promise, last| Broken { promise, moves: way(from, index, last) };
            if !moves.iter().any(Move::is_progress) {
                world.at_rest().map_err(|promise| broken(&from, promise, None))?;
                explored.at_rest += 1;
            }
            for step in moves {
                let made = world.step(step).map_err(|promise| broken(&from, promise, Some(step)))?;
                if seen.insert(name(&made)) {
                    explored.marks.extend(made.marks());
                    next.push((from.len(), made));
                    from.push((index, step));
                }
            }
            assert!(from.len() <= states_max, "more than {states_max} states");
        }
        level = next;
    }
    explored.states = from.len();
    Ok(explored)
}

fn way(from: &[(usize, Move)], mut index: usize, last: Option<Move>) -> Vec<Move> {
    let mut moves: Vec<_> = last.into_iter().collect();
    while index != 0 {
        let (parent, step) = from[index];
        moves.push(step);
        index = parent;
    }
    moves.reverse();
    moves
}
