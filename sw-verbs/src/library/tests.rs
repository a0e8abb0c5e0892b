// UNSAFETY: the stand-in is asked how many devices it has open.

use std::{
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use sw_testkit::scratch::Scratch;

use super::*;

/// A library of the exported functions, in C: what it has is chosen by the preprocessor.
const STAND_IN: &str = r#"
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
struct attr { char fw[64]; uint64_t guid, sys, mr, pages; uint32_t vendor, part, hw; int qp, wr; uint32_t caps;
    int sge, sge_rd, cq, cqe, mrs, pd, rd; int others[19]; uint16_t pkeys; uint8_t delay, ports; };
struct port { int state, mtu, active, gids; uint32_t caps, msg; };
struct gid { uint8_t raw[16]; uint32_t index, port, type, ndev; };
static int opened;
static void *devices[3] = { "one", "broken", 0 };
void **ibv_get_device_list(int *count) {
#ifdef NO_KERNEL
    errno = ENOSYS; return 0;
#else
    *count = 2; return devices;
#endif
}
void ibv_free_device_list(void **list) { (void)list; }
const char *ibv_get_device_name(void *device) { return device; }
void *ibv_open_device(void *device) {
    if (!strcmp(device, "broken")) { errno = EACCES; return 0; }
    opened++; return device;
}
int ibv_close_device(void *context) { (void)context; opened--; return 0; }
int stand_in_opened(void) { return opened; }
int ibv_query_device(void *context, struct attr *attr) {
    (void)context; memset(attr, 0, sizeof *attr);
    attr->mr = 1ull << 40; attr->wr = 1024; attr->cqe = 4096; attr->rd = 16; attr->caps = 1u << 21; attr->ports = 1;
    return 0;
}
int ibv_query_port(void *context, uint8_t number, struct port *port) {
    (void)context; memset(port, 0, sizeof *port);
    if (number != 1) return EINVAL;
    port->state = 4; port->msg = 1u << 31; return 0;
}
#ifndef OLD
ptrdiff_t _ibv_query_gid_table(void *context, struct gid *to, size_t room, uint32_t flags, size_t bytes) {
    (void)context; (void)flags;
    if (room < 2 || bytes != sizeof *to) return -EINVAL;
    memset(to, 0, 2 * sizeof *to);
    to[0].raw[0] = 0xfe; to[0].raw[1] = 0x80; to[0].raw[15] = 1; to[0].port = 1; to[0].type = 2;
    to[1].raw[10] = to[1].raw[11] = 0xff; to[1].raw[12] = 10; to[1].raw[15] = 1; to[1].index = 1; to[1].port = 1; to[1].type = 2;
    return 2;
}
#endif
void *ibv_alloc_pd(void *context) { return context; }
int ibv_dealloc_pd(void *pd) { (void)pd; return 0; }
void *ibv_reg_dmabuf_mr(void *pd, uint64_t at, size_t len, uint64_t iova, int fd, int access) {
    (void)pd; (void)at; (void)len; (void)iova; (void)access;
    errno = fd == -1 ? EBADF : EINVAL; return 0;
}
/* A device that registers, and lets go of nothing. */
static char mr[256];
void *ibv_reg_mr(void *pd, void *at, size_t len, int access) { (void)pd; (void)at; (void)len; (void)access; return mr; }
int ibv_dereg_mr(void *of) { (void)of; return EIO; }
static struct { void *device; char rest[1024]; } context = { "one", { 0 } };
static void *contexts[2] = { &context, 0 };
void **rdma_get_devices(int *count) { *count = 1; return contexts; }
/* No connections either. */
void *rdma_create_event_channel(void) { errno = ENODEV; return 0; }
#define NONE(name) void name(void) {}
NONE(ibv_create_comp_channel) NONE(ibv_destroy_comp_channel) NONE(ibv_create_cq) NONE(ibv_destroy_cq)
NONE(ibv_get_async_event) NONE(ibv_ack_async_event) NONE(ibv_get_cq_event) NONE(ibv_ack_cq_events) NONE(ibv_query_qp) NONE(ibv_modify_qp)
NONE(rdma_destroy_event_channel) NONE(rdma_create_id) NONE(rdma_destroy_id) NONE(rdma_migrate_id) NONE(rdma_bind_addr) NONE(rdma_resolve_addr)
NONE(rdma_resolve_route) NONE(rdma_create_qp) NONE(rdma_destroy_qp) NONE(rdma_connect) NONE(rdma_accept) NONE(rdma_reject) NONE(rdma_listen)
NONE(rdma_disconnect) NONE(rdma_get_cm_event) NONE(rdma_ack_cm_event) NONE(rdma_get_src_port)
"#;

fn fresh(tag: &str) -> Scratch {
    Scratch::new(std::env::temp_dir().to_str().unwrap(), tag)
}

fn has_compiler() -> bool {
    Command::new("cc").arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Compiles the stand-in; `None` where there is no compiler.
fn stand_in(scratch: &Scratch, define: &str) -> Option<PathBuf> {
    if !has_compiler() {
        println!("skip: no C compiler");
        return None;
    }
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let (source, built) =
        (scratch.root().join(format!("{number}.c")), scratch.root().join(format!("stand-in-{number}.so")));
    std::fs::write(&source, STAND_IN).unwrap();
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", define, "-o"]).arg(&built).arg(&source).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    Some(built)
}

fn refused(verbs: &Path) -> Refusal {
    match Library::load_from(verbs, verbs) {
        Ok(library) => library.devices().unwrap_err(),
        Err(refusal) => refusal,
    }
}

#[test]
fn each_thing_that_is_missing_has_a_refusal_of_its_own() {
    let absent = refused(Path::new("/nowhere/libibverbs.so.1"));
    assert!(
        matches!(&absent, Refusal::NoLibrary(VERBS, why) if why.contains("No such file") || why.contains("not found")),
        "{absent:?}"
    );
    assert_eq!(absent.error().kind(), ErrorKind::NoDevice);
    let scratch = fresh("sw-verbs-refusals");
    let Some(built) = stand_in(&scratch, "-DNO_KERNEL") else { return };
    let refusal = refused(&built);
    assert_eq!(refusal, Refusal::NoKernelSupport);
    let error = refusal.error();
    assert_eq!((error.kind(), error.code()), (ErrorKind::NoDevice, libc::ENOSYS));
    assert!(error.to_string().contains("ENOSYS") && error.to_string().contains("ib_uverbs"), "{error}");
    let Some(old) = stand_in(&scratch, "-DOLD") else { return };
    let refusal = refused(&old);
    assert_eq!(refusal, Refusal::NoSymbol(VERBS, "_ibv_query_gid_table"));
    assert_eq!(refusal.error().kind(), ErrorKind::Unsupported);
}

#[test]
fn a_device_tells_what_it_can_and_one_that_cannot_be_opened_hides_no_other() {
    let scratch = fresh("sw-verbs-devices");
    let Some(built) = stand_in(&scratch, "-DWHOLE") else { return };
    let library = Library::load_from(&built, &built).unwrap();
    let found = library.devices().unwrap();
    let one = found[0].as_ref().unwrap();
    let facts = DeviceFacts {
        name: "one".to_owned(),
        // Sysfs does not know it.
        kind: FabricKind::Software,
        wr_max: 1024,
        cqe_max: 4096,
        message_bytes_max: 1 << 31,
        mr_bytes_max: 1 << 40,
        sge_max: 1,
        rd_atomic_max: 16,
        remote_invalidate: Ability::Yes,
        dma_buf: Ability::Yes,
    };
    assert_eq!((&one.facts, one.port), (&facts, Port::Active));
    let chosen = sw_engine::seam::verbs::choose_gid(&one.gids, sw_engine::seam::verbs::GidChoice::Rule).unwrap();
    assert_eq!((one.gids.len(), chosen.index), (2, 1));
    let broken = found[1].as_ref().unwrap_err();
    assert_eq!(*broken, Refusal::System("ibv_open_device", libc::EACCES));
    assert_eq!(broken.error().kind(), ErrorKind::PermissionDenied);
    let loaded = load(VERBS, &built).unwrap();
    // SAFETY: the stand-in's own function, of that type.
    let opened = unsafe { loaded.get::<unsafe extern "C" fn() -> c_int>(b"stand_in_opened") }.unwrap();
    // SAFETY: it reads a number.
    assert_eq!(unsafe { opened() }, 0);
}

#[test]
fn memory_that_a_device_does_not_deregister_is_told_and_kept() {
    use sw_engine::seam::verbs::{Access, Fabric, MrRequest};
    let scratch = fresh("sw-verbs-stays");
    let Some(built) = stand_in(&scratch, "-DWHOLE") else { return };
    let pd = LibraryFabric::new(Library::load_from(&built, &built).unwrap()).open("one").unwrap().alloc_pd().unwrap();
    for is_bound in [true, false] {
        let span = sw_mem::Buffer::allocate(sw_mem::ByteLen(4096)).unwrap().into_span();
        let region = span.region().downgrade();
        let memory = MrRequest { region: span.region(), at: 0, len: 4096, access: Access::LOCAL_WRITE };
        let mr = if is_bound { pd.reg_bound_mr(memory) } else { pd.reg_mr(memory) }.unwrap();
        let error = mr.deregister().unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Io, libc::EIO), "{error}");
        drop(span);
        assert!(region.is_alive(), "memory went while the device may reach it");
    }
}

