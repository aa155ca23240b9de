//! A line of JSON for everything that happens.

use std::fmt::Display;
use std::time::Instant;

use serde::{Serialize, Serializer};

use super::phase::Phase;
use super::{Field, Shown};

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event<'a> {
    Phase {
        name: &'a str,
        steps: usize,
        done: usize,
    },
    Step {
        phase: &'a str,
        step: usize,
        steps: usize,
        #[serde(serialize_with = "by_name")]
        fields: &'a [Field],
        left_seconds: Option<f64>,
    },
    Rollout {
        question: &'a str,
        answer: Option<&'a str>,
        response: &'a str,
        reward: Option<Number<f32>>,
    },
    Note {
        text: &'a str,
    },
    Finish {
        phase: &'a str,
        step: usize,
        steps: usize,
    },
}

impl Event<'_> {
    fn line(&self) -> String {
        serde_json::to_string(self).expect("an event is made of texts, numbers and maps from texts")
    }
}

pub(super) fn phase(phase: &Phase) -> String {
    Event::Phase { name: phase.name, steps: phase.steps, done: phase.step }.line()
}

pub(super) fn step(phase: &Phase, fields: &[Field], now: Instant) -> String {
    let left_seconds = phase.left(now).map(|left| left.as_secs_f64());
    Event::Step { phase: phase.name, step: phase.step, steps: phase.steps, fields, left_seconds }.line()
}

pub(super) fn rollout(shown: &Shown<'_>) -> String {
    let Shown { question, answer, response, reward } = *shown;
    Event::Rollout { question, answer, response, reward: reward.map(Number) }.line()
}

pub(super) fn note(text: &str) -> String {
    Event::Note { text }.line()
}

pub(super) fn finish(phase: &Phase) -> String {
    Event::Finish { phase: phase.name, step: phase.step, steps: phase.steps }.line()
}

fn by_name<S: Serializer>(fields: &[Field], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(fields.iter().map(|field| (field.name, field.value.map(Number))))
}

/// A number, or a text where JSON has no number for it.
struct Number<T>(T);

impl<T: Copy + Display + Into<f64> + Serialize> Serialize for Number<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.into().is_finite() { self.0.serialize(serializer) } else { serializer.collect_str(&self.0) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn every_event_is_one_line_that_reads_back() {
        let began = Instant::now();
        let mut at = Phase::begin("reinforcement", 4, 1, began);
        let mut events = vec![phase(&at)];
        at.step(began + Duration::from_millis(1500));
        let fields = [
            Field::new("reward", 0.25),
            Field::maybe("accuracy", None),
            Field::new("loss", f64::NAN),
            Field::new("kl", f64::INFINITY),
        ];
        events.push(step(&at, &fields, began + Duration::from_millis(1500)));
        let shown =
            Shown { question: "how\nmany?", answer: Some("7"), response: "\u{1b}[31m\"7\"\r\n", reward: Some(0.1) };
        events.push(rollout(&shown));
        events.push(rollout(&Shown { answer: None, reward: None, ..shown }));
        events.push(note("two\nlines"));
        events.push(finish(&at));
        assert!(events.iter().all(|line| !line.contains(['\n', '\r', '\u{1b}'])));
        let read: Vec<Value> = events.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            Value::from(read),
            json!([
                { "event": "phase", "name": "reinforcement", "steps": 4, "done": 1 },
                {
                    "event": "step", "phase": "reinforcement", "step": 2, "steps": 4, "left_seconds": 3.0,
                    "fields": { "reward": 0.25, "accuracy": null, "loss": "NaN", "kl": "inf" },
                },
                {
                    "event": "rollout", "question": "how\nmany?", "answer": "7",
                    "response": "\u{1b}[31m\"7\"\r\n", "reward": 0.1,
                },
                {
                    "event": "rollout", "question": "how\nmany?", "answer": null,
                    "response": "\u{1b}[31m\"7\"\r\n", "reward": null,
                },
                { "event": "note", "text": "two\nlines" },
                { "event": "finish", "phase": "reinforcement", "step": 2, "steps": 4 },
            ])
        );
    }
}
