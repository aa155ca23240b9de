//! `reinforcement.credit`: how an advantage is split over the tokens of a completion.

use std::fmt;
use std::str::FromStr;

use firesight_kawhi::KawhiConfig;
use firesight_rl::{Capability, CreditAssigner, CreditList, CreditMethod, Uniform};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::Value;

use crate::Error;
use crate::policy::{VlmPolicy, VlmPrompt, offers};

/// The key of credit in a configuration.
const CREDIT: &str = "reinforcement.credit";

/// One method.
#[derive(Debug, Clone, PartialEq)]
pub enum CreditConfig {
    /// KAWHI (arXiv 2603.27375): by paragraph, after the visual structure of the image.
    Kawhi(KawhiConfig),
    /// A method of `firesight-rl`.
    Method(CreditMethod),
}

/// The methods of a run; their weights are multiplied. In a file a table `{ name = "vppo", share = 0.4 }`, a name alone
/// for a method with the settings of its paper, or a list of either. As text, names joined by `+`.
#[derive(Debug, Clone, PartialEq)]
pub struct Credit(Vec<CreditConfig>);

impl CreditConfig {
    /// Every method with the settings of its paper.
    #[must_use]
    pub fn presets() -> Vec<Self> {
        let kawhi = Self::Kawhi(KawhiConfig::default());
        let mut all: Vec<Self> = CreditMethod::presets().into_iter().map(|(_, method)| Self::Method(method)).collect();
        all.insert(1, kawhi);
        all
    }

    /// The one that changes nothing.
    #[must_use]
    pub fn uniform() -> Self {
        Self::Method(CreditMethod::Uniform(Uniform))
    }

    /// Its name in files.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kawhi(_) => "kawhi",
            Self::Method(method) => method.name(),
        }
    }

    /// The method at work on what a policy says.
    fn assigner(&self, policy: &VlmPolicy) -> Result<Box<dyn CreditAssigner<VlmPrompt> + Send>, Error> {
        Ok(match self {
            Self::Kawhi(kawhi) => Box::new(policy.kawhi(kawhi.clone())?),
            Self::Method(method) => method.assigner(),
        })
    }

    /// What it needs of a policy.
    fn capabilities(&self) -> Result<Vec<Capability>, firesight_rl::Error> {
        Ok(match self {
            Self::Kawhi(_) => vec![Capability::Attention],
            Self::Method(method) => CreditAssigner::<VlmPrompt>::signals(&method.assigner(), &[])?.capabilities(),
        })
    }

    fn check(&self) -> Result<(), String> {
        match self {
            Self::Kawhi(kawhi) => kawhi.validate().map_err(|error| error.to_string())?,
            Self::Method(method) => {
                CreditAssigner::<VlmPrompt>::check(&method.assigner()).map_err(|error| error.to_string())?;
            }
        }
        // What no model offers, such as a view that there is not, is a mistake of the settings.
        self.check_capabilities(true).map_err(|error| error.to_string())
    }

    fn check_capabilities(&self, sees: bool) -> Result<(), firesight_rl::Error> {
        for capability in self.capabilities()? {
            if let Err(reason) = offers(sees, &capability) {
                let (method, capability) = (self.name().into(), Box::new(capability));
                return Err(firesight_rl::Error::Capability { method, capability, reason });
            }
        }
        Ok(())
    }
}

impl FromStr for CreditConfig {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let presets = Self::presets();
        let known: Vec<&str> = presets.iter().map(Self::name).collect();
        let unknown = format!("there is no credit method {name:?}; there are {}", known.join(", "));
        presets.into_iter().find(|method| method.name() == name).ok_or(unknown)
    }
}

impl Credit {
    /// The methods, none of them twice.
    #[must_use]
    pub fn methods(&self) -> &[CreditConfig] {
        &self.0
    }

    /// The settings of KAWHI, if it is one of them.
    #[must_use]
    pub fn kawhi(&self) -> Option<&KawhiConfig> {
        self.0.iter().find_map(|method| match method {
            CreditConfig::Kawhi(kawhi) => Some(kawhi),
            CreditConfig::Method(_) => None,
        })
    }

