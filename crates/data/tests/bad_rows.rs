//! What cannot be used is named by file, row and column.
#![allow(clippy::unwrap_used)]

mod fixtures;

use std::fs;
use std::path::PathBuf;

use firesight_data::{Columns, DataSet, Error, Layout};
use fixtures::{Both, Writing, chain, png, rows};
use serde_json::{Value, json};

/// Opens a good row, the bad one and another good one in both formats, and expects what is said of the bad one.
fn assert_bad(layout: &Layout, bad: impl Fn(&dyn Fn(&[u8]) -> String) -> Value, column: Option<&str>, problem: &str) {
    let source = |bytes: &dyn Fn(&[u8]) -> String| {
        let mut good = bad(bytes);
        // Of the same columns, so that Parquet has one schema; all null but for what makes it good.
        for (_, value) in good.as_object_mut().unwrap() {
            *value = Value::Null;
        }
        let good = || {
            let mut good = good.clone();
            for (key, value) in [("prompt", "?"), ("verdict", "x")] {
                if good.get(key).is_none() || !bad(bytes)[key].is_array() {
                    good[key] = value.into();
                } else {
                    good[key] = json!([{"role": "user", "content": "?"}]);
                }
            }
            good
        };
        vec![good(), bad(bytes), good()]
    };
    let both = Both::write(source, Writing::default());
    for (name, opened) in ["data.jsonl", "data.parquet"].into_iter().zip(both.open(layout, 0)) {
        let root = both.scratch.path().display();
        let column = column.map(|column| format!(", column {column}")).unwrap_or_default();
        let problem = problem.replace("ROOT", &root.to_string());
        let expected = format!("a row cannot be used:\n{root}/{name}, row 2{column}: {problem}");
        assert_eq!(chain(&opened.unwrap_err()), expected);
    }
    for data in both.open(layout, 1) {
        let data = data.unwrap();
        assert_eq!((data.len().get(), data.good()), (3, 2));
        assert_eq!([0, 2].map(|index| data.row(index).unwrap().origin.row), [1, 3]);
        let Error::Row(bad) = data.row(1).unwrap_err() else { panic!() };
        assert_eq!(data.bad_rows(), [bad]);
    }
}

fn assert_plainly_bad(bad: &Value, column: &str, problem: &str) {
    assert_bad(&Layout::default(), |_| bad.clone(), Some(column), problem);
}

#[test]
fn prompts() {
    let none = "there is no prompt: it has none of the columns prompt, messages, problem, question";
    assert_bad(&Layout::default(), |_| json!({"prompt": null}), None, none);
    let empty = "asks nothing: the text of the last message is empty";
    assert_plainly_bad(&json!({"prompt": " \n"}), "prompt", empty);
    assert_plainly_bad(&json!({"prompt": "<image>"}), "prompt", empty);
    assert_plainly_bad(
        &json!({"prompt": [{"role": "narrator", "content": "?"}]}),
        "prompt",
        "message 1 has the role \"narrator\"; roles are system, user and assistant",
    );
    assert_plainly_bad(
        &json!({"prompt": [{"role": "system", "content": "Be brief."}]}),
        "prompt",
        "does not end with a message of the user, or with one and its answer",
    );
    assert_plainly_bad(
        &json!({"prompt": [{"role": "user", "content": null}]}),
        "prompt",
        "message 1 has a content that is null, not text or a list of parts",
    );
}

#[test]
fn parts() {
    // Their content is a list, so Parquet cannot have them beside a text: JSONL alone.
    for (part, problem) in [
        (json!({"type": "video"}), "has a part of type \"video\"; types are text and image"),
        (json!({"type": "text"}), "has a part whose text is null"),
        (json!("text"), "has a part of type \"\"; types are text and image"),
        (json!({"type": "text", "text": "<image>"}), "has image parts, and <image> in a text beside them"),
    ] {
        let row = json!({"prompt": [{"role": "user", "content": [{"type": "image"}, part]}], "image": "1.png"});
        assert_line(&row.to_string(), Some("prompt"), &format!("message 1 {problem}"));
    }
}

