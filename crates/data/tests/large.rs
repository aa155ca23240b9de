//! Files far larger than what is kept of them, read by several threads at once.
#![allow(clippy::unwrap_used)]

mod fixtures;

use std::fs::File;
use std::io::{BufWriter, Write as _};

use firesight_data::{DataSet, Error, Layout, Order};
use fixtures::{Writing, rows};
use serde_json::json;

#[test]
fn lines_longer_than_any_buffer_are_rows_like_others() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("data.jsonl");
    let mut file = BufWriter::new(File::create(&path).unwrap());
    // Longer than a batch of lines, than the reader's buffer, and short ones between them; the last has no end.
    let lengths = [20 << 20, 1, 3 << 20, 2, 9 << 20, 1 << 20, 70_000, 3];
    for (number, length) in lengths.into_iter().enumerate() {
        let text = char::from(b'a' + number as u8).to_string().repeat(length);
        write!(file, "{}", json!({"prompt": text})).unwrap();
        if number + 1 < lengths.len() {
            file.write_all(b"\r\n\n").unwrap();
        }
    }
    drop(file);
    let data = DataSet::open(&[path], &Layout::default(), 0).unwrap();
    for (number, row) in rows(&data).into_iter().enumerate() {
        assert_eq!(row.prompt.len(), lengths[number]);
        assert!(row.prompt.bytes().all(|byte| byte == b'a' + number as u8));
        assert_eq!(row.origin.row, 2 * number as u64 + 1);
    }
}

#[test]
fn no_more_names_of_columns_are_kept_than_anybody_reads() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("data.jsonl");
    let row = |n: usize| {
        let fields: serde_json::Map<_, _> = (0..100).map(|field| (format!("{n}-{field}"), json!(1))).collect();
        json!({"prompt": "?", "counts": fields})
    };
    fixtures::write_jsonl(&path, &(0..300).map(row).collect::<Vec<_>>());
    let data = DataSet::open(&[path], &Layout::default(), 0).unwrap();
    assert_eq!(data.columns().len(), 10_000);
}

#[test]
fn many_batches_and_row_groups_keep_their_order_and_are_read_at_once() {
    let count = 5000;
    let source = |bytes: &dyn Fn(&[u8]) -> String| {
        let mut rows: Vec<_> = (0..count).map(|n| json!({"prompt": format!("{n}?"), "answer": n})).collect();
        rows[4321]["image"] = json!({"bytes": bytes(&fixtures::png(1))});
        rows[1111]["filler"] = "x".repeat(9 << 20).into();
        rows[77]["prompt"] = "".into();
        rows[2222]["prompt"] = "".into();
        rows
    };
    let both = fixtures::Both::write(source, Writing { rows_a_group: 700, ..Writing::default() });
    for data in both.open(&Layout::default(), 2) {
        let data = data.unwrap();
        let order = Order::new(5, data.len(), true);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let data = &data;
                scope.spawn(move || {
                    for n in (thread..400).step_by(4) {
                        let number = order.index(n);
                        let row = match data.row(number) {
                            Err(Error::Row(_)) if [77, 2222].contains(&number) => continue,
                            row => row.unwrap(),
                        };
                        assert_eq!(row.prompt, format!("{number}?"));
                        assert_eq!(row.origin.row, number + 1);
                        assert_eq!(row.images.len(), usize::from(number == 4321));
                    }
                });
            }
        });
        assert_eq!(data.row(4321).unwrap().images[0].decode().unwrap(), fixtures::picture(1));
    }
}
