#![allow(clippy::unwrap_used)]

use std::sync::Barrier;

use serde_json::{Map, Value};

use super::*;
use crate::testing::{asked, nothing, response};

fn rewards(toml: &str) -> Result<Rewards, Error> {
    #[derive(serde::Deserialize)]
    struct Run {
        rewards: Vec<RewardConfig>,
    }
    Rewards::new(&toml::from_str::<Run>(toml).unwrap().rewards, BoxFrame::Resized)
}

fn batch<'a>(texts: &[&'a str], answer: &'a str, columns: &'a Map<String, Value>) -> Vec<(Asked<'a>, Response<'a>)> {
    texts.iter().map(|text| (asked(answer, columns), response(text))).collect()
}

fn part(name: &str, value: Option<f32>, weight: f32) -> Part {
    Part { name: name.into(), value, weight }
}

/// A reward of one's own.
struct Own<F>(F, Option<usize>);

impl<F: Fn(&str) -> Scored + Send + Sync> Reward for Own<F> {
    fn score(&self, _: &Asked<'_>, response: &Response<'_>) -> Scored {
        self.0(response.text)
    }

    fn parallel(&self) -> Option<usize> {
        self.1
    }
}

fn own(score: impl Fn(&str) -> Scored + Send + Sync + 'static) -> Box<dyn Reward> {
    Box::new(Own(score, None))
}