#[test]
fn a_device_of_the_kernels_own_is_told_as_software() {
    let scratch = fresh("sw-verbs-kinds");
    let class = scratch.root().join("class");
    for (name, place) in
        [("rxe0", "devices/virtual/infiniband/rxe0"), ("mlx5_0", "devices/pci0000:00/infiniband/mlx5_0")]
    {
        let place = scratch.root().join(place);
        std::fs::create_dir_all(&place).unwrap();
        std::fs::create_dir_all(&class).unwrap();
        std::os::unix::fs::symlink(place, class.join(name)).unwrap();
    }
    assert_eq!((kind_of(&class, "rxe0"), kind_of(&class, "mlx5_0")), (FabricKind::Software, FabricKind::Hardware));
    assert_eq!(kind_of(&class, "nobody_knows"), FabricKind::Software);
}

/// The machine's own library, where there is one: whatever it says, it is a list or a typed refusal.
#[test]
fn the_library_of_this_machine_is_asked_without_harm() {
    match Library::load().and_then(|library| library.devices()) {
        Ok(devices) => println!("{} RDMA devices: {devices:?}", devices.len()),
        Err(refusal) => println!("no RDMA here: {refusal}; {}", refusal.remedy()),
    }
}

struct Bed {
    begun: std::time::Instant,
    device: String,
    address: String,
    fabric: LibraryFabric,
}

