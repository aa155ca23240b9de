//! Ways to split an advantage over tokens, as variants of one configuration.

use firesight_kawhi::KawhiConfig;

use super::Variant;
use crate::Error;
use crate::config::{CreditConfig, Reinforcement, RunConfig};

/// What every other is compared with.
const UNIFORM: &str = "uniform";
const KNOWN: [&str; 2] = [UNIFORM, "kawhi"];

/// The ways of credit called `names` as variants of a configuration, compared with uniform credit, which comes first if
/// it is not listed. One that the configuration has is meant with the settings there, any other with its defaults.
///
/// # Errors
/// [`Error::Setting`] when a name is unknown or there twice, or a setting of the configuration is out of range.
pub fn credit_variants(config: &RunConfig, names: &[String]) -> Result<Vec<Variant>, Error> {
    let uniform = (!names.iter().any(|name| name == UNIFORM)).then_some(UNIFORM);
    let mut variants: Vec<Variant> = Vec::new();
    for name in uniform.into_iter().chain(names.iter().map(String::as_str)) {
        if variants.iter().any(|variant| variant.name == name) {
            return Err(Error::Setting { key: "credit", problem: format!("lists {name:?} twice; {}", known()) });
        }
        let configured = &config.reinforcement.credit;
        let credit = if configured.name() == name { configured.clone() } else { credit_of(name)? };
        let reinforcement = Reinforcement { credit, ..config.reinforcement.clone() };
        RunConfig { reinforcement: reinforcement.clone(), ..config.clone() }.check()?;
        let base = (name != UNIFORM).then(|| UNIFORM.to_owned());
        variants.push(Variant { name: name.into(), base, reinforcement });
    }
    Ok(variants)
}

fn credit_of(name: &str) -> Result<CreditConfig, Error> {
    match name {
        UNIFORM => Ok(CreditConfig::Uniform {}),
        "kawhi" => Ok(CreditConfig::Kawhi(KawhiConfig::default())),
        _ => Err(Error::Setting { key: "credit", problem: format!("names {name:?}; {}", known()) }),
    }
}

fn known() -> String {
    format!("known are {}", KNOWN.join(", "))
}
