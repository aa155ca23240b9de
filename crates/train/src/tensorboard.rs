//! Scalars for TensorBoard: `events.out.tfevents.firesight` in the run directory, so that `tensorboard --logdir runs`
//! shows every run under its own name.
//!
//! A tag is the phase and the name of the metric, as in `reinforcement/reward/mean`. Phases count their steps from the
//! start, so under one tag they would lie on top of each other; a file for each would make five runs of every run.
//!
//! The file is a sequence of records, all numbers little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | length of the message |
//! | 4 | masked CRC32C of those 8 bytes |
//! | length | the message, a protobuf `Event` |
//! | 4 | masked CRC32C of the message |
//!
//! Masked is `rotate_right(crc, 15) + 0xa282ead8`. The first event has the version of the file in place of a summary.
//! The messages are TensorFlow's `Event` and `Summary`: an event has the wall time (field 1, a double), the step (2, an
//! int64), the version (3, a string) and the summary (5); a summary has values (1), each a tag (1, a string) and a
//! number (2, a float).

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::Error;

/// Name of the file in the run directory. TensorBoard asks for `tfevents` in it.
pub(crate) const FILE: &str = "events.out.tfevents.firesight";

const VERSION: &str = "brain.Event:2";

/// The file of a run.
#[derive(Debug)]
pub(crate) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Opens `path` to append to it; a file that is new gets its version.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { path: path.into(), source };
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(io)?;
        let mut events = Self { path: path.into(), file };
        if events.length()? == 0 {
            events.append(0, Some(VERSION.into()), None)?;
        }
        Ok(events)
    }

    /// Bytes so far.
    pub(crate) fn length(&self) -> Result<u64, Error> {
        let metadata = self.file.metadata().map_err(|source| Error::Io { path: self.path.clone(), source })?;
        Ok(metadata.len())
    }

    /// Removes what lies beyond `bytes`, an earlier length.
    pub(crate) fn cut(&mut self, bytes: u64) -> Result<(), Error> {
        // A file that was lost, or not wanted then, is shorter; it begins here.
        let bytes = bytes.min(self.length()?);
        self.file.set_len(bytes).map_err(|source| Error::Io { path: self.path.clone(), source })?;
        if bytes == 0 { self.append(0, Some(VERSION.into()), None) } else { Ok(()) }
    }

    /// Appends the metrics of a step of a phase as one record.
    pub(crate) fn scalars(&mut self, phase: &str, step: usize, metrics: &[(String, f64)]) -> Result<(), Error> {
        let scalar =
            |(name, value): &(String, f64)| Value { tag: format!("{phase}/{name}"), simple_value: Some(*value as f32) };
        self.append(step, None, Some(Summary { values: metrics.iter().map(scalar).collect() }))
    }

    fn append(&mut self, step: usize, file_version: Option<String>, summary: Option<Summary>) -> Result<(), Error> {
        let wall_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let event = Event { wall_time, step: step as i64, file_version, summary };
        // One call, so that a reader meets whole records.
        let written = self.file.write_all(&record(&event.encode_to_vec()));
        written.map_err(|source| Error::Io { path: self.path.clone(), source })
    }
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    values: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    /// Optional, so that a zero is written too.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), message, &masked_crc(message)].concat()
}

fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The messages of a file, all of whose checksums have to fit.
    fn read(path: &Path) -> Vec<Event> {
        let bytes = std::fs::read(path).unwrap();
        let (mut rest, mut events) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked_crc(&rest[..8]));
            let message = &rest[12..12 + length];
            assert_eq!(rest[12 + length..16 + length], masked_crc(message));
            events.push(Event::decode(message).unwrap());
            rest = &rest[16 + length..];
        }
        events
    }

    /// What TensorBoard 2.21's own record writer makes of the two events below.
    const VERSION_RECORD: &str = "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c";
    const SCALARS_RECORD: &str = "3a000000000000001295eae209000000000000044010ac022a2c0a200a197265696e666f7263656d\
                           656e742f7265776172642f6d65616e150000803e0a080a01611500000000a614572d";

    #[test]
    fn records_are_those_of_tensorboard() {
        let event = Event { wall_time: 1.5, step: 0, file_version: Some(VERSION.into()), summary: None };
        assert_eq!(record(&event.encode_to_vec()), bytes(VERSION_RECORD));
        let values = vec![
            Value { tag: "reinforcement/reward/mean".into(), simple_value: Some(0.25) },
            Value { tag: "a".into(), simple_value: Some(0.0) },
        ];
        let event = Event { wall_time: 2.5, step: 300, file_version: None, summary: Some(Summary { values }) };
        assert_eq!(record(&event.encode_to_vec()), bytes(SCALARS_RECORD));
    }

    #[test]
    fn a_file_is_gone_on_with_after_its_last_record() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join(FILE);
        let metric = |value: f64| [("x/y".to_owned(), value)];
        let mut events = EventFile::open(&path).unwrap();
        events.scalars("first", 1, &metric(0.5)).unwrap();
        let length = events.length().unwrap();
        events.scalars("first", 2, &metric(f64::NAN)).unwrap();
        // What a run does that goes on from its first step.
        let mut events = EventFile::open(&path).unwrap();
        events.cut(length).unwrap();
        events.scalars("second", 2, &metric(1e300)).unwrap();

        let events = read(&path);
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        let found: Vec<(i64, &str, Option<f32>)> = events[1..]
            .iter()
            .map(|event| (event.step, &event.summary.as_ref().unwrap().values[0]))
            .map(|(step, value)| (step, value.tag.as_str(), value.simple_value))
            .collect();
        assert_eq!(found, [(1, "first/x/y", Some(0.5)), (2, "second/x/y", Some(f32::INFINITY))]);
        assert!(events.iter().all(|event| event.wall_time > 1e9));
    }

    #[test]
    fn a_file_that_is_cut_to_nothing_or_lost_begins_again() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join(FILE);
        for (bytes, records) in [(0, 1), (1_000_000, 2)] {
            let mut events = EventFile::open(&path).unwrap();
            events.scalars("x", 1, &[("y".into(), 1.0)]).unwrap();
            events.cut(bytes).unwrap();
            let found = read(&path);
            assert_eq!((found.len(), found[0].file_version.as_deref()), (records, Some(VERSION)));
        }
    }

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }
}
