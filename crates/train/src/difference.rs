//! Whether two configurations are those of the same run.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use toml::{Table, Value};

/// Keys, and tables of keys, that change how a run is called, how fast it is and what it logs, and of what it computes at
/// most the last bits.
const FREE: [&str; 9] = [
    "name",
    "device",
    "threads",
    "activation_checkpointing",
    // Rows that cannot be read are left out or end the run; how many may be says which of the two.
    "data.skip_bad",
    // The same of answers that cannot be graded.
    "reinforcement.reward_failure",
    "evaluation.samples",
    "log",
    "checkpoint",
];

/// The first dotted key, in the order of the alphabet, that decides the result and differs, with its two values.
pub(crate) fn first_difference<C: Serialize>(a: &C, b: &C) -> Option<(String, String, String)> {
    let (a, b) = (flat(a), flat(b));
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let key = keys.into_iter().find(|&key| !is_free(key) && a.get(key) != b.get(key))?;
    let shown = |values: &BTreeMap<String, Value>| values.get(key).map_or("nothing".into(), ToString::to_string);
    Some((key.clone(), shown(&a), shown(&b)))
}

/// The dotted keys of `b` that `a` does not have, or with other values, a line each.
pub(crate) fn added<C: Serialize>(a: &C, b: &C) -> Vec<String> {
    let a = flat(a);
    let added = flat(b).into_iter().filter(|(key, value)| a.get(key) != Some(value));
    added.map(|(key, value)| format!("{key} = {value}")).collect()
}

fn is_free(key: &str) -> bool {
    FREE.iter().any(|free| key.strip_prefix(free).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

fn flat(config: &impl Serialize) -> BTreeMap<String, Value> {
    fn add(table: Table, prefix: &str, found: &mut BTreeMap<String, Value>) {
        for (key, value) in table {
            let key = format!("{prefix}{key}");
            match value {
                Value::Table(table) => add(table, &format!("{key}."), found),
                value => _ = found.insert(key, value),
            }
        }
    }
    let mut found = BTreeMap::new();
    // By way of text, in which a float32 has the digits that it was written with.
    let text = toml::to_string(config).expect("every field has a TOML form");
    add(text.parse().expect("it is TOML"), "", &mut found);
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use firesight_vlm::LoraConfig;

    use super::*;
    use crate::config::RunConfig;

    #[test]
    fn what_decides_the_result_is_compared_and_nothing_else() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/configs/qwen-small.toml");
        let run = RunConfig::from_file(&path).unwrap();
        let difference = |change: &dyn Fn(&mut RunConfig)| {
            let mut given = run.clone();
            change(&mut given);
            first_difference(&run, &given)
        };
        let free = difference(&|given| {
            (given.name, given.device, given.threads) = ("other".into(), "cuda:1".into(), 31);
            given.activation_checkpointing = true;
            (given.checkpoint.every, given.checkpoint.keep, given.evaluation.samples) = (1, 9, 0);
        });
        assert_eq!(free, None);
        let found = |key: &str, was: &str, is: &str| Some((key.to_owned(), was.to_owned(), is.to_owned()));
        assert_eq!(difference(&|given| given.seed = 3), found("seed", "0", "3"));
        assert_eq!(
            difference(&|given| given.reinforcement.credit = "uniform".parse().unwrap()).unwrap().0,
            "reinforcement.credit.granularity"
        );
        let lora = LoraConfig { rank: 4, alpha: 8.0, target_modules: vec!["q_proj".into()] };
        assert_eq!(
            difference(&|given| given.trainable.lora = Some(lora.clone())),
            found("trainable.lora.alpha", "nothing", "8.0")
        );
        let mut other = run.clone();
        (other.seed, other.reinforcement.credit) = (3, "ft_rl".parse().unwrap());
        let expected = ["reinforcement.credit.name = \"ft_rl\"", "reinforcement.credit.share = 0.2", "seed = 3"];
        assert_eq!(added(&run, &other), expected);
        // The first of several.
        let both = difference(&|given| (given.seed, given.evaluation.every) = (3, 7));
        assert_eq!(both, found("evaluation.every", "0", "7"));
    }
}
