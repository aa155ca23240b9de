//! The default job: its examples, and the preset model's tokenizer, template and image size for them.
#![allow(clippy::unwrap_used, clippy::float_cmp)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use firesight_reward::{Asked, Response};
use firesight_train::task::{Charts, Example, HIGHEST_LEVEL, ITEMS, LETTERS, Picture, Question, Split};
use firesight_train::{BoxFrame, Rewards, RunConfig};
use firesight_vlm::{Message, Part, Processor};

/// Longest completion that is asked for, its end-of-turn token included.
const LONGEST_COMPLETION: usize = 32;
/// Longest question.
const LONGEST_QUESTION: usize = 10;

fn examples(split: Split, seed: u64, count: u64) -> Vec<Example> {
    let charts = Charts::new().unwrap();
    (0..count).map(|index| charts.example(split, seed, index)).collect()
}

fn preset() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen-small")
}

/// What the configurations of the job say that an answer is worth.
struct JobRewards([Rewards; 2]);

impl JobRewards {
    fn new() -> Self {
        Self(["qwen-small", "qwen2.5-small"].map(|name| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("examples/configs/{name}.toml"));
            Rewards::new(&RunConfig::from_file(&path).unwrap().rewards, BoxFrame::Thousand).unwrap()
        }))
    }

    /// Accuracy and format, the same in both.
    fn of(&self, text: &str, answer: &str) -> [f32; 2] {
        let columns = serde_json::Map::new();
        let asked = Asked { prompt: "", answer: Some(answer), images: &[], columns: &columns };
        let [one, other] = self.0.each_ref().map(|rewards| {
            let parts = rewards.grade(&[(asked, Response { text, tokens: 0, truncated: false })]).remove(0).unwrap();
            assert_eq!(parts.iter().map(|part| part.name.as_str()).collect::<Vec<_>>(), ["accuracy", "format"]);
            assert_eq!(parts.iter().map(|part| part.weight).collect::<Vec<_>>(), [1.0, 0.0]);
            [parts[0].value.unwrap(), parts[1].value.unwrap()]
        });
        assert_eq!(one, other);
        one
    }
}

fn accuracy(text: &str, answer: &str) -> bool {
    JobRewards::new().of(text, answer)[0] > 0.5
}

fn format(text: &str) -> bool {
    JobRewards::new().of(text, "")[1] > 0.5
}

#[test]
fn the_last_box_counts() {
    assert!(accuracy("A3\n\n\\boxed{2}", "2"));
    assert!(accuracy("\\boxed{1} no, \\boxed{2}.", "2"));
    assert!(!accuracy("\\boxed{2} no, \\boxed{1}", "2"));
    assert!(!accuracy("\\boxed{2} no, \\boxed{1", "2"), "an unclosed box is the last one");
}

#[test]
fn the_match_is_exact() {
    assert!(!accuracy("2", "2"));
    assert!(!accuracy("", ""));
    assert!(!accuracy("\\boxed{ 2}", "2"));
    assert!(!accuracy("\\boxed{12}", "2"));
    assert!(!accuracy("\\boxed2", "2"));
    assert!(accuracy("\\boxed{10}", "10"));
    assert!(!accuracy("\\boxed{c}", "C"));
}

#[test]
fn braces_are_matched() {
    assert!(accuracy("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"));
    assert!(accuracy("\\boxed{{}}", "{}"));
    assert!(!accuracy("\\boxed{{2}", "2"));
    assert!(accuracy("é \\boxed{ü}", "ü"));
}

