//! The host's end of a stream: the product's queue over the modelled network, as `sw-net` has it over a socket.

use sw_engine::{
    ErrorKind,
    checksum::{Algorithm, Running},
};
use sw_nvme::tcp::{
    host::{HostConfig, HostQueue, Range, Want},
    outgoing::{Outgoing, Sending},
    pdu::{Breach, DIGEST_BYTES, Digests, INITIALIZE_BYTES, IcReq, IcResp, Layout},
};

use super::{
    Shared,
    wire::{Read, Way},
};

/// The memory of commands.
pub(crate) trait Memory {
    /// The bytes of a range that is sent.
    fn take(&mut self, of: Range, shared: &mut Shared) -> Vec<u8>;
    /// Bytes that came for the start of a range.
    fn land(&mut self, of: Range, bytes: &[u8], shared: &mut Shared);
}

/// See the module documentation. Dropping it closes nothing: see [`Stream::hang_up`].
pub(crate) struct Stream {
    pub(crate) number: usize,
    asked: IcReq,
    answer: Vec<u8>,
    /// Once ends agreed on digests and limits.
    pub(crate) queue: Option<HostQueue>,
    limits: (u16, u32),
    outgoing: Outgoing,
    sum: Running,
    told: Vec<u8>,
}

fn no_bytes() -> Running {
    Running::new(Algorithm::Crc32c)
}

fn low32(sum: u64) -> u32 {
    u32::try_from(sum & 0xFFFF_FFFF).unwrap_or(0)
}

fn protocol(_: Breach) -> ErrorKind {
    ErrorKind::Protocol
}

impl Stream {
    /// Opens a stream and asks for a connection; its queue has `limits`: commands, and bytes of a write in its capsule.
    pub(crate) fn open(digests: Digests, limits: (u16, u32), shared: &mut Shared) -> Self {
        let asked = IcReq { format: 0, alignment: 0, digests, r2t_max: 0 };
        let number = shared.wire.open(&mut shared.agenda);
        // A window has room for it.
        shared.wire.write(number, Way::ToTarget, asked.encode().as_bytes(), &mut shared.agenda);
        Self {
            number,
            asked,
            answer: Vec::new(),
            queue: None,
            limits,
            outgoing: Outgoing::default(),
            sum: no_bytes(),
            told: Vec::new(),
        }
    }

    /// Whether the controller cannot know of a command.
    pub(crate) fn is_untouched(&self, cid: u16) -> bool {
        self.queue.as_ref().is_some_and(|queue| self.outgoing.is_untouched(cid, queue))
    }

    pub(crate) fn hang_up(&self, shared: &mut Shared) {
        shared.wire.close(self.number, Way::ToTarget, &mut shared.agenda);
    }

    /// Sends as much as there is room for.
    pub(crate) fn send(&mut self, memory: &mut impl Memory, shared: &mut Shared) {
        let Some(queue) = &mut self.queue else { return };
        loop {
            while self.outgoing.stage(queue, |unit| {
                let mut sum = no_bytes();
                unit.data.into_iter().for_each(|data| sum.update(&memory.take(data, shared)));
                low32(sum.value()).to_le_bytes()
            }) {}
            let mut bytes = Vec::new();
            for Sending { unit, digest, written, .. } in self.outgoing.iter() {
                let from = bytes.len() + written;
                let mut whole = unit.head.as_bytes().to_vec();
                unit.data.into_iter().for_each(|data| whole.extend(memory.take(data, shared)));
                whole.extend(unit.digest.then_some(digest).into_iter().flatten());
                bytes.extend(whole.get(from - bytes.len()..).unwrap_or_default());
            }
            let taken = shared.wire.write(self.number, Way::ToTarget, &bytes, &mut shared.agenda);
            self.outgoing.written(taken, queue);
            if taken < bytes.len() || bytes.is_empty() {
                return;
            }
        }
    }

    /// Receives what is there.
    ///
    /// # Errors
    /// How what is under way ends: `Protocol`, or `Io`.
    pub(crate) fn receive(&mut self, memory: &mut impl Memory, shared: &mut Shared) -> Result<(), ErrorKind> {
        loop {
            let most = match &mut self.queue {
                None => INITIALIZE_BYTES - self.answer.len(),
                Some(queue) => match queue.want() {
                    Want::Head => queue.head_space().len(),
                    Want::Data { bytes, .. } => sw_mem::index(bytes.into()),
                    Want::Digest => DIGEST_BYTES - self.told.len(),
                },
            };
            match shared.wire.read(self.number, Way::ToHost, most) {
                Read::Bytes(bytes) => self.came(&bytes, memory, shared)?,
                Read::Nothing => return Ok(()),
                Read::End | Read::Reset => return Err(ErrorKind::Io),
            }
        }
    }

    fn came(&mut self, bytes: &[u8], memory: &mut impl Memory, shared: &mut Shared) -> Result<(), ErrorKind> {
        let Some(queue) = &mut self.queue else {
            self.answer.extend(bytes);
            return if self.answer.len() < INITIALIZE_BYTES { Ok(()) } else { self.agreed() };
        };
        match queue.want() {
            Want::Head => {
                queue.head_space().iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
                queue.head_came(bytes.len()).map_err(protocol)
            }
            Want::Data { to, digest, .. } => {
                to.into_iter().for_each(|to| memory.land(to, bytes, shared));
                if digest {
                    self.sum.update(bytes);
                }
                queue.data_came(u32::try_from(bytes.len()).unwrap_or(u32::MAX)).map_err(protocol)
            }
            Want::Digest => {
                self.told.extend(bytes);
                let Some(told) = self.told.first_chunk().copied() else { return Ok(()) };
                let sum = core::mem::replace(&mut self.sum, no_bytes());
                self.told.clear();
                queue.digest_came(told, low32(sum.value())).map_err(protocol)
            }
        }
    }

    fn agreed(&mut self) -> Result<(), ErrorKind> {
        let answer = IcResp::decode(&self.answer, &self.asked).map_err(protocol)?;
        let layout = Layout { digests: answer.digests, alignment: answer.alignment };
        let (depth, capsule_data_bytes) = self.limits;
        // Connect is larger than what a controller may take of a write.
        let config = HostConfig { depth, layout, h2c_bytes_max: answer.h2c_bytes_max, capsule_data_bytes: 1024 };
        let mut queue = HostQueue::new(config);
        queue.set_capsule_data_bytes(capsule_data_bytes.max(1024));
        self.queue = Some(queue);
        Ok(())
    }

    /// Connect is over: what of writes goes in capsules.
    pub(crate) fn connected(&mut self) {
        let bytes = self.limits.1;
        self.queue.iter_mut().for_each(|queue| queue.set_capsule_data_bytes(bytes));
    }
}
