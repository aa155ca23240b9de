//! The page around the data: one file, whose styles and scripts stand in it.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use sha2::{Digest as _, Sha256};

use serde::Serialize;

use super::Content;

const STYLE: &str = concat!(
    include_str!("../../assets/uplot/uPlot.min.css"),
    include_str!("../../assets/report/page.css"),
    include_str!("../../assets/report/rollouts.css"),
);

const SCRIPT: &str = concat!(
    "\"use strict\";\n",
    include_str!("../../assets/uplot/uPlot.iife.min.js"),
    "\n",
    include_str!("../../assets/report/elements.js"),
    include_str!("../../assets/report/overview.js"),
    include_str!("../../assets/report/accuracy.js"),
    include_str!("../../assets/report/curves.js"),
    include_str!("../../assets/report/picture.js"),
    include_str!("../../assets/report/tokens.js"),
    include_str!("../../assets/report/rollouts.js"),
);

/// The whole file.
pub(super) fn page(content: &Content) -> String {
    format!(
        include_str!("../../assets/report/page.html"),
        style_hash = hash(STYLE),
        script_hash = hash(SCRIPT),
        style = STYLE,
        script = SCRIPT,
        data = json(content),
    )
}

/// Data as they stand in the page. Nothing that a model writes can end the element around them, which takes a <.
pub(super) fn json(data: &impl Serialize) -> String {
    serde_json::to_string(data).expect("keys are texts").replace('<', "\\u003c")
}

/// How a policy of content security names the one text that it allows.
fn hash(text: &str) -> String {
    format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(text)))
}
