//! What the columns of a Parquet file are, and the images in them.

use arrow_array::cast::AsArray as _;
use arrow_array::{Array, ArrayRef, RecordBatch, StructArray};
use arrow_schema::{DataType, Fields};
use parquet::basic::{ConvertedType, LogicalType, Type};
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};

use crate::error::Problem;
use crate::image_source::{EXPECTED, Given, from_base64, of_image};
use crate::scan::{ColumnType, ColumnTypes};

/// A column with images. Its leaves are numbered as those of the file.
#[derive(Debug)]
pub(crate) struct ImageColumn {
    name: String,
    /// Those of bytes.
    binary: Vec<usize>,
    /// Those of paths and whatever else there is.
    others: Vec<usize>,
}

impl ImageColumn {
    /// The column of a dotted name; `None` if there is none.
    pub(crate) fn find(name: &str, schema: &SchemaDescriptor) -> Option<Self> {
        let path: Vec<&str> = name.split('.').collect();
        let within = |leaf: &usize| {
            let column = schema.column(*leaf);
            let parts = column.path().parts();
            parts[0] == name || (parts.len() >= path.len() && parts.iter().zip(&path).all(|(part, name)| part == name))
        };
        let leaves: Vec<usize> = (0..schema.num_columns()).filter(within).collect();
        let (binary, others) = leaves.into_iter().partition(|leaf| is_binary(&schema.column(*leaf)));
        let column = Self { name: name.into(), binary, others };
        (!column.binary.is_empty() || !column.others.is_empty()).then_some(column)
    }

    pub(crate) fn has(&self, leaf: usize) -> bool {
        self.binary.contains(&leaf) || self.others.contains(&leaf)
    }

    /// The leaf with the bytes, if another one tells how many images there are.
    pub(crate) fn bytes_beside_others(&self) -> Option<usize> {
        match self.binary[..] {
            [leaf] if !self.others.is_empty() => Some(leaf),
            _ => None,
        }
    }
}

/// What is known of the bytes in a row group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bytes {
    /// They are to be read.
    Read,
    /// Every image has them.
    There,
    /// No image has them.
    Absent,
}

/// A column with images in a row group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImagesAt<'a> {
    pub(crate) column: &'a ImageColumn,
    pub(crate) bytes: Bytes,
}

impl<'a> ImagesAt<'a> {
    pub(crate) fn read(column: &'a ImageColumn) -> Self {
        Self { column, bytes: Bytes::Read }
    }

    pub(crate) fn has_bytes(&self) -> bool {
        self.bytes == Bytes::Read && !self.column.binary.is_empty()
    }

