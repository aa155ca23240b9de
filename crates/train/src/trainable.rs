//! What of a model a run changes, as a table.

use firesight_vlm::{Component, Parameter};

use crate::table::table;

/// The parameters of a model by component, those of adapters included, and how many of them are trained.
pub(crate) fn trainable_table(parameters: &[Parameter]) -> String {
    let mut rows = Vec::new();
    let mut row = |name: &str, belongs: &dyn Fn(&Parameter) -> bool| {
        let members = || parameters.iter().filter(|parameter| belongs(parameter));
        let all: usize = members().map(Parameter::count).sum();
        let trained: usize = members().filter(|parameter| parameter.trainable).map(Parameter::count).sum();
        if all > 0 {
            let share = format!("{:.1} %", 100.0 * trained as f64 / all as f64);
            rows.push([name.to_owned(), grouped(all), grouped(trained), share]);
        }
    };
    for component in Component::ALL {
        row(component.name(), &|parameter| parameter.component == component);
    }
    row("all", &|_| true);
    table(["", "parameters", "trained", ""], rows).to_string()
}

/// `1234567` as `1,234,567`.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(|group| String::from_utf8_lossy(group));
    groups.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    #[test]
    fn digits_stand_in_groups_of_three() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (7_615_616, "7,615,616")] {
            assert_eq!(super::grouped(number), text);
        }
    }
}
