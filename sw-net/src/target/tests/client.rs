//! A blocking host for tests: the product's `HostQueue` over a socket of the standard library.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use sw_nvme::{
    fabrics::{ANY_CONTROLLER, ConnectData, Nqn, PropertySize, QueueRequest},
    tcp::{
        host::{HostConfig, HostQueue, Outcome, Range, Terminated, Transfer, Want},
        pdu::{self, Digests, IcReq, IcResp, Layout},
    },
    wire::{BlockCount, Command, DataPointer, IoFlags, LbaRange, admin, regs},
};

/// How long a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no end of a command.
#[derive(Debug, PartialEq, Eq)]
pub enum Fail {
    Closed,
    TimedOut,
    Breach(&'static str),
    Terminated(Terminated),
}

impl From<io::Error> for Fail {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Closed,
        }
    }
}

impl From<pdu::Breach> for Fail {
    fn from(breach: pdu::Breach) -> Self {
        Self::Breach(breach.rule)
    }
}

/// The end of a command, with its data.
#[derive(Debug)]
pub struct Done {
    pub user: u32,
    pub outcome: Outcome,
    pub value: u64,
    pub data: Vec<u8>,
}

/// How a client connects.
#[derive(Clone)]
pub struct Host {
    pub nqn: Nqn,
    pub id: [u8; 16],
    pub subsystem: Nqn,
    pub digests: Digests,
    pub alignment: u8,
    pub entries: u16,
    pub keep_alive_ms: u32,
    /// IOCCSZ, as a number of bytes of data.
    pub capsule_data_bytes: u32,
}

impl Host {
    pub fn new(subsystem: &Nqn, digests: Digests) -> Self {
        let nqn = Nqn::new("nqn.2026-11.io.straightway:test-host").unwrap();
        let (id, subsystem) = ([7; 16], subsystem.clone());
        Self { nqn, id, subsystem, digests, alignment: 0, entries: 32, keep_alive_ms: 0, capsule_data_bytes: 8192 }
    }

    /// The data of Connect.
    pub fn data(&self, controller: u16) -> Vec<u8> {
        let (subsystem, host) = (self.subsystem.clone(), self.nqn.clone());
        ConnectData { host_id: self.id, controller, subsystem, host }.encode().to_vec()
    }

    pub fn request(&self, qid: u16) -> QueueRequest {
        QueueRequest { qid, entries: self.entries, keep_alive_ms: if qid == 0 { self.keep_alive_ms } else { 0 } }
    }

    /// An enabled controller: its admin queue and its CNTLID.
    pub fn admin(&self, at: SocketAddr) -> (Client, u16) {
        let mut client = Client::open(at, self).unwrap();
        let done = client.run(&Command::connect(self.request(0)), Move::Out(self.data(ANY_CONTROLLER))).unwrap();
        assert_eq!(done.outcome, SUCCESS);
        client.enable();
        (client, done.value as u16)
    }

    /// An I/O queue of a controller.
    pub fn io(&self, at: SocketAddr, controller: u16, qid: u16) -> Client {
        let mut client = Client::open(at, self).unwrap();
        let done = client.run(&Command::connect(self.request(qid)), Move::Out(self.data(controller))).unwrap();
        assert_eq!(done.outcome, SUCCESS);
        client.set_capsule_data_bytes(self.capsule_data_bytes);
        client
    }
}

/// What a command moves.
pub enum Move {
    None,
    In(usize),
    Out(Vec<u8>),
}

pub const SUCCESS: Outcome = Outcome::Told(sw_nvme::status::Status::SUCCESS);

pub struct Client {
    pub stream: TcpStream,
    queue: HostQueue,
    pub response: IcResp,
    buffers: Vec<Vec<u8>>,
    digest: Vec<u8>,
}

impl Client {
    /// Connects and initialises.
    pub fn open(at: SocketAddr, host: &Host) -> Result<Self, Fail> {
        Self::open_within(at, host, PATIENCE)
    }

    /// The same for somebody who waits no longer than `patience` for the answer.
    pub fn open_within(at: SocketAddr, host: &Host, patience: Duration) -> Result<Self, Fail> {
        let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let asked = IcReq { format: 0, alignment: host.alignment, digests: host.digests, r2t_max: 0 };
        stream.write_all(asked.encode().as_bytes())?;
        let mut raw = [0; 128];
        stream.read_exact(&mut raw)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let response = IcResp::decode(&raw, &asked)?;
        let layout = Layout { digests: response.digests, alignment: response.alignment };
        let queue = HostQueue::new(HostConfig {
            depth: 32,
            layout,
            h2c_bytes_max: response.h2c_bytes_max,
            // Until Connect is done; then the queue's own.
            capsule_data_bytes: pdu::ADMIN_CAPSULE_DATA_BYTES,
        });
        Ok(Self { stream, queue, response, buffers: Vec::new(), digest: Vec::new() })
    }