impl sw_testkit::conformance::verbs::Bed for Bed {
    fn name(&self) -> String {
        format!("libibverbs, {} at {}", self.device, self.address)
    }

    fn device(&mut self) -> Result<std::sync::Arc<dyn sw_engine::seam::verbs::Device>, sw_testkit::conformance::End> {
        use sw_engine::seam::verbs::Fabric;
        self.fabric.open(&self.device).map_err(|error| sw_testkit::conformance::End::Fail(error.to_string()))
    }

    fn address(&self) -> String {
        self.address.clone()
    }

    fn now(&self) -> std::time::Duration {
        self.begun.elapsed()
    }

    fn idle(&mut self) {
        std::thread::yield_now();
    }
}

/// The seam's suite on the machine's first device that is up and has an address of IPv4: in a guest with rxe.
#[test]
fn the_library_is_what_the_seam_asks_for_where_there_is_a_device() {
    let found = Library::load().and_then(|library| Ok((library.devices()?, library)));
    let (devices, library) = match found {
        Ok(found) => found,
        Err(refusal) => return println!("skip: {refusal}"),
    };
    let usable =
        devices.into_iter().filter_map(Result::ok).filter(|found| found.port == Port::Active).find_map(|found| {
            let gid = sw_engine::seam::verbs::choose_gid(&found.gids, Default::default()).ok()?;
            let ip = std::net::Ipv6Addr::from(gid.raw).to_ipv4_mapped()?;
            Some((found.facts.name, ip))
        });
    let Some((device, ip)) = usable else { return println!("skip: no RDMA device is up with an address of IPv4") };
    let begun = crate::emulated::now();
    let mut bed = Bed { begun, device, address: format!("{ip}:0"), fabric: LibraryFabric::new(library) };
    sw_testkit::conformance::verbs::run(&mut bed).assert_green(&[
        "a_send_can_invalidate_a_key_of_the_peers",
        "a_key_is_not_invalidated_twice",
        "a_request_needs_memory_that_is_registered",
        "bytes_land_in_a_dma_buf_and_nowhere_beside",
    ]);
}