#[test]
fn format_is_three_paragraphs() {
    assert!(format("Read A3 B1 C5 D2\n\nso C5 A3: 5-3=2\n\n\\boxed{2}"));
    assert!(format("Read A3 B1 C5 D2\n\nso C5 A3: 5-3=9\n\n\\boxed{C}"), "format says nothing about truth");
    for text in [
        "",
        "\\boxed{2}",
        "Read A3 B1 C5 D2\n\n\\boxed{2}",
        "Read A3 B1 C5 D2\n\nso C5 A3: 5-3=2\n\n2",
        "Read A3 B1 C5 D2\n\nso C5 A3: 5-3=2\n\n\\boxed{2} ",
        "Read A3 B1 C5\n\nso C5 A3: 5-3=2\n\n\\boxed{2}",
        "Read A3 B1 C5 D2\n\n\n\n\\boxed{2}",
        "Read A3 B1 C5 D2\n\nso C5 A3: 5-3=2\n\n\\boxed{2}\n\n\\boxed{2}",
    ] {
        assert!(!format(text), "{text:?}");
    }
}

#[test]
fn an_example_depends_on_split_seed_and_index_alone() {
    let forwards = examples(Split::Train, 3, 40);
    let charts = Charts::new().unwrap();
    for index in (0..40).rev() {
        assert_eq!(charts.example(Split::Train, 3, index), forwards[index as usize], "example {index}");
    }
    // Not only the data differ, but everything that is drawn by chance.
    let kinds = |examples: &[Example]| -> Vec<_> { examples.iter().map(|one| (one.picture, one.kind)).collect() };
    for others in [examples(Split::Train, 4, 40), examples(Split::HeldOut, 3, 40)] {
        assert_ne!(kinds(&others), kinds(&forwards));
        assert!(others.iter().zip(&forwards).all(|(one, other)| one.image != other.image));
    }
    let pictures: BTreeSet<&[u8]> = forwards.iter().map(|example| example.image.as_raw().as_slice()).collect();
    assert_eq!(pictures.len(), forwards.len());
}

#[test]
fn splits_share_no_table_and_no_digit() {
    let seen = |split| {
        let (mut titles, mut digits) = (BTreeSet::new(), BTreeSet::new());
        for example in examples(split, 0, 800) {
            match example.picture {
                Picture::Digits => digits.extend(example.items),
                Picture::Bars | Picture::Line => _ = titles.insert(example.title),
            }
        }
        (titles, digits)
    };
    let ((train_titles, train_digits), (held_out_titles, held_out_digits)) = (seen(Split::Train), seen(Split::HeldOut));
    for set in [&train_titles, &train_digits, &held_out_titles, &held_out_digits] {
        assert!(set.len() > 50, "{}", set.len());
    }
    assert!(train_titles.is_disjoint(&held_out_titles));
    assert!(train_digits.is_disjoint(&held_out_digits));
}

/// The items that a question names, in its order.
fn named(question: &str) -> Vec<usize> {
    let words = question.trim_end_matches('?').split(' ');
    words.filter_map(|word| LETTERS.iter().position(|letter| word == letter.to_string())).collect()
}

/// The answer worked out from the words of the question and the values alone.
fn solve(question: &str, values: [u8; ITEMS]) -> String {
    let items = named(question);
    let only = |value: u8| {
        let found: Vec<usize> = (0..ITEMS).filter(|&item| values[item] == value).collect();
        assert_eq!(found.len(), 1, "{question} {values:?}");
        LETTERS[found[0]].to_string()
    };
    let says = |words: [&str; 2]| words.iter().any(|word| question.contains(word));
    if says(["highest", "largest"]) {
        only(values.into_iter().max().unwrap())
    } else if says(["lowest", "smallest"]) {
        only(values.into_iter().min().unwrap())
    } else if says(["sum", "plus"]) {
        (values[items[0]] + values[items[1]]).to_string()
    } else if says(["difference", "apart"]) {
        values[items[0]].abs_diff(values[items[1]]).to_string()
    } else {
        assert_eq!(items.len(), 1, "{question}");
        values[items[0]].to_string()
    }
}

