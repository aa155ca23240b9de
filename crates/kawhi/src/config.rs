use std::path::PathBuf;

use firesight_rl::Rope;
use serde::{Deserialize, Serialize};

use crate::{Error, Granularity, RegionSelection, VisionCriticalHeads};

/// Every choice of KAWHI. The defaults are those of the paper's appendix A, except where a field says that it is ours.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KawhiConfig {
    /// Which heads of the last layer are compared. The paper's lists are per model, hence no default of it.
    pub heads: Heads,
    /// Whether they are compared after (the default) or before the rotary embedding.
    pub rope: Rope,
    /// What of response tokens is compared with the keys of visual tokens.
    pub metric: Metric,
    /// Which visual tokens a response is compared with.
    pub regions: RegionSelection,
    /// How the key regions of an image are found.
    pub sguf: SgufConfig,
    /// The parts of a response that get a weight each.
    pub granularity: Granularity,
    /// How alignment becomes weights.
    #[serde(alias = "paragraphs")]
    pub weights: WeightConfig,
}

/// What of response tokens is compared with the keys of visual tokens (Table 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Their queries (eq. 12).
    #[default]
    KeyQuery,
    /// Their keys.
    KeyKey,
}

/// Query heads of the last decoder layer: `heads = "all"`, `heads = { list = [0, 1, 3] }` or
/// `heads = { critical = "models/vision_critical_heads/qwen3-vl-4b.toml" }`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Heads {
    /// Every query head.
    #[default]
    All,
    /// These query heads.
    List(Vec<usize>),
    /// Those that this file calls critical for vision; see [`VisionCriticalHeads`].
    Critical(PathBuf),
}

/// Parameters of [`crate::sguf`] (section 3.2, Algorithm 1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SgufConfig {
    /// Standard deviation of the Gaussian, in pixels (1.0).
    pub sigma: f64,
    /// Largest relative distance of structure at which neighbours still merge, exclusive (0.5).
    pub delta_s: f64,
    /// Largest difference of luminance at which neighbours still merge, exclusive, on CIELab's 0 to 100 (30).
    pub delta_l: f64,
    /// Threshold on a component's energy, as a fraction of the median energy (0.1).
    pub beta: f64,
    /// Share of the cells of a component below the threshold that is left out (0.7).
    pub r_skip: f64,
    /// Seed of the choice of the share that is not left out (0). The content of the image is mixed in, so the same
    /// image always gives the same regions.
    pub seed: u64,
}

impl Default for SgufConfig {
    fn default() -> Self {
        Self { sigma: 1.0, delta_s: 0.5, delta_l: 30.0, beta: 0.1, r_skip: 0.7, seed: 0 }
    }
}

/// Parameters of [`crate::paragraph_weights`] (section 3.4, eq. 15), for paragraphs or whatever else gets a weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WeightConfig {
    /// Temperature of the softmax over paragraphs. The paper does not publish it; 0.1 is our choice.
    pub tau: f64,
    /// Share of the uniform distribution in the mixture. The paper does not publish it; 0.1 is our choice.
    pub lambda: f64,
    /// Weight of a paragraph with no share (0.1).
    pub w_min: f64,
    /// Weight of a paragraph with the whole share (1.0).
    pub w_max: f64,
    /// What is done about the mean of the weights.
    pub normalize: Normalize,
}

impl Default for WeightConfig {
    fn default() -> Self {
        Self { tau: 0.1, lambda: 0.1, w_min: 0.1, w_max: 1.0, normalize: Normalize::None }
    }
}

/// The mean weight over the M paragraphs of a response is `w_min + (w_max - w_min) / M`: the more paragraphs, the
/// smaller the update, and a response of one paragraph is trained as without KAWHI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalize {
    /// As in the paper.
    #[default]
    None,
    /// Divide by the mean weight over the tokens of the response. Not in the paper.
    MeanOne,
}

