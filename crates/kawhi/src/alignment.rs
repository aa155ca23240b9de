use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};

use crate::Error;

/// How closely each response token attends to visual tokens (arXiv 2603.27375, eq. 12-13): the cosine of its state with
/// their keys, averaged over heads and visual tokens.
///
/// The mean of dot products is the dot product with the mean, so the keys are averaged once and no attention map is
/// formed: O(heads (tokens + visual tokens) head_dim). The result is detached and in single precision.
///
/// # Shapes
/// - `response`: `[tokens, heads, head_dim]`, of one prompt
/// - `visual_keys`: `[key heads, visual tokens, head_dim]`
/// - `key_heads`: for every head of `response` the key head that it is compared with
/// - returns `[tokens]`, in -1 to 1
///
/// # Errors
/// When the shapes do not belong to one attention layer, or there are no heads or visual tokens.
pub fn alignment(response: Tensor<3>, visual_keys: Tensor<3>, key_heads: &[usize]) -> Result<Tensor<1>, Error> {
    let keys = mean_keys(response.dims(), &[visual_keys], key_heads)?;
    Ok(cosines(response, keys))
}

/// The mean of the unit keys of every prompt's visual tokens, for every head of a response of this shape:
/// `[prompts, heads, head_dim]`.
pub(crate) fn mean_keys(
    response: [usize; 3],
    visual_keys: &[Tensor<3>],
    key_heads: &[usize],
) -> Result<Tensor<3>, Error> {
    let [_, heads, head_dim] = response;
    if heads == 0 {
        return Err(Error::NoHeads);
    }
    for of_prompt in visual_keys {
        let keys @ [key_heads_there, visual_tokens, key_dim] = of_prompt.dims();
        if heads != key_heads.len() || head_dim != key_dim || key_heads.iter().any(|&head| head >= key_heads_there) {
            return Err(Error::AttentionShape { response, keys });
        }
        if visual_tokens == 0 {
            return Err(Error::NoSelection);
        }
    }
    // All prompts at once as far as that goes: with small models it is the number of operations that costs.
    let keys = Tensor::cat(visual_keys.to_vec(), 1).detach().cast(FloatDType::F32);
    let unit = keys.clone() / norm(keys);
    let mut start = 0;
    let means = visual_keys.iter().map(|of_prompt| {
        let visual_tokens = of_prompt.dims()[1];
        start += visual_tokens;
        unit.clone().narrow(1, start - visual_tokens, visual_tokens).mean_dim(1)
    });
    let means = Tensor::cat(means.collect(), 1);
    let key_heads = indices(key_heads, &means.device());
    Ok(means.select(0, key_heads).swap_dims(0, 1))
}

/// For choosing rows of a tensor.
pub(crate) fn indices(values: &[usize], device: &Device) -> Tensor<1, Int> {
    let values: Vec<i64> = values.iter().map(|&value| value as i64).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

/// Cosines of a response with keys of a mean length, averaged over heads: `[tokens]`. `keys` has a row for every token,
/// or one for all of them.
pub(crate) fn cosines(response: Tensor<3>, keys: Tensor<3>) -> Tensor<1> {
    let [tokens, _, _] = response.dims();
    let response = response.detach().cast(FloatDType::F32);
    let cosines = (response.clone() * keys).sum_dim(2) / norm(response);
    cosines.mean_dim(1).reshape([tokens])
}

/// Euclidean length along the last dimension, kept away from zero: a zero vector aligns with nothing.
fn norm<const D: usize>(vectors: Tensor<D>) -> Tensor<D> {
    (vectors.clone() * vectors).sum_dim(D - 1).sqrt().clamp_min(1e-12)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn found(response: Tensor<3>, keys: Tensor<3>, key_heads: &[usize]) -> Vec<f32> {
        alignment(response, keys, key_heads).unwrap().into_data().iter::<f32>().collect()
    }

    fn close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} is not {expected:?}");
    }

    #[test]
    fn cosines_are_averaged_over_tokens_and_heads() {
        let device = Device::flex();
        // Two tokens, two heads, two visual tokens of one key head.
        let response = Tensor::from_data([[[2.0, 0.0], [0.0, 5.0]], [[3.0, 4.0], [-1.0, 0.0]]], &device);
        let keys = Tensor::from_data([[[7.0, 0.0], [0.0, 2.0]]], &device);
        // Head 0: cosines are (1, 0) and (0.6, 0.8); head 1: (0, 1) and (-1, 0).
        close(&found(response.clone().narrow(1, 0, 1), keys.clone(), &[0]), &[0.5, 0.7]);
        close(&found(response.clone().narrow(1, 1, 1), keys.clone(), &[0]), &[0.5, -0.5]);
        close(&found(response, keys, &[0, 0]), &[0.5, 0.1]);
    }

    #[test]
    fn every_head_is_compared_with_its_own_keys() {
        let device = Device::flex();
        let response = Tensor::from_data([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]], &device);
        let keys = Tensor::from_data([[[1.0, 0.0]], [[0.0, 1.0]]], &device);
        for (key_heads, expected) in [([0, 0, 0], 1.0), ([0, 1, 0], 2.0 / 3.0), ([1, 0, 1], 1.0 / 3.0)] {
            close(&found(response.clone(), keys.clone(), &key_heads), &[expected]);
        }
    }

    #[test]
    fn every_prompt_has_the_mean_of_its_own_keys() {
        let device = Device::flex();
        // Two key heads; one visual token, then two.
        let one = Tensor::from_data([[[5.0, 0.0]], [[0.0, 2.0]]], &device);
        let two = Tensor::from_data([[[0.0, 1.0], [0.0, 3.0]], [[4.0, 0.0], [0.0, 4.0]]], &device);
        let found = mean_keys([9, 3, 2], &[one, two], &[1, 0, 1]).unwrap();
        let expected = Tensor::<3>::from_data(
            [[[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.0, 1.0], [0.5, 0.5]]],
            &device,
        );
        assert_eq!(found.into_data(), expected.into_data());
    }

    #[test]
    fn zeros_align_with_nothing() {
        let device = Device::flex();
        let response = Tensor::from_data([[[0.0, 0.0]], [[0.0, 1.0]]], &device);
        close(&found(response, Tensor::from_data([[[0.0, 3.0]]], &device), &[0]), &[0.0, 1.0]);
    }

    #[test]
    fn errors_are_named() {
        let device = Device::flex();
        let run = |response: [usize; 3], keys: [usize; 3], key_heads: &[usize]| {
            alignment(Tensor::ones(response, &device), Tensor::ones(keys, &device), key_heads).unwrap_err()
        };
        assert!(matches!(run([3, 0, 2], [2, 5, 2], &[]), Error::NoHeads));
        assert!(matches!(run([3, 1, 2], [2, 0, 2], &[0]), Error::NoSelection));
        for (keys, key_heads) in [([2, 5, 2], &[0, 1, 1][..]), ([2, 5, 4], &[0, 1]), ([2, 5, 2], &[0, 2])] {
            assert!(matches!(run([3, 2, 2], keys, key_heads), Error::AttentionShape { .. }));
        }
    }
}
