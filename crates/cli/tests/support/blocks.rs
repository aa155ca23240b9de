//! The fenced blocks of a chapter, and what each is for.

/// A fenced block.
#[derive(Debug, PartialEq)]
pub(crate) struct Block {
    /// The line of its fence, counted from 1.
    pub(crate) line: usize,
    pub(crate) what: What,
    pub(crate) text: String,
}

/// What a block is for.
#[derive(Debug, PartialEq)]
pub(crate) enum What {
    /// To be executed.
    Commands,
    /// What the last commands print: each line is one of these, in this order, and `...` stands for anything.
    Output,
    /// To be written to the file of this name.
    File(String),
    /// To be read.
    Shown,
}

/// What is wrong with a chapter: the line, and why.
pub(crate) type Problem = (usize, String);

/// The blocks of a chapter in their order.
pub(crate) fn blocks(chapter: &str) -> Result<Vec<Block>, Problem> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut above = "";
    let mut lines = chapter.lines().enumerate().map(|(place, text)| (place + 1, text));
    while let Some((line, fence)) = lines.next() {
        let problem = |problem: &str| (line, problem.to_owned());
        let Some(language) = fence.strip_prefix("```") else {
            if fence.trim_start().starts_with("```") {
                return Err(problem("the fence is indented"));
            }
            if !fence.is_empty() {
                above = fence;
            }
            continue;
        };
        let mut text = String::new();
        loop {
            match lines.next() {
                Some((_, "```")) => break,
                Some((_, more)) => text = text + more + "\n",
                None => return Err(problem("the fence is not closed")),
            }
        }
        let before = blocks.last().map(|block| &block.what);
        let what = what(language, above, &text, before).map_err(|reason| problem(&reason))?;
        blocks.push(Block { line, what, text });
        above = "";
    }
    Ok(blocks)
}

/// What a block is for, by its language, the line above it, its text, and the block before it.
fn what(language: &str, above: &str, text: &str, before: Option<&What>) -> Result<What, String> {
    match (language, file_name(above)?) {
        (_, Some(name)) => Ok(What::File(name.into())),
        // Of a checkout of the repository, and minutes long.
        ("sh", None) if text.lines().any(|line| line.starts_with("cargo ")) => Ok(What::Shown),
        ("sh", None) => Ok(What::Commands),
        ("console", None) if text.starts_with("$ ") => Ok(What::Shown),
        ("console", None) => Err("what is typed has to begin with \"$ \"".into()),
        ("text", None) => match before {
            Some(What::Commands | What::Output) => Ok(What::Output),
            Some(What::Shown) => Ok(What::Shown),
            _ => Err("no command stands before what it prints".into()),
        },
        ("python", None) => Err("a program needs the name of its file above it, as in `reward.py`:".into()),
        ("toml", None) => match toml::from_str::<toml::Table>(text) {
            Ok(_) => Ok(What::Shown),
            Err(error) => Err(error.to_string()),
        },
        _ => Ok(What::Shown),
    }
}

/// The name of a file, if the line above a block is code and a colon, and nothing else.
fn file_name(above: &str) -> Result<Option<&str>, String> {
    let name = above.strip_prefix('`').and_then(|above| above.strip_suffix("`:")).filter(|name| !name.contains('`'));
    let Some(name) = name else { return Ok(None) };
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    if name.chars().all(plain) && name.split('/').all(|part| !part.is_empty() && part != "..") {
        return Ok(Some(name));
    }
    Err(format!("{name:?} is no name of a file in the directory of a chapter"))
}
