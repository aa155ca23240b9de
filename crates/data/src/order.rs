//! In which order rows are asked for.

use std::num::NonZeroU64;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Rounds of the permutation's network. Four make it pseudo-random on large domains (Luby and Rackoff, 1988); small
/// data sets have a few bits a half and need more to reach all orders equally often.
const ROUNDS: usize = 16;

/// An endless, reproducible sequence of rows: every epoch goes through all of them once.
///
/// Question `n` is a function of the seed, the length and `n` alone, so a cursor is a number, and a run that goes on
/// reads what it would have read. Nothing as long as the data set is kept: an epoch's order is a Feistel network over
/// the least domain of `4^k` places that holds all rows, keyed by seed and epoch, and a place beyond the last row is
/// walked on from until it meets a row (cycle walking, Black and Rogaway, "Ciphers with Arbitrary Finite Domains",
/// 2002), less than four steps in the mean. Mitchell et al., "Bandwidth-Optimal Random Shuffling for GPUs"
/// (arXiv:2106.06161) shuffle the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    seed: u64,
    len: NonZeroU64,
    shuffle: bool,
}

impl Order {
    /// An order of `len` rows; without `shuffle`, that of the files.
    #[must_use]
    pub fn new(seed: u64, len: NonZeroU64, shuffle: bool) -> Self {
        Self { seed, len, shuffle }
    }

    /// The row that question `n` of the sequence asks for, both counted from 0.
    #[must_use]
    pub fn index(&self, n: u64) -> u64 {
        let (epoch, place) = (n / self.len, n % self.len);
        if self.shuffle { Permutation::new(self.seed, epoch, self.len).image(place) } else { place }
    }
}

struct Permutation {
    len: u64,
    /// Bits of one of the two halves of a place, 1 to 32.
    bits: u32,
    keys: [u64; ROUNDS],
    /// 1 to swap two images. Rounds on halves of several bits are even permutations, all of them together too; with a
    /// coin for one more transposition, odd ones are as likely.
    swap: u64,
}

impl Permutation {
    fn new(seed: u64, epoch: u64, len: NonZeroU64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(epoch);
        let len = len.get();
        let bits = (u64::BITS - (len - 1).leading_zeros()).div_ceil(2).max(1);
        Self { len, bits, keys: std::array::from_fn(|_| random.next_u64()), swap: random.next_u64() & 1 }
    }

    fn image(&self, place: u64) -> u64 {
        let mut image = self.network(place);
        // The walk comes back to `place` at the latest, which is a row.
        while image >= self.len {
            image = self.network(image);
        }
        image
    }

    fn network(&self, place: u64) -> u64 {
        let (mut left, mut right) = (place >> self.bits, place & ((1 << self.bits) - 1));
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) >> (u64::BITS - self.bits)));
        }
        let image = left << self.bits | right;
        if image < 2 { image ^ self.swap } else { image }
    }
}

