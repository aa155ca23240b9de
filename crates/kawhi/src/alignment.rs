use burn::tensor::{FloatDType, Int, Tensor, TensorData};

use crate::Error;

/// How closely each response token attends to the selected visual tokens (arXiv 2603.27375, eq. 12-13): the cosine of
/// its query with their keys, averaged over the selected heads and tokens.
///
/// The mean of dot products is the dot product with the mean, so the keys are averaged once and no attention map is
/// formed: O(heads (tokens + selected) head_dim). The result is detached and in single precision.
///
/// # Shapes
/// - `queries`: `[completions, query heads, tokens, head_dim]`, the completions of one prompt
/// - `visual_keys`: `[key heads, visual tokens, head_dim]`; with fewer key heads than query heads, consecutive query
///   heads share a key head
/// - `heads`: indices of query heads
/// - `selected`: indices of visual tokens
/// - returns `[completions, tokens]`, in -1 to 1
///
/// # Errors
/// When the shapes do not belong to one attention layer, or a selection is empty or out of range.
pub fn alignment(
    queries: Tensor<4>,
    visual_keys: Tensor<3>,
    heads: &[usize],
    selected: &[usize],
) -> Result<Tensor<2>, Error> {
    let [completions, query_heads, tokens, head_dim] = queries.dims();
    let [key_heads, visual_tokens, key_dim] = visual_keys.dims();
    if key_heads == 0 || query_heads % key_heads != 0 || head_dim != key_dim {
        return Err(Error::AttentionShape { queries: queries.dims(), keys: visual_keys.dims() });
    }
    if heads.is_empty() {
        return Err(Error::NoHeads);
    }
    if let Some(&head) = heads.iter().find(|&&head| head >= query_heads) {
        return Err(Error::HeadOutOfRange { head, heads: query_heads });
    }
    if selected.is_empty() {
        return Err(Error::NoSelection);
    }
    if let Some(&token) = selected.iter().find(|&&token| token >= visual_tokens) {
        return Err(Error::SelectionOutOfRange { token, tokens: visual_tokens });
    }

    let device = queries.device();
    let indices = |indices: &mut dyn Iterator<Item = usize>| {
        let indices: Vec<i64> = indices.map(|index| index as i64).collect();
        let count = indices.len();
        Tensor::<1, Int>::from_data(TensorData::new(indices, [count]), &device)
    };

    let shared_by = query_heads / key_heads;
    let keys = visual_keys.detach().cast(FloatDType::F32).select(1, indices(&mut selected.iter().copied()));
    let keys = (keys.clone() / norm(keys)).mean_dim(1);
    let keys = keys.select(0, indices(&mut heads.iter().map(|head| head / shared_by)));
    let keys = keys.reshape([1, heads.len(), 1, head_dim]);

    let queries = queries.detach().cast(FloatDType::F32);
    // Choosing every head in order would only copy the largest tensor here.
    let every_head = heads.iter().copied().eq(0..query_heads);
    let queries = if every_head { queries } else { queries.select(1, indices(&mut heads.iter().copied())) };
    let cosines = (queries.clone() * keys).sum_dim(3) / norm(queries);
    Ok(cosines.mean_dim(1).reshape([completions, tokens]))
}

/// Euclidean length along the last dimension, kept away from zero: a zero vector, such as padding, aligns with nothing.
fn norm<const D: usize>(vectors: Tensor<D>) -> Tensor<D> {
    vectors.square().sum_dim(D - 1).sqrt().clamp_min(1e-12)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use burn::tensor::Device;

    use super::*;

    fn found(queries: Tensor<4>, keys: Tensor<3>, heads: &[usize], selected: &[usize]) -> Vec<f32> {
        alignment(queries, keys, heads, selected).unwrap().into_data().iter::<f32>().collect()
    }

    fn close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} is not {expected:?}");
    }

    #[test]
    fn cosines_are_averaged_over_selected_tokens_and_heads() {
        let device = Device::flex();
        // One completion of two tokens, two query heads on one key head, three visual tokens.
        let queries = Tensor::from_data([[[[2.0, 0.0], [3.0, 4.0]], [[0.0, 5.0], [-1.0, 0.0]]]], &device);
        let keys = Tensor::from_data([[[7.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]], &device);
        // Head 0: cosines with the first two keys are (1, 0) and (0.6, 0.8); head 1: (0, 1) and (-1, 0).
        close(&found(queries.clone(), keys.clone(), &[0], &[0, 1]), &[0.5, 0.7]);
        close(&found(queries.clone(), keys.clone(), &[1], &[0, 1]), &[0.5, -0.5]);
        close(&found(queries.clone(), keys.clone(), &[0, 1], &[0, 1]), &[0.5, 0.1]);
        close(&found(queries, keys, &[0], &[2]), &[-1.0, -0.6]);
    }

    #[test]
    fn consecutive_query_heads_share_a_key_head() {
        let device = Device::flex();
        let queries = Tensor::from_data([[[[1.0, 0.0]], [[1.0, 0.0]], [[1.0, 0.0]], [[1.0, 0.0]]]], &device);
        let keys = Tensor::from_data([[[1.0, 0.0]], [[0.0, 1.0]]], &device);
        let of_head = |head| found(queries.clone(), keys.clone(), &[head], &[0]);
        for (head, expected) in [1.0, 1.0, 0.0, 0.0].into_iter().enumerate() {
            close(&of_head(head), &[expected]);
        }
    }

    #[test]
    fn padding_aligns_with_nothing() {
        let device = Device::flex();
        let queries = Tensor::from_data([[[[0.0, 0.0], [0.0, 1.0]]]], &device);
        close(&found(queries, Tensor::from_data([[[0.0, 3.0]]], &device), &[0], &[0]), &[0.0, 1.0]);
    }

    #[test]
    fn errors_are_named() {
        let device = Device::flex();
        let queries = Tensor::<4>::ones([1, 4, 3, 2], &device);
        let keys = Tensor::<3>::ones([2, 5, 2], &device);
        let run = |keys: &Tensor<3>, heads: &[usize], selected: &[usize]| {
            alignment(queries.clone(), keys.clone(), heads, selected).unwrap_err()
        };
        assert!(matches!(run(&keys, &[], &[0]), Error::NoHeads));
        assert!(matches!(run(&keys, &[4], &[0]), Error::HeadOutOfRange { head: 4, heads: 4 }));
        assert!(matches!(run(&keys, &[0], &[]), Error::NoSelection));
        assert!(matches!(run(&keys, &[0], &[5]), Error::SelectionOutOfRange { token: 5, tokens: 5 }));
        for wrong in [Tensor::ones([3, 5, 2], &device), Tensor::ones([2, 5, 4], &device)] {
            assert!(matches!(run(&wrong, &[0], &[0]), Error::AttentionShape { .. }));
        }
    }
}
