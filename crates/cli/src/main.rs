//! The `firesight` command.

mod chat;
mod check;
mod compare;
mod configuration;
mod data;
mod doctor;
mod eval;
mod export;
mod extrapolation;
mod generate;
mod heads;
mod init;
mod output;
mod report;
mod rollouts;
mod speech;
mod train;

use std::io::{IsTerminal as _, Write as _, stderr, stdout};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use firesight_train::harmless_lines;

use output::Output;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Reinforcement learning with verifiable rewards for vision-language models.
///
/// A first run: `firesight init`, fill in the file it writes, `firesight check run.toml`, `firesight train run.toml`.
///
/// Exit codes: 0, it is done; 1, it failed; 2, the command line or the configuration is not valid.
#[derive(Debug, Parser)]
#[command(version, name = "firesight", max_term_width = 110)]
struct Arguments {
    /// Results as JSON on standard output, progress as lines of JSON on standard error.
    #[arg(long, global = true)]
    json: bool,
    /// No progress.
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Writes a configuration to fill in, with a comment on every key.
    Init(init::Arguments),
    /// Says what a run would do: reads the data, renders prompts, grades made-up answers, reckons the memory.
    Check(check::Arguments),
    /// Runs a configuration: supervised learning if it has some, reinforcement learning, evaluation.
    ///
    /// Ctrl-C, or the signal to terminate, ends it after the step it is at, to go on from there later with --resume; a
    /// second one ends it at once, to go on from its last checkpoint.
    Train(train::Arguments),
    /// Compares ways to split an advantage over tokens: over several seeds, from one warm-up a seed, with the same prompts.
    ///
    /// Prints a table of held-out accuracies, paired differences and costs, and writes it as table.md, with curves as
    /// report.html. Ctrl-C, or the
    /// signal to terminate, ends it after the steps it is at, to go on from there later with --resume.
    Compare(compare::Arguments),
    /// Runs the supervised phase of a configuration alone.
    Sft(train::Arguments),
    /// Measures a model on the held-out questions of a configuration, with their pictures and blind.
    Eval(eval::Arguments),
    /// Answers one question, several times if asked to.
    Generate(generate::Arguments),
    /// Talks about images, a question a line.
    Chat(chat::Arguments),
    /// Searches for the heads that a model sees with: answers held-out questions without one head after the other.
    ///
    /// Writes heads.png, and heads.toml, which a configuration reads by
    /// credit = { name = "kawhi", heads = { critical = "heads.toml" } }. Ctrl-C, or the signal to terminate, ends it
    /// after the head it is at.
    Heads(heads::Arguments),
    /// Shows what was answered in a run, sorted and filtered.
    Rollouts(rollouts::Arguments),
    /// Makes the report of a run again, report.html in its directory, and prints its path.
    Report(report::Arguments),
    /// Writes a model of a run as a Hugging Face directory, which transformers loads, with a model card.
    Export(export::Arguments),
    /// Looks at data.
    #[command(subcommand)]
    Data(data::Command),
    /// Says what this build can use: versions, processor, memory, devices.
    Doctor(doctor::Arguments),
    /// Prints a script that completes commands in a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output { json: arguments.json, quiet: arguments.quiet };
    match run(arguments.command, output) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads has had enough, as in `firesight rollouts run | head`.
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Whether or not anybody reads it.
            let _ = writeln!(stderr(), "{} {}", label(), harmless_lines(&format!("{error:#}")));
            ExitCode::from(if is_invalid(&error) { 2 } else { 1 })
        }
    }
}

fn run(command: Command, output: Output) -> anyhow::Result<()> {
    match command {
        Command::Init(arguments) => init::run(arguments, output),
        Command::Check(arguments) => check::run(&arguments, output),
        Command::Train(arguments) => train::run(arguments, output),
        Command::Compare(arguments) => compare::run(arguments, output),
        Command::Sft(arguments) => train::sft(arguments, output),
        Command::Eval(arguments) => eval::run(arguments, output),
        Command::Generate(arguments) => generate::run(arguments, output),
        Command::Chat(arguments) => chat::run(arguments),
        Command::Heads(arguments) => heads::run(arguments, output),
        Command::Rollouts(arguments) => rollouts::run(&arguments, output),
        Command::Report(arguments) => report::run(&arguments, output),
        Command::Export(arguments) => export::run(&arguments, output),
        Command::Data(command) => data::run(command, output),
        Command::Doctor(arguments) => doctor::run(&arguments, output),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "firesight", &mut script);
            Ok(stdout().write_all(&script)?)
        }
    }
}

fn label() -> String {
    let label = console::style("error:").for_stderr();
    if stderr().is_terminal() { label.red().bold().to_string() } else { label.to_string() }
}

/// Whether an error is one of what was asked for, and not of doing it.
fn is_invalid(error: &anyhow::Error) -> bool {
    use firesight_train::{DataError, Error};
    matches!(
        error.downcast_ref(),
        Some(
            Error::Toml { .. }
                | Error::Config { .. }
                | Error::Setting { .. }
                | Error::Override { .. }
                | Error::Device { .. }
                | Error::Rewards(_)
                | Error::Data(DataError::Setting { .. } | DataError::Template { .. } | DataError::Column { .. })
                | Error::OtherConfiguration { .. }
        )
    )
}