impl KawhiConfig {
    /// # Errors
    /// When a value lies outside its range, or the list of heads is empty or repeats a head.
    pub fn validate(&self) -> Result<(), Error> {
        if let Heads::List(heads) = &self.heads {
            if heads.is_empty() {
                return Err(Error::NoHeads);
            }
            if let Some(head) =
                heads.iter().enumerate().find_map(|(at, head)| heads[..at].contains(head).then_some(*head))
            {
                return Err(Error::RepeatedHead { head });
            }
        }
        self.sguf.validate()?;
        self.weights.validate()
    }
}

impl Heads {
    /// The same heads, as a list where a file names them.
    ///
    /// # Errors
    /// When the file cannot be read, is broken, or names no head.
    pub fn resolve(&self) -> Result<Self, Error> {
        let Self::Critical(path) = self else { return Ok(self.clone()) };
        let VisionCriticalHeads { critical, threshold, .. } = VisionCriticalHeads::from_file(path)?;
        if critical.is_empty() {
            return Err(Error::NoCriticalHeads { path: path.clone(), threshold });
        }
        Ok(Self::List(critical))
    }

    /// As the trainer asks for them, once they are [resolved](Self::resolve): `None` for all.
    pub(crate) fn indices(&self) -> Option<Vec<usize>> {
        match self {
            Self::List(heads) => Some(heads.clone()),
            Self::All | Self::Critical(_) => None,
        }
    }
}

impl SgufConfig {
    /// # Errors
    /// When a value lies outside its range.
    pub fn validate(&self) -> Result<(), Error> {
        // The kernel reaches four sigma, and one wider than an image smooths everything away.
        range("sguf.sigma", self.sigma, "positive and at most 100", |value| value > 0.0 && value <= 100.0)?;
        range("sguf.delta_s", self.delta_s, NOT_NEGATIVE, |value| value >= 0.0)?;
        range("sguf.delta_l", self.delta_l, NOT_NEGATIVE, |value| value >= 0.0)?;
        range("sguf.beta", self.beta, NOT_NEGATIVE, |value| value >= 0.0)?;
        range("sguf.r_skip", self.r_skip, FRACTION, |value| (0.0..=1.0).contains(&value))
    }
}

impl WeightConfig {
    /// # Errors
    /// When a value lies outside its range.
    pub fn validate(&self) -> Result<(), Error> {
        range("weights.tau", self.tau, "positive", |value| value > 0.0)?;
        range("weights.lambda", self.lambda, FRACTION, |value| (0.0..=1.0).contains(&value))?;
        range("weights.w_min", self.w_min, NOT_NEGATIVE, |value| value >= 0.0)?;
        range("weights.w_max", self.w_max, "positive and at least w_min", |value| value > 0.0 && value >= self.w_min)
    }
}

const NOT_NEGATIVE: &str = "at least 0";
const FRACTION: &str = "between 0 and 1";

