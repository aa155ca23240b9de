use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// An independent random stream: ChaCha8 keyed by `seed` and `domain`, with `index` as the stream number.
///
/// Streams are counter-based: which numbers come out depends on the three arguments alone, never on how many streams
/// exist or in which order they are drawn from. `domain` keeps unrelated uses of one seed apart (sampling, shuffling,
/// data generation); `index` is what is counted inside it, such as [`crate::Sampling::first_stream`] plus the place
/// of a completion.
#[must_use]
pub fn stream(seed: u64, domain: u64, index: u64) -> impl Rng + Clone + Send {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&domain.to_le_bytes());
    let mut generator = ChaCha8Rng::from_seed(key);
    generator.set_stream(index);
    generator
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::stream;

    #[test]
    fn a_stream_depends_on_each_argument_and_on_nothing_else() {
        let first = stream(7, 1, 3).next_u64();
        assert_eq!(first, stream(7, 1, 3).next_u64());
        for other in [stream(8, 1, 3).next_u64(), stream(7, 2, 3).next_u64(), stream(7, 1, 4).next_u64()] {
            assert_ne!(first, other);
        }
    }
}