fn assert_line(line: &str, column: Option<&str>, problem: &str) {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("data.jsonl");
    // A blank line is no row but counts as a line.
    fs::write(&path, format!("\n{line}\n")).unwrap();
    let error = DataSet::open(std::slice::from_ref(&path), &Layout::default(), 0).unwrap_err();
    let column = column.map(|column| format!(", column {column}")).unwrap_or_default();
    assert_eq!(chain(&error), format!("a row cannot be used:\n{}, row 2{column}: {problem}", path.display()));
}

#[test]
fn lines() {
    assert_line("{\"prompt\": ", None, "is no JSON: EOF while parsing a value at column 10");
    assert_line("[1]", None, "is a list, not an object");
    assert_line("{\"prompt\": 3}", Some("prompt"), "is a number, not text or a list of messages");
}

#[test]
fn answers_and_completions() {
    assert_plainly_bad(
        &json!({"prompt": "?", "answer": ["a", "b"]}),
        "answer",
        "is a list, not text, a number or a truth value",
    );
    assert_plainly_bad(
        &json!({"prompt": "?", "completion": [{"role": "user", "content": "a"}]}),
        "completion",
        "is neither a text nor one message of the assistant",
    );
    assert_plainly_bad(
        &json!({"prompt": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a"}],
                "completion": "b"}),
        "prompt",
        "ends with an answer, and column completion has another",
    );
}

#[test]
fn a_column_that_is_named_must_be_in_every_row_but_images() {
    let columns = Columns { answer: Some("verdict".into()), images: Some("image".into()), ..Columns::default() };
    let layout = Layout { columns, ..Layout::default() };
    assert_bad(&layout, |_| json!({"prompt": "?", "verdict": null, "image": null}), Some("verdict"), "is missing");
}

#[test]
fn images() {
    let one = "has 2 of <image> in its text, but there is one image";
    assert_bad(
        &Layout::default(),
        |bytes| json!({"prompt": "<image><image>?", "image": {"bytes": bytes(&png(1))}}),
        Some("prompt"),
        one,
    );
    assert_plainly_bad(
        &json!({"prompt": "<image>?"}),
        "prompt",
        "has 1 of <image> in its text, but there are 0 images",
    );
    assert_plainly_bad(
        &json!({"prompt": "?", "image": "no.png"}),
        "image",
        "image 1 is not there: no file ROOT/no.png",
    );
    assert_plainly_bad(
        &json!({"prompt": "?", "images": ["https://example.org/1.png"]}),
        "images",
        "image 1 is \"https://example.org/1.png\": nothing is downloaded; give a path or the image itself",
    );
    let expected = "an image is a path, base64, or a struct with bytes or path";
    assert_plainly_bad(&json!({"prompt": "?", "images": [null]}), "images", &format!("image 1 is null; {expected}"));
    let nothing = "image 2 has neither bytes nor a path";
    assert_bad(
        &Layout::default(),
        |bytes| json!({"prompt": "?", "images": [{"bytes": bytes(&png(1)), "path": "x"}, {"path": null}]}),
        Some("images"),
        nothing,
    );
    let gone = "image 2 is not there: no file ROOT/y";
    assert_bad(
        &Layout::default(),
        |bytes| json!({"prompt": "?", "images": [{"bytes": bytes(&png(1)), "path": "x"}, {"path": "y"}]}),
        Some("images"),
        gone,
    );
}

#[test]
fn base64_that_is_broken() {
    let image = fixtures::base64(&png(1)).replace('=', "*");
    let column = Some("image");
    for (image, begins) in [
        (json!(image), "image 1 is no base64: Invalid symbol 42"),
        (json!({"bytes": "*"}), "image 1 is no base64: Invalid "),
        (json!("data:image/png;base64,*"), "image 1 is no base64: Invalid "),
        (json!("data:,hello"), "image 1 is a data URL without \";base64,\""),
        (json!({"bytes": [1]}), "image 1 bytes is a list, not text"),
        (json!(7), "image 1 is a number; an image is a path"),
        (
            json!("R0lGODlh".repeat(1000)),
            "image 1 is a text of 8000 bytes, neither a path nor a PNG, JPEG or WebP file in base64",
        ),
    ] {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("data.jsonl");
        fixtures::write_jsonl(&path, &[json!({"prompt": "?", "image": image})]);
        let Error::Rows { bad, more: 0 } = DataSet::open(&[path], &Layout::default(), 0).unwrap_err() else { panic!() };
        assert_eq!(bad[0].column.as_deref(), column);
        assert!(bad[0].problem.starts_with(begins), "{}", bad[0].problem);
    }
}

