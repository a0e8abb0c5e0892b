//! The subcommands, one module each.

mod agent;
mod bench;
mod cache;
mod cat;
mod checkpoint;
mod cp;
mod dataset;
mod demo;
mod discover;
mod doctor;
mod hwtest;
mod list;
mod load;
mod nvme;
mod plan;
mod target;
mod topology;

use clap::CommandFactory as _;

use crate::{
    agent_args::Agent,
    args::{Bench, CheckpointCommand, Cli, Command, Nvme},
    fail::Fail,
    out::Out,
};

/// Runs a subcommand.
///
/// # Errors
/// Why it ended without success.
pub fn run(command: Command, out: &mut Out) -> Result<(), Fail> {
    match command {
        Command::Demo(args) => demo::run(&args, out),
        Command::Doctor(args) => doctor::run(&args, out),
        Command::Topology(args) => topology::run(&args, out),
        Command::Plan(args) => plan::run(&args, out),
        Command::Ls(args) => list::ls(&args, out),
        Command::Stat(args) => list::stat(&args, out),
        Command::Cat(args) => cat::run(&args, out),
        Command::Cache(args) => cache::run(&args, out),
        Command::Cp(args) => cp::run(&args, out),
        Command::Load(args) => load::run(&args, out),
        Command::Checkpoint(CheckpointCommand::Show(args)) => checkpoint::show(&args, out),
        Command::Checkpoint(CheckpointCommand::Verify(args)) => checkpoint::verify(&args, out),
        Command::Checkpoint(CheckpointCommand::Diff(args)) => checkpoint::diff(&args, out),
        Command::Checkpoint(CheckpointCommand::Convert(args)) => checkpoint::convert(&args, out),
        Command::Checkpoint(CheckpointCommand::Clean(args)) => checkpoint::clean(&args, out),
        Command::Dataset(args) => dataset::run(&args, out),
        Command::Bench(Bench::Read(args)) => bench::read(&args, out),
        Command::Bench(Bench::Write(args)) => bench::write(&args, out),
        Command::Nvme(Nvme::List(args)) => nvme::list(&args, out),
        Command::Nvme(Nvme::Bind(args)) => nvme::bind(&args, out),
        Command::Nvme(Nvme::Unbind(args)) => nvme::unbind(&args, out),
        Command::Nvme(Nvme::Discover(args)) => discover::run(&args, out),
        Command::Nvme(Nvme::GenDhchapKey(args)) => nvme::gen_dhchap_key(&args, out),
        Command::Nvme(Nvme::GenTlsKey(args)) => nvme::gen_tls_key(&args, out),
        Command::Target(args) => target::run(&args, out),
        Command::Agent(Agent::Serve(args)) => agent::serve(&args, out),
        Command::Hwtest(args) => hwtest::run(&args, out),
        Command::Completions(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut Cli::command(), "straightway", &mut script);
            out.bytes(&script)
        }
    }
}
