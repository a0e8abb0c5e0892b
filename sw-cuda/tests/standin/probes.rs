//! Four facts: found, symbols, version, devices; and what one device can do.

use std::time::{Duration, Instant};

use standin_libcuda::harness::Control;
use sw_cuda::{Context, DeviceReport, Driver, DriverVersion, Gap, Refusal, SelfTest};
use sw_engine::ErrorKind;

use crate::{Case, Library, Outcome, case, first_context, holds, same, text};

pub fn cases() -> Vec<Case> {
    let with = |name, library, settings, run| Case { library, settings, ..case(name, run) };
    vec![
        case("a_driver_is_found_with_its_facts", facts),
        with("no_library_is_a_reason_with_a_remedy", Library::Absent, &[], absent),
        with("a_file_that_is_no_library_is_told_apart", Library::Broken, &[], broken),
        with("a_missing_symbol_is_named", Library::Without("cuEventQuery"), &[], missing_symbol),
        with(
            "a_missing_optional_symbol_costs_only_its_feature",
            Library::Without("cuMemGetHandleForAddressRange"),
            &[],
            missing_optional,
        ),
        with("a_driver_too_old_is_refused", Library::Standin, &[("STANDIN_DRIVER_VERSION", "11030")], too_old),
        with("no_device_is_a_reason", Library::Standin, &[("STANDIN_DEVICES", "0")], no_device),
        with(
            "a_driver_that_does_not_start_is_a_reason",
            Library::Standin,
            &[("STANDIN_FAULTS", "cuInit:0:803")],
            no_start,
        ),
        with(
            "an_error_of_a_newer_driver_is_a_number",
            Library::Standin,
            &[("STANDIN_FAULTS", "cuInit:0:4711")],
            new_code,
        ),
        with("devices_report_one_fact_at_a_time", Library::Standin, &[("STANDIN_DEVICES", "3")], report),
        with("a_coherent_device_says_so", Library::Standin, &[("STANDIN_COHERENT", "on")], coherent),
        with("a_refused_export_is_a_gap", Library::Standin, &[("STANDIN_DMABUF", "off")], no_dmabuf),
        case("the_self_test_passes_on_every_mode", self_test),
        case("the_self_test_sees_damage_and_short_copies", self_test_fails),
        case("a_device_that_is_not_there_is_an_error", no_such_device),
        case("another_client_of_the_driver_runs_beside_ours", another_client),
    ]
}

fn facts() -> Outcome {
    let report = Driver::probe();
    holds("the path is where the loader found it", report.library.as_ref().is_ok_and(|p| p.contains("libcuda.so")))?;
    holds("symbols are counted", report.symbols.as_ref().is_ok_and(|n| *n > 30))?;
    same("version", report.version.clone(), Ok(DriverVersion { major: 12, minor: 8 }))?;
    same("devices", report.devices.clone(), Ok(1))?;
    holds("usable", report.usable())?;
    let driver = Driver::load().map_err(text)?;
    same("same driver", driver.version(), DriverVersion { major: 12, minor: 8 })
}

/// The machine may have a real driver on the loader's default path; then there is nothing absent to test.
fn real_driver_there() -> bool {
    let there = Driver::probe().library.is_ok();
    if there {
        println!("skipped: this machine has a real libcuda");
    }
    there
}

fn absent() -> Outcome {
    let start = Instant::now();
    if real_driver_there() {
        return Ok(());
    }
    // About a millisecond on an idle machine; the limit only tells a hang from a busy machine.
    let elapsed = start.elapsed();
    holds(&format!("probing took {elapsed:?}"), elapsed < Duration::from_secs(5))?;
    let report = Driver::probe();
    same("reason", report.refusal(), Refusal::LibraryNotFound)?;
    same("later facts", report.devices.clone(), Err(Refusal::NotAsked))?;
    holds("remedy", report.refusal().remedy().contains("driver"))?;
    let error = Driver::load().map(|_| ()).map_err(Refusal::into_error).err().ok_or("no driver was loaded")?;
    same("kind", error.kind(), ErrorKind::NoDevice)?;
    holds(
        "one line with a remedy",
        error.to_string().contains("libcuda.so.1") && error.to_string().contains("; install"),
    )
}

fn broken() -> Outcome {
    if real_driver_there() {
        return Ok(());
    }
    match Driver::probe().refusal() {
        Refusal::LibraryBroken { text } => holds("the loader's sentence", text.contains("libcuda.so")),
        other => Err(format!("not told apart: {other:?}")),
    }
}

fn missing_symbol() -> Outcome {
    let report = Driver::probe();
    holds("found", report.library.is_ok())?;
    same("symbols", report.symbols.clone(), Err(Refusal::SymbolsMissing { names: vec!["cuEventQuery"] }))?;
    holds("named", report.refusal().to_string().contains("cuEventQuery"))?;
    same("code", report.refusal().code(), "cuda_symbols_missing")
}

fn missing_optional() -> Outcome {
    let context = first_context()?;
    let report = DeviceReport::gather(context.device(), Some(&context));
    match report.dmabuf_export {
        Err(Gap::Driver(error)) => {
            same("kind", error.kind, ErrorKind::Unsupported)?;
            holds("remedy", error.remedy.contains("11.7"))?;
        }
        other => return Err(format!("export: {other:?}")),
    }
    SelfTest::run(&context).map(|_| ()).map_err(text)
}