#[test]
fn templates() {
    let layout = |template: &str| Layout { template: Some(template.into()), ..Layout::default() };
    let problem = "undefined value: `promt` is undefined (in template:1)";
    assert_bad_beginning(&layout("{{ promt }}"), "prompt", problem);
    let error = DataSet::open(&[], &layout("{{ prompt"), 0).unwrap_err();
    assert!(error.to_string().starts_with("template: syntax error"), "{error}");
    let error = DataSet::open(&[], &Layout { placeholder: String::new(), ..Layout::default() }, 0).unwrap_err();
    assert_eq!(error.to_string(), "placeholder must have a character that is seen");
}

fn assert_bad_beginning(layout: &Layout, column: &str, problem: &str) {
    for opened in Both::write(|_| vec![json!({"prompt": "?"})], Writing::default()).open(layout, 0) {
        let Error::Rows { bad, .. } = opened.unwrap_err() else { panic!() };
        assert_eq!(bad[0].column.as_deref(), Some(column));
        assert!(bad[0].problem.starts_with(problem), "{}", bad[0].problem);
    }
}

#[test]
fn ten_bad_rows_are_listed_and_the_others_counted() {
    let source = |_: &dyn Fn(&[u8]) -> String| {
        (0..100).map(|n| json!({"prompt": if n % 3 == 0 { "" } else { "?" }, "n": n})).collect::<Vec<_>>()
    };
    let both = Both::write(source, Writing { rows_a_group: 7, ..Writing::default() });
    for opened in both.open(&Layout::default(), 33) {
        let Error::Rows { bad, more } = opened.unwrap_err() else { panic!() };
        assert_eq!(bad.iter().map(|bad| bad.origin.row).collect::<Vec<_>>(), [1, 4, 7, 10, 13, 16, 19, 22, 25, 28]);
        assert_eq!(more, 24);
    }
    for data in both.open(&Layout::default(), 34) {
        let data = data.unwrap();
        assert_eq!((data.len().get(), data.good()), (100, 66));
        assert_eq!(
            data.bad_rows().iter().map(|bad| bad.origin.row).collect::<Vec<_>>(),
            (1..=100).step_by(3).collect::<Vec<_>>()
        );
        for n in 0..100 {
            let row = data.row(n);
            assert_eq!(row.as_ref().is_ok_and(|row| row.columns["n"] == n), n % 3 != 0);
            let bad = row.as_ref().err().and_then(Error::row).map(|origin| origin.row);
            assert_eq!(bad, (n % 3 == 0).then_some(n + 1));
        }
    }
}

#[test]
fn a_picture_that_vanishes_moves_no_other_row() {
    let source = |_: &dyn Fn(&[u8]) -> String| {
        (0..9).map(|n| json!({"prompt": format!("{n}?"), "image": format!("{n}.png")})).collect::<Vec<_>>()
    };
    let both = Both::write(source, Writing::default());
    (0..9).for_each(|n| fs::write(both.path(&format!("{n}.png")), png(n)).unwrap());
    let before = both.open(&Layout::default(), 0).map(|data| rows(&data.unwrap()));
    fs::remove_file(both.path("4.png")).unwrap();
    for (data, before) in both.open(&Layout::default(), 1).into_iter().zip(&before) {
        let data = data.unwrap();
        assert_eq!(data.len().get(), 9);
        for (index, expected) in (0..).zip(before) {
            match data.row(index) {
                Ok(row) => assert!(index != 4 && row == *expected),
                Err(error) => assert!(index == 4 && error.row() == Some(&expected.origin), "{error}"),
            }
        }
    }
}

#[test]
fn a_data_set_without_a_good_row_is_empty() {
    let both = Both::write(|_| vec![json!({"prompt": ""})], Writing::default());
    for opened in both.open(&Layout::default(), 1) {
        assert!(matches!(opened, Err(Error::Empty { .. })));
    }
}

