//! Parquet files: a row is found by its row group and its place in it.

use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;
use arrow_json::WriterBuilder;
use arrow_json::writer::LineDelimited;
use arrow_schema::ArrowError;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection,
    RowSelector,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, RowGroupMetaData};
use rayon::prelude::*;

use crate::compose::Composer;
use crate::error::Problem;
use crate::files::{self, Stamp};
use crate::image_source::Given;
use crate::layout::{Layout, Meaning};
use crate::parquet_columns::{Bytes, ImageColumn, ImagesAt, column_types, images_of, is_binary};
use crate::record::Record;
use crate::scan::{ColumnType, ColumnTypes, Scan};
use crate::{BadRow, Error, Origin, Row};

/// How many rows are decoded at a time when all are looked at.
const BATCH_ROWS: usize = 128;
/// The same where the bytes of images are among them.
const BATCH_ROWS_WITH_BYTES: usize = 8;

/// A Parquet file and its metadata.
#[derive(Debug)]
pub(crate) struct ParquetFile {
    path: PathBuf,
    stamp: Stamp,
    metadata: ArrowReaderMetadata,
    /// The first row of each row group.
    starts: Vec<u64>,
    /// Leaves of the schema: all but those with images and those with bytes.
    record: Vec<usize>,
    images: Vec<ImageColumn>,
}

impl ParquetFile {
    /// Reads the metadata, and all rows once but for the bytes of their images.
    pub(crate) fn scan(path: &Path, composer: &Composer, described: usize) -> Result<(Self, Scan), Error> {
        let (file, stamp) = files::open(path)?;
        // Without the Arrow schema that some writers leave, a file has a handful of types, whoever wrote it.
        let options = ArrowReaderOptions::new()
            .with_skip_arrow_metadata(true)
            .with_offset_index_policy(PageIndexPolicy::Optional);
        let metadata = ArrowReaderMetadata::load(&file, options).map_err(|source| damaged(path, source))?;
        let schema = metadata.parquet_schema();
        let columns = composer.layout().columns.candidates(Meaning::Images);
        let images: Vec<ImageColumn> =
            columns.into_iter().filter_map(|column| ImageColumn::find(column, schema)).collect();
        let record = (0..schema.num_columns())
            .filter(|leaf| !is_binary(&schema.column(*leaf)) && !images.iter().any(|column| column.has(*leaf)))
            .collect();
        let mut next = 0;
        let starts = metadata.metadata().row_groups().iter().map(|group| {
            let start = next;
            next += group.num_rows() as u64;
            start
        });
        let starts = starts.collect();
        let file = Self { path: path.into(), stamp, metadata, starts, record, images };
        let mut scan = Scan::new(described);
        column_types("", file.metadata.schema().fields(), &mut scan.columns);
        check_text(path, composer.layout(), &scan.columns)?;
        let groups = (0..file.starts.len()).into_par_iter();
        let scans = groups.map(|group| file.scan_group(group, composer, described)).collect::<Result<Vec<_>, _>>()?;
        for later in scans {
            scan.merge(later);
        }
        Ok((file, scan))
    }

    /// Reads one row, counted from 0.
    pub(crate) fn row(&self, index: u64, composer: &Composer) -> Result<Row, Error> {
        let group = self.starts.partition_point(|start| *start <= index) - 1;
        let before = (index - self.starts[group]) as usize;
        let selection = RowSelection::from(vec![RowSelector::skip(before), RowSelector::select(1)]);
        let images: Vec<ImagesAt<'_>> = self.images.iter().map(ImagesAt::read).collect();
        let mut row = None;
        self.each(group, Some(selection), &images, |_, record, given| {
            row = Some(self.row_of(index, record, given, composer));
        })?;
        match row {
            Some(row) => Ok(row?),
            None => Err(self.damaged(ParquetError::EOF(format!("row {} is not there", index + 1)))),
        }
    }

    fn scan_group(&self, group: usize, composer: &Composer, described: usize) -> Result<Scan, Error> {
        let images =
            self.images.iter().map(|column| self.without_bytes(group, column)).collect::<Result<Vec<_>, _>>()?;
        let mut scan = Scan::new(described);
        self.each(group, None, &images, |place, record, given| {
            scan.row(self.row_of(self.starts[group] + place, record, given, composer));
        })?;
        Ok(scan)
    }

