use burn::tensor::Tensor;

/// A penalty on the distance to the reference policy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KlPenalty {
    /// Its coefficient in the loss (beta); above zero, since a penalty of nothing would still cost a reference model.
    pub coefficient: f32,
    /// Multiplies each token's estimate by the importance ratio, gradient included.
    ///
    /// Off in the GRPO paper. On, the estimate is unbiased for tokens drawn from the old policy (DeepSeek-V3.2, arXiv
    /// 2512.02556), and the gradient differs even when both policies are the same, as the ratio's own gradient
    /// remains. At the sequence level the factor is the sequence ratio, whose gradient reaches every token of it.
    pub ratio_weighted: bool,
}

/// The k3 estimate of KL(policy || reference) for tokens drawn from the policy, in nats: e^d - d - 1 with
/// d = log reference - log policy (GRPO, arXiv 2402.03300, eq. 4). Never negative; zero where both agree.
///
/// # Shapes
/// All `[completions, tokens]`.
#[must_use]
pub fn k3(log_probs: Tensor<2>, ref_log_probs: Tensor<2>) -> Tensor<2> {
    let difference = ref_log_probs - log_probs;
    difference.clone().exp() - difference - 1.0
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::k3;

    #[test]
    fn k3_of_hand_computed_differences() {
        let device = Device::flex();
        let policy = Tensor::<2>::from_data([[-1.0, -1.0, -2.0]], &device);
        let reference = Tensor::<2>::from_data([[-1.0, -2.0, -1.0]], &device);
        let found: Vec<f32> = k3(policy, reference).into_data().try_to_vec().unwrap();
        // d = 0, -1, 1: 0, e^-1, e - 2.
        for (found, expected) in found.iter().zip([0.0, 0.367_879_44, 0.718_281_8]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }
}
