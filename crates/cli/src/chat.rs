//! `firesight chat`.

use std::io::{BufRead as _, IsTerminal as _, Write as _, stderr, stdin, stdout};
use std::path::Path;

use anyhow::anyhow;
use clap::Args;
use firesight_train::{Conversation, harmless_lines};

use crate::output::is_closed_pipe;
use crate::speech::Speaker;

/// What can be said beside questions.
const HELP: &str =
    "/image FILE shows an image with the next question, /forget begins anew, /quit or the end of input ends";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    speaker: Speaker,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let speaker = arguments.speaker;
    let mut conversation = Conversation::new(&speaker.speech(), speaker.system.clone(), &speaker.image)?;
    if stdin().is_terminal() {
        eprintln!("{HELP}");
    }
    loop {
        if stdin().is_terminal() {
            eprint!("> ");
            stderr().flush()?;
        }
        let mut line = String::new();
        if stdin().lock().read_line(&mut line)? == 0 {
            return Ok(());
        }
        // What cannot be done with one line is no end of the conversation.
        match line.trim() {
            "" => {}
            "/quit" => return Ok(()),
            "/forget" => conversation.forget(),
            line => {
                let done = match line.strip_prefix("/image ") {
                    Some(path) => conversation.show(Path::new(path.trim())).map_err(Into::into),
                    None if line.starts_with('/') => Err(anyhow!("no {line}; {HELP}")),
                    None => answer(&mut conversation, line),
                };
                match done {
                    Err(error) if is_closed_pipe(&error) => return Err(error),
                    Err(error) => eprintln!("{}", harmless_lines(&format!("{error:#}"))),
                    Ok(()) => {}
                }
            }
        }
    }
}

/// Prints the answer as it comes.
fn answer(conversation: &mut Conversation, question: &str) -> anyhow::Result<()> {
    let mut failed = None;
    let answer = conversation.ask(question, |piece| {
        let shown = write!(stdout(), "{}", harmless_lines(piece)).and_then(|()| stdout().flush());
        failed = failed.take().or(shown.err());
    })?;
    writeln!(stdout())?;
    if answer.truncated {
        eprintln!("(cut off after {} tokens)", answer.tokens);
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}