    /// Finds out whether a column's images can be checked without reading them: the statistics of a row group say how
    /// often its bytes are null, and what else there is of an image says how often there is none.
    fn without_bytes<'a>(&self, group: usize, column: &'a ImageColumn) -> Result<ImagesAt<'a>, Error> {
        let metadata = self.metadata.metadata().row_group(group);
        let Some((leaf, missing)) = column.bytes_beside_others().and_then(|leaf| Some((leaf, nulls(metadata, leaf)?)))
        else {
            return Ok(ImagesAt::read(column));
        };
        if missing == metadata.column(leaf).num_values() as u64 {
            return Ok(ImagesAt { column, bytes: Bytes::Absent });
        }
        let others = ImagesAt { column, bytes: Bytes::There };
        let mut without = 0;
        for batch in self.reader(group, others.leaves().collect(), None, BATCH_ROWS)? {
            let batch = batch.map_err(|error| self.damaged(error.into()))?;
            without += (0..batch.num_rows()).filter(|row| !others.any(&batch, *row)).count() as u64;
        }
        Ok(if missing == without { others } else { ImagesAt::read(column) })
    }

    /// Calls `row` with the place, the record and the images of the selected rows of a row group.
    fn each<'a>(
        &self,
        group: usize,
        selection: Option<RowSelection>,
        images: &[ImagesAt<'a>],
        mut row: impl FnMut(u64, Record, Result<Option<(&'a str, Vec<Given>)>, Problem>),
    ) -> Result<(), Error> {
        let batch_rows = if images.iter().any(ImagesAt::has_bytes) { BATCH_ROWS_WITH_BYTES } else { BATCH_ROWS };
        let of_images = images.iter().flat_map(ImagesAt::leaves).collect();
        let records = self.reader(group, self.record.clone(), selection.clone(), batch_rows)?;
        let shown = self.reader(group, of_images, selection, batch_rows)?;
        let mut place = 0;
        for (batch, shown) in records.zip(shown) {
            let damaged = |error: ArrowError| self.damaged(error.into());
            let (batch, shown) = (batch.map_err(damaged)?, shown.map_err(damaged)?);
            for (index, record) in records_of(&batch).map_err(|error| self.damaged(error))?.into_iter().enumerate() {
                row(place, record, images_of(&shown, index, images));
                place += 1;
            }
        }
        Ok(())
    }

    fn reader(
        &self,
        group: usize,
        leaves: Vec<usize>,
        selection: Option<RowSelection>,
        batch_rows: usize,
    ) -> Result<ParquetRecordBatchReader, Error> {
        let file = files::reopen(&self.path, self.stamp)?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone())
            .with_row_groups(vec![group])
            .with_projection(ProjectionMask::leaves(self.metadata.parquet_schema(), leaves))
            .with_batch_size(batch_rows);
        let builder = match selection {
            Some(selection) => builder.with_row_selection(selection),
            None => builder,
        };
        builder.build().map_err(|source| self.damaged(source))
    }

    fn row_of(
        &self,
        index: u64,
        record: Record,
        images: Result<Option<(&str, Vec<Given>)>, Problem>,
        composer: &Composer,
    ) -> Result<Row, BadRow> {
        let origin = Origin { file: self.path.clone(), row: index + 1 };
        match images {
            Ok(images) => composer.row(origin, record, images),
            Err(problem) => Err(problem.at(origin)),
        }
    }

    fn damaged(&self, source: ParquetError) -> Error {
        damaged(&self.path, source)
    }
}

/// Refuses bytes where a text is wanted: they are left out of records, and the column would seem to be missing.
fn check_text(path: &Path, layout: &Layout, columns: &ColumnTypes) -> Result<(), Error> {
    for meaning in [Meaning::Prompt, Meaning::Answer, Meaning::Completion] {
        let mut found = layout.columns.candidates(meaning).into_iter().filter(|column| columns.contains_key(*column));
        let binary = |column: &&str| columns[*column].contains(&ColumnType::Binary);
        if let Some(column) = found.next().filter(|first| binary(first) && found.all(|other| binary(&other))) {
            return Err(Error::Format { path: path.into(), problem: format!("column {column} is binary, not text") });
        }
    }
    Ok(())
}

fn damaged(path: &Path, source: ParquetError) -> Error {
    Error::Parquet { path: path.into(), source }
}

fn nulls(group: &RowGroupMetaData, leaf: usize) -> Option<u64> {
    group.column(leaf).statistics()?.null_count_opt()
}

fn records_of(batch: &RecordBatch) -> Result<Vec<Record>, ParquetError> {
    if batch.num_columns() == 0 {
        return Ok(vec![Record::new(); batch.num_rows()]);
    }
    let mut json = Vec::new();
    let mut writer = WriterBuilder::new().build::<_, LineDelimited>(&mut json);
    writer.write(batch)?;
    writer.finish()?;
    let records = serde_json::Deserializer::from_slice(&json).into_iter().collect::<Result<_, _>>();
    records.map_err(|error| ParquetError::External(error.into()))
}