    pub(crate) fn kawhi_mut(&mut self) -> Option<&mut KawhiConfig> {
        self.0.iter_mut().find_map(|method| match method {
            CreditConfig::Kawhi(kawhi) => Some(kawhi),
            CreditConfig::Method(_) => None,
        })
    }

    /// The names, joined by `+`.
    #[must_use]
    pub fn name(&self) -> String {
        self.0.iter().map(CreditConfig::name).collect::<Vec<_>>().join("+")
    }

    /// Refuses settings out of range, and methods that are there twice.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let fail = |problem: String| Err(Error::Setting { key: CREDIT, problem });
        if self.0.is_empty() {
            return fail("lists no method; uniform is the one that changes nothing".into());
        }
        for (place, method) in self.0.iter().enumerate() {
            if self.0[..place].iter().any(|other| other.name() == method.name()) {
                return fail(format!("lists {} twice", method.name()));
            }
            method.check().or_else(|problem| fail(format!("is out of range: {problem}")))?;
        }
        Ok(())
    }

    /// Refuses methods that need what a model cannot do; `sees` if it has a vision tower.
    pub(crate) fn check_capabilities(&self, sees: bool) -> Result<(), Error> {
        self.0.iter().try_for_each(|method| Ok(method.check_capabilities(sees)?))
    }

    /// The methods at work on what a policy says.
    ///
    /// # Errors
    /// When the settings of one are out of range, or name a file that cannot be used.
    pub fn assigners(&self, policy: &VlmPolicy) -> Result<CreditList<VlmPrompt>, Error> {
        self.0.iter().map(|method| method.assigner(policy)).collect()
    }
}

impl From<CreditConfig> for Credit {
    fn from(method: CreditConfig) -> Self {
        Self(vec![method])
    }
}

impl FromIterator<CreditConfig> for Credit {
    fn from_iter<I: IntoIterator<Item = CreditConfig>>(methods: I) -> Self {
        Self(methods.into_iter().collect())
    }
}

impl FromStr for Credit {
    type Err = String;

    fn from_str(names: &str) -> Result<Self, String> {
        names.split('+').map(|name| name.trim().parse()).collect()
    }
}

