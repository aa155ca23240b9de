//! Rows of files as a source of examples.
//!
//! A row that cannot be used keeps its place in the order: in its stead stands the one behind it. So a picture that is
//! lost between two parts of a run changes nothing but the questions about it.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use firesight_data::{DataSet, Order, Origin, Row};
use firesight_vlm::{Content, Message, Part, Role};
use serde_json::{Map, Value};

use crate::Error;
use crate::config::FileData;
use crate::error::chain;
use crate::example::{Example, Kind, Picture};
use crate::questions::Purpose;

/// The seed that puts held-out rows aside and orders them: the same for every run.
const HELD_OUT: u64 = 0;
/// Keep the orders of two purposes of one seed apart.
const DOMAINS: [u64; 3] = [0, 0x6368_6563_6b00_0000, 0x7375_7065_7200_0000];

/// Rows of files.
#[derive(Debug)]
pub struct Files {
    train: Rows,
    held_out: Rows,
    shuffle: bool,
    kinds: Vec<String>,
    skip_bad: usize,
    passed_over: Arc<Mutex<PassedOver>>,
}

/// Some rows of a data set, in an order of its own.
#[derive(Debug, Clone)]
struct Rows {
    data: Arc<DataSet>,
    order: Order,
    first: u64,
    count: NonZeroU64,
}

/// Why there is no example, and which row it is about if it is about one alone.
type Failed = Box<(Option<Origin>, Error)>;

/// Rows that cannot be used, of all data sets of a run together.
#[derive(Debug, Default)]
struct PassedOver {
    /// With the reason.
    rows: BTreeMap<Origin, String>,
    /// Those of which nothing has been said yet.
    unsaid: Vec<Origin>,
}

impl Files {
    /// Looks at all rows.
    ///
    /// # Errors
    /// When a file cannot be read, more rows are bad than may be left out, or none are left to train on or to hold out.
    pub fn open(config: &FileData) -> Result<Self, Error> {
        let mut passed_over = PassedOver::default();
        let train = open(&config.train, config, &mut passed_over)?;
        let (train, held_out) = if let Some(share) = config.held_out_share {
            Rows::parted(&train, share, config.shuffle)?
        } else {
            let held_out = open(&config.held_out, config, &mut passed_over)?;
            (Rows::all(&train, false), Rows::all(&held_out, true))
        };
        Ok(Self {
            train,
            held_out,
            shuffle: config.shuffle,
            kinds: config.kinds.clone(),
            skip_bad: config.skip_bad,
            passed_over: Arc::new(Mutex::new(passed_over)),
        })
    }

    /// The rows of the supervised phase in the place of those to train on.
    ///
    /// # Errors
    /// See [`Self::open`].
    pub(crate) fn supervised(&self, config: &FileData) -> Result<Self, Error> {
        let train = if config.supervised.is_empty() {
            self.train.clone()
        } else {
            Rows::all(&open(&config.supervised, config, &mut self.noted())?, false)
        };
        Ok(Self {
            train,
            held_out: self.held_out.clone(),
            shuffle: self.shuffle,
            kinds: self.kinds.clone(),
            skip_bad: self.skip_bad,
            passed_over: self.passed_over.clone(),
        })
    }

    pub(super) fn train(&self) -> usize {
        self.train.count.get() as usize
    }

    pub(super) fn held_out(&self) -> usize {
        self.held_out.count.get() as usize
    }

    pub(super) fn passed_over(&self) -> Vec<String> {
        let mut passed_over = self.noted();
        let unsaid = std::mem::take(&mut passed_over.unsaid);
        unsaid.iter().map(|origin| format!("passed over: {}", passed_over.rows[origin])).collect()
    }

    fn noted(&self) -> MutexGuard<'_, PassedOver> {
        self.passed_over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Example number `index`, and what `render` makes of it. In the place of a row that cannot be read or rendered stands
    /// the one behind it, if the configuration tolerates one more.
    pub(super) fn example<T>(
        &self,
        purpose: Purpose,
        seed: u64,
        index: u64,
        render: impl Fn(&Example) -> Result<T, Error>,
    ) -> Result<(Example, T), Error> {
        let (rows, place) = match purpose {
            Purpose::HeldOut => (&self.held_out, index),
            Purpose::Reinforcement => (&self.train, self.shuffled(seed, DOMAINS[0]).index(index)),
            Purpose::Check => (&self.train, self.shuffled(seed, DOMAINS[1]).index(index)),
            Purpose::Supervised => (&self.train, self.shuffled(seed, DOMAINS[2]).index(index)),
        };
        let of_row = |error: firesight_data::Error| Box::new((error.row().cloned(), error.into()));
        let read = |place| {
            let row = rows.get(place).map_err(of_row)?;
            let origin = row.origin.clone();
            let example = self.read(row).map_err(of_row)?;
            let rendered = render(&example).map_err(|error| Box::new((Some(origin), error)))?;
            Ok::<_, Failed>((example, rendered))
        };
        // Once around: there may be none left.
        let mut place = place;
        let last = place + rows.count.get() - 1;
        loop {
            let (origin, error) = match read(place) {
                Ok(example) => return Ok(example),
                Err(failed) => *failed,
            };
            if place == last || !origin.is_some_and(|origin| self.tolerates(&origin, &error)) {
                return Err(error);
            }
            place += 1;
        }
    }

