//! `firesight compare`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use firesight_train::{Comparison, Destination, Stop, compare, credit_variants};
use serde_json::json;

use crate::configuration::Configuration;
use crate::output::Output;

/// More are a slip of the hand.
const MOST_SEEDS: u64 = 1000;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    configuration: Configuration,
    /// Ways to split an advantage over tokens, separated by commas: a method such as kawhi or vppo, or the product of
    /// several, as in kawhi+vppo. Uniform, which they are compared with, always is one. A method that the configuration
    /// has is meant with its settings there, others with their defaults.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', required = true)]
    credit: Vec<String>,
    /// Seeds: 0..9 for all from 0 to 9, both included, or a list such as 0,3,7.
    #[arg(long)]
    seeds: Seeds,
    /// Rollouts of every run [default: reinforcement.steps of the configuration].
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Held-out questions [default: evaluation.examples of the configuration].
    #[arg(long, value_name = "N")]
    questions: Option<usize>,
    /// Rollouts between two looks at the held-out accuracy while learning; 0 looks at the end only [default: a tenth of
    /// all].
    #[arg(long, value_name = "N")]
    every: Option<usize>,
    /// Runs at a time, one thread each; the results do not depend on it [default: threads of the configuration].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Directory of the comparison; must not hold anything yet [default: one under runs, named after the
    /// configuration].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Goes on with the comparison in the directory, if one was begun there: runs that are done stay; there may be more
    /// seeds and ways of credit.
    #[arg(long, requires = "out")]
    resume: bool,
}

/// What `--seeds` lists.
#[derive(Debug, Clone, PartialEq)]
struct Seeds(Vec<u64>);

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
        let Some((first, last)) = text.split_once("..") else {
            return text.split(',').map(number).collect::<Result<_, _>>().map(Self);
        };
        let (first, last) = (number(first)?, number(last)?);
        if last < first || last - first >= MOST_SEEDS {
            return Err(format!("from {first} to {last} are not between 1 and {MOST_SEEDS} seeds"));
        }
        Ok(Self((first..=last).collect()))
    }
}

pub(crate) fn run(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    let mut config = arguments.configuration.read()?;
    config.reinforcement.steps = arguments.steps.unwrap_or(config.reinforcement.steps);
    config.evaluation.examples = arguments.questions.unwrap_or(config.evaluation.examples);
    config.evaluation.every = arguments.every.unwrap_or(config.reinforcement.steps.div_ceil(10));
    config.threads = arguments.threads.unwrap_or(config.threads);
    let variants = credit_variants(&config, &arguments.credit)?;
    let comparison = Comparison { config, variants, seeds: arguments.seeds.0, parameters: BTreeMap::new() };
    let destination = Destination::of(arguments.out, arguments.resume);
    let found = compare(&comparison, None, &destination, &Stop::on_signals()?, &mut output.progress())?;
    let directory = found.directory.display();
    let shown = if found.complete {
        format!("{}\n\n{directory}/report.html and table.md", found.findings.table())
    } else {
        let table = found.findings.table();
        format!("{table}\n\nstopped; to go on, the same command with --out {directory} --resume")
    };
    let value = json!({ "complete": found.complete, "directory": found.directory, "found": found.findings });
    output.result(&value, shown)
}

#[cfg(test)]
mod tests {
    use super::Seeds;

    #[test]
    fn seeds_are_a_range_with_both_ends_or_a_list() {
        for (text, seeds) in [("0..2", vec![0, 1, 2]), ("7..7", vec![7]), ("0,7,3", vec![0, 7, 3]), ("4", vec![4])] {
            assert_eq!(text.parse(), Ok(Seeds(seeds)), "{text}");
        }
        for text in ["", "..", "0..", "3..2", "-1", "0,", "a", "0..=2", "0..18446744073709551615", "0, 1"] {
            assert!(text.parse::<Seeds>().is_err(), "{text}");
        }
    }
}