#[test]
fn answers_follow_from_question_and_values() {
    let rewards = JobRewards::new();
    for split in [Split::Train, Split::HeldOut] {
        for example in examples(split, 1, 500) {
            assert!(example.values.iter().all(|&value| value <= HIGHEST_LEVEL));
            assert_eq!(example.answer, solve(&example.question, example.values), "{}", example.question);
            let paragraphs: Vec<&str> = example.worked.split("\n\n").collect();
            let seen: Vec<String> = LETTERS.iter().zip(example.values).map(|(a, b)| format!("{a}{b}")).collect();
            assert_eq!(paragraphs[0], format!("Read {}", seen.join(" ")));
            assert_eq!(rewards.of(&example.worked, &example.answer), [1.0, 1.0], "{}", example.worked);
        }
    }
}

#[test]
fn a_blind_guess_is_rarely_right() {
    for split in [Split::Train, Split::HeldOut] {
        let examples = examples(split, 2, 2000);
        let mut answers = BTreeMap::<&str, usize>::new();
        let mut by_kind = BTreeMap::<String, BTreeMap<&str, usize>>::new();
        for example in &examples {
            *answers.entry(&example.answer).or_default() += 1;
            let kind = format!("{:?}, {:?}", example.picture, example.kind);
            *by_kind.entry(kind).or_default().entry(&example.answer).or_default() += 1;
        }
        let most = |answers: &BTreeMap<&str, usize>| *answers.values().max().unwrap();
        assert!(most(&answers) * 100 < examples.len() * 15, "{answers:?}");
        // Someone who knows the kind of picture and question, but cannot see.
        assert_eq!(by_kind.len(), Picture::ALL.len() * Question::ALL.len());
        let right: usize = by_kind.values().map(most).sum();
        assert!(right * 100 < examples.len() * 30, "{right} of {}: {by_kind:?}", examples.len());
    }
}

#[test]
fn pictures_can_be_restricted() {
    let charts = Charts::new().unwrap().with_pictures(vec![Picture::Digits]).unwrap();
    assert!((0..20).all(|index| charts.example(Split::Train, 0, index).picture == Picture::Digits));
    assert!(Charts::new().unwrap().with_pictures(Vec::new()).is_err());
}

#[test]
fn questions_and_worked_answers_are_short_and_no_word_is_split() {
    let processor = Processor::from_dir(&preset()).unwrap();
    let tokenizer = processor.tokenizer();
    for example in examples(Split::Train, 5, 300) {
        let worked = tokenizer.encode(&format!("{}<|im_end|>", example.worked)).unwrap();
        assert!(worked.len() <= LONGEST_COMPLETION, "{} tokens: {}", worked.len(), example.worked);
        assert_eq!(worked.last(), Some(&processor.eos_token_id()));
        let question = tokenizer.encode(&example.question).unwrap();
        assert!(question.len() <= LONGEST_QUESTION, "{} tokens: {}", question.len(), example.question);
        // One token a word, and one for the question mark.
        assert_eq!(question.len(), example.question.split(' ').count() + 1, "{}", example.question);
        let texts: Vec<String> = worked.iter().map(|&id| tokenizer.token_text(id)).collect();
        assert_eq!(texts.iter().filter(|text| *text == "\n\n").count(), 2, "{texts:?}");
        assert!(texts.contains(&"\\boxed".into()), "{texts:?}");
    }
}

#[test]
fn the_preset_sees_eight_visual_tokens() {
    let processor = Processor::from_dir(&preset()).unwrap();
    let example = Charts::new().unwrap().example(Split::HeldOut, 0, 0);
    let image = processor.image(&example.image).unwrap();
    let messages = [Message::user(vec![Part::Image, Part::text(&example.question)])];
    let prompt = processor.prompt(&messages, &[image]).unwrap();
    let tokenizer = processor.tokenizer();
    let image_pad = tokenizer.token_id("<|image_pad|>").unwrap();
    assert_eq!(prompt.input_ids().iter().filter(|&&id| id == image_pad).count(), 8, "four columns of two");
    let expected = format!(
        "<|im_start|>user\n<|vision_start|>{}<|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n",
        "<|image_pad|>".repeat(8),
        example.question
    );
    assert_eq!(prompt.input_ids(), tokenizer.encode(&expected).unwrap());
}