fn too_old() -> Outcome {
    let report = Driver::probe();
    let found = DriverVersion { major: 11, minor: 3 };
    same("version", report.version.clone(), Err(Refusal::TooOld { found }))?;
    holds("text", report.refusal().to_string().contains("11.3"))
}

fn no_device() -> Outcome {
    match Driver::probe().refusal() {
        Refusal::InitFailed(error) => {
            same("code", error.code, 100)?;
            same("name", error.name.as_str(), "CUDA_ERROR_NO_DEVICE")?;
            holds("remedy", error.remedy.contains("CUDA_VISIBLE_DEVICES"))
        }
        other => Err(format!("{other:?}")),
    }
}

fn no_start() -> Outcome {
    let error = Driver::load().map(|_| ()).err().ok_or("it started")?.into_error();
    same("kind", error.kind(), ErrorKind::Unsupported)?;
    holds("remedy", error.to_string().contains("reboot"))
}

fn new_code() -> Outcome {
    match Driver::probe().refusal() {
        Refusal::InitFailed(error) => {
            same("number", error.code, 4711)?;
            same("no name", error.name.as_str(), "")
        }
        other => Err(format!("{other:?}")),
    }
}

fn report() -> Outcome {
    let driver = Driver::load().map_err(text)?;
    let devices = driver.devices().map_err(text)?;
    same("devices", devices.len(), 3)?;
    let context = Context::primary(&devices[1]).map_err(text)?;
    let report = DeviceReport::gather(&devices[1], Some(&context));
    same("name", report.name.clone(), Ok("Stand-in GPU 1".to_owned()))?;
    same("compute", report.compute.clone().map(|c| c.to_string()), Ok("9.0".to_owned()))?;
    same("pci", report.pci.clone().map(|p| p.0), Ok("0000:f1:00.0".to_owned()))?;
    same("memory", report.memory_bytes.clone(), Ok(1 << 30))?;
    holds(
        "bar1 is a gap with its path",
        matches!(&report.bar1_bytes, Err(Gap::NotInSysfs { path, errno: 2 }) if path.contains("f1:00")),
    )?;
    same("export", report.dmabuf_export.clone(), Ok(()))?;
    same("coherent", report.coherent_link.clone(), Ok(false))?;
    same(
        "peers",
        report.peers.iter().map(|p| (p.peer, p.access.clone())).collect(),
        vec![(0, Ok(true)), (2, Ok(true))],
    )?;
    let lines = report.lines();
    holds("a line for each fact and peer", lines.len() == 19)?;
    let without = DeviceReport::gather(&devices[0], None);
    same("not asked", without.dmabuf_export, Err(Gap::Needs("a context")))?;
    same("uuids differ", devices[0].uuid().map_err(text)? == devices[1].uuid().map_err(text)?, false)
}

fn coherent() -> Outcome {
    let driver = Driver::load().map_err(text)?;
    let report = DeviceReport::gather(&driver.device(0).map_err(text)?, None);
    same("link", report.coherent_link, Ok(true))?;
    same("pageable", report.pageable_access, Ok(true))
}

fn no_dmabuf() -> Outcome {
    let context = first_context()?;
    let report = DeviceReport::gather(context.device(), Some(&context));
    same("attribute", report.dmabuf_attribute, Ok(false))?;
    same("export", report.dmabuf_export, Err(Gap::NotSupported))
}

fn self_test() -> Outcome {
    let context = first_context()?;
    let control = Control::open()?;
    for mode in 0..3 {
        control.set("mode", mode);
        let passed = SelfTest::run(&context).map_err(text)?;
        same("cases", passed.cases, 6)?;
    }
    same("no blocking wait was used", control.stat("blocking_waits"), 0)
}

fn self_test_fails() -> Outcome {
    let context = first_context()?;
    let control = Control::open()?;
    for (copy, code) in [(2, standin_libcuda::harness::SILENT_SHORT), (3, standin_libcuda::harness::SILENT_DAMAGE)] {
        control.set_fault(standin_libcuda::harness::COPY, copy, code);
        let error = SelfTest::run(&context).map(|_| ()).err().ok_or("damage was not seen")?;
        same("kind", error.kind, ErrorKind::ChecksumMismatch)?;
        holds("remedy", error.to_string().contains("do not use this device"))?;
    }
    same("faults played", control.stat("faults_played"), 2)
}

fn no_such_device() -> Outcome {
    let driver = Driver::load().map_err(text)?;
    let error = driver.device(7).map(|_| ()).err().ok_or("device 7 was found")?;
    same("kind", error.kind, ErrorKind::NoDevice)?;
    let error = error.into_error(sw_engine::Verb::Register);
    holds("names the device and the remedy", error.to_string().contains("gpu7") && error.to_string().contains("doctor"))
}

/// cudarc's own safe interface, as another library in the process would use it: an independent client of the stand-in,
/// and a neighbour that shares the primary context with us.
fn another_client() -> Outcome {
    let ours = first_context()?;
    {
        let theirs = cudarc::driver::CudaContext::new(0).map_err(text)?;
        let stream = theirs.new_stream().map_err(text)?;
        let bytes: Vec<u8> = (0..=255).collect();
        let device = stream.clone_htod(&bytes).map_err(text)?;
        SelfTest::run(&ours).map_err(text)?;
        same("their bytes", stream.clone_dtoh(&device).map_err(text)?, bytes)?;
    }
    SelfTest::run(&ours).map(|_| ()).map_err(text)
}
