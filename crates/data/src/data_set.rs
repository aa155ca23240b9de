//! The rows of some files, read at random.

use std::num::NonZeroU64;
use std::ops::Range;
use std::path::PathBuf;

use crate::compose::Composer;
use crate::files::{self, Kind};
use crate::layout::{Layout, Meaning};
use crate::lines::Lines;
use crate::parquet_file::ParquetFile;
use crate::scan::{ColumnTypes, Counts, MAX_COLUMNS, Scan, Spread};
use crate::summary::{FileSummary, Summary};
use crate::{BadRow, Error, Row};

/// How many bad rows an error lists.
const LISTED: usize = 10;

/// Rows of JSONL and Parquet files, in the order of the files. One that cannot be used keeps its place, so that what is
/// wrong with a row moves no other.
///
/// What is kept of a file is where its rows are: 16 bytes a row of JSONL, the metadata of Parquet. Threads may read at
/// once. A file must stay as it was when the data set was opened.
#[derive(Debug)]
pub struct DataSet {
    composer: Composer,
    files: Vec<DataFile>,
    len: NonZeroU64,
    counts: Counts,
    columns: ColumnTypes,
    bad: Vec<BadRow>,
}

#[derive(Debug)]
struct DataFile {
    path: PathBuf,
    rows: Rows,
    /// How many rows of the data set there are up to the end of this file.
    end: u64,
    /// How many of its rows cannot be used.
    bad: u64,
}

#[derive(Debug)]
enum Rows {
    Lines(Lines),
    Parquet(ParquetFile),
}

impl DataSet {
    /// Opens files, and all data files in directories by name, and checks every row: all that [`row`](Self::row) does
    /// but for the bytes of images in Parquet where the file's statistics tell that they are there. Images are not
    /// decoded; those given as paths must exist. Up to `skip_bad` rows may be such that they cannot be used.
    ///
    /// # Errors
    /// When a file cannot be read or is of no kind that is known, a column that the layout names is in no file, the
    /// layout has a value out of range, more rows than `skip_bad` cannot be used, or all of them.
    pub fn open(paths: &[PathBuf], layout: &Layout, skip_bad: usize) -> Result<Self, Error> {
        let composer = Composer::new(layout)?;
        let described = skip_bad.max(LISTED);
        let (mut files, mut all) = (Vec::new(), Scan::new(described));
        for (path, kind) in files::expand(paths)? {
            let (rows, scan) = match kind {
                Kind::Lines => Lines::scan(&path, &composer, described).map(|(lines, scan)| (Rows::Lines(lines), scan)),
                Kind::Parquet => {
                    ParquetFile::scan(&path, &composer, described).map(|(file, scan)| (Rows::Parquet(file), scan))
                }
            }?;
            let bad = scan.counts.bad;
            all.merge(scan);
            files.push(DataFile { path, rows, end: all.counts.good + all.counts.bad, bad });
        }
        let Scan { counts, columns, descriptions: mut bad, .. } = all;
        check_columns(layout, &columns)?;
        if counts.bad > skip_bad as u64 {
            bad.truncate(LISTED);
            let more = counts.bad - bad.len() as u64;
            return Err(Error::Rows { bad, more });
        }
        let Some(len) = NonZeroU64::new(counts.good + counts.bad).filter(|_| counts.good > 0) else {
            let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
            return Err(Error::Empty { files: names.join(", ") });
        };
        Ok(Self { composer, files, len, counts, columns, bad })
    }

    /// How many rows there are, with those that cannot be used; never none.
    #[must_use]
    pub fn len(&self) -> NonZeroU64 {
        self.len
    }

    /// How many rows could be used when the data set was opened; never 0.
    #[must_use]
    pub fn good(&self) -> u64 {
        self.counts.good
    }

    /// The columns of all files together.
    #[must_use]
    pub fn columns(&self) -> &ColumnTypes {
        &self.columns
    }

    /// The rows that could not be used when the data set was opened.
    #[must_use]
    pub fn bad_rows(&self) -> &[BadRow] {
        &self.bad
    }

    /// Reads a row, counted from 0. An image that lies in a file of its own is read when it is decoded.
    ///
    /// # Errors
    /// [`Error::Row`] when the row cannot be used, among others because an image file has gone; when there is no such
    /// row, its file cannot be read or has changed.
    pub fn row(&self, index: u64) -> Result<Row, Error> {
        let place = self.files.partition_point(|file| file.end <= index);
        let Some(file) = self.files.get(place) else {
            return Err(Error::Index { index, len: self.len.get() });
        };
        let before = if place == 0 { 0 } else { self.files[place - 1].end };
        let index = index - before;
        match &file.rows {
            Rows::Lines(lines) => lines.row(index, &self.composer),
            Rows::Parquet(parquet) => parquet.row(index, &self.composer),
        }
    }

    /// Sums the data set up. The images of up to `sample` rows that can be used, evenly spread, are measured.
    ///
    /// # Errors
    /// When a row of the sample cannot be read.
    pub fn summary(&self, sample: u64) -> Result<Summary, Error> {
        let counts = self.counts;
        let mut before = 0;
        let files = self.files.iter().map(|file| {
            let rows = file.end - std::mem::replace(&mut before, file.end);
            FileSummary { path: file.path.clone(), rows: rows - file.bad, bad_rows: file.bad }
        });
        let mut summary = Summary {
            files: files.collect(),
            images: counts.images,
            prompt_characters: counts.prompt_characters,
            answers_missing: counts.good - counts.answers,
            completions_missing: counts.good - counts.completions,
            image_widths: Spread::default(),
            image_heights: Spread::default(),
            unreadable_images: Vec::new(),
        };
        let (len, sample) = (u128::from(self.len.get()), u128::from(sample.min(self.len.get())));
        let start = |stretch: u128| (stretch * len / sample) as u64;
        for stretch in 0..sample {
            if let Some(row) = self.first_good(start(stretch)..start(stretch + 1))? {
                row.images.iter().for_each(|image| summary.measure(image));
            }
        }
        Ok(summary)
    }

    fn first_good(&self, mut indices: Range<u64>) -> Result<Option<Row>, Error> {
        let read = |index| match self.row(index) {
            Err(Error::Row(_)) => None,
            read => Some(read),
        };
        indices.find_map(read).transpose()
    }
}

/// Refuses a name that no file has. One of very many columns may not have been kept; its rows tell.
fn check_columns(layout: &Layout, columns: &ColumnTypes) -> Result<(), Error> {
    for meaning in Meaning::ALL {
        if let Some(column) = layout.columns.named(meaning).filter(|column| !columns.contains_key(*column))
            && (1..MAX_COLUMNS).contains(&columns.len())
        {
            let available: Vec<&str> = columns.keys().map(String::as_str).collect();
            return Err(Error::Column {
                key: format!("columns.{}", meaning.name()),
                column: column.into(),
                available: available.join(", "),
            });
        }
    }
    Ok(())
}
