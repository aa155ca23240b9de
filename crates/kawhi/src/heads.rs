//! Vision-critical heads (section 3.3, Fig. 3): what a search for them found, as a file that training reads.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Error;

/// What a search for vision-critical heads found (arXiv 2603.27375, section 3.3, Fig. 3): the scores of a model on
/// visual questions when the query heads of one index contribute nothing, in every decoder layer at once. A head
/// without which the score falls by more than a threshold is critical for vision.
///
/// As a file it is TOML, and `heads = { critical = "<file>" }` in a configuration reads the list out of it. The heads
/// that the paper lists are in `models/vision_critical_heads`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionCriticalHeads {
    /// The model: its directory or its name.
    pub model: String,
    /// What it was asked.
    pub data: String,
    /// Where the list was published, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Number of questions, the same for every head, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub questions: Option<usize>,
    /// Score of the whole model, in the unit of the benchmark: a share of right answers, or points.
    pub baseline: f64,
    /// Largest fall of a head that is not critical, as a share of the baseline.
    pub threshold: f64,
    /// Scores without the heads of index 0, 1, 2 and so on; empty where only the list was published.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<f64>,
    /// Standard errors of the falls from the baseline to each of the scores, over questions that both were asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub standard_errors: Vec<f64>,
    /// Indices of the critical heads, ascending.
    pub critical: Vec<usize>,
}

impl VisionCriticalHeads {
    /// What the paper calls critical, as a share: 100 points on MME, of the 2304 and 2323 that its two models have.
    pub const THRESHOLD: f64 = 0.043;

