//! `firesight generate`.

use clap::Args;
use firesight_train::Conversation;
use serde_json::json;

use crate::output::Output;
use crate::speech::Speaker;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    speaker: Speaker,
    /// The question.
    question: String,
    /// Answers to draw.
    #[arg(long, short = 'n', default_value_t = 1)]
    answers: usize,
}

pub(crate) fn run(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    let Arguments { speaker, question, answers } = arguments;
    let mut conversation = Conversation::new(&speaker.speech(), speaker.system.clone(), &speaker.image)?;
    let drawn = conversation.answers(&question, answers)?;
    let shown: Vec<String> = drawn
        .iter()
        .map(|answer| format!("{}{}", answer.text, if answer.truncated { " [cut off at --max-tokens]" } else { "" }))
        .collect();
    let found: Vec<_> = drawn
        .iter()
        .map(|answer| json!({ "text": answer.text, "tokens": answer.tokens, "truncated": answer.truncated }))
        .collect();
    output.result(&found, shown.join("\n\n"))
}
