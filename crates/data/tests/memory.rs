//! A data set is not kept in memory, however it is written.
#![allow(clippy::unwrap_used)]

mod fixtures;

use std::fs::File;
use std::io::{BufWriter, Write as _};

use firesight_data::{DataSet, Layout, Order};
use fixtures::Writing;
use parquet::basic::Compression;
use peak_alloc::PeakAlloc;
use serde_json::json;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const MEBIBYTE: usize = 1 << 20;

#[test]
fn the_heap_stays_far_below_the_size_of_the_files() {
    let scratch = tempfile::tempdir().unwrap();
    // 160 images of half a mebibyte; compression makes nothing of them.
    let mut image = fixtures::png(1);
    image.extend((0..MEBIBYTE as u32 / 2).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 13) as u8));
    let lines = scratch.path().join("data.jsonl");
    let mut file = BufWriter::new(File::create(&lines).unwrap());
    for n in 0..160 {
        let row = json!({"prompt": format!("{n}?"), "images": [{"bytes": fixtures::base64(&image)}]});
        writeln!(file, "{row}").unwrap();
    }
    drop(file);
    let write = |name: &str, statistics| {
        let path = scratch.path().join(name);
        let row = |n| json!({"prompt": format!("{n}?"), "images": [{"bytes": fixtures::hex(&image), "path": "x"}]});
        let rows: Vec<_> = (0..160).map(row).collect();
        let writing = Writing { rows_a_group: 40, statistics, compression: Compression::UNCOMPRESSED };
        fixtures::write_parquet(&path, &rows, writing);
        path
    };
    // Without statistics, images are read to check them: some at a time by each thread.
    for (path, limit) in [(write("a.parquet", true), 4), (write("b.parquet", false), 40), (lines, 40)] {
        let before = HEAP.current_usage();
        HEAP.reset_peak_usage();
        let data = DataSet::open(std::slice::from_ref(&path), &Layout::default(), 0).unwrap();
        let opened = HEAP.peak_usage().saturating_sub(before) / MEBIBYTE;
        HEAP.reset_peak_usage();
        let order = Order::new(0, data.len(), true);
        (0..160).for_each(|n| assert_eq!(data.row(order.index(n)).unwrap().images.len(), 1));
        let read = HEAP.peak_usage().saturating_sub(before) / MEBIBYTE;
        let kept = HEAP.current_usage().saturating_sub(before) / 1024;
        println!("{}: {opened} MiB to open, {read} MiB to read rows, {kept} KiB kept", path.display());
        assert!(opened < limit && read < 8 && kept < 256, "{opened} MiB, {read} MiB, {kept} KiB");
    }
}