    fn shuffled(&self, seed: u64, domain: u64) -> Order {
        Order::new(seed ^ domain, self.train.count, self.shuffle)
    }

    /// Whether a row may be passed over. It is counted once, however often it is met.
    fn tolerates(&self, origin: &Origin, error: &Error) -> bool {
        let mut passed_over = self.noted();
        if passed_over.rows.contains_key(origin) {
            return true;
        }
        if passed_over.rows.len() >= self.skip_bad {
            return false;
        }
        passed_over.unsaid.push(origin.clone());
        passed_over.rows.insert(origin.clone(), chain(error));
        true
    }

    fn read(&self, row: Row) -> Result<Example, firesight_data::Error> {
        let picture = |source: &firesight_data::ImageSource| {
            Ok(Picture { pixels: source.decode()?, path: source.file().map(Into::into) })
        };
        let images = row.images.iter().map(picture).collect::<Result<_, firesight_data::Error>>()?;
        let name = |name: &String| match column(&row.columns, name) {
            Some(Value::String(text)) => text.clone(),
            None | Some(Value::Null) => "none".into(),
            Some(value) => value.to_string(),
        };
        let kinds = self.kinds.iter().map(|column| Kind { place: 0, name: name(column) }).collect();
        Ok(Example {
            messages: row.messages.into_iter().map(message).collect(),
            images,
            question: row.prompt,
            answer: row.answer,
            worked: row.completion,
            kinds,
            columns: row.columns,
            origin: row.origin.to_string(),
        })
    }
}

impl Rows {
    fn all(data: &Arc<DataSet>, shuffle: bool) -> Self {
        let count = data.len();
        Self { data: data.clone(), order: Order::new(HELD_OUT, count, shuffle), first: 0, count }
    }

    /// The rows to train on, and those that are put aside: at random, or the last ones where the order of the files
    /// matters.
    fn parted(data: &Arc<DataSet>, share: f64, shuffle: bool) -> Result<(Self, Self), Error> {
        let whole = Self::all(data, shuffle);
        let rows = whole.count.get();
        let aside = ((rows as f64 * share).round() as u64).max(1);
        let (Some(aside), Some(train)) = (NonZeroU64::new(aside), NonZeroU64::new(rows.saturating_sub(aside))) else {
            let problem = format!("is {share}, which leaves none of {rows} rows to train on");
            return Err(Error::Setting { key: "data.held_out_share", problem });
        };
        Ok((Self { count: train, ..whole.clone() }, Self { first: train.get(), count: aside, ..whole }))
    }

    fn get(&self, place: u64) -> Result<Row, firesight_data::Error> {
        self.data.row(self.order.index(self.first + place % self.count))
    }
}

fn open(paths: &[PathBuf], config: &FileData, passed_over: &mut PassedOver) -> Result<Arc<DataSet>, Error> {
    let left = config.skip_bad - passed_over.rows.len();
    let data = DataSet::open(paths, &config.layout, left)?;
    if let Some(column) = config.kinds.iter().find(|column| !data.columns().contains_key(*column)) {
        let there: Vec<&str> = data.columns().keys().map(String::as_str).collect();
        let problem = format!("names {column:?}; the columns are {}", there.join(", "));
        return Err(Error::Setting { key: "data.kinds", problem });
    }
    for row in data.bad_rows() {
        passed_over.unsaid.push(row.origin.clone());
        passed_over.rows.insert(row.origin.clone(), row.to_string());
    }
    Ok(Arc::new(data))
}

/// The value of a column, into structures by dots.
fn column<'a>(columns: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    columns.get(name).or_else(|| {
        let (outer, inner) = name.split_once('.')?;
        column(columns.get(outer)?.as_object()?, inner)
    })
}

