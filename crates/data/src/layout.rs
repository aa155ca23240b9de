//! What the columns of a data set mean.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Error;

/// How rows become questions. All of it has defaults that read what is published (see the [crate](crate)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Layout {
    /// Which column is what.
    pub columns: Columns,
    /// The directory that paths of images start from; without it, that of the data file.
    pub image_root: Option<PathBuf>,
    /// What stands in a text for an image.
    pub placeholder: String,
    /// Standing instructions for conversations that have none of their own.
    pub system: Option<String>,
    /// A Jinja template for the text of the last message of the user: `prompt` is that text with its placeholders
    /// (`content`, as EasyR1 calls it, is the same) and `columns` the row's columns. A name that is not there is an
    /// error.
    pub template: Option<String>,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            columns: Columns::default(),
            image_root: None,
            placeholder: "<image>".into(),
            system: None,
            template: None,
        }
    }
}

impl Layout {
    /// Refuses what no row could be read with.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.placeholder.trim().is_empty() {
            return Err(Error::Setting { key: "placeholder", problem: "must have a character that is seen".into() });
        }
        Ok(())
    }
}

/// Which column is what. A dot reaches into a struct: `reward_model.ground_truth`.
///
/// A column that is named must be there in every row, but images may be missing. What is not named is the first of its
/// defaults that the row has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Columns {
    /// The question: a text or a conversation. Defaults: `prompt`, `messages`, `problem`, `question`.
    pub prompt: Option<String>,
    /// What a verifier compares with: text, a number or a truth value, or a list of one of these. Tags around a text,
    /// `<answer>3</answer>`, are left out, and so is the point of a whole number, 7.0. Defaults: `answer`,
    /// `reward_model.ground_truth`, `ground_truth`, `solution`.
    pub answer: Option<String>,
    /// An image or a list of images. Defaults: `images`, `image`.
    pub images: Option<String>,
    /// A worked answer for supervised learning: a text, or one message of the assistant. Default: `completion`.
    pub completion: Option<String>,
}

/// What a column can be to a row.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Meaning {
    Prompt,
    Answer,
    Images,
    Completion,
}

impl Meaning {
    pub(crate) const ALL: [Self; 4] = [Self::Prompt, Self::Answer, Self::Images, Self::Completion];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Answer => "answer",
            Self::Images => "images",
            Self::Completion => "completion",
        }
    }

    fn defaults(self) -> &'static [&'static str] {
        match self {
            Self::Prompt => &["prompt", "messages", "problem", "question"],
            Self::Answer => &["answer", "reward_model.ground_truth", "ground_truth", "solution"],
            Self::Images => &["images", "image"],
            Self::Completion => &["completion"],
        }
    }
}

impl Columns {
    pub(crate) fn named(&self, meaning: Meaning) -> Option<&str> {
        match meaning {
            Meaning::Prompt => &self.prompt,
            Meaning::Answer => &self.answer,
            Meaning::Images => &self.images,
            Meaning::Completion => &self.completion,
        }
        .as_deref()
    }

    /// The columns to look at, in this order.
    pub(crate) fn candidates(&self, meaning: Meaning) -> Vec<&str> {
        self.named(meaning).map_or_else(|| meaning.defaults().to_vec(), |column| vec![column])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_layout_is_read_from_toml_and_an_unknown_key_is_named() {
        assert_eq!(toml::from_str::<Layout>("").unwrap(), Layout::default());
        let text = "template = \"{{ prompt }}\"\n[columns]\nanswer = \"reward_model.ground_truth\"\n";
        let layout: Layout = toml::from_str(text).unwrap();
        assert_eq!(layout.columns.answer.as_deref(), Some("reward_model.ground_truth"));
        assert_eq!(toml::from_str::<Layout>(&toml::to_string(&layout).unwrap()).unwrap(), layout);
        for (text, key) in [("colums = {}", "colums"), ("columns = { image = \"x\" }", "image")] {
            assert!(toml::from_str::<Layout>(text).unwrap_err().to_string().contains(&format!("`{key}`")));
        }
    }
}
