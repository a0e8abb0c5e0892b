//! `nvme`: the controllers of this machine, and giving them to this program or back to the kernel.

use std::{
    fmt,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
};

use serde::Serialize;
use straightway::authentication::make_secret;
use straightway::binding::{self, BindPlan, FunctionFacts, NamespaceFacts, Which};
use straightway::tls::make_psk;

use crate::{
    args::{NvmeChange, NvmeList},
    fail::Fail,
    out::Out,
    size::Bytes,
    target_args::{NvmeGenDhchapKey, NvmeGenTlsKey, Transform},
};

/// What `nvme gen-dhchap-key` and `nvme gen-tls-key` say.
#[derive(Serialize)]
struct Key {
    schema: &'static str,
    key: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)
    }
}

/// Runs `nvme gen-dhchap-key`.
///
/// # Errors
/// The system gives no random bytes.
pub fn gen_dhchap_key(args: &NvmeGenDhchapKey, out: &mut Out) -> Result<(), Fail> {
    let transform = match args.hash {
        Transform::None => None,
        Transform::By(hash) => Some(hash),
    };
    let secret = make_secret(args.bytes, transform)?;
    out.report(&Key { schema: "straightway.nvme.gen-dhchap-key/1", key: secret.to_text().to_string() })
}

/// Runs `nvme gen-tls-key`.
///
/// # Errors
/// The system gives no random bytes.
pub fn gen_tls_key(args: &NvmeGenTlsKey, out: &mut Out) -> Result<(), Fail> {
    let key = make_psk(args.hash)?;
    out.report(&Key { schema: "straightway.nvme.gen-tls-key/1", key: key.to_text().to_string() })
}

/// A line of `nvme list`.
#[derive(Serialize)]
struct Line {
    schema: &'static str,
    address: String,
    class: String,
    id: String,
    driver: Option<String>,
    iommu_group: Option<String>,
    /// Other functions that would have to be given away with it.
    group_has: Vec<String>,
    serial: Option<String>,
    model: Option<String>,
    namespaces: Vec<Namespace>,
    /// What can be done with it.
    next: String,
}

#[derive(Serialize)]
struct Namespace {
    name: String,
    nsid: u32,
    len: u64,
    /// Who uses it, for people; empty if nobody does.
    uses: Vec<String>,
}

impl From<NamespaceFacts> for Namespace {
    fn from(facts: NamespaceFacts) -> Self {
        let uses = facts.uses.iter().map(ToString::to_string).collect();
        Self { name: facts.name, nsid: facts.nsid, len: facts.bytes, uses }
    }
}

fn line(facts: FunctionFacts) -> Line {
    let next = match binding::plan_bind(facts.address) {
        Ok(plan) if plan.steps().is_empty() => format!("ready: nvme://{}/NSID", facts.address),
        Ok(_) => format!("straightway nvme bind {}", facts.address),
        Err(error) => error.to_string(),
    };
    Line {
        schema: "straightway.nvme.list/1",
        address: facts.address.to_string(),
        class: format!("{:06x}", facts.class),
        id: format!("{:04x}:{:04x}", facts.vendor, facts.device),
        driver: facts.driver,
        iommu_group: facts.group,
        group_has: facts.neighbours.iter().map(ToString::to_string).collect(),
        serial: facts.serial,
        model: facts.model,
        namespaces: facts.namespaces.into_iter().map(Namespace::from).collect(),
        next,
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or = |text: &Option<String>, none: &'static str| text.clone().unwrap_or_else(|| none.into());
        write!(f, "{}  {}  {}", self.address, self.id, or(&self.driver, "no driver"))?;
        write!(f, "  IOMMU group {}", or(&self.iommu_group, "none"))?;
        if let (Some(model), Some(serial)) = (&self.model, &self.serial) {
            write!(f, "\n  {model}, serial {serial}")?;
        }
        for namespace in &self.namespaces {
            write!(f, "\n  {} (nsid {}): {}", namespace.name, namespace.nsid, Bytes(namespace.len))?;
            namespace.uses.iter().try_for_each(|by| write!(f, ", {by}"))?;
        }
        write!(f, "\n  -> {}", self.next)
    }
}

/// Runs `nvme list`.
///
/// # Errors
/// Those of writing to stdout.
pub fn list(args: &NvmeList, out: &mut Out) -> Result<(), Fail> {
    let which = if args.all { Which::All } else { Which::Nvme };
    let functions = binding::functions(which);
    if functions.is_empty() {
        out.text("no NVMe controller is on this machine's PCI bus")?;
    }
    functions.into_iter().try_for_each(|facts| out.report(&line(facts)))
}

/// What `nvme bind` and `nvme unbind` did.
#[derive(Serialize)]
struct Changed {
    schema: &'static str,
    address: String,
    before: Option<String>,
    steps: Vec<String>,
    done: bool,
    undo: Option<String>,
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.done, &self.undo) {
            (false, _) => f.write_str("nothing was done"),
            (true, Some(undo)) => write!(f, "done; to undo it: {undo}"),
            (true, None) => f.write_str("done"),
        }
    }
}

/// Runs `nvme bind`.
///
/// # Errors
/// Why it cannot be bound, or what the kernel said; usage, if nobody can be asked and `--yes` is missing.
pub fn bind(args: &NvmeChange, out: &mut Out) -> Result<(), Fail> {
    let plan = binding::plan_bind(args.address)?;
    let undo = format!("straightway nvme unbind {}", args.address);
    change(args, &plan, ("straightway.nvme.bind/1", Some(undo)), out)
}

/// Runs `nvme unbind`.
///
/// # Errors
/// As [`bind`].
pub fn unbind(args: &NvmeChange, out: &mut Out) -> Result<(), Fail> {
    let plan = binding::plan_unbind(args.address)?;
    change(args, &plan, ("straightway.nvme.unbind/1", None), out)
}

/// Says what will be done, asks, does it.
fn change(
    args: &NvmeChange,
    plan: &BindPlan,
    (schema, undo): (&'static str, Option<String>),
    out: &mut Out,
) -> Result<(), Fail> {
    let told = plan.to_string();
    out.text(&told)?;
    let wanted = !args.dry_run && !plan.steps().is_empty() && agreed(args)?;
    if wanted {
        binding::run(plan)?;
    }
    out.report(&Changed {
        schema,
        address: args.address.to_string(),
        before: plan.before().map(str::to_owned),
        steps: told.lines().filter(|_| !plan.steps().is_empty()).map(str::to_owned).collect(),
        done: wanted,
        undo: undo.filter(|_| wanted),
    })
}

/// Whether the user wants it: `--yes`, or an answer at the terminal.
fn agreed(args: &NvmeChange) -> Result<bool, Fail> {
    if args.yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() {
        return Err(Fail::usage(
            "nobody can be asked whether to do this".to_owned(),
            "add --yes to do it, or --dry-run to see the steps only",
        ));
    }
    let mut asked = io::stderr().lock();
    let mut answer = String::new();
    let read = write!(asked, "do it? [y/N] ")
        .and_then(|()| asked.flush())
        .and_then(|()| io::stdin().lock().read_line(&mut answer));
    Ok(read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes"))
}