    /// Reads a file and checks it.
    ///
    /// # Errors
    /// [`Error::HeadsFile`] when it cannot be read, or has a field that is out of range or belongs to other scores.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let broken = |problem: String| Error::HeadsFile { path: path.into(), problem };
        let text = std::fs::read_to_string(path).map_err(|error| broken(error.to_string()))?;
        let found: Self = toml::from_str(&text).map_err(|error| broken(error.to_string()))?;
        found.check().map_err(|(field, problem)| broken(format!("{field} {problem}")))?;
        Ok(found)
    }

    /// The text of the file.
    ///
    /// # Panics
    /// Never: every field has a TOML form.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field has a TOML form")
    }

    /// How far the score falls without the heads of index `head`, in the unit of the scores; negative when it rises.
    ///
    /// # Panics
    /// When there is no score of that head.
    #[must_use]
    pub fn fall(&self, head: usize) -> f64 {
        self.baseline - self.scores[head]
    }

    /// The score at which a head begins to be critical.
    #[must_use]
    pub fn limit(&self) -> f64 {
        self.baseline * (1.0 - self.threshold)
    }

    /// The heads that `threshold` makes critical by their `scores`: those without which the score falls by more than
    /// that share of the `baseline`.
    #[must_use]
    pub fn by_threshold(baseline: f64, threshold: f64, scores: &[f64]) -> Vec<usize> {
        // A fall of exactly the threshold must not become more than that by its last bit.
        let rounding = 1e-12 * baseline;
        let is_critical = |score: f64| baseline - score - threshold * baseline > rounding;
        scores.iter().enumerate().filter(|&(_, &score)| is_critical(score)).map(|(head, _)| head).collect()
    }

    /// The first field that cannot be, and what is wrong with it.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let fail = |field, problem| Err((field, problem));
        if !(self.baseline.is_finite() && self.baseline >= 0.0) {
            return fail("baseline", format!("is {}; a score is at least 0", self.baseline));
        }
        if !(0.0..1.0).contains(&self.threshold) {
            return fail("threshold", format!("is {}; it is a share, at least 0 and below 1", self.threshold));
        }
        if let Some(score) = self.scores.iter().find(|score| !score.is_finite()) {
            return fail("scores", format!("has {score}"));
        }
        let (scores, errors) = (self.scores.len(), self.standard_errors.len());
        if errors != scores && errors != 0 {
            return fail("standard_errors", format!("has {errors} values for {scores} scores"));
        }
        if !self.critical.is_sorted_by(|a, b| a < b) {
            return fail("critical", format!("is {:?}; it lists ascending indices", self.critical));
        }
        if scores > 0 {
            let expected = Self::by_threshold(self.baseline, self.threshold, &self.scores);
            if self.critical != expected {
                let problem = format!("is {:?}; scores and threshold make it {expected:?}", self.critical);
                return fail("critical", problem);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp)]

    use super::*;
    use crate::{Heads, Kawhi, KawhiConfig};

    fn found() -> VisionCriticalHeads {
        VisionCriticalHeads {
            model: "models/some".into(),
            data: "charts".into(),
            source: None,
            questions: Some(50),
            baseline: 0.5,
            threshold: 0.04,
            scores: vec![0.5, 0.48, 0.46, 0.52, 0.1 + 0.2],
            standard_errors: vec![0.0, 0.02, 0.03, 1.0 / 3.0, 0.04],
            critical: vec![2, 4],
        }
    }

    /// The file in a directory that goes with it.
    fn written(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("heads.toml");
        std::fs::write(&path, text).unwrap();
        (scratch, path)
    }

    #[test]
    fn a_head_is_critical_above_the_threshold_and_not_at_it() {
        let critical = VisionCriticalHeads::by_threshold;
        // Of 50 % a fall of 4 % is 2 points: 48 % is at it, 46 % above it; a rise is no fall.
        assert_eq!(critical(0.5, 0.04, &[0.5, 0.48, 0.46, 0.52, 0.3]), [2, 4]);
        // 0.8 - 0.76 is 0.040000000000000036.
        assert!(critical(0.8, 0.05, &[0.76]).is_empty());
        assert_eq!(critical(0.8, 0.05, &[0.759_999]), [0]);
        // 4.3 % of 2323 points are 99.889, the paper's 100; of a model that gets nothing right they are nothing.
        assert_eq!(critical(2323.0, 0.043, &[2224.0, 2223.0, 2222.0]), [1, 2]);
        assert!(critical(0.0, 0.0, &[0.0, 0.0]).is_empty());
        assert_eq!(critical(0.5, 0.0, &[0.5, 0.499]), [1]);
        assert!((found().fall(1) - 0.02).abs() < 1e-12 && (found().limit() - 0.48).abs() < 1e-12);
    }

    #[test]
    fn a_file_gives_back_every_bit() {
        let (_scratch, path) = written(&found().to_toml());
        assert_eq!(VisionCriticalHeads::from_file(&path).unwrap(), found());
    }

    #[test]
    fn a_broken_file_is_refused_by_its_field() {
        let error = |change: &dyn Fn(&mut VisionCriticalHeads)| {
            let mut changed = found();
            change(&mut changed);
            let (_scratch, path) = written(&changed.to_toml());
            let error = VisionCriticalHeads::from_file(&path).unwrap_err().to_string();
            error.strip_prefix(&format!("{}: ", path.display())).unwrap().to_owned()
        };
        assert!(error(&|found| found.baseline = f64::NAN).starts_with("baseline is NaN"));
        assert!(error(&|found| found.threshold = 4.3).starts_with("threshold is 4.3"));
        assert!(error(&|found| found.scores[1] = f64::INFINITY).starts_with("scores has inf"));
        assert_eq!(error(&|found| _ = found.standard_errors.pop()), "standard_errors has 4 values for 5 scores");
        assert!(error(&|found| found.critical = vec![4, 2]).starts_with("critical is [4, 2]"));
        assert!(error(&|found| (found.critical, found.scores) = (vec![2, 2], vec![])).starts_with("standard_errors"));
        // Someone lowers the threshold and forgets the list.
        assert_eq!(
            error(&|found| found.threshold = 0.02),
            "critical is [2, 4]; scores and threshold make it [1, 2, 4]"
        );

        let (_scratch, path) = written(&found().to_toml().replace("critical", "important"));
        let error = VisionCriticalHeads::from_file(&path).unwrap_err().to_string();
        assert!(error.contains("heads.toml: ") && error.contains("unknown field `important`"), "{error}");
        let error = VisionCriticalHeads::from_file(&path.with_extension("nowhere")).unwrap_err();
        assert!(error.to_string().contains("heads.nowhere: No such file"), "{error}");
    }

    #[test]
    fn a_list_is_resolved_and_an_empty_one_refused() {
        let (_scratch, path) = written(&found().to_toml());
        assert_eq!(Heads::Critical(path.clone()).resolve().unwrap(), Heads::List(vec![2, 4]));
        let kawhi = |path: &Path| {
            let config = KawhiConfig { heads: Heads::Critical(path.into()), ..KawhiConfig::default() };
            Kawhi::new(config, |_| String::new())
        };
        assert_eq!(kawhi(&path).unwrap().config().heads, Heads::List(vec![2, 4]));
        for whole in [Heads::All, Heads::List(vec![1, 0])] {
            assert_eq!(whole.resolve().unwrap(), whole);
        }
        let nothing = VisionCriticalHeads { threshold: 0.5, critical: vec![], ..found() };
        let (_scratch, path) = written(&nothing.to_toml());
        VisionCriticalHeads::from_file(&path).unwrap();
        let error = Heads::Critical(path.clone()).resolve().unwrap_err().to_string();
        let expected = "names no critical head at threshold 0.5; use heads = \"all\" or a lower threshold";
        assert_eq!(error, format!("{} {expected}", path.display()));
        assert!(matches!(kawhi(&path), Err(Error::NoCriticalHeads { .. })));
    }

    /// The lists of appendix A.
    #[test]
    fn the_published_lists_are_read() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/vision_critical_heads");
        let published: [(&str, &[usize]); 2] = [
            ("qwen2.5-vl-7b.toml", &[0, 1, 3, 22, 23, 24, 25, 26, 27]),
            ("qwen3-vl-4b.toml", &[2, 3, 4, 12, 13, 19, 25, 27]),
        ];
        for (name, heads) in published {
            let found = VisionCriticalHeads::from_file(&directory.join(name)).unwrap();
            assert_eq!(found.critical, heads);
            assert!((found.baseline * found.threshold - 100.0).abs() < 0.5);
            let resolved = Heads::Critical(directory.join(name)).resolve().unwrap();
            assert_eq!(resolved, Heads::List(heads.to_vec()));
        }
        assert_eq!(std::fs::read_dir(directory).unwrap().count(), published.len());
    }
}