/// Makes every bit of the result depend on every bit of `value`: the finalizer of SplitMix64 (Steele et al., 2014).
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashMap;

    use super::*;

    fn order(seed: u64, len: u64) -> Order {
        Order::new(seed, NonZeroU64::new(len).unwrap(), true)
    }

    fn epoch(order: &Order, epoch: u64) -> Vec<u64> {
        let len = order.len.get();
        (epoch * len..(epoch + 1) * len).map(|n| order.index(n)).collect()
    }

    /// The mean of the chi-square statistic of `degrees` degrees of freedom is `degrees`, its variance twice that.
    fn assert_even(counts: impl Iterator<Item = u64>, cells: usize, draws: u64) {
        let expected = draws as f64 / cells as f64;
        let seen: Vec<f64> = counts.map(|count| count as f64).collect();
        let unseen = (cells - seen.len()) as f64 * expected;
        let statistic = unseen + seen.iter().map(|count| (count - expected).powi(2) / expected).sum::<f64>();
        let degrees = cells as f64 - 1.0;
        let deviations = (statistic - degrees) / (2.0 * degrees).sqrt();
        assert!(deviations.abs() < 5.0, "{cells} cells: {deviations} standard deviations from even");
    }

    #[test]
    fn an_epoch_is_every_row_once() {
        let mut sizes: Vec<u64> = (1..300).collect();
        sizes.extend([1023, 1024, 1025, 4096, 4097, 16_385, 65_535, 65_536, 65_537, 100_000]);
        for len in sizes {
            for at in [0, 1, 7] {
                let mut rows = epoch(&order(3, len), at);
                rows.sort_unstable();
                assert!(rows.into_iter().eq(0..len), "{len} rows, epoch {at}");
            }
        }
    }

    #[test]
    fn the_largest_lengths_stay_in_range_and_do_not_repeat() {
        for len in [u64::from(u32::MAX), 1 << 62, u64::MAX] {
            let rows: Vec<u64> = (0..2000).map(|n| order(1, len).index(n)).collect();
            assert!(rows.iter().all(|row| *row < len));
            let distinct: std::collections::HashSet<_> = rows.iter().collect();
            assert_eq!(distinct.len(), rows.len());
            let upper_half = rows.iter().filter(|row| **row >= len / 2).count();
            assert!((900..1100).contains(&upper_half), "{upper_half} of 2000 in the upper half of {len}");
        }
    }

    /// All orders of a few rows are equally likely: the strongest thing that can be asked.
    #[test]
    fn every_order_of_a_few_rows_is_as_likely() {
        for (len, orders) in [(2, 2), (3, 6), (4, 24), (5, 120), (6, 720)] {
            let draws = 40 * orders + 4000;
            let mut counts = HashMap::new();
            for at in 0..draws {
                *counts.entry(epoch(&order(11, len), at)).or_insert(0) += 1;
            }
            assert_even(counts.into_values(), orders as usize, draws);
        }
    }

    /// Where a row goes, and what follows it, of a data set that just fits the network's domain, barely does not, and
    /// is neither.
    #[test]
    fn rows_go_anywhere_and_neighbours_part() {
        for len in [16, 17, 50, 64, 65] {
            let (mut places, mut gaps, draws) = (HashMap::new(), HashMap::new(), 400 * len);
            for at in 0..draws {
                let rows = epoch(&order(5, len), at);
                let place = |row| rows.iter().position(|other| *other == row).unwrap() as u64;
                *places.entry(place(0)).or_insert(0) += 1;
                *gaps.entry((place(1) + len - place(0)) % len).or_insert(0) += 1;
            }
            assert_even(places.into_values(), len as usize, draws);
            assert_even(gaps.into_values(), len as usize - 1, draws);
        }
    }

    #[test]
    fn seeds_and_epochs_differ_and_a_cursor_is_a_number() {
        let first = epoch(&order(0, 1000), 0);
        for other in [epoch(&order(0, 1000), 1), epoch(&order(1, 1000), 0), epoch(&order(1, 1000), 1)] {
            // A random permutation leaves one place of all as it is, in the mean.
            let same = first.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!(same < 10, "{same} of 1000 in the same place");
        }
        let through: Vec<u64> = (0..2500).map(|n| order(0, 1000).index(n)).collect();
        let again: Vec<u64> = (1234..2500).map(|n| order(0, 1000).index(n)).collect();
        assert_eq!(through[1234..], again);
    }

    #[test]
    fn without_shuffling_the_order_is_that_of_the_files() {
        let order = Order::new(9, NonZeroU64::new(3).unwrap(), false);
        assert_eq!((0..7).map(|n| order.index(n)).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2, 0]);
    }

    /// A run that goes on with a later version reads the same rows.
    #[test]
    fn the_sequence_stays_as_it_is() {
        let found = (epoch(&order(0, 10), 0), epoch(&order(7, 10), 3), order(7, 1_000_000).index(12_345_678));
        assert_eq!(found, (vec![8, 7, 3, 6, 5, 4, 1, 0, 9, 2], vec![4, 9, 0, 8, 3, 1, 7, 6, 2, 5], 266_992));
    }
}
