//! Every stage of KAWHI against an independent program in double precision, written from the paper's equations.
#![allow(clippy::unwrap_used)]

mod support;

use std::ops::Range;

use burn::tensor::{Int, Tensor};
use firesight_kawhi::{
    ImageView, Normalize, SgufConfig, WeightConfig, alignment, paragraph_weights, sguf, token_weights,
};
use serde_json::Value;

/// Double precision against double precision: what is left is the order of summation and the cube root.
const DOUBLE: f64 = 1e-9;
/// Alignment is taken in single precision, and the softmax divides its rounding by tau.
const SINGLE: f64 = 1e-6;

fn cases(name: &str) -> Vec<Value> {
    let Value::Array(cases) = support::json(&support::oracle_dir().join("kawhi").join(name)) else {
        panic!("{name} is no array")
    };
    assert!(!cases.is_empty(), "{name} has no case");
    cases
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

fn singles(value: &Value) -> Vec<f32> {
    floats(value).into_iter().map(|value| value as f32).collect()
}

fn flags(value: &Value) -> Vec<bool> {
    value.as_array().unwrap().iter().map(|value| value.as_bool().unwrap()).collect()
}

fn indices(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|value| value.as_u64().unwrap() as usize).collect()
}

fn size(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

/// Largest difference over the largest expected value, in double precision. NaN is infinitely wrong.
fn relative_error(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(1e-6f64, |scale, value| scale.max(value.abs()));
    let worst = found.iter().zip(expected).map(|(found, expected)| (found - expected).abs() / scale);
    worst.fold(0.0, |worst, next| if next.is_nan() { f64::INFINITY } else { worst.max(next) })
}

#[test]
fn key_regions_agree_at_every_stage() {
    let mut largest = 0.0f64;
    for case in cases("sguf.json") {
        let name = format!("{} in cells of {}", case["image"], case["cell"]);
        let path = support::oracle_dir().join("kawhi").join(case["image"].as_str().unwrap());
        let pixels = image::open(&path).unwrap().to_rgb8();
        let view = ImageView {
            width: pixels.width() as usize,
            height: pixels.height() as usize,
            pixels: pixels.as_raw(),
            cell: size(&case["cell"]),
        };
        // The reference keeps no cell of a component below the threshold.
        let config = SgufConfig {
            sigma: case["sigma"].as_f64().unwrap(),
            delta_s: case["delta_s"].as_f64().unwrap(),
            delta_l: case["delta_l"].as_f64().unwrap(),
            beta: case["beta"].as_f64().unwrap(),
            r_skip: 1.0,
            seed: 0,
        };
        let regions = sguf(&view, &config).unwrap();
        let structure = &regions.structure;
        assert_eq!(vec![structure.grid.0, structure.grid.1], indices(&case["grid"]), "{name}");
        for (stage, found) in [
            ("lambda_max", &structure.lambda_max),
            ("lambda_min", &structure.lambda_min),
            ("luminance", &structure.luminance),
            ("energy", &regions.energy),
            ("threshold", &vec![regions.threshold]),
        ] {
            let expected =
                if stage == "threshold" { vec![case[stage].as_f64().unwrap()] } else { floats(&case[stage]) };
            let error = relative_error(found, &expected);
            assert!(error < DOUBLE, "{stage} of {name} is off by {error:e}");
            largest = largest.max(error);
        }
        assert_eq!(regions.component, indices(&case["component"]), "components of {name}");
        let key = flags(&case["key"]);
        assert_eq!(regions.structured, key, "key cells of {name}");
        // Where the reference selects nothing, everything is selected.
        let expected = if key.contains(&true) { key.clone() } else { vec![true; key.len()] };
        assert_eq!(regions.key, expected, "selected cells of {name}");

        // The default share comes on top and takes a rounded part of every weak component.
        let config = SgufConfig { r_skip: 0.7, ..config };
        let regions = sguf(&view, &config).unwrap();
        assert_eq!(regions, sguf(&view, &config).unwrap(), "{name} is not reproducible");
        for component in 0..regions.energy.len() {
            let cells: Vec<usize> = (0..key.len()).filter(|&cell| regions.component[cell] == component).collect();
            let kept = cells.iter().filter(|&&cell| regions.key[cell]).count();
            let expected = if key[cells[0]] { cells.len() } else { (0.3 * cells.len() as f64).round() as usize };
            assert_eq!(kept, expected, "component {component} of {name}");
        }
    }
    println!("largest relative error of a stage: {largest:e}");
}

#[test]
fn alignment_and_weights_agree() {
    let device = support::device();
    let (mut alignment_error, mut weight_error, mut end_error) = (0.0f64, 0.0f64, 0.0f64);
    for (index, case) in cases("weights.json").into_iter().enumerate() {
        let heads = indices(&case["heads"]);
        let (tokens, visual, dim) = (size(&case["response_len"]), size(&case["image_tokens"]), size(&case["head_dim"]));
        let (query_heads, key_heads) = (size(&case["hq"]), size(&case["hk"]));
        let queries = Tensor::<1>::from_floats(singles(&case["q"]).as_slice(), &device);
        let keys = Tensor::<1>::from_floats(singles(&case["k"]).as_slice(), &device).reshape([key_heads, visual, dim]);
        let queries = queries.reshape([query_heads, tokens, dim]).swap_dims(0, 1);
        let selected: Vec<usize> =
            flags(&case["selected"]).into_iter().enumerate().filter(|&(_, key)| key).map(|(token, _)| token).collect();
        // What a policy hands out: the chosen heads, the selected keys.
        let rows = |rows: &[usize]| {
            let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
            Tensor::<1, Int>::from_ints(rows.as_slice(), &device)
        };
        let response = queries.select(1, rows(&heads));
        let shared: Vec<usize> = heads.iter().map(|head| head / (query_heads / key_heads)).collect();
        let found = alignment(response, keys.select(1, rows(&selected)), &shared).unwrap();
        let found: Vec<f64> = found.into_data().iter::<f32>().map(f64::from).collect();
        let expected = floats(&case["alpha"]);
        let error = relative_error(&found, &expected);
        assert!(error < SINGLE, "alignment of case {index} is off by {error:e}");
        alignment_error = alignment_error.max(error);

        let spans: Vec<Range<usize>> =
            case["spans"].as_array().unwrap().iter().map(indices).map(|span| span[0]..span[1]).collect();
        let config = WeightConfig {
            tau: case["tau"].as_f64().unwrap(),
            lambda: case["lam"].as_f64().unwrap(),
            w_min: case["w_min"].as_f64().unwrap(),
            w_max: case["w_max"].as_f64().unwrap(),
            normalize: Normalize::None,
        };
        // The weights alone, from the reference's own alignment.
        let weights = paragraph_weights(&expected, &spans, &config).unwrap();
        let error = relative_error(&weights, &floats(&case["paragraph_weights"]));
        assert!(error < DOUBLE, "paragraph weights of case {index} are off by {error:e}");
        weight_error = weight_error.max(error);
        // And from end to end.
        let tokens: Vec<f64> = token_weights(&found, &spans, &config).unwrap().into_iter().map(f64::from).collect();
        let error = relative_error(&tokens, &floats(&case["token_weights"]));
        assert!(error < SINGLE, "token weights of case {index} are off by {error:e}");
        end_error = end_error.max(error);
    }
    println!("largest relative errors: alignment {alignment_error:e}, weights {weight_error:e}, both {end_error:e}");
}