    /// The leaves to read.
    pub(crate) fn leaves(&self) -> impl Iterator<Item = usize> + use<'a> {
        let binary = if self.bytes == Bytes::Read { self.column.binary.as_slice() } else { &[] };
        binary.iter().chain(&self.column.others).copied()
    }

    /// Whether a row has images.
    pub(crate) fn any(&self, batch: &RecordBatch, row: usize) -> bool {
        child(&batch.clone().into(), &self.column.name).is_some_and(|column| match column.as_list_opt::<i32>() {
            Some(list) => list.is_valid(row) && list.value_length(row) > 0,
            None => holds(column, row),
        })
    }

    /// The images of a row; `None` if the column is null.
    fn images(&self, columns: &StructArray, row: usize) -> Result<Option<Vec<Given>>, String> {
        let Some(column) = child(columns, &self.column.name).filter(|column| holds(column, row)) else {
            return Ok(None);
        };
        let list = column.as_list_opt::<i32>().map(|list| list.value(row));
        let (items, range) = match &list {
            Some(items) => (items, 0..items.len()),
            None => (column, row..row + 1),
        };
        let each = range.enumerate();
        each.map(|(place, item)| self.image(items, item).map_err(|problem| of_image(place, &problem)))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    fn image(&self, items: &ArrayRef, item: usize) -> Result<Given, String> {
        if !holds(items, item) {
            return Err(format!("is null; {EXPECTED}"));
        }
        if let Some(texts) = items.as_string_opt::<i32>() {
            return Ok(Given { bytes: None, text: Some(texts.value(item).into()) });
        }
        if let Some(binary) = items.as_binary_opt::<i32>() {
            return Ok(Given { bytes: Some(binary.value(item).into()), text: None });
        }
        let Some(fields) = items.as_struct_opt() else {
            return Err(format!("is of type {}; {EXPECTED}", items.data_type()));
        };
        let field = |name: &str| fields.column_by_name(name).filter(|field| holds(field, item));
        let bytes = match field("bytes") {
            // That they are there is all that matters to who does not read them.
            None => (self.bytes == Bytes::There).then(Vec::new),
            Some(bytes) => match (bytes.as_binary_opt::<i32>(), bytes.as_string_opt::<i32>()) {
                (Some(binary), _) => Some(binary.value(item).into()),
                (_, Some(texts)) => Some(from_base64(texts.value(item))?),
                _ => return Err(format!("has bytes of type {}, not binary", bytes.data_type())),
            },
        };
        let path = match field("path").map(|paths| paths.as_string_opt::<i32>().ok_or(paths)) {
            None => None,
            Some(Ok(paths)) => Some(paths.value(item).into()),
            Some(Err(paths)) => return Err(format!("has a path of type {}, not text", paths.data_type())),
        };
        Ok(Given { bytes, text: path })
    }
}

/// The images of a row with the name of their column: the first that is not null.
pub(crate) fn images_of<'a>(
    batch: &RecordBatch,
    row: usize,
    columns: &[ImagesAt<'a>],
) -> Result<Option<(&'a str, Vec<Given>)>, Problem> {
    let batch = StructArray::from(batch.clone());
    for at in columns {
        let name = at.column.name.as_str();
        if let Some(images) = at.images(&batch, row).map_err(|problem| Problem::of_column(name, problem))? {
            return Ok(Some((name, images)));
        }
    }
    Ok(None)
}

/// Whether there is something; a column without anything may have no type, and then says that nothing is null.
fn holds(column: &ArrayRef, row: usize) -> bool {
    *column.data_type() != DataType::Null && column.is_valid(row)
}

/// A column by its dotted name.
fn child<'a>(columns: &'a StructArray, name: &str) -> Option<&'a ArrayRef> {
    columns.column_by_name(name).or_else(|| {
        let (outer, inner) = name.split_once('.')?;
        child(columns.column_by_name(outer)?.as_struct_opt()?, inner)
    })
}

/// Whether a leaf holds bytes that are no text and no number.
pub(crate) fn is_binary(leaf: &ColumnDescriptor) -> bool {
    matches!(leaf.physical_type(), Type::BYTE_ARRAY | Type::FIXED_LEN_BYTE_ARRAY)
        && matches!(leaf.logical_type_ref(), None | Some(LogicalType::Bson))
        && matches!(leaf.converted_type(), ConvertedType::NONE | ConvertedType::BSON)
}

/// Notes the columns of a schema.
pub(crate) fn column_types(prefix: &str, fields: &Fields, types: &mut ColumnTypes) {
    for field in fields {
        let name = format!("{prefix}{}", field.name());
        if let DataType::Struct(fields) = field.data_type() {
            column_types(&format!("{name}."), fields, types);
        }
        types.entry(name).or_default().extend(match field.data_type() {
            DataType::Null => None,
            DataType::Boolean => Some(ColumnType::Boolean),
            DataType::List(_) => Some(ColumnType::List),
            DataType::Struct(_) | DataType::Map(..) => Some(ColumnType::Struct),
            DataType::Binary | DataType::FixedSizeBinary(_) => Some(ColumnType::Binary),
            number if number.is_numeric() => Some(ColumnType::Number),
            _ => Some(ColumnType::Text),
        });
    }
}
