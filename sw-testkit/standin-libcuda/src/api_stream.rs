//! Streams and events.
#![expect(unsafe_code, reason = "exported names: `no_mangle` is what makes them the driver's")]

use crate::abi::{Answer, HostFunction, INVALID_HANDLE, INVALID_VALUE, NOT_READY, Out, api};
use crate::config::Mode;
use crate::queue::{self, Event, Stream, Work};
use crate::state::{self, State};

api! {
    fn cuStreamCreate(stream: Out<u64>, flags: u32) { create(&stream, flags) }
    fn cuStreamCreateWithPriority(stream: Out<u64>, flags: u32, _priority: i32) { create(&stream, flags) }

    fn cuStreamDestroy_v2(stream: u64) {
        let (context, queued) = state::attempt(|s| {
            s.current_any()?;
            let st = s.streams.get(&stream).filter(|st| !st.is_default).ok_or(INVALID_HANDLE)?;
            Ok((st.context, st.queued))
        })?;
        // The real one returns at once and ends the stream when its work is done; nobody can tell the difference
        // except by a clock.
        let outcome = queue::run_to(stream, queued);
        state::attempt(|s| {
            s.streams.remove(&stream);
            outcome.and(s.health(context))
        })
    }

    fn cuStreamQuery(stream: u64) {
        let goal = state::attempt(|s| {
            let stream = s.stream(stream)?;
            let st = s.streams.get_mut(&stream).ok_or(INVALID_HANDLE)?;
            Ok(poll(s.config.mode, &mut st.polls, st.queued - st.done).then_some((stream, st.queued, st.context)))
        })?;
        match goal {
            None => Err(NOT_READY),
            Some((stream, queued, context)) => settle(stream, queued, context),
        }
    }

    fn cuStreamSynchronize(stream: u64) {
        let (stream, queued) = state::attempt(|s| {
            s.stats.blocking_waits += 1;
            let stream = s.stream(stream)?;
            Ok((stream, s.streams.get(&stream).map_or(0, |st| st.queued)))
        })?;
        queue::run_to(stream, queued)
    }

    fn cuStreamWaitEvent(stream: u64, event: u64, flags: u32) {
        if flags > 1 {
            return Err(INVALID_VALUE);
        }
        let pushed = state::attempt(|s| {
            let stream = s.stream(stream)?;
            match s.events.get(&event).ok_or(INVALID_HANDLE)?.mark {
                None => Ok(None),
                Some((other, _)) if other == stream => Ok(None),
                Some((other, seq)) => {
                    queue::push(s, stream, Work::Await { stream: other, seq }).map(|seq| Some((stream, seq)))
                }
            }
        })?;
        pushed.map_or(Ok(()), |(stream, seq)| queue::after_push(stream, seq))
    }

    fn cuStreamWaitValue32_v2(stream: u64, address: u64, value: u32, flags: u32) {
        push(stream, address, Work::Await32 { src: address, value, how: flags })
    }

    fn cuStreamWriteValue32_v2(stream: u64, address: u64, value: u32, _flags: u32) {
        push(stream, address, Work::Store32 { dst: address, value })
    }

    fn cuLaunchHostFunc(stream: u64, function: Option<HostFunction>, data: u64) {
        let function = function.ok_or(INVALID_VALUE)?;
        let (stream, seq) = state::attempt(|s| {
            let stream = s.stream(stream)?;
            queue::push(s, stream, Work::Host { function, data }).map(|seq| (stream, seq))
        })?;
        queue::after_push(stream, seq)
    }

    fn cuStreamGetCtx(stream: u64, context: Out<u64>) {
        let owner = state::attempt(|s| {
            let stream = s.stream(stream)?;
            s.streams.get(&stream).map(|st| st.context).ok_or(INVALID_HANDLE)
        })?;
        context.set(owner)
    }

    fn cuStreamGetFlags(stream: u64, flags: Out<u32>) {
        let blocking = state::attempt(|s| {
            let stream = s.stream(stream)?;
            s.streams.get(&stream).map(|st| st.blocking).ok_or(INVALID_HANDLE)
        })?;
        flags.set(u32::from(!blocking))
    }

    fn cuStreamGetPriority(stream: u64, priority: Out<i32>) {
        state::with(|s| s.stream(stream))?;
        priority.set(0)
    }

    fn cuStreamIsCapturing(stream: u64, status: Out<u32>) {
        state::with(|s| s.stream(stream))?;
        status.set(0)
    }

    fn cuEventCreate(event: Out<u64>, _flags: u32) {
        let handle = state::attempt(|s| {
            let context = s.current()?;
            let handle = s.handle();
            s.events.insert(handle, Event { context, mark: None, polls: 0, at: None });
            Ok(handle)
        })?;
        event.set(handle)
    }

    fn cuEventDestroy_v2(event: u64) {
        state::attempt(|s| {
            let gone = s.events.remove(&event).ok_or(INVALID_HANDLE)?;
            s.health(gone.context)
        })
    }

    fn cuEventRecord(event: u64, stream: u64) { record(event, stream) }
    fn cuEventRecordWithFlags(event: u64, stream: u64, _flags: u32) { record(event, stream) }

    fn cuEventQuery(event: u64) {
        let goal = state::attempt(|s| {
            let mode = s.config.mode;
            let known = s.events.get(&event).ok_or(INVALID_HANDLE)?;
            s.health(known.context)?;
            let Some((stream, seq)) = known.mark else { return Ok(Some(None)) };
            let (context, behind) = (known.context, u64::from(!queue::is_done(s, stream, seq)));
            let polls = s.events.get_mut(&event).map(|e| &mut e.polls).ok_or(INVALID_HANDLE)?;
            Ok(poll(mode, polls, behind).then_some(Some((stream, seq, context))))
        })?;
        match goal {
            None => Err(NOT_READY),
            Some(None) => Ok(()),
            Some(Some((stream, seq, context))) => settle(stream, seq, context),
        }
    }

    fn cuEventSynchronize(event: u64) {
        let mark = state::attempt(|s| {
            s.stats.blocking_waits += 1;
            let known = s.events.get(&event).ok_or(INVALID_HANDLE)?;
            s.health(known.context)?;
            Ok(known.mark)
        })?;
        mark.map_or(Ok(()), |(stream, seq)| queue::run_to(stream, seq))
    }

    fn cuEventElapsedTime(milliseconds: Out<f32>, start: u64, end: u64) {
        elapsed(&milliseconds, start, end)
    }
    fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: u64, end: u64) {
        elapsed(&milliseconds, start, end)
    }
}

