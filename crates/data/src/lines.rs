//! JSONL files: one object a line, found again by its offset.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;

use crate::compose::Composer;
use crate::error::Problem;
use crate::files::{self, Stamp, io};
use crate::image_source;
use crate::layout::Meaning;
use crate::record::{Record, kind, take};
use crate::scan::Scan;
use crate::{BadRow, Error, Origin, Row};

/// How many bytes of lines are parsed side by side; a longer line is alone.
const BATCH_BYTES: usize = 8 << 20;
/// How many lines one thread parses at a time.
const LINES_A_TASK: usize = 32;

/// The UTF-8 byte order mark, which some editors put at the beginning of a file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A JSONL file and where its lines are.
#[derive(Debug)]
pub(crate) struct Lines {
    path: PathBuf,
    stamp: Stamp,
    places: Vec<Line>,
}

#[derive(Debug, Clone, Copy)]
struct Line {
    offset: u64,
    /// Counted from 1; blank lines are no rows.
    number: u64,
}

impl Lines {
    /// Reads all lines once, a batch at a time.
    pub(crate) fn scan(path: &Path, composer: &Composer, described: usize) -> Result<(Self, Scan), Error> {
        let (file, stamp) = files::open(path)?;
        let mut file = BufReader::with_capacity(1 << 20, file);
        let (mut lines, mut scan) = (Vec::new(), Scan::new(described));
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let (mut offset, mut number) = (0, 0);
        if file.fill_buf().map_err(|source| io(path, source))?.starts_with(BYTE_ORDER_MARK) {
            file.consume(BYTE_ORDER_MARK.len());
            offset = BYTE_ORDER_MARK.len() as u64;
        }
        loop {
            let mut text = Vec::new();
            let read = file.read_until(b'\n', &mut text).map_err(|source| io(path, source))?;
            if read == 0 || bytes >= BATCH_BYTES {
                let first = lines.len() - batch.len();
                scan_batch(path, composer, &lines[first..], &batch, &mut scan);
                batch.clear();
                bytes = 0;
            }
            if read == 0 {
                return Ok((Self { path: path.into(), stamp, places: lines }, scan));
            }
            number += 1;
            if !text.trim_ascii().is_empty() {
                lines.push(Line { offset, number });
                bytes += read;
                batch.push(text);
            }
            offset += read as u64;
        }
    }

    /// Reads one row, counted from 0.
    pub(crate) fn row(&self, index: u64, composer: &Composer) -> Result<Row, Error> {
        let line = self.places[index as usize];
        let file = files::reopen(&self.path, self.stamp)?;
        let text = line_at(file, line.offset).map_err(|source| io(&self.path, source))?;
        let row = record(&text).map_err(|problem| problem.at(self.origin(line)));
        Ok(row.and_then(|record| row_of(self.origin(line), record, composer))?)
    }

    fn origin(&self, line: Line) -> Origin {
        Origin { file: self.path.clone(), row: line.number }
    }
}

fn line_at(mut file: File, offset: u64) -> std::io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(offset))?;
    let mut text = Vec::new();
    BufReader::new(file).read_until(b'\n', &mut text)?;
    Ok(text)
}

/// Scans rows side by side.
fn scan_batch(path: &Path, composer: &Composer, lines: &[Line], texts: &[Vec<u8>], scan: &mut Scan) {
    let tasks = lines.par_chunks(LINES_A_TASK).zip(texts.par_chunks(LINES_A_TASK));
    let scans = tasks.map(|(lines, texts)| {
        let mut scan = scan.following();
        for (line, text) in lines.iter().zip(texts) {
            let origin = Origin { file: path.into(), row: line.number };
            let row = match record(text) {
                Ok(record) => {
                    scan.record(&record);
                    row_of(origin, record, composer)
                }
                Err(problem) => Err(problem.at(origin)),
            };
            scan.row(row);
        }
        scan
    });
    let scans: Vec<Scan> = scans.collect();
    for later in scans {
        scan.merge(later);
    }
}

fn record(text: &[u8]) -> Result<Record, Problem> {
    match serde_json::from_slice(text.trim_ascii()) {
        Ok(Value::Object(record)) => Ok(record),
        Ok(other) => Err(Problem::of_row(format!("is {}, not an object", kind(&other)))),
        // Of the lines of a file it knows one.
        Err(error) => Err(Problem::of_row(format!("is no JSON: {error}").replace(" at line 1 column", " at column"))),
    }
}

fn row_of(origin: Origin, mut record: Record, composer: &Composer) -> Result<Row, BadRow> {
    let mut images = None;
    for column in composer.layout().columns.candidates(Meaning::Images) {
        let taken = take(&mut record, column);
        images = images.or(taken.map(|value| (column, value)));
    }
    let images = images.map(|(column, value)| match image_source::from_json(value) {
        Ok(given) => Ok((column, given)),
        Err(problem) => Err(Problem::of_column(column, problem)),
    });
    match images.transpose() {
        Ok(images) => composer.row(origin, record, images),
        Err(problem) => Err(problem.at(origin)),
    }
}
