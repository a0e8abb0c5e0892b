//! Facts of the engine as plain Python values; `straightway/_reports.py` gives them their classes.

use pyo3::{prelude::*, types::PyDict};
use straightway::{DataPath, Doctor, Plan, Via};
use sw_checkpoint::FileReport;

/// The way that bytes took.
pub fn path<'py>(py: Python<'py>, path: &DataPath, reads: u64) -> PyResult<Bound<'py, PyAny>> {
    let fields = PyDict::new(py);
    fields.set_item("transport", path.route.transport)?;
    fields.set_item("landing", path.route.landing.name())?;
    fields.set_item("bytes", path.bytes.total())?;
    fields.set_item("dma", path.bytes.dma)?;
    fields.set_item("kernel_copy", path.bytes.kernel_copy)?;
    fields.set_item("staged", path.bytes.staged)?;
    fields.set_item("bounced", path.bounced)?;
    fields.set_item("cpu_copied", path.cpu_copied)?;
    fields.set_item("reason", path.reason.code())?;
    fields.set_item("because", path.reason.text())?;
    fields.set_item("operations", reads)?;
    make(py, "Path", fields)
}

/// The ways of one file's bytes.
pub fn file<'py>(py: Python<'py>, report: &FileReport) -> PyResult<Bound<'py, PyAny>> {
    let fields = PyDict::new(py);
    fields.set_item("name", &report.name)?;
    let ways = report.ways.iter().map(|way| path(py, &way.path, way.reads)).collect::<PyResult<Vec<_>>>()?;
    fields.set_item("ways", ways)?;
    fields.set_item("verified_bytes", report.verified_bytes)?;
    fields.set_item("unverified_bytes", report.unverified_bytes)?;
    make(py, "FileReport", fields)
}

/// Every candidate route with its verdict.
pub fn plan<'py>(py: Python<'py>, name: &str, into: &str, plan: &Plan) -> PyResult<Bound<'py, PyAny>> {
    let candidates = plan.candidates.iter().map(|candidate| {
        let fields = PyDict::new(py);
        fields.set_item("transport", candidate.route.transport)?;
        fields.set_item("landing", candidate.route.landing.name())?;
        fields.set_item("staged", candidate.via == Via::Staged)?;
        fields.set_item("accepted", candidate.verdict.is_ok())?;
        let reason = candidate.verdict.err();
        fields.set_item("reason", reason.map(|reason| reason.code()))?;
        fields.set_item("because", reason.map(|reason| reason.text()))?;
        make(py, "Candidate", fields)
    });
    let fields = PyDict::new(py);
    fields.set_item("name", name)?;
    fields.set_item("into", into)?;
    fields.set_item("candidates", candidates.collect::<PyResult<Vec<_>>>()?)?;
    fields.set_item("error", plan.choice.as_ref().err().map(|error| error.to_string()))?;
    make(py, "Plan", fields)
}

/// What the machine can do.
pub fn doctor<'py>(py: Python<'py>, doctor: &Doctor) -> PyResult<Bound<'py, PyAny>> {
    let facts = doctor.facts.iter().map(|fact| {
        let fields = PyDict::new(py);
        fields.set_item("name", &fact.name)?;
        fields.set_item("health", fact.health.name())?;
        fields.set_item("value", &fact.value)?;
        fields.set_item("remedy", &fact.remedy)?;
        make(py, "Fact", fields)
    });
    let fields = PyDict::new(py);
    fields.set_item("worst", doctor.worst().name())?;
    fields.set_item("facts", facts.collect::<PyResult<Vec<_>>>()?)?;
    make(py, "Doctor", fields)
}

/// An object of a class of `straightway._reports`.
pub fn make<'py>(py: Python<'py>, class: &str, fields: Bound<'py, PyDict>) -> PyResult<Bound<'py, PyAny>> {
    py.import("straightway._reports")?.getattr(class)?.call((), Some(&fields))
}
