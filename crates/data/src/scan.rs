//! What a look at all rows finds.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::record::Record;
use crate::{BadRow, Row};

/// Names of columns beyond these are not kept: a struct whose fields are data would have one for every row.
pub(crate) const MAX_COLUMNS: usize = 10_000;

/// The columns of some files by name, dotted within structs, and what is in them.
pub type ColumnTypes = BTreeMap<String, BTreeSet<ColumnType>>;

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ColumnType {
    /// Text, or what is read as text, such as times.
    Text,
    /// Numbers.
    Number,
    /// Truth values.
    Boolean,
    /// Lists.
    List,
    /// Structs; their fields are columns too.
    Struct,
    /// Bytes.
    Binary,
}

/// The least, the mean and the greatest of some numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spread {
    count: u64,
    sum: u64,
    least: u64,
    greatest: u64,
}

impl Spread {
    pub(crate) fn add(&mut self, number: u64) {
        self.merge(Self { count: 1, sum: number, least: number, greatest: number });
    }

    fn merge(&mut self, other: Self) {
        if self.count == 0 {
            *self = other;
        } else if other.count > 0 {
            self.count += other.count;
            self.sum += other.sum;
            self.least = self.least.min(other.least);
            self.greatest = self.greatest.max(other.greatest);
        }
    }

    /// How many numbers there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The least; 0 of none.
    #[must_use]
    pub fn least(&self) -> u64 {
        self.least
    }

    /// The mean; 0 of none.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.sum as f64 / self.count.max(1) as f64
    }

    /// The greatest; 0 of none.
    #[must_use]
    pub fn greatest(&self) -> u64 {
        self.greatest
    }
}

/// How many rows there are, and what those that can be used add up to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) good: u64,
    pub(crate) bad: u64,
    pub(crate) answers: u64,
    pub(crate) completions: u64,
    pub(crate) prompt_characters: Spread,
    pub(crate) images: Spread,
}

impl Counts {
    fn of(row: &Row) -> Self {
        let mut counts = Self {
            good: 1,
            answers: row.answer.is_some().into(),
            completions: row.completion.is_some().into(),
            ..Self::default()
        };
        counts.prompt_characters.add(row.prompt.chars().count() as u64);
        counts.images.add(row.images.len() as u64);
        counts
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.good += other.good;
        self.bad += other.bad;
        self.answers += other.answers;
        self.completions += other.completions;
        self.prompt_characters.merge(other.prompt_characters);
        self.images.merge(other.images);
    }
}

/// What was found in consecutive rows of a file.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) counts: Counts,
    /// The first rows that cannot be used.
    pub(crate) descriptions: Vec<BadRow>,
    /// How many of them there may be.
    described: usize,
    pub(crate) columns: ColumnTypes,
}

impl Scan {
    pub(crate) fn new(described: usize) -> Self {
        Self { described, ..Self::default() }
    }

    /// An empty one for rows that follow.
    pub(crate) fn following(&self) -> Self {
        Self::new(self.described.saturating_sub(self.descriptions.len()))
    }

    /// Counts a row.
    pub(crate) fn row(&mut self, row: Result<Row, BadRow>) {
        match row {
            Ok(row) => self.counts.merge(&Counts::of(&row)),
            Err(bad) => {
                self.counts.bad += 1;
                if self.descriptions.len() < self.described {
                    self.descriptions.push(bad);
                }
            }
        }
    }

    /// Notes the columns of a record.
    pub(crate) fn record(&mut self, record: &Record) {
        self.fields("", record);
    }

    fn fields(&mut self, prefix: &str, record: &Record) {
        for (name, value) in record {
            let name = format!("{prefix}{name}");
            if let Value::Object(fields) = value {
                self.fields(&format!("{name}."), fields);
            }
            let found = match value {
                Value::Null => None,
                Value::Bool(_) => Some(ColumnType::Boolean),
                Value::Number(_) => Some(ColumnType::Number),
                Value::String(_) => Some(ColumnType::Text),
                Value::Array(_) => Some(ColumnType::List),
                Value::Object(_) => Some(ColumnType::Struct),
            };
            self.column(name, found);
        }
    }

    fn column(&mut self, name: String, types: impl IntoIterator<Item = ColumnType>) {
        if self.columns.len() < MAX_COLUMNS || self.columns.contains_key(&name) {
            self.columns.entry(name).or_default().extend(types);
        }
    }

    /// Adds what was found in the rows that follow.
    pub(crate) fn merge(&mut self, later: Self) {
        self.counts.merge(&later.counts);
        let room = self.described.saturating_sub(self.descriptions.len());
        self.descriptions.extend(later.descriptions.into_iter().take(room));
        for (name, types) in later.columns {
            self.column(name, types);
        }
    }
}