impl fmt::Display for Credit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl Serialize for CreditConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(tag = "name", rename_all = "snake_case")]
        enum Named<'a> {
            Kawhi(&'a KawhiConfig),
        }
        match self {
            Self::Kawhi(kawhi) => Named::Kawhi(kawhi).serialize(serializer),
            Self::Method(method) => method.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for CreditConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        one(Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A method by its name, or by a table of its name and settings.
fn one(value: Value) -> Result<CreditConfig, String> {
    let mut table = match value {
        Value::String(name) => return name.parse(),
        Value::Table(table) => table,
        other => return Err(format!("a credit method is a name or a table, not {}", other.type_str())),
    };
    let name = table.get("name").and_then(Value::as_str).ok_or("a credit method has a name")?.to_owned();
    let said = |error: toml::de::Error| format!("{name}: {}", error.message());
    Ok(match name.parse()? {
        CreditConfig::Kawhi(_) => {
            table.remove("name");
            CreditConfig::Kawhi(table.try_into().map_err(said)?)
        }
        CreditConfig::Method(_) => CreditConfig::Method(table.try_into().map_err(said)?),
    })
}

impl Serialize for Credit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [method] => method.serialize(serializer),
            methods => methods.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Credit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let methods = match Value::deserialize(deserializer)? {
            Value::Array(methods) => methods,
            method => vec![method],
        };
        methods.into_iter().map(one).collect::<Result<_, _>>().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use firesight_rl::View;
    use firesight_rl::credit::Vppo;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Holder {
        credit: Credit,
    }

    fn read(text: &str) -> Result<Credit, String> {
        toml::from_str::<Holder>(text).map(|holder| holder.credit).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn a_name_a_table_and_a_list_are_read_and_written() {
        let vppo = |share| CreditConfig::Method(CreditMethod::Vppo(Vppo { share, ..Vppo::default() }));
        let kawhi = || CreditConfig::Kawhi(KawhiConfig::default());
        assert_eq!(read(r#"credit = "kawhi""#), Ok(kawhi().into()));
        assert_eq!(read(r#"credit = { name = "vppo", share = 0.2 }"#), Ok(vppo(0.2).into()));
        let both = read(r#"credit = ["kawhi", { name = "vppo", share = 0.4 }]"#).unwrap();
        assert_eq!(both, Credit(vec![kawhi(), vppo(0.4)]));
        assert_eq!(both, "kawhi+vppo".parse().unwrap());
        assert_eq!(both.name(), "kawhi+vppo");
        let view = read(r#"credit = { name = "vppo", view = { name = "blur", sigma = 4 } }"#).unwrap();
        let CreditConfig::Method(CreditMethod::Vppo(Vppo { view: found, .. })) = &view.methods()[0] else { panic!() };
        assert_eq!(*found, View { name: "blur".into(), parameters: [("sigma".to_owned(), 4.0)].into() });
        for method in CreditConfig::presets() {
            let holder = Holder { credit: method.clone().into() };
            assert_eq!(toml::from_str::<Holder>(&toml::to_string(&holder).unwrap()).unwrap(), holder);
            assert_eq!(method.name().parse(), Ok(method));
        }
        for credit in [both, view] {
            let holder = Holder { credit };
            assert_eq!(toml::from_str::<Holder>(&toml::to_string(&holder).unwrap()).unwrap(), holder);
        }
    }

    #[test]
    fn what_is_no_method_is_named() {
        let known: Vec<&str> = CreditConfig::presets().iter().map(CreditConfig::name).collect();
        assert_eq!(known[..2], ["uniform", "kawhi"]);
        let unknown = format!("there is no credit method \"vpo\"; there are {}", known.join(", "));
        assert_eq!(read(r#"credit = "vpo""#).unwrap_err(), unknown);
        assert_eq!(read(r#"credit = { name = "vpo" }"#).unwrap_err(), unknown);
        assert_eq!("kawhi + vpo".parse::<Credit>().unwrap_err(), unknown);
        let error = read(r#"credit = { name = "vppo", shore = 0.2 }"#).unwrap_err();
        assert!(error.starts_with("vppo: unknown field `shore`, expected one of `share`"), "{error}");
        let error = read(r#"credit = { name = "uniform", share = 0.2 }"#).unwrap_err();
        assert!(error.starts_with("uniform: "), "{error}");
        let error = read("credit = [3]").unwrap_err();
        assert_eq!(error, "a credit method is a name or a table, not integer");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |text| read(text).unwrap().check().unwrap_err().to_string();
        assert!(refused("credit = []").starts_with("reinforcement.credit lists no method"));
        assert_eq!(refused(r#"credit = ["vppo", "vppo"]"#), "reinforcement.credit lists vppo twice");
        let error = refused(r#"credit = { name = "vppo", share = 1.5 }"#);
        let reason = "vppo.share is 1.5: a share above 0 and at most 1";
        assert_eq!(error, format!("reinforcement.credit is out of range: {reason}"));
        let error = refused(r#"credit = { name = "vppo", view = { name = "blur", sigma = -1 } }"#);
        assert!(error.ends_with("does not offer: sigma is -1; it must be above 0 and at most 1000"), "{error}");
        assert!(
            error.starts_with("reinforcement.credit is out of range: vppo needs prompts under the view"),
            "{error}"
        );
        for method in CreditConfig::presets() {
            let credit = Credit::from(method);
            credit.check().unwrap();
            credit.check_capabilities(true).unwrap();
            let blind = credit.check_capabilities(false).map_err(|error| error.to_string());
            match credit.name().as_str() {
                "uniform" | "ft_rl" | "delta_log_p" => blind.unwrap(),
                name @ ("kawhi" | "tor" | "vppo" | "vgpo" | "srpo") => {
                    let error = blind.unwrap_err();
                    assert!(error.starts_with(&format!("{name} needs ")) && error.contains("text alone"), "{error}");
                }
                _ => {}
            }
        }
    }
}
