#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use super::*;
use crate::config::Evaluation;

/// A model of the oracle, which answers nothing right, at length.
fn config() -> RunConfig {
    let mut config = RunConfig::example("tests/fixtures/oracle/models/qwen3_vl_tied");
    (config.evaluation.examples, config.reinforcement.max_tokens) = (3, 2);
    config
}

fn search(config: &RunConfig, threshold: f64, destination: &Destination, stop: &Stop) -> Result<HeadSearch, Error> {
    vision_critical_heads(config, threshold, destination, stop, &mut Progress::silent())
}

/// As a process that is killed leaves it: `rows` of the five measurements done.
fn half_finished(whole: &Path, directory: &Path, rows: usize) {
    let mut record: toml::Table = fs::read_to_string(whole.join("search.toml")).unwrap().parse().unwrap();
    record["right"].as_array_mut().unwrap().truncate(rows);
    fs::create_dir(directory).unwrap();
    fs::write(directory.join("search.toml"), toml::to_string(&record).unwrap()).unwrap();
}

#[test]
fn a_search_that_goes_on_is_the_one_that_never_stopped() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let files =
        |name: &str| ["search.toml", "heads.toml", "heads.png"].map(|file| fs::read(path(name).join(file)).unwrap());
    let (config, go) = (config(), Stop::default());
    let Ok(HeadSearch::Complete { found, .. }) = search(&config, 0.043, &Destination::Exactly(path("whole")), &go)
    else {
        panic!("not complete")
    };
    assert_eq!((found.scores.len(), found.standard_errors.len(), found.questions), (4, 4, Some(3)));
    assert_eq!(VisionCriticalHeads::from_file(&path("whole/heads.toml")).unwrap(), found);

    let stopped = Stop::default();
    let _ = stopped.request();
    for rows in 0..5 {
        let name = format!("resumed-{rows}");
        half_finished(&path("whole"), &path(&name), rows);
        let resume = Destination::Resume(path(&name));
        let Ok(HeadSearch::Stopped { directory }) = search(&config, 0.043, &resume, &stopped) else { panic!("{rows}") };
        assert!(!directory.join("heads.toml").exists());
        assert!(matches!(search(&config, 0.043, &resume, &go), Ok(HeadSearch::Complete { .. })));
        assert!(files(&name) == files("whole"), "{rows}");
    }

    // Nothing is measured again: what the record says is what is judged.
    let resume = Destination::Resume(path("resumed-0"));
    let record = path("resumed-0/search.toml");
    let text = fs::read_to_string(&record).unwrap();
    let rows = r#"right = ["111", "110", "100", "111", "011"]"#;
    let invented = format!("{rows}\n\n{}", text.split_once("\n\n").unwrap().1);
    fs::write(&record, &invented).unwrap();
    for (threshold, critical) in [(0.5, vec![1]), (0.043, vec![0, 1, 3])] {
        let Ok(HeadSearch::Complete { found, .. }) = search(&config, threshold, &resume, &stopped) else { panic!() };
        assert_eq!((&found.critical, found.baseline), (&critical, 1.0));
        assert_eq!(VisionCriticalHeads::from_file(&path("resumed-0/heads.toml")).unwrap(), found);
        let table = heads_table(&found, 90);
        assert!(table.lines().take(9).all(|line| line.chars().count() == 90), "{table}");
        let ends = table.lines().filter(|line| line.contains("critical")).count();
        assert_eq!(ends, critical.len() + 1, "{table}");
        // Without head 0 one question of three is lost, as likely by chance; its fall is as large as its standard
        // error.
        assert_eq!(table.contains("critical, or chance"), critical.contains(&0), "{table}");
    }
    fs::write(&record, invented.replace("110", "11")).unwrap();
    let error = search(&config, 0.043, &resume, &go).unwrap_err().to_string();
    assert!(error.contains("search.toml: row 1 of right is not a 1 or 0 for each of 3 questions"), "{error}");
}

#[test]
fn what_cannot_be_searched_is_named_and_leaves_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    let error = |change: &dyn Fn(&mut RunConfig), threshold| {
        let mut config = config();
        change(&mut config);
        let error = search(&config, threshold, &Destination::Exactly(out.clone()), &Stop::default()).unwrap_err();
        assert!(!out.exists());
        error.to_string()
    };
    assert!(error(&|_| {}, 1.0).starts_with("threshold is 1"));
    assert!(error(&|_| {}, f64::NAN).starts_with("threshold is NaN"));
    assert!(error(&|config| config.evaluation.examples = 1, 0.1).starts_with("evaluation.examples comes to 1"));
    let fresh = RunConfig::example("models/qwen-small").model;
    assert!(
        error(&|config| config.model = fresh.clone(), 0.1)
            .ends_with("models/qwen-small, which has no weights to search")
    );

    // A directory belongs to one search.
    let stopped = Stop::default();
    let _ = stopped.request();
    search(&config(), 0.1, &Destination::Exactly(out.clone()), &stopped).unwrap();
    let again = search(&config(), 0.1, &Destination::Exactly(out.clone()), &stopped);
    assert!(matches!(again, Err(Error::RunDirectoryExists { .. })));
    let other = RunConfig { evaluation: Evaluation { examples: 4, ..config().evaluation }, ..config() };
    let error = search(&other, 0.1, &Destination::Resume(out.clone()), &stopped).unwrap_err().to_string();
    assert!(error.ends_with("holds a run with questions = 3; the configuration to go on with has 4"), "{error}");
}
