//! What is read of a Parquet file, and when.
#![allow(clippy::unwrap_used)]

mod fixtures;

use std::fs::{self, File};
use std::path::Path;

use firesight_data::{Columns, DataSet, Error, Layout};
use fixtures::{Writing, png, rows};
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use serde_json::{Value, json};

/// Overwrites a column of the second row group.
fn damage(path: &Path, column: &str) {
    let reader = SerializedFileReader::new(File::open(path).unwrap()).unwrap();
    let group = reader.metadata().row_group(1);
    let leaf = group.columns().iter().find(|leaf| leaf.column_path().string().ends_with(column)).unwrap();
    let (start, length) = leaf.byte_range();
    let mut contents = fs::read(path).unwrap();
    contents[start as usize..(start + length) as usize].fill(0xff);
    fs::write(path, contents).unwrap();
}

fn with_bytes(statistics: bool) -> fixtures::Both {
    let source = |bytes: &dyn Fn(&[u8]) -> String| {
        let images =
            |seeds: &[u8]| seeds.iter().map(|seed| json!({"bytes": bytes(&png(*seed)), "path": "x"})).collect();
        let row = |seeds: &[u8]| json!({"prompt": "?", "images": Value::Array(images(seeds))});
        vec![row(&[1]), row(&[2, 3]), row(&[]), row(&[4])]
    };
    fixtures::Both::write(source, Writing { statistics, ..Writing::default() })
}

#[test]
fn images_are_not_read_to_check_them_where_statistics_tell() {
    let open = |both: &fixtures::Both| DataSet::open(&[both.path("data.parquet")], &Layout::default(), 0);
    let both = with_bytes(true);
    damage(&both.path("data.parquet"), "bytes");
    let data = open(&both).unwrap();
    assert_eq!(data.summary(0).unwrap().images.greatest(), 2);
    assert_eq!(data.row(1).unwrap().images.len(), 2);
    assert!(matches!(data.row(3).unwrap_err(), Error::Parquet { .. }));

    let both = with_bytes(false);
    assert_eq!(open(&both).unwrap().len().get(), 4);
    damage(&both.path("data.parquet"), "bytes");
    assert!(matches!(open(&both).unwrap_err(), Error::Parquet { .. }));

    let both = with_bytes(true);
    damage(&both.path("data.parquet"), "prompt");
    assert!(matches!(open(&both).unwrap_err(), Error::Parquet { .. }));
}

#[test]
fn paths_beside_bytes_that_are_null_must_be_files() {
    let source = |bytes: &dyn Fn(&[u8]) -> String| {
        let row = |image: Value| json!({"prompt": "?", "image": image});
        vec![row(json!({"bytes": bytes(&png(1)), "path": "no.png"})), row(json!({"path": "no.png"}))]
    };
    for rows_a_group in [1, 2] {
        let both = fixtures::Both::write(source, Writing { rows_a_group, ..Writing::default() });
        for opened in both.open(&Layout::default(), 0) {
            let Error::Rows { bad, more: 0 } = opened.unwrap_err() else { panic!() };
            assert_eq!((bad.len(), bad[0].origin.row), (1, 2));
            assert!(bad[0].problem.starts_with("image 1 is not there: "), "{}", bad[0].problem);
        }
    }
}

#[test]
fn bytes_in_the_place_of_a_text_are_called_so() {
    use arrow_schema::{DataType, Field, Schema};
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("data.parquet");
    let open = |binary: &[&str], row: &Value, answer: Option<&str>| {
        let data_type = |name: &str| if binary.contains(&name) { DataType::Binary } else { DataType::Utf8 };
        let names = row.as_object().unwrap().keys();
        let schema = Schema::new(names.map(|name| Field::new(name, data_type(name), true)).collect::<Vec<_>>());
        fixtures::write_parquet_as(&path, schema, std::slice::from_ref(row), Writing::default());
        let columns = Columns { answer: answer.map(Into::into), ..Columns::default() };
        DataSet::open(std::slice::from_ref(&path), &Layout { columns, ..Layout::default() }, 1)
    };
    let row = json!({"prompt": "3f", "problem": "3f", "answer": "37"});
    for (binary, answer, column) in [
        (&["prompt", "problem"][..], None, "prompt"),
        (&["answer"], None, "answer"),
        (&["problem"], Some("problem"), "problem"),
    ] {
        let expected = format!("{}: column {column} is binary, not text", path.display());
        assert_eq!(open(binary, &row, answer).unwrap_err().to_string(), expected);
    }
    assert_eq!(rows(&open(&["prompt"], &row, None).unwrap())[0].prompt, "3f");
}

/// pandas writes them for a column of integers with a null in it.
#[test]
fn whole_floats_are_answers_without_a_point() {
    use arrow_schema::{DataType, Field, Schema};
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("data.parquet");
    let field = |name: &str, data_type| Field::new(name, data_type, true);
    let schema = Schema::new(vec![field("prompt", DataType::Utf8), field("answer", DataType::Float64)]);
    let answers = [json!(7.0), Value::Null, json!(-120.0), json!(-0.0), json!(0.5), json!(1e20)];
    let written: Vec<_> = answers.iter().map(|answer| json!({"prompt": "?", "answer": answer})).collect();
    fixtures::write_parquet_as(&path, schema, &written, Writing::default());
    let rows = rows(&DataSet::open(&[path], &Layout::default(), 0).unwrap());
    let answers: Vec<_> = rows.iter().map(|row| row.answer.as_deref()).collect();
    assert_eq!(answers, [Some("7"), None, Some("-120"), Some("0"), Some("0.5"), Some("1e+20")]);
}

/// Types that JSON has not, and numbers that it has not.
#[test]
fn columns_of_other_types_are_texts_and_numbers() {
    use arrow_schema::{DataType, Field, Schema, TimeUnit};
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("data.parquet");
    let field = |name: &str, data_type| Field::new(name, data_type, true);
    let schema = Schema::new(vec![
        field("prompt", DataType::LargeUtf8),
        field("day", DataType::Date32),
        field("time", DataType::Timestamp(TimeUnit::Microsecond, None)),
        field("answer", DataType::Decimal128(9, 2)),
        field("score", DataType::Float32),
        field("matrix", DataType::new_list(DataType::new_list(DataType::Int8, true), true)),
    ]);
    let row = json!({"prompt": "?", "day": "2026-01-02", "time": "2026-01-02T03:04:05", "answer": "1.50", "score": "NaN", "matrix": [[1, 2], []]});
    fixtures::write_parquet_as(&path, schema, &[row], Writing::default());
    let row = rows(&DataSet::open(&[path], &Layout::default(), 0).unwrap()).remove(0);
    assert_eq!(row.answer.as_deref(), Some("1.5"));
    assert_eq!(
        Value::Object(row.columns),
        json!({"prompt": "?", "day": "2026-01-02", "time": "2026-01-02T03:04:05", "answer": 1.5,
               "matrix": [[1, 2], []]})
    );
}
