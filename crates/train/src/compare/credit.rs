//! Ways to split an advantage over tokens, as variants of one configuration.

use std::collections::BTreeSet;

use super::Variant;
use crate::Error;
use crate::config::{Reinforcement, RunConfig};
use crate::credit::{Credit, CreditConfig};

/// What every other is compared with.
const UNIFORM: &str = "uniform";

/// The ways of credit called `names` as variants of a configuration, compared with uniform credit, which comes first if
/// it is not listed. One that the configuration has is meant with the settings there, any other with its defaults.
///
/// # Errors
/// [`Error::Setting`] when a name is unknown or there twice, or a setting of the configuration is out of range.
pub fn credit_variants(config: &RunConfig, names: &[String]) -> Result<Vec<Variant>, Error> {
    let uniform = (!names.iter().any(|name| name.trim() == UNIFORM)).then_some(UNIFORM);
    let mut variants: Vec<Variant> = Vec::new();
    for name in uniform.into_iter().chain(names.iter().map(String::as_str)) {
        let credit = credit_of(name, &config.reinforcement.credit)?;
        let name = credit.name();
        // A product is the same in any order.
        let methods = |credit: &Credit| credit.methods().iter().map(CreditConfig::name).collect::<BTreeSet<_>>();
        if variants.iter().any(|variant| methods(&variant.reinforcement.credit) == methods(&credit)) {
            return Err(Error::Setting { key: "credit", problem: format!("lists {name} twice") });
        }
        let reinforcement = Reinforcement { credit, ..config.reinforcement.clone() };
        RunConfig { reinforcement: reinforcement.clone(), ..config.clone() }.check()?;
        let base = (name != UNIFORM).then(|| UNIFORM.to_owned());
        variants.push(Variant { name, base, reinforcement });
    }
    Ok(variants)
}

/// The methods of a name; those that the configuration has are meant with the settings there.
fn credit_of(name: &str, configured: &Credit) -> Result<Credit, Error> {
    let credit: Credit = name.parse().map_err(|problem| Error::Setting { key: "credit", problem })?;
    let own = |method: &CreditConfig| configured.methods().iter().find(|own| own.name() == method.name()).cloned();
    Ok(credit.methods().iter().map(|method| own(method).unwrap_or_else(|| method.clone())).collect())
}
