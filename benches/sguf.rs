//! SGUF on images of about a quarter, one and four megapixels, in cells of 28 pixels.
//!
//! The target is one megapixel in less than 10 ms on one core.
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use firesight_kawhi::{ImageView, SgufConfig, sguf};

const CELL: usize = 28;

/// A colourful image: shapes of several sizes over a gradient, so that no shortcut for flat areas helps.
fn pixels(side: usize) -> Vec<u8> {
    (0..side * side)
        .flat_map(|at| {
            let (x, y) = (at % side, at / side);
            let shape = ((x / 37 + y / 53) % 3 * 60) as u8;
            [(x * 255 / side) as u8 ^ shape, (y * 255 / side) as u8, (x * y % 251) as u8]
        })
        .collect()
}

fn bench(criterion: &mut Criterion) {
    let config = SgufConfig::default();
    let mut group = criterion.benchmark_group("sguf");
    for cells in [18, 36, 72] {
        let side = cells * CELL;
        let pixels = pixels(side);
        let image = ImageView { width: side, height: side, pixels: &pixels, cell: CELL };
        group.throughput(Throughput::Elements((side * side) as u64));
        group.bench_function(format!("{side}x{side}"), |bencher| bencher.iter(|| sguf(black_box(&image), &config)));
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
