//! The page around the data: one file, whose styles and scripts stand in it.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use sha2::{Digest as _, Sha256};

use serde::Serialize;

/// What a page shows its data with.
pub(crate) struct Page {
    pub(crate) body: &'static str,
    pub(crate) style: &'static str,
    pub(crate) script: &'static str,
}

/// The texts of files under `assets`, one after the other, behind those of every page.
macro_rules! page {
    ($body:literal, styles: [$($style:literal),*], scripts: [$($script:literal),*]) => {
        $crate::report::Page {
            body: include_str!(concat!("../../assets/", $body)),
            style: concat!(
                include_str!("../../assets/uplot/uPlot.min.css"),
                include_str!("../../assets/report/page.css"),
                $(include_str!(concat!("../../assets/", $style)),)*
            ),
            script: concat!(
                "\"use strict\";\n",
                include_str!("../../assets/uplot/uPlot.iife.min.js"),
                "\n",
                include_str!("../../assets/report/elements.js"),
                include_str!("../../assets/report/chart.js"),
                $(include_str!(concat!("../../assets/", $script)),)*
            ),
        }
    };
}
pub(crate) use page;

impl Page {
    /// The whole file.
    pub(crate) fn with(&self, data: &impl Serialize) -> String {
        let Self { body, style, script } = self;
        format!(
            include_str!("../../assets/report/page.html"),
            style_hash = hash(style),
            script_hash = hash(script),
            style = style,
            body = body,
            script = script,
            data = json(data),
        )
    }
}

/// Data as they stand in the page. Nothing that a model writes can end the element around them, which takes a <.
pub(super) fn json(data: &impl Serialize) -> String {
    serde_json::to_string(data).expect("keys are texts").replace('<', "\\u003c")
}

/// How a policy of content security names the one text that it allows.
fn hash(text: &str) -> String {
    format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(text)))
}