#[test]
fn files_and_columns() {
    let both = Both::write(|_| vec![json!({"prompt": "?", "extra": {"truth": 1}})], Writing::default());
    let layout = |answer: &str| Layout {
        columns: Columns { answer: Some(answer.into()), ..Columns::default() },
        ..Layout::default()
    };
    for opened in both.open(&layout("extra.trut"), 5) {
        let expected = "columns.answer: there is no column \"extra.trut\"; there are: extra, extra.truth, prompt";
        assert_eq!(opened.unwrap_err().to_string(), expected);
    }
    for opened in both.open(&layout("extra.truth"), 0) {
        assert_eq!(opened.unwrap().row(0).unwrap().answer.as_deref(), Some("1"));
    }
    let root = both.scratch.path().display();
    for (name, contents, problem) in [
        (
            "a.json",
            "[]",
            "ROOT/a.json: a JSON file cannot be read row by row; write JSONL, one object a line (jq -c '.[]')",
        ),
        (
            "a.jsonl.gz",
            "",
            "ROOT/a.jsonl.gz: a compressed file cannot be read from the middle; uncompress it, or write Parquet",
        ),
        ("a.csv", "", "ROOT/a.csv: data files are .jsonl, .ndjson and .parquet"),
        ("empty.jsonl", "\n", "the data set is empty: ROOT/empty.jsonl without a row that can be used"),
    ] {
        fs::write(both.path(name), contents).unwrap();
        let error = DataSet::open(&[both.path(name)], &Layout::default(), 0).unwrap_err();
        assert_eq!(chain(&error), problem.replace("ROOT", &root.to_string()));
    }
    fs::write(both.path("a.parquet"), "no Parquet").unwrap();
    let error = chain(&DataSet::open(&[both.path("a.parquet")], &Layout::default(), 0).unwrap_err());
    assert!(error.starts_with(&format!("cannot read {root}/a.parquet as Parquet: ")), "{error}");
    for name in ["no.jsonl", "no.json", "no"] {
        let error = chain(&DataSet::open(&[both.path(name)], &Layout::default(), 0).unwrap_err());
        assert!(error.starts_with(&format!("cannot read {root}/{name}: No such file")), "{error}");
    }
    fs::create_dir(both.path("x")).unwrap();
    let error = DataSet::open(&[both.path("x")], &Layout::default(), 0).unwrap_err();
    assert_eq!(error.to_string(), format!("{root}/x holds no .jsonl, .ndjson or .parquet file"));
    assert!(matches!(DataSet::open(&[], &Layout::default(), 0), Err(Error::Empty { .. })));
}

#[test]
fn what_changes_after_opening_is_told() {
    let both = Both::write(|_| vec![json!({"prompt": "?", "image": "1.png"})], Writing::default());
    fs::write(both.path("1.png"), png(1)).unwrap();
    let opened = both.open(&Layout::default(), 0).map(Result::unwrap);
    let error = opened[0].row(1).unwrap_err();
    assert_eq!((error.row(), chain(&error).as_str()), (None, "there is no row 1: the data set has 1"));
    let row = opened[1].row(0).unwrap();
    fs::remove_file(both.path("1.png")).unwrap();
    let root = both.scratch.path().display();
    for (name, data) in ["data.jsonl", "data.parquet"].into_iter().zip(&opened) {
        let expected = format!("{root}/{name}, row 1, column image: image 1 is not there: no file {root}/1.png");
        assert_eq!(chain(&data.row(0).unwrap_err()), expected);
    }
    let error = row.images[0].decode().unwrap_err();
    assert_eq!(error.row(), Some(&row.origin));
    let error = chain(&error);
    assert!(error.starts_with(&format!("{root}/data.parquet, row 1, image 1 (1.png): ")), "{error}");

    let paths: [PathBuf; 2] = ["data.jsonl", "data.parquet"].map(|name| both.path(name));
    for (path, data) in paths.iter().zip(&opened) {
        let mut contents = fs::read(path).unwrap();
        contents.push(b'\n');
        fs::write(path, contents).unwrap();
        let expected = format!("{} has changed since the data set was opened", path.display());
        let error = data.row(0).unwrap_err();
        assert_eq!((error.row(), chain(&error)), (None, expected));
    }
}