    /// IOCCSZ, for commands from now on.
    pub fn set_capsule_data_bytes(&mut self, bytes: u32) {
        self.queue.set_capsule_data_bytes(bytes);
    }

    /// CC.EN, and CSTS.RDY behind it.
    pub fn enable(&mut self) {
        let done = self.run(&Command::property_set(regs::CC, 0x0046_0001), Move::None).unwrap();
        assert_eq!(done.outcome, SUCCESS);
        assert_eq!(self.property(regs::CSTS, PropertySize::Four), 1);
    }

    pub fn property(&mut self, offset: u32, size: PropertySize) -> u64 {
        let done = self.run(&Command::property_get(offset, size), Move::None).unwrap();
        assert_eq!(done.outcome, SUCCESS);
        done.value
    }

    pub fn identify(&mut self, what: admin::Identify) -> Vec<u8> {
        let done = self.run(&Command::identify(what, DataPointer::None), Move::In(4096)).unwrap();
        assert_eq!(done.outcome, SUCCESS);
        done.data
    }

    pub fn read(&mut self, slba: u64, blocks: u32, block_bytes: usize) -> Result<Done, Fail> {
        self.run(
            &Command::read(at(slba, blocks), DataPointer::None, IoFlags::NONE),
            Move::In(blocks as usize * block_bytes),
        )
    }

    pub fn write(&mut self, slba: u64, blocks: u32, data: &[u8]) -> Result<Done, Fail> {
        self.run(&Command::write(at(slba, blocks), DataPointer::None, IoFlags::NONE), Move::Out(data.to_vec()))
    }

    /// Puts a command into the queue and sends what there is to send.
    pub fn begin(&mut self, command: &Command, data: Move) -> Result<(u32, u16), Fail> {
        let user = self.buffers.len() as u32;
        let (transfer, buffer) = match data {
            Move::None => (Transfer::None, Vec::new()),
            Move::In(bytes) => (Transfer::In(bytes as u32), vec![0xEE; bytes]),
            Move::Out(bytes) => (Transfer::Out(bytes.len() as u32), bytes),
        };
        self.buffers.push(buffer);
        let cid = self.queue.submit(command, transfer, user).expect("the queue has room");
        self.send()?;
        Ok((user, cid))
    }

    /// The next command that ends.
    pub fn end(&mut self) -> Result<Done, Fail> {
        loop {
            self.send()?;
            if let Some(end) = self.queue.pop_end() {
                let data = std::mem::take(&mut self.buffers[end.user as usize]);
                return Ok(Done { user: end.user, outcome: end.outcome, value: end.value, data });
            }
            if let Some(terminated) = self.queue.terminated() {
                return Err(Fail::Terminated(terminated));
            }
            self.receive()?;
        }
    }

    /// One command, alone.
    pub fn run(&mut self, command: &Command, data: Move) -> Result<Done, Fail> {
        let (user, _) = self.begin(command, data)?;
        let done = self.end()?;
        assert_eq!(done.user, user);
        Ok(done)
    }

    fn send(&mut self) -> Result<(), Fail> {
        while let Some(unit) = self.queue.next_unit() {
            let mut bytes = unit.head.as_bytes().to_vec();
            if let Some(Range { user, at, bytes: len }) = unit.data {
                let data = &self.buffers[user as usize][at as usize..(at + len) as usize];
                bytes.extend_from_slice(data);
                if unit.digest {
                    bytes.extend_from_slice(&pdu::crc32c(data).to_le_bytes());
                }
            }
            self.stream.write_all(&bytes)?;
            self.queue.unit_sent(&unit);
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<(), Fail> {
        match self.queue.want() {
            Want::Head => {
                self.digest.clear();
                let bytes = self.stream.read(self.queue.head_space())?;
                if bytes == 0 {
                    return Err(Fail::Closed);
                }
                self.queue.head_came(bytes)?;
            }
            Want::Data { to, bytes, .. } => {
                let mut data = vec![0; bytes as usize];
                self.stream.read_exact(&mut data)?;
                if let Some(Range { user, at, .. }) = to {
                    self.buffers[user as usize][at as usize..at as usize + data.len()].copy_from_slice(&data);
                }
                self.digest = data;
                self.queue.data_came(bytes)?;
            }
            Want::Digest => {
                let mut told = [0; 4];
                self.stream.read_exact(&mut told)?;
                self.queue.digest_came(told, pdu::crc32c(&self.digest))?;
            }
        }
        Ok(())
    }
}

pub fn at(slba: u64, blocks: u32) -> LbaRange {
    LbaRange { nsid: 1, slba, nlb: BlockCount::new(blocks).unwrap() }
}
