//! The built-in task as a source of examples.

use firesight_vlm::{Message, Part};
use serde_json::Map;

use crate::example::{Example, Kind};
use crate::questions::Purpose;
use crate::task::{self, Charts, Picture, Split};

/// Example number `index` of a purpose. Purposes share none: they take turns in the numbering.
pub(super) fn example(charts: &Charts, purpose: Purpose, seed: u64, index: u64) -> Example {
    let (split, seed, index) = match purpose {
        Purpose::Supervised => (Split::Train, seed, index * 3),
        Purpose::Check => (Split::Train, seed, index * 3 + 1),
        Purpose::Reinforcement => (Split::Train, seed, index * 3 + 2),
        Purpose::HeldOut => (Split::HeldOut, 0, index),
    };
    charts.example(split, seed, index).into()
}

impl From<task::Example> for Example {
    fn from(chart: task::Example) -> Self {
        let picture = place(&Picture::ALL, &chart.picture);
        let kind = place(&task::Question::ALL, &chart.kind);
        Self {
            messages: vec![Message::user(vec![Part::Image, Part::text(chart.question.clone())])],
            images: vec![chart.image.into()],
            question: chart.question,
            answer: Some(chart.answer),
            worked: Some(chart.worked),
            kinds: vec![
                Kind { place: picture, name: chart.picture.name().into() },
                Kind { place: kind, name: chart.kind.name().into() },
            ],
            columns: Map::new(),
            origin: chart.title,
        }
    }
}

fn place<T: PartialEq>(all: &[T], one: &T) -> usize {
    all.iter().position(|other| other == one).unwrap_or(all.len())
}