fn create(out: &Out<u64>, flags: u32) -> Answer {
    let handle = state::attempt(|s| {
        let context = s.current()?;
        let handle = s.handle();
        s.streams.insert(handle, Stream::new(context, flags));
        Ok(handle)
    })?;
    out.set(handle)
}

fn push(stream: u64, address: u64, work: Work) -> Answer {
    let (stream, seq) = state::attempt(|s| {
        let stream = s.stream(stream)?;
        if !address.is_multiple_of(4) || s.arena.find(address).is_none() {
            return Err(INVALID_VALUE);
        }
        queue::push(s, stream, work).map(|seq| (stream, seq))
    })?;
    queue::after_push(stream, seq)
}

fn record(event: u64, stream: u64) -> Answer {
    let (stream, seq) = state::attempt(|s| {
        s.current()?;
        let stream = s.stream(stream)?;
        let same = s.events.get(&event).map(|e| e.context) == s.streams.get(&stream).map(|st| st.context);
        if !same {
            return Err(INVALID_HANDLE);
        }
        let seq = queue::push(s, stream, Work::Mark)?;
        mark(s, event, stream, seq);
        Ok((stream, seq))
    })?;
    queue::after_push(stream, seq)
}

fn mark(s: &mut State, event: u64, stream: u64, seq: u64) {
    let polls = s.config.query_polls;
    if let Some(event) = s.events.get_mut(&event) {
        event.mark = Some((stream, seq));
        event.polls = polls;
        event.at = Some(queue::now());
    }
}

/// Whether a query may now look at the truth. In mode lazy it first answers "not ready" as often as set.
fn poll(mode: Mode, polls: &mut u32, behind: u64) -> bool {
    match mode {
        _ if behind == 0 => true,
        Mode::Lazy if *polls == 0 => true,
        Mode::Lazy => {
            *polls -= 1;
            false
        }
        Mode::Worker | Mode::Eager => false,
    }
}

fn settle(stream: u64, seq: u64, context: u64) -> Answer {
    queue::run_to(stream, seq)?;
    state::with(|s| s.health(context))
}

fn elapsed(out: &Out<f32>, start: u64, end: u64) -> Answer {
    let span = state::attempt(|s| {
        let at = |event: u64| s.events.get(&event).map(|e| e.at).ok_or(INVALID_HANDLE);
        match (at(start)?, at(end)?) {
            (Some(a), Some(b)) => Ok(b.saturating_duration_since(a)),
            _ => Err(INVALID_HANDLE),
        }
    })?;
    out.set(span.as_secs_f32() * 1e3)
}