fn range(field: &'static str, found: f64, expected: &'static str, holds: impl Fn(f64) -> bool) -> Result<(), Error> {
    if found.is_finite() && holds(found) { Ok(()) } else { Err(Error::InvalidConfig { field, expected, found }) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp)]
    use super::*;

    #[test]
    fn defaults_are_those_of_appendix_a() {
        let config: KawhiConfig = serde_json::from_str("{}").unwrap();
        assert_eq!(config, KawhiConfig::default());
        assert_eq!(config.heads, Heads::All);
        assert_eq!((config.rope, config.metric), (Rope::After, Metric::KeyQuery));
        assert_eq!((config.regions, config.granularity), (RegionSelection::Sguf, Granularity::Paragraph));
        let SgufConfig { sigma, delta_s, delta_l, beta, r_skip, .. } = config.sguf;
        assert_eq!([sigma, delta_s, delta_l, beta, r_skip], [1.0, 0.5, 30.0, 0.1, 0.7]);
        let WeightConfig { tau, lambda, w_min, w_max, normalize } = config.weights;
        assert_eq!(([tau, lambda, w_min, w_max], normalize), ([0.1, 0.1, 0.1, 1.0], Normalize::None));
        config.validate().unwrap();
    }

    #[test]
    fn keys_are_read_and_unknown_ones_refused() {
        let config: KawhiConfig = serde_json::from_str(
            r#"{"heads": {"list": [0, 3]}, "rope": "before", "sguf": {"beta": 0.2}, "weights": {"normalize": "mean_one"}}"#,
        )
        .unwrap();
        assert_eq!(config.heads, Heads::List(vec![0, 3]));
        assert_eq!(config.rope, Rope::Before);
        assert_eq!(config.weights.normalize, Normalize::MeanOne);
        assert_eq!(config.sguf, SgufConfig { beta: 0.2, ..SgufConfig::default() });
        let switched = |name: &str, value: &str| {
            serde_json::from_str::<KawhiConfig>(&format!(r#"{{"{name}": "{value}"}}"#)).unwrap()
        };
        for (value, regions) in [
            ("sguf", RegionSelection::Sguf),
            ("all", RegionSelection::All),
            ("random", RegionSelection::Random),
            ("inverse", RegionSelection::Inverse),
            ("vision_zip", RegionSelection::VisionZip),
        ] {
            assert_eq!(switched("regions", value).regions, regions);
        }
        assert_eq!(switched("metric", "key_query").metric, Metric::KeyQuery);
        assert_eq!(switched("metric", "key_key").metric, Metric::KeyKey);
        assert_eq!(switched("granularity", "sentence").granularity, Granularity::Sentence);
        assert_eq!(switched("granularity", "token").granularity, Granularity::Token);
        for unknown in [r#"{"head": "all"}"#, r#"{"sguf": {"delta": 1}}"#, r#"{"weights": {"temperature": 1}}"#] {
            assert!(serde_json::from_str::<KawhiConfig>(unknown).unwrap_err().to_string().contains("unknown field"));
        }
        assert_eq!(serde_json::from_str::<KawhiConfig>(r#"{"heads": "all"}"#).unwrap().heads, Heads::All);
        // As runs of earlier versions call it.
        let earlier: KawhiConfig = serde_json::from_str(r#"{"paragraphs": {"tau": 0.2}}"#).unwrap();
        assert_eq!(earlier.weights.tau, 0.2);
    }

    #[test]
    fn values_out_of_range_are_named() {
        let field = |change: fn(&mut KawhiConfig)| {
            let mut config = KawhiConfig::default();
            change(&mut config);
            match config.validate() {
                Err(Error::InvalidConfig { field, .. }) => field,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(field(|config| config.sguf.sigma = 0.0), "sguf.sigma");
        assert_eq!(field(|config| config.sguf.delta_s = -1.0), "sguf.delta_s");
        assert_eq!(field(|config| config.sguf.delta_l = f64::NAN), "sguf.delta_l");
        assert_eq!(field(|config| config.sguf.beta = -0.1), "sguf.beta");
        assert_eq!(field(|config| config.sguf.r_skip = 1.1), "sguf.r_skip");
        assert_eq!(field(|config| config.weights.tau = 0.0), "weights.tau");
        assert_eq!(field(|config| config.weights.lambda = 1.5), "weights.lambda");
        assert_eq!(field(|config| config.weights.w_min = -0.1), "weights.w_min");
        assert_eq!(field(|config| config.weights.w_max = 0.05), "weights.w_max");
        let heads =
            |list: &[usize]| KawhiConfig { heads: Heads::List(list.to_vec()), ..KawhiConfig::default() }.validate();
        assert!(matches!(heads(&[]), Err(Error::NoHeads)));
        assert!(matches!(heads(&[1, 2, 1]), Err(Error::RepeatedHead { head: 1 })));
        heads(&[1, 2]).unwrap();
    }
}