#[test]
fn every_response_has_the_parts_of_the_list_in_its_order() {
    let rewards = rewards(
        "rewards = [
            { kind = 'exact', name = 'accuracy', weight = 0.5 },
            { kind = 'format', weight = 0.0, regex = 'a.*' },
        ]",
    );
    let rewards = rewards.unwrap();
    assert_eq!(rewards.names().collect::<Vec<_>>(), ["accuracy", "format"]);
    let columns = nothing();
    let texts: Vec<String> = (0..100).map(|number| format!("\\boxed{{{number}}}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let graded = rewards.grade(&batch(&texts, "7", &columns));
    assert_eq!(graded.len(), 100);
    for (number, parts) in graded.into_iter().enumerate() {
        let right = if number == 7 { 1.0 } else { 0.0 };
        assert_eq!(parts.unwrap(), [part("accuracy", Some(right), 0.5), part("format", Some(0.0), 0.0)]);
    }
    assert_eq!(rewards.grade(&[]).len(), 0);
    assert_eq!(Rewards::default().grade(&batch(&["a"], "", &columns)).remove(0).unwrap(), []);
}

#[test]
fn further_parts_are_the_same_for_the_whole_batch() {
    let score = |text: &str| {
        let parts = text.chars().map(|name| (name.to_string(), (name != 'x').then_some(2.0))).collect();
        Ok(Score { value: None, parts })
    };
    let rewards =
        Rewards::default().with("first", 1.0, own(score)).unwrap().with("second", -1.0, own(|_| Ok(3.0.into())));
    let graded = rewards.unwrap().grade(&batch(&["ba", "", "xb"], "", &nothing()));
    let expected = |a, b| {
        let first = part("first", None, 1.0);
        let two = part("first/a", a, 0.0);
        [first, two, part("first/b", b, 0.0), part("first/x", None, 0.0), part("second", Some(3.0), -1.0)]
    };
    let found: Vec<_> = graded.into_iter().map(Result::unwrap).collect();
    assert_eq!(found, [expected(Some(2.0), Some(2.0)), expected(None, None), expected(None, Some(2.0))]);
}

#[test]
fn an_error_is_of_its_response_and_names_the_reward() {
    let score = |text: &str| match text {
        "panic" => panic!("at {text}"),
        "silent" => std::panic::panic_any(1),
        "infinite" => Ok(f32::INFINITY.into()),
        "part" => Ok(Score { value: None, parts: vec![("a".into(), Some(f32::NAN))] }),
        "error" => Err(Error::Other("no luck".into())),
        _ => Ok(true.into()),
    };
    for parallel in [None, Some(2), Some(0)] {
        let rewards = Rewards::default().with("exact", 1.0, own(|text| Ok((text != "fine").into()))).unwrap();
        let rewards = rewards.with("own", 1.0, Box::new(Own(score, parallel))).unwrap();
        let texts = ["panic", "silent", "infinite", "part", "error", "fine"];
        let mut graded = rewards.grade(&batch(&texts, "", &nothing()));
        assert_eq!(graded.pop().unwrap().unwrap(), [part("exact", Some(0.0), 1.0), part("own", Some(1.0), 1.0)]);
        let messages: Vec<_> = graded.into_iter().map(|result| result.unwrap_err().to_string()).collect();
        assert_eq!(
            messages,
            [
                "reward \"own\": panicked: at panic",
                "reward \"own\": panicked: with no text",
                "reward \"own\": the value inf is not finite",
                "reward \"own\": the value NaN is not finite",
                "reward \"own\": no luck",
            ]
        );
    }
}

#[test]
fn a_row_without_an_answer_is_an_error_of_the_rewards_that_need_one() {
    let of = |kind: &str| {
        let rewards = rewards(&format!("[[rewards]]\nname = 'it'\nkind = '{kind}'")).unwrap();
        let images = [crate::Image { original: (1, 1), resized: (1, 1), path: None }];
        let columns = nothing();
        let asked = Asked { prompt: "", answer: None, images: &images, columns: &columns };
        rewards.grade(&[(asked, response(""))]).remove(0)
    };
    for kind in ["math", "exact", "choice", "numeric", "iou", "detection"] {
        assert_eq!(of(kind).unwrap_err().to_string(), "reward \"it\": the row has no answer to compare with");
    }
    assert!(of("repetition").is_ok());
}

#[test]
fn rewards_that_wait_do_so_side_by_side() {
    // Two rewards of two responses each meet: all four are asked before one is answered.
    let barrier = std::sync::Arc::new(Barrier::new(4));
    let waiting = || {
        let barrier = barrier.clone();
        Box::new(Own(move |_: &str| Ok((barrier.wait().is_leader()).into()), Some(2)))
    };
    let rewards = Rewards::default().with("a", 1.0, waiting()).unwrap().with("b", 1.0, waiting()).unwrap();
    let graded = rewards.grade(&batch(&["1", "2"], "", &nothing()));
    let values = graded.into_iter().flat_map(Result::unwrap).map(|part| part.value.unwrap());
    assert!((values.sum::<f32>() - 1.0).abs() < 1e-6);
}

#[test]
fn lists_that_make_no_sense_are_refused() {
    let message = |toml: &str| rewards(toml).unwrap_err().to_string();
    let two = "[[rewards]]\nkind = 'math'\n[[rewards]]\nkind = 'exact'\nname = 'math'";
    assert_eq!(message(two), "reward \"math\": name is that of another reward as well; they have to differ");
    assert!(message("[[rewards]]\nkind = 'math'\nname = ''").contains("name has to be something"));
    assert!(message("[[rewards]]\nkind = 'math'\nname = 'a/b'").contains("without a slash"));
    assert_eq!(message("[[rewards]]\nkind = 'math'\nweight = inf"), "reward \"math\": weight has to be finite");
    let format = message("[[rewards]]\nkind = 'format'\nname = 'shape'\nregex = '('");
    assert!(format.starts_with("reward \"shape\": regex cannot be compiled: "), "{format}");
}

#[cfg(not(feature = "judge"))]
#[test]
fn a_judge_needs_a_build_that_has_it() {
    let error = rewards("[[rewards]]\nkind = 'judge'\nurl = 'http://a'\nmodel = 'm'\nprompt = ''").unwrap_err();
    assert_eq!(error.to_string(), "reward \"judge\": kind = \"judge\" needs a build with the cargo feature `judge`");
}