fn message(message: firesight_data::Message) -> Message {
    let role = match message.role {
        firesight_data::Role::System => Role::System,
        firesight_data::Role::User => Role::User,
        firesight_data::Role::Assistant => Role::Assistant,
    };
    let part = |part| match part {
        firesight_data::Part::Image => Part::Image,
        firesight_data::Part::Text(text) => Part::Text { text },
    };
    let mut parts: Vec<Part> = message.parts.into_iter().map(part).collect();
    // Templates of models of text alone take strings only.
    let content = match parts.pop() {
        Some(Part::Text { text }) if parts.is_empty() => Content::Text(text),
        Some(last) => {
            parts.push(last);
            Content::Parts(parts)
        }
        None => Content::Text(String::new()),
    };
    Message { role, content }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;
    use std::fmt::Write as _;
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Forty rows, and what the configuration says of them.
    fn files(directory: &Path, more: &str) -> (PathBuf, FileData) {
        let path = directory.join("rows.jsonl");
        let text = (0..40).fold(String::new(), |mut text, row| {
            writeln!(text, r#"{{"prompt": "{row}", "answer": "{row}", "meta": {{"level": {}}}}}"#, row % 2).unwrap();
            text
        });
        fs::write(&path, text).unwrap();
        let config = format!("train = ['{}']\n{more}", path.display());
        (path, toml::from_str(&config).unwrap())
    }

    fn asked(files: &Files, purpose: Purpose, seed: u64, count: u64) -> Vec<String> {
        let example = |index| files.example(purpose, seed, index, |_| Ok(())).unwrap().0.question;
        (0..count).map(example).collect()
    }

    #[test]
    fn rows_that_are_put_aside_are_the_same_for_every_seed_and_never_trained_on() {
        let scratch = tempfile::tempdir().unwrap();
        for shuffle in [true, false] {
            let (_, config) = files(scratch.path(), &format!("held_out_share = 0.25\nshuffle = {shuffle}"));
            let files = Files::open(&config).unwrap();
            assert_eq!((files.train(), files.held_out()), (30, 10));
            let held_out = asked(&files, Purpose::HeldOut, 0, 10);
            assert_eq!(held_out, asked(&files, Purpose::HeldOut, 7, 10));
            let train = asked(&files, Purpose::Reinforcement, 0, 60);
            let distinct: BTreeSet<&String> = train.iter().chain(&held_out).collect();
            assert_eq!(distinct.len(), 40);
            assert!(train.iter().all(|row| !held_out.contains(row)));
            // Two passes over all of them, in orders of their own.
            let pass = |rows: &[String]| rows.iter().cloned().collect::<BTreeSet<_>>();
            assert_eq!(pass(&train[..30]), pass(&train[30..]));
            assert_eq!(train[..30] == train[30..], !shuffle);
            assert_eq!(train == asked(&files, Purpose::Reinforcement, 1, 60), !shuffle);
            assert_eq!(train == asked(&files, Purpose::Supervised, 0, 60), !shuffle);
        }
        let (_, config) = files(scratch.path(), "held_out_share = 0.999");
        assert!(Files::open(&config).unwrap_err().to_string().contains("leaves none of 40 rows"));
    }

    #[test]
    fn a_row_that_cannot_be_shown_is_passed_over_and_a_file_that_changed_is_not() {
        let scratch = tempfile::tempdir().unwrap();
        let (path, config) = files(scratch.path(), "held_out_share = 0.5\nskip_bad = 1\nshuffle = false");
        let files = Files::open(&config).unwrap();
        let refused = |bad: &'static str| {
            move |example: &Example| {
                if example.question == bad { Err(Error::NoTarget { origin: "here".into() }) } else { Ok(()) }
            }
        };
        let read =
            |bad, index| files.example(Purpose::Reinforcement, 0, index, refused(bad)).map(|found| found.0.question);
        let behind = read("", 4).unwrap();
        let bad = read("", 3).unwrap();
        let bad: &'static str = bad.leak();
        // As often as it is met, it is one; another one is one too many.
        assert_eq!([read(bad, 3).unwrap(), read(bad, 3).unwrap()], [behind.clone(), behind.clone()]);
        assert!(matches!(read(behind.leak(), 4), Err(Error::NoTarget { .. })));
        let said = files.passed_over();
        assert!(said.len() == 1 && said[0].starts_with("passed over: here"), "{said:?}");
        assert!(files.passed_over().is_empty());

        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{}\n");
        fs::write(&path, text).unwrap();
        let tolerant = Files { skip_bad: 40, ..files };
        let error = tolerant.example(Purpose::HeldOut, 0, 0, |_| Ok(())).unwrap_err();
        assert!(matches!(error, Error::Data(firesight_data::Error::Changed { .. })), "{error:?}");
    }

    #[test]
    fn kinds_are_columns_that_are_there() {
        let scratch = tempfile::tempdir().unwrap();
        let (_, config) = files(scratch.path(), "held_out_share = 0.5\nkinds = ['meta.level']");
        let found = Files::open(&config).unwrap().example(Purpose::HeldOut, 0, 0, |_| Ok(())).unwrap().0;
        let parity = found.question.parse::<u32>().unwrap() % 2;
        assert_eq!(found.kinds, [Kind { place: 0, name: parity.to_string() }]);
        let (_, config) = files(scratch.path(), "held_out_share = 0.5\nkinds = ['level']");
        let error = Files::open(&config).unwrap_err().to_string();
        assert!(error.starts_with("data.kinds names \"level\"; the columns are answer, meta, meta.level"), "{error}");
    }
}
